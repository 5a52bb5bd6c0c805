"""Items through a model: every item ends in one of two rows, and never costs another item its row."""

import hashlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from mmva.errors import MediaError, OperationFailed
from mmva.inference import batching
from mmva.inference import pipeline as pipeline_module
from mmva.inference.pipeline import Pipeline
from mmva_platform.annotation.media import Fetcher, is_outage
from mmva_platform.annotation.run.annotator import annotate_items, flat_windows
from mmva_platform.annotation.schema import (
    ANNOTATION_SCHEMA,
    EMBEDDING_FILE_SCHEMA,
    QUARANTINE_SCHEMA,
    table_to_parquet,
)
from mmva_platform.annotation.table.commit import ShardResult
from mmva_platform.settings import StorageSettings
from mmva_platform.storage import StorageUnavailable

from .inference_world import PLAN, RATE, FakeModel, film, png, row, table, wav


def pipeline_of(model: FakeModel, fetch: Any = None, **options: Any) -> Pipeline:
    fetch = fetch or Fetcher(StorageSettings())
    return Pipeline(model.dims, model.encoder, PLAN.preprocessing, fetch, is_outage=is_outage, **options)


def run(
    model: FakeModel, rows: list[dict[str, Any]], shard: str = "0", fetch: Any = None, **options: Any
) -> ShardResult:
    at_fault = options.pop("items_at_fault", False)
    pipeline = pipeline_of(model, fetch, **options)
    return annotate_items(pipeline, model, PLAN, shard, table(rows), items_at_fault=at_fault)  # type: ignore[arg-type]


def shard(
    tmp_path: Path, files: dict[str, bytes], rows: list[dict[str, Any]], model: FakeModel | None = None, **options: Any
) -> ShardResult:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    for one in rows:
        one["uri"] = one["uri"] and str(tmp_path / one["uri"])
    result = run(model or FakeModel(), rows, "000007", **options)
    assert (result.ok.schema, result.quarantined.schema) == (ANNOTATION_SCHEMA, QUARANTINE_SCHEMA)
    assert result.embeddings.schema == EMBEDDING_FILE_SCHEMA
    assert result.embeddings["id"].equals(result.ok["id"])
    assert sum(result.work.values()) == len(rows)
    return result


