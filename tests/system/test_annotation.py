"""`annotate` on a Ray cluster with the tiny preset: real media, a corrupt file, a copy, resume, refusal."""

import io
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from mmva.errors import CheckFailed, UsageError
from mmva.media.images.decode import decode_image
from mmva.models.bundle import load_bundle
from mmva.models.model import MMVA
from mmva_platform.annotation import ANNOTATION_SCHEMA, annotate, open_annotation, status, verify
from mmva_platform.settings import Settings

pytestmark = pytest.mark.slow
RATE = 16_000


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("catalog")
    rng = np.random.default_rng(0)
    for number in range(12):
        pixels = rng.integers(0, 256, (90, 120, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"picture-{number:02d}.{'jpg' if number % 2 else 'png'}")
    (folder / "picture-05.jpg").write_bytes((folder / "picture-05.jpg").read_bytes()[:700])
    melody = np.sin(2 * np.pi * 220 * np.arange(10 * RATE) / RATE) * np.linspace(0.1, 0.8, 10 * RATE)
    soundfile.write(folder / "long.wav", melody, RATE)
    soundfile.write(folder / "short.ogg", melody[: 2 * RATE], RATE, format="OGG", subtype="VORBIS")
    (folder / "phone.m4a").write_bytes(m4a(melody[: 5 * RATE]))
    (folder / "film.mp4").write_bytes(film(melody[: 6 * RATE]))
    (folder / "copy.png").write_bytes((folder / "picture-00.png").read_bytes())
    (folder / "words.txt").write_text("A calm piece for solo piano.\n")
    (folder / "empty.txt").write_text(" \n")
    (folder / "notes.pdf").write_bytes(b"%PDF")
    return folder


def m4a(samples: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=RATE, layout="mono")
        for packet in (*stream.encode(sound(samples)), *stream.encode(None)):
            container.mux(packet)
    return buffer.getvalue()


def film(samples: np.ndarray) -> bytes:
    """Pictures that grow brighter, five a second, and sound."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        pictures = container.add_stream("mpeg4", rate=5)
        pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
        tone = container.add_stream("aac", rate=RATE, layout="mono")
        for number in range(5 * len(samples) // RATE):
            pixels = np.full((48, 64, 3), 50 + 6 * number, np.uint8)
            container.mux(pictures.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(pictures.encode(None))
        for packet in (*tone.encode(sound(samples)), *tone.encode(None)):
            container.mux(packet)
    return buffer.getvalue()


def sound(samples: np.ndarray) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(samples.astype(np.float32)[None], format="fltp", layout="mono")
    frame.sample_rate = RATE
    return frame


def kept_windows(row: dict[str, Any]) -> dict[str, list[tuple[float, list[float]]]]:
    """Track -> starts and embeddings of an item's windows."""
    found: dict[str, list[tuple[float, list[float]]]] = {}
    for window in row["window_embeddings"]:
        found.setdefault(window["track"], []).append((window["start_s"], window["embedding"]))
    return found


def point(model: MMVA, tower: str, embedding: Any) -> np.ndarray:
    return model.predict_embeddings(tower, np.array([embedding], np.float32))[0]


def va_of(row: dict[str, Any]) -> list[float]:
    return [row["valence"], row["arousal"]]


@pytest.mark.usefixtures("ray_cluster")
def test_a_catalog_from_first_run_to_refusal(
    tiny_bundle: Path,
    make_tiny_bundle: Callable[[Path, int], Path],
    catalog: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, settings = tmp_path / "out", Settings(home=tmp_path / "home")

    def run(**options: Any) -> Any:
        chosen = {"workers": 2, "engine": "torch"} | options
        return annotate(str(catalog), str(chosen.pop("model", tiny_bundle)), str(out), settings, **chosen)

    first = run(shard_items=8)
    assert (first.items, first.ok, first.quarantined) == (19, 17, 2)
    assert first.by_modality == {"caption": 1, "image": 12, "music": 3, "video": 1}
    assert first.work == {"media": 16, "quarantined": 2, "same bytes": 1}
    assert first.causes == {"corrupt-image": 1, "empty-caption": 1}
    assert first.skipped == {".pdf": 1}
    assert first.shards >= 3
    assert first.resumed_shards == 0
    report = verify(str(out), settings)
    assert report.problems == ()
    # As for an annotation of many shards; the package has a function of the module's name.
    monkeypatch.setattr(import_module("mmva_platform.annotation.table.verify"), "_CLUSTER_FROM", 1)
    assert verify(str(out), settings) == report
    told = status(str(out), settings)
    assert (told.version, told.published, told.annotated, told.quarantined) == (0, True, 17, 2)

    everything = (*ANNOTATION_SCHEMA.names, "embedding", "window_embeddings")
    table = open_annotation(str(out)).table(everything)
    rows = {row["id"]: row for row in table.to_pylist()}
    quarantine = open_annotation(str(out)).table(["id"], status="quarantined")
    assert set(quarantine["id"].to_pylist()) == {"picture-05.jpg", "empty.txt"}
    assert rows["long.wav"]["duration_s"] == pytest.approx(10.0)
    assert [window["start_s"] for window in rows["long.wav"]["windows"]] == [0.0, 1.5, 3.0, 4.5, 6.0, 7.5]
    assert rows["phone.m4a"]["duration_s"] == pytest.approx(5.0, abs=0.2)
    assert rows["short.ogg"]["windows"] is None
    assert all(0 <= row["valence"] <= 1 and 0 <= row["arousal"] <= 1 for row in rows.values())
    calibrated = [row for row in rows.values() if row["modality"] in {"image", "music"}]
    assert all(row["valence_low"] <= row["valence"] <= row["valence_high"] for row in calibrated)
    assert rows["copy.png"]["embedding"] == rows["picture-00.png"]["embedding"]

    # What Ray's workers made is what the model itself makes of the same bytes.
    model = load_bundle(tiny_bundle)
    image = decode_image((catalog / "picture-01.jpg").read_bytes())
    one = rows["picture-01.jpg"]
    np.testing.assert_allclose(one["embedding"], model.embed("image", [image])[0], atol=1e-5)
    np.testing.assert_allclose([one["valence"], one["arousal"]], model.predict("image", [image])[0], atol=1e-5)

    # Music: the head of its windows' mean embedding; its curve: the heads of its windows' embeddings.
    long = rows["long.wav"]
    kept = kept_windows(long)["music"]
    assert [start_s for start_s, _ in kept] == [window["start_s"] for window in long["windows"]]
    emb_WD = np.array([emb_D for _, emb_D in kept], np.float32)
    np.testing.assert_allclose(emb_WD.mean(axis=0), long["embedding"], atol=2e-3)
    curve_W2 = [[window["valence"], window["arousal"]] for window in long["windows"]]
    np.testing.assert_allclose(model.predict_embeddings("music", emb_WD), curve_W2, atol=2e-3)
    np.testing.assert_allclose(point(model, "music", long["embedding"]), va_of(long), atol=1e-5)

    # Video: the mean of its tracks' points, and no interval.
    video = rows["film.mp4"]
    assert video["tracks"] == ["image", "music"]
    image_emb, music_emb = np.split(np.array(video["embedding"]), [model.dims["image"]])
    tracks = [point(model, "image", image_emb), point(model, "music", music_emb)]
    np.testing.assert_allclose(np.mean(tracks, axis=0), va_of(video), atol=1e-5)
    assert [window["start_s"] for window in video["windows"]][:3] == [0.0, 1.5, 3.0]
    assert video["duration_s"] == pytest.approx(6.0, abs=0.3)
    assert set(kept_windows(video)) == {"image", "music"}
    assert video["valence_low"] is None

    # A finished run is left as it is.
    again = run()
    assert (again.ok, again.resumed_shards, again.run_id) == (first.ok, first.shards, first.run_id)

    # A shard whose commit is gone is run again, alone, and gives the same bytes.
    commits = out / "_mmva" / "000000" / "commits"
    before = {path: path.stat().st_mtime_ns for path in commits.iterdir()}
    contents = parquet_files(out)
    lost = max(before)
    lost.unlink()
    (out / "_mmva" / "000000" / "version.json").unlink()
    shutil.rmtree(out / "_delta_log")
    resumed = run()
    assert (resumed.ok, resumed.quarantined, resumed.resumed_shards) == (17, 2, first.shards - 1)
    after = {path: path.stat().st_mtime_ns for path in commits.iterdir()}
    assert [path for path in after if after[path] != before[path]] == [lost]
    assert parquet_files(out) == contents
    assert open_annotation(str(out)).table(everything).equals(table)

    # Another model, another catalog: refused, and nothing of the run is touched.
    with pytest.raises(CheckFailed, match="model digest"):
        run(model=make_tiny_bundle(tmp_path / "second", 1))
    with pytest.raises(CheckFailed, match=r"window_s: 3\.0 there, 4.0 now"):
        run(window_s=4.0)
    with pytest.raises(UsageError, match="hop_s must be"):
        run(window_s=1.0)
    assert open_annotation(str(out)).table(everything).equals(table)


def parquet_files(out: Path) -> dict[Path, bytes]:
    """Data, embeddings and plan."""
    return {path: path.read_bytes() for path in out.rglob("*.parquet")}


def test_mistakes_are_told_before_ray_is_started(tiny_bundle: Path, catalog: Path, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    with pytest.raises(UsageError, match="no such folder"):
        annotate(str(tmp_path / "nothing"), str(tiny_bundle), str(tmp_path / "out"), settings)
    with pytest.raises(UsageError, match="no such folder"):
        annotate(str(catalog), str(tmp_path / "nothing"), str(tmp_path / "out"), settings)
    assert not (tmp_path / "out").exists()
