"""Versions of an annotation on a Ray cluster, tiny preset: a changed folder, another model, retries cut short."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmva_platform.annotation import (
    ANNOTATION_SCHEMA,
    AnnotationSummary,
    annotate,
    open_annotation,
    update,
    verify,
)
from mmva_platform.settings import Settings

from ..unit.helpers.published import lively_bundle

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]
RATE = 16_000
EVERYTHING = (*ANNOTATION_SCHEMA.names, "embedding")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two models over the same backbones whose points differ; from fresh towers every point would be neutral."""
    folders = [tmp_path_factory.mktemp("models") / name for name in ("first", "second")]
    for seed, folder in enumerate(folders):
        lively_bundle(folder, seed, {"image": {"valence": 0.1 + 0.1 * seed, "arousal": 0.3}})
    return folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    media = tmp_path / "media"
    media.mkdir()
    for number in range(5):
        picture(media / f"picture-{number}.png", number)
    spoiled(media / "bad.png", 7)
    tone(media / "long.wav", 220, 9)
    tone(media / "short.wav", 330, 2)
    (media / "words.txt").write_text("A calm piece for solo piano.\n")
    return media


def picture(path: Path, seed: int) -> None:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (90, 120, 3), np.uint8)).save(path)


def spoiled(path: Path, seed: int) -> None:
    picture(path, seed)
    path.write_bytes(path.read_bytes()[:700])


def tone(path: Path, pitch: float, seconds: int) -> None:
    soundfile.write(path, np.sin(2 * np.pi * pitch * np.arange(seconds * RATE) / RATE) * 0.5, RATE)


@pytest.fixture
def annotated(folder: Path, tmp_path: Path) -> Callable[..., AnnotationSummary]:
    """Annotates the folder: (name of the output, model, **options)."""
    settings = Settings(home=tmp_path / "home")

    def run(name: str, model: Path, **options: Any) -> AnnotationSummary:
        return annotate(
            str(folder), str(model), str(tmp_path / "runs" / name), settings, workers=1, engine="torch", **options
        )

    return run


def rows_of(out: Path, version: int | None = None) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in open_annotation(str(out), version=version).table(EVERYTHING).to_pylist()}


def quarantined(out: Path) -> list[dict[str, Any]]:
    return open_annotation(str(out)).table(status="quarantined").to_pylist()


def work_of(out: Path) -> dict[str, int]:
    return {name: count for name, count in open_annotation(str(out)).record.totals.work.items() if count}


def data_files(out: Path) -> dict[str, int]:
    """Name -> time of modification."""
    return {path.name: path.stat().st_mtime_ns for path in out.glob("status=*/**/*.parquet")}


def points(rows: dict[str, dict[str, Any]], names: Sequence[str] = ("valence", "arousal")) -> np.ndarray:
    return np.array([[row[name] for name in names] for _, row in sorted(rows.items())], np.float64)


def test_a_changed_folder_and_then_another_model(
    folder: Path, tmp_path: Path, bundles: list[Path], annotated: Callable[..., AnnotationSummary]
) -> None:
    settings, out, fresh = Settings(home=tmp_path / "home"), tmp_path / "runs" / "out", tmp_path / "runs" / "fresh"
    annotated("out", bundles[0])
    first = data_files(out)
    size = (folder / "short.wav").stat().st_size
    tone(folder / "short.wav", 440, 2)  # other bytes, as many as before
    assert (folder / "short.wav").stat().st_size == size
    picture(folder / "picture-0.png", 50)
    (folder / "picture-1.png").unlink()
    (folder / "picture-2.png").rename(folder / "renamed.png")
    picture(folder / "new.png", 51)

    # The same model. Files whose items are all unchanged stay; rows beside changed ones are copied; the rest is read.
    summary = update(str(out), settings, workers=1)
    assert (summary.version, summary.changes) == (1, {"unchanged": 5, "new": 2, "changed": 2, "removed": 2})
    old, new = rows_of(out, 0), rows_of(out)
    unchanged = {"picture-3.png", "picture-4.png", "long.wav", "words.txt"}
    assert set(new) == unchanged | {"short.wav", "picture-0.png", "renamed.png", "new.png"}
    assert work_of(out) == {"carried": 3, "media": 4}  # not words.txt, which is alone in its file
    assert [row["id"] for row in quarantined(out)] == ["bad.png"]
    assert {name: new[name] for name in unchanged} == {name: old[name] for name in unchanged}
    for name in set(new) - {"words.txt"}:
        assert new[name]["sha256"] == hashlib.sha256((folder / name).read_bytes()).hexdigest()
    assert first.items() <= data_files(out).items()
    then, now = (open_annotation(str(out), version=version).all_files for version in (0, 1))
    kept = {(file.status, file.modality) for file in set(then) & set(now)}
    assert kept == {("ok", "caption"), ("quarantined", "image")}

    # Another model: its heads alone give what it gives from the media.
    summary = update(str(out), settings, model=str(bundles[1]), workers=1)
    annotated("fresh", bundles[1])
    assert (summary.version, work_of(out)) == (2, {"heads": 8})
    assert work_of(fresh) == {"media": 8, "quarantined": 1}
    heads, full = rows_of(out), rows_of(fresh)
    assert set(heads) == set(full)
    assert [row["id"] for row in quarantined(out)] == ["bad.png"]
    assert np.abs(points(heads) - points(new)).max() > 0.01
    np.testing.assert_allclose(points(heads), points(full), atol=1e-5)
    for name, row in full.items():
        for bound in ("valence_low", "valence_high", "arousal_low", "arousal_high"):
            assert heads[name][bound] == pytest.approx(row[bound], abs=1e-5)
        same = ("uri", "modality", "sha256", "duration_s", "mood", "model_digest")
        assert [heads[name][field] for field in same] == [row[field] for field in same]
        np.testing.assert_allclose(heads[name]["embedding"], row["embedding"], atol=1e-5)
        assert [window["start_s"] for window in heads[name]["windows"] or ()] == [
            window["start_s"] for window in row["windows"] or ()
        ]
    curve, wanted = ({str(w["start_s"]): w for w in rows["long.wav"]["windows"]} for rows in (heads, full))
    assert len(curve) == 5
    np.testing.assert_allclose(points(curve), points(wanted), atol=2e-3)
    assert rows_of(out, 0) == old
    for version in range(3):
        assert verify(str(out), settings, version).problems == ()