def annotate(*arguments: Any, **options: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Annotated rows, each with its embedding, and quarantined rows."""
    result = shard(*arguments, **options)
    return rows_of(result), result.quarantined.to_pylist()


def rows_of(result: ShardResult) -> list[dict[str, Any]]:
    both = zip(result.ok.to_pylist(), result.embeddings.to_pylist(), strict=True)
    return [annotated | {"embedding": stored["embedding"]} for annotated, stored in both]


def test_image_row(tmp_path: Path) -> None:
    data = png(102)
    (found,), _ = annotate(tmp_path, {"a.png": data}, [row("a.png", "image")])
    assert found["valence"] == pytest.approx(0.4)
    assert (found["valence_low"], found["valence_high"]) == (pytest.approx(0.3), pytest.approx(0.5))
    assert (found["arousal_low"], found["arousal_high"]) == (0.0, 1.0)  # cut to the plane
    assert found["embedding"] == pytest.approx([0.4, 0.4])
    assert found["sha256"] == hashlib.sha256(data).hexdigest()
    assert (found["model_version"], found["run_id"], found["shard"]) == ("3", "run", "000007")
    assert found["annotated_at"] == PLAN.created_at
    assert (found["windows"], found["duration_s"]) == (None, None)


def test_long_music_is_its_mean_embedding_through_the_head(tmp_path: Path) -> None:
    samples = np.concatenate([np.full(2 * RATE, 0.2), np.full(2 * RATE, 0.6)]).astype(np.float32)
    soundfile.write(tmp_path / "long.wav", samples, RATE, subtype="FLOAT")
    (found,), _ = annotate(tmp_path, {}, [row("long.wav", "music")], batch_size=2)
    assert found["duration_s"] == 4.0
    assert [window["start_s"] for window in found["windows"]] == [0.0, 1.0, 2.0]
    assert [window["valence"] for window in found["windows"]] == pytest.approx([0.2, 0.4, 0.6], abs=1e-3)
    assert found["valence"] == pytest.approx(0.4, abs=1e-3)
    assert found["embedding"] == pytest.approx([0.4, 0.4], abs=1e-3)
    assert found["valence_low"] is None  # the bundle has no interval for music


def test_short_music_is_one_window_and_has_no_curve(tmp_path: Path) -> None:
    (found,), _ = annotate(tmp_path, {"s.wav": wav(1.5, 0.3)}, [row("s.wav", "music")])
    assert (found["windows"], found["duration_s"]) == (None, 1.5)


def test_captions_from_the_row_and_from_a_file(tmp_path: Path) -> None:
    rows = [row("inline", "caption", "calm piano", uri=None), row("c.txt", "caption")]
    ok, _ = annotate(tmp_path, {"c.txt": b"calm piano"}, rows)
    assert [one["sha256"] for one in ok] == [hashlib.sha256(b"calm piano").hexdigest()] * 2
    assert ok[0]["mood"] == "tense"


def test_batches_reach_across_items_of_one_modality(tmp_path: Path) -> None:
    files = {f"{n}.wav": wav(2, n / 10) for n in range(5)} | {f"{n}.png": png(n) for n in range(3)}
    model = FakeModel()
    rows = [*(row(f"{n}.wav", "music") for n in range(5)), *(row(f"{n}.png", "image") for n in range(3))]
    annotate(tmp_path, files, rows, model, batch_size=4)
    assert model.batches == [("music", 4), ("music", 1), ("image", 3)]


def test_what_is_wrong_with_an_item_stays_with_it(tmp_path: Path) -> None:
    files = {
        "good.png": png(51),
        "broken.png": png(9)[:40],
        "text.png": b"hello",
        "good2.png": png(51),
        "big.png": png(1),
    }
    rows = [row(name, "image") for name in files]
    rows[4]["bytes"] = 2**40
    rows += [
        row("gone.png", "image"),
        row("x.zip", None),
        row("y.bin", "smell"),
        row("nowhere", "image", uri=None),
        row("one", "caption", "fine", uri=None),
        row("two", "caption", "poison", uri=None),
        row("three", "caption", "nan", uri=None),
        row("four", "caption", " \n", uri=None),
        row("five", "caption", "fine", uri=None),
    ]
    ok, quarantined = annotate(tmp_path, files, rows)
    assert [one["id"] for one in ok] == ["good.png", "good2.png", "one", "five"]
    assert [(one["id"], one["stage"], one["error"]) for one in quarantined] == [
        ("broken.png", "decode", "corrupt-image"),
        ("text.png", "decode", "not-an-image"),
        ("big.png", "fetch", "too-many-bytes"),
        ("gone.png", "fetch", "not-found"),
        ("x.zip", "catalog", "unknown-modality"),
        ("y.bin", "catalog", "unknown-modality"),
        ("nowhere", "catalog", "no-media"),
        ("two", "infer", "unexpected-error"),
        ("three", "infer", "non-finite"),
        ("four", "decode", "empty-caption"),
    ]
    assert quarantined[0]["sha256"] == hashlib.sha256(files["broken.png"]).hexdigest()
    assert quarantined[3]["sha256"] is None
    assert quarantined[7]["message"] == "RuntimeError: the encoder chokes"


@pytest.mark.parametrize("uri", ["gopher://host/a.png", "s3://", "file:///", "/a\0b.png"])
def test_uri_that_no_storage_serves_is_quarantined(tmp_path: Path, uri: str) -> None:
    (found,) = run(FakeModel(), [row("a", "image") | {"uri": uri}]).quarantined.to_pylist()
    assert (found["stage"], found["error"]) == ("fetch", "unreadable")


def test_storage_that_is_away_stops_the_shard(tmp_path: Path) -> None:
    def away(uri: str, size: int | None, most: int) -> bytes:
        raise StorageUnavailable("no answer")

    with pytest.raises(StorageUnavailable):
        run(FakeModel(), [row("a.png", "image")], fetch=away)


def test_modality_without_a_tower_is_quarantined(tmp_path: Path) -> None:
    model = FakeModel()
    model.dims = {"image": 2}
    _, (found,) = annotate(tmp_path, {}, [row("t", "caption", "text", uri=None)], model)
    assert found["error"] == "no-tower"


def test_the_same_shard_gives_the_same_bytes(tmp_path: Path) -> None:
    rows = [row("a.png", "image"), row("b.wav", "music")]
    files = {"a.png": png(7), "b.wav": wav(5, 0.1)}
    first, second = (shard(tmp_path, files, [dict(one) for one in rows], batch_size=size) for size in (1, 16))
    assert table_to_parquet(first.ok) == table_to_parquet(second.ok)
    assert table_to_parquet(first.embeddings) == table_to_parquet(second.embeddings)


def test_size_is_checked_before_reading(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    fetch = Fetcher(StorageSettings())
    assert fetch(str(tmp_path / "a"), None, 5) == b"12345"
    with pytest.raises(MediaError, match="5 bytes, the limit is 4"):
        fetch(str(tmp_path / "a"), 5, 4)
    for said in (None, 1):  # a table may say anything
        with pytest.raises(MediaError, match="5 bytes, the limit is 4") as raised:
            fetch(str(tmp_path / "a"), said, 4)
        assert (raised.value.code, raised.value.stage) == ("too-many-bytes", "fetch")


def test_the_point_is_the_head_of_the_mean_and_not_the_mean_of_the_heads(tmp_path: Path) -> None:
    samples = np.concatenate([np.full(2 * RATE, 0.2), np.full(2 * RATE, 0.6)]).astype(np.float32)
    soundfile.write(tmp_path / "long.wav", samples, RATE, subtype="FLOAT")
    model = FakeModel()
    model.bent = True
    (found,), _ = annotate(tmp_path, {}, [row("long.wav", "music")], model)
    assert found["valence"] == pytest.approx(0.16, abs=1e-3)  # .4 squared; the windows' mean is .187
    assert [window["valence"] for window in found["windows"]] == pytest.approx([0.04, 0.16, 0.36], abs=1e-3)


def test_windows_embeddings_stand_beside_their_items(tmp_path: Path) -> None:
    samples = np.concatenate([np.full(2 * RATE, 0.25), np.full(2 * RATE, 0.75)]).astype(np.float32)
    soundfile.write(tmp_path / "long.wav", samples, RATE, subtype="FLOAT")
    result = shard(tmp_path, {"short.wav": wav(1, 0.5)}, [row(name, "music") for name in ("short.wav", "long.wav")])
    short, long = result.embeddings.to_pylist()
    assert (short["id"], short["windows"]) == ("short.wav", None)
    assert [window["start_s"] for window in long["windows"]] == [0.0, 1.0, 2.0]
    assert [window["embedding"] for window in long["windows"]] == [[level] * 2 for level in (0.25, 0.5, 0.75)]
    windows = flat_windows(result.embeddings)
    assert windows["id"].to_pylist() == ["long.wav"] * 3


def test_heads_run_once_for_the_items_and_once_for_the_windows(tmp_path: Path) -> None:
    files = {f"{n}.wav": wav(4, n / 10) for n in range(1, 4)} | {f"{n}.png": png(n) for n in range(5)}
    model = FakeModel()
    rows = [row(name, "music" if name.endswith("wav") else "image") for name in files]
    result = shard(tmp_path, files, rows, model, batch_size=2)
    assert sorted(model.heads) == [("image", 5), ("music", 3), ("music", 9)]
    assert set(result.seconds) == {"fetch", "decode", "infer", "heads"}


def test_the_same_bytes_are_inferred_once(tmp_path: Path) -> None:
    model = FakeModel()
    rows = [row(name, "image") for name in ("a.png", "b.png", "c.png")]
    result = shard(tmp_path, {"a.png": png(3), "b.png": png(3), "c.png": png(4)}, rows, model)
    assert model.batches == [("image", 2)]
    assert result.work == {"media": 2, "same bytes": 1, "quarantined": 0}
    first, second, third = rows_of(result)
    assert first["embedding"] == second["embedding"] != third["embedding"]


def test_the_same_bytes_are_remembered_from_shard_to_shard(tmp_path: Path) -> None:
    model = FakeModel()
    (tmp_path / "a.png").write_bytes(png(3))
    items = table([row("a.png", "image") | {"uri": str(tmp_path / "a.png")}])
    pipeline = pipeline_of(model)
    first, second = (annotate_items(pipeline, model, PLAN, "0", items) for _ in range(2))  # type: ignore[arg-type]
    assert model.batches == [("image", 1)]
    assert first.ok.equals(second.ok)
    assert first.embeddings.equals(second.embeddings)
    assert second.work["same bytes"] == 1


def test_what_is_remembered_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_module, "REMEMBERED_BYTES", 8)  # one embedding of the fake model
    model = FakeModel()
    shards = []
    for number in range(2):
        path = tmp_path / f"{number}.png"
        path.write_bytes(png(number))
        shards.append(table([row("a", "image") | {"uri": str(path)}]))
    pipeline = pipeline_of(model)
    for number in (0, 1, 1, 0):
        pipeline.embed(shards[number])
    assert len(model.batches) == 3


def test_large_images_do_not_wait_for_a_full_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "BATCH_PIXELS", 2 * 8 * 8)
    model = FakeModel()
    files = {f"{n}.png": png(n) for n in range(5)}
    annotate(tmp_path, files, [row(name, "image") for name in files], model)
    assert model.batches == [("image", 2), ("image", 2), ("image", 1)]


def test_the_same_broken_bytes_are_quarantined_each(tmp_path: Path) -> None:
    files = {"a.png": png(9)[:40], "b.png": png(9)[:40]}
    _, quarantined = annotate(tmp_path, files, [row(name, "image") for name in files])
    assert [(one["id"], one["error"]) for one in quarantined] == [
        ("a.png", "corrupt-image"),
        ("b.png", "corrupt-image"),
    ]


def test_music_damaged_at_its_end_is_quarantined_as_a_whole(tmp_path: Path) -> None:
    samples = np.full(8 * RATE, 0.1, np.float32)
    samples[-1] = np.nan
    soundfile.write(tmp_path / "late.wav", samples, RATE, subtype="FLOAT")
    rows = [row("late.wav", "music"), row("good.wav", "music")]
    ok, quarantined = annotate(tmp_path, {"good.wav": wav(3, 0.2)}, rows, batch_size=1)
    assert [one["id"] for one in ok] == ["good.wav"]
    assert [(one["id"], one["error"]) for one in quarantined] == [("late.wav", "non-finite-samples")]


def test_music_without_samples_never_reaches_an_encoder(tmp_path: Path) -> None:
    model = FakeModel()
    files = {"empty.wav": wav(0, 0.0), "one-sample.wav": wav(1 / RATE, 0.5), "short.wav": wav(0.1, 0.5)}
    ok, quarantined = annotate(tmp_path, files, [row(name, "music") for name in files], model)
    refused = sorted((one["id"], one["stage"], one["error"]) for one in quarantined)
    assert refused == [("empty.wav", "decode", "no-sound"), ("one-sample.wav", "decode", "too-short")]
    assert [one["id"] for one in ok] == ["short.wav"]
    assert model.batches == [("music", 1)]


def test_steps_are_told_and_an_encoder_is_loaded_under_a_name_of_its_own(tmp_path: Path) -> None:
    steps: list[str] = []
    shard(tmp_path, {"a.wav": wav(1, 0.1)}, [row("a.wav", "music")], on_progress=steps.append)
    steps = [step for step in steps if step != "fetch"]  # told only if the bytes are not there yet
    assert steps == ["decode", "load", "decode", "decode", "infer"]


@pytest.mark.parametrize("modality", ["image", "music"])
def test_an_encoder_that_does_not_load_is_no_items_error(tmp_path: Path, modality: str) -> None:
    model = FakeModel()

    def broken(track: str) -> SimpleNamespace:
        raise RuntimeError(f"no memory for {track}")

    model.encoder = broken  # type: ignore[method-assign]
    files = {"a.image": png(1), "a.music": wav(1, 0.1)}
    with pytest.raises(OperationFailed, match=f"the {modality} encoder cannot be loaded: RuntimeError: no memory"):
        annotate(tmp_path, files, [row(f"a.{modality}", modality)], model)


def test_a_pipe_among_the_files_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    _, (found,) = annotate(tmp_path, {}, [row("a.png", "image")])
    assert (found["stage"], found["error"]) == ("fetch", "unreadable")


def test_what_is_outside_the_roots_is_quarantined_unopened(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "a.png").write_bytes(png(51))
    (inside / "link.png").symlink_to(outside / "a.png")
    rows = [row(f"{n}", "image") | {"uri": str(path)} for n, path in enumerate((inside / "a.png", outside / "a.png"))]
    rows += [row("2", "image") | {"uri": str(inside / "link.png")}, row("3", "image") | {"uri": "s3://b/a.png"}]
    rows += [row("4", "image") | {"uri": f"{inside}/../outside/a.png"}]
    fetch = Fetcher(StorageSettings(), [str(inside)])
    result = run(FakeModel(), rows, fetch=fetch)
    assert result.ok["id"].to_pylist() == ["0"]
    assert [(one["id"], one["stage"], one["error"]) for one in result.quarantined.to_pylist()] == [
        (name, "catalog", "outside-roots") for name in "1234"
    ]


def test_video_is_the_mean_of_its_tracks(tmp_path: Path) -> None:
    result = shard(tmp_path, {"v.mp4": film(4, sound=True)}, [row("v.mp4", "video")])
    (found,) = rows_of(result)
    assert found["tracks"] == ["image", "music"]
    assert found["embedding"] == pytest.approx([0.4, 0.4, 0, 0], abs=0.02)  # grey pictures, then silence
    assert found["valence"] == pytest.approx(0.2, abs=0.02)
    assert found["valence_low"] is None  # not calibrated, though images are
    # AAC pads the sound a little: it has a tail of its own, where no picture is.
    assert [window["start_s"] for window in found["windows"]] == [0.0, 1.0, 2.0, 3.0]
    assert [window["valence"] for window in found["windows"]] == pytest.approx([0.2, 0.2, 0.2, 0.0], abs=0.02)
    assert flat_windows(result.embeddings)["track"].to_pylist() == ["image"] * 3 + ["music"] * 4
    assert found["duration_s"] == pytest.approx(4.0, abs=0.3)


@pytest.mark.parametrize(
    ("towers", "sound", "tracks"),
    [
        ({"image": 2, "music": 2}, False, ["image"]),
        ({"image": 2}, True, ["image"]),
        ({"music": 2}, True, ["music"]),
        ({"music": 2}, False, None),
        ({"caption": 2}, True, None),
    ],
)
def test_video_uses_the_towers_that_there_are(
    tmp_path: Path, towers: dict[str, int], sound: bool, tracks: list[str] | None
) -> None:
    model = FakeModel()
    model.dims = towers
    ok, quarantined = annotate(tmp_path, {"v.mp4": film(2, sound=sound)}, [row("v.mp4", "video")], model)
    assert [one["tracks"] for one in ok] == ([tracks] if tracks else [])
    assert [one["error"] for one in quarantined] == ([] if tracks else ["no-tower"])
