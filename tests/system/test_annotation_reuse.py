"""Annotations upon earlier ones and retries, on a Ray cluster with the tiny preset."""

import hashlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmva_platform.annotation import (
    AnnotationSummary,
    annotate,
    generations,
    read_annotations,
    read_manifest,
    read_quarantine,
    retry,
    status,
    verify,
)
from mmva_platform.annotation.plan import read_plan
from mmva_platform.annotation.publish import MANIFEST_FILE
from mmva_platform.settings import Settings
from mmva_platform.storage import open_storage

from ..unit.published import lively_bundle  # noqa: TID252 - helpers of the unit tests

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]
RATE = 16_000
STAMPS = ("model_name", "model_version", "model_digest", "run_id", "shard", "annotated_at")


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


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in read_annotations(str(out)).to_pylist()}


def work_of(out: Path) -> dict[str, int]:
    return {name: count for name, count in read_manifest(open_storage(out)).totals.work.items() if count}


def points(rows: dict[str, dict[str, Any]], names: Sequence[str] = ("valence", "arousal")) -> np.ndarray:
    return np.array([[row[name] for name in names] for _, row in sorted(rows.items())], np.float64)


def test_a_changed_folder_and_then_another_model(
    folder: Path, tmp_path: Path, bundles: list[Path], annotated: Callable[..., AnnotationSummary]
) -> None:
    first, second, third, fresh = (tmp_path / "runs" / name for name in ("first", "second", "third", "fresh"))
    annotated("first", bundles[0])
    size = (folder / "short.wav").stat().st_size
    tone(folder / "short.wav", 440, 2)  # other bytes, as many as before
    assert (folder / "short.wav").stat().st_size == size
    picture(folder / "picture-0.png", 50)
    (folder / "picture-1.png").unlink()
    (folder / "picture-2.png").rename(folder / "renamed.png")
    picture(folder / "new.png", 51)

    # The same model: what is unchanged is carried over, everything else comes from its media.
    annotated("second", bundles[0], incremental=True)
    old, new = rows_of(first), rows_of(second)
    unchanged = {"picture-3.png", "picture-4.png", "long.wav", "words.txt"}
    assert set(new) == unchanged | {"short.wav", "picture-0.png", "renamed.png", "new.png"}
    assert work_of(second) == {"carried": 4, "media": 4, "quarantined": 1}
    assert read_quarantine(str(second))["id"].to_pylist() == ["bad.png"]
    for name in unchanged:
        stamps = {stamp: new[name][stamp] for stamp in STAMPS}
        assert new[name] == old[name] | stamps
        assert new[name]["run_id"] != old[name]["run_id"]
    for name in set(new) - {"words.txt"}:
        assert new[name]["sha256"] == hashlib.sha256((folder / name).read_bytes()).hexdigest()

    # Another model upon that: its heads alone give what it gives from the media.
    annotated("third", bundles[1], base=str(second))
    annotated("fresh", bundles[1])
    assert work_of(third) == {"heads": 8, "quarantined": 1}
    assert work_of(fresh) == {"media": 8, "quarantined": 1}
    heads, full = rows_of(third), rows_of(fresh)
    assert set(heads) == set(full)
    assert np.abs(points(heads) - points(new)).max() > 0.01
    np.testing.assert_allclose(points(heads), points(full), atol=1e-5)
    for name, row in full.items():
        for bound in ("valence_low", "valence_high", "arousal_low", "arousal_high"):
            assert heads[name][bound] == pytest.approx(row[bound], abs=1e-5)
        assert {field: heads[name][field] for field in ("uri", "modality", "sha256", "duration_s", "mood")} == {
            field: row[field] for field in ("uri", "modality", "sha256", "duration_s", "mood")
        }
        np.testing.assert_allclose(heads[name]["embedding"], row["embedding"], atol=1e-5)
        assert [window["start_s"] for window in heads[name]["windows"] or ()] == [
            window["start_s"] for window in row["windows"] or ()
        ]
    curve, wanted = ({str(w["start_s"]): w for w in rows["long.wav"]["windows"]} for rows in (heads, full))
    assert len(curve) == 5
    np.testing.assert_allclose(points(curve), points(wanted), atol=2e-3)
    for out in (first, second, third, fresh):
        assert verify(str(out), Settings()).problems == ()


def test_retries_until_nothing_is_quarantined(
    folder: Path,
    tmp_path: Path,
    bundles: list[Path],
    annotated: Callable[..., AnnotationSummary],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings, out = Settings(home=tmp_path / "home"), tmp_path / "runs" / "out"
    spoiled(folder / "worse.png", 8)
    annotated("out", bundles[0])
    before = rows_of(out)

    def again() -> AnnotationSummary:
        return retry(str(out), settings, workers=1)

    # One of two is repaired.
    picture(folder / "bad.png", 7)
    summary = again()
    assert (summary.items, summary.ok, summary.quarantined) == (2, 1, 1)
    rows = rows_of(out)
    assert {name: row for name, row in rows.items() if name != "bad.png"} == before
    assert rows["bad.png"]["sha256"] == hashlib.sha256((folder / "bad.png").read_bytes()).hexdigest()
    (left,) = read_quarantine(str(out)).to_pylist()
    assert (left["id"], left["attempts"]) == ("worse.png", 2)
    report = verify(str(out), settings)
    assert (report.problems, report.generations, report.annotated, report.quarantined) == ((), 2, 9, 1)

    # A second one is cut short before its first shard, and once more before it is published.
    picture(folder / "worse.png", 8)
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["mmva_platform.annotation.retry"], "carry_out", crash)  # a function has its name
        with pytest.raises(KeyboardInterrupt):
            again()
    place = open_storage(out / "retries" / "0002")
    planned = read_plan(place).run_id
    assert len(generations(open_storage(out))) == 2
    assert rows_of(out) == rows
    assert verify(str(out), settings).notes[-1].startswith("retries/0002: not published")
    told = status(str(out), settings)
    assert [generation.published for generation in told.generations] == [True, True, False]
    assert (told.annotated, told.quarantined) == (9, 1)
    assert again().run_id == planned
    place.delete(MANIFEST_FILE)
    summary = again()
    assert (summary.run_id, summary.resumed_shards, summary.shards, summary.ok) == (planned, 1, 1, 1)
    report = verify(str(out), settings)
    assert (report.problems, report.generations, report.annotated, report.quarantined) == ((), 3, 10, 0)
    assert (status(str(out), settings).annotated, status(str(out), settings).quarantined) == (10, 0)

    # Nothing is left to do, and nothing is written.
    summary = again()
    assert (summary.items, summary.shards) == (0, 0)
    assert not (out / "retries" / "0003").exists()

    # A run upon it: retried items were planned without their sizes and come from their media again.
    annotated("upon", bundles[0], base=str(out))
    assert work_of(tmp_path / "runs" / "upon") == {"carried": 8, "media": 2}


def crash(*_arguments: Any, **_options: Any) -> None:
    raise KeyboardInterrupt
