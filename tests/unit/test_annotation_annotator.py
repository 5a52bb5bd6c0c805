"""One shard through a model: every item ends in one of two rows, and never at its neighbours' cost."""

import hashlib
import io
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from PIL import Image

from mmva.errors import MediaError
from mmva_platform.annotation.annotator import Annotator
from mmva_platform.annotation.plan import CatalogInfo, ModelInfo, Plan, Preprocessing
from mmva_platform.annotation.schema import ANNOTATION_SCHEMA, QUARANTINE_SCHEMA, rows_to_parquet
from mmva_platform.annotation.worker import Fetcher
from mmva_platform.settings import StorageSettings
from mmva_platform.storage import StorageUnavailable

RATE = 8000
PLAN = Plan(
    annotation_version=1,
    run_id="run",
    created_at=datetime(2026, 1, 2, tzinfo=UTC),
    model=ModelInfo(name="mmva", version="3", digest="d" * 64),
    preprocessing=Preprocessing(fingerprints={}, window_s=2.0, hop_s=1.0, short_side=224),
    catalog=CatalogInfo(uri="/c", digest="c", items=1, by_modality={}, skipped={}, duplicates=0, duplicate_ids=()),
    engines={},
    base=None,
    command=(),
    keep_windows=True,
    chapters=(),
    bounds=(0, 1),
)


class FakeModel:
    """The mean of an item is its embedding, and its point: what comes out can be foretold."""

    dims = {"image": 2, "music": 2, "caption": 2}  # noqa: RUF012 - a stand-in
    intervals = {"image": {"valence": 0.1, "arousal": 0.7}}  # noqa: RUF012

    def __init__(self) -> None:
        self.batches: list[tuple[str, int]] = []

    def encoder(self, modality: str) -> SimpleNamespace:
        return SimpleNamespace(sample_rate=RATE)

    def embed(self, modality: str, items: list[Any], batch_size: int) -> np.ndarray:
        self.batches.append((modality, len(items)))
        return np.stack([self._value(item) for item in items]).astype(np.float32)

    def predict_embeddings(self, modality: str, emb_ND: np.ndarray) -> np.ndarray:
        return emb_ND

    def _value(self, item: Any) -> np.ndarray:
        if isinstance(item, str):
            if "poison" in item:
                raise RuntimeError("the encoder\nchokes")
            return np.array([np.nan if "nan" in item else 0.25, 0.75])
        return np.full(2, np.asarray(item, np.float64).mean() / (255 if isinstance(item, Image.Image) else 1))


def png(grey: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (grey, grey, grey)).save(buffer, "PNG")
    return buffer.getvalue()


def wav(seconds: float, level: float) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.full(round(seconds * RATE), level, np.float32), RATE, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def row(name: str, modality: str | None, caption: str | None = None, uri: str | None = "here") -> dict[str, Any]:
    return {"id": name, "uri": name if uri else None, "modality": modality, "caption": caption, "bytes": None}


def annotate(
    tmp_path: Path, files: dict[str, bytes], rows: list[dict[str, Any]], model: FakeModel | None = None, **options: Any
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    for one in rows:
        one["uri"] = one["uri"] and str(tmp_path / one["uri"])
    annotator = Annotator(model or FakeModel(), PLAN, Fetcher(StorageSettings()), **options)  # type: ignore[arg-type]
    ok, quarantined = annotator.annotate("000007", rows)
    rows_to_parquet(ok, ANNOTATION_SCHEMA)  # rows must fit their schemas
    rows_to_parquet(quarantined, QUARANTINE_SCHEMA)
    return ok, quarantined


def test_image_row(tmp_path: Path) -> None:
    data = png(102)
    (found,), _ = annotate(tmp_path, {"a.png": data}, [row("a.png", "image")])
    table = pa.Table.from_pylist([found], schema=ANNOTATION_SCHEMA).to_pylist()[0]
    assert table["valence"] == pytest.approx(0.4)
    assert (table["valence_low"], table["valence_high"]) == (pytest.approx(0.3), pytest.approx(0.5))
    assert (table["arousal_low"], table["arousal_high"]) == (0.0, 1.0)  # cut to the plane
    assert table["embedding"] == pytest.approx([0.4, 0.4])
    assert table["sha256"] == hashlib.sha256(data).hexdigest()
    assert (table["model_version"], table["run_id"], table["shard"]) == ("3", "run", "000007")
    assert table["annotated_at"] == PLAN.created_at
    assert (table["windows"], table["duration_s"]) == (None, None)


def test_long_music_is_the_mean_of_its_windows(tmp_path: Path) -> None:
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
    files = {f"{n}.wav": wav(2, 0.1) for n in range(5)} | {f"{n}.png": png(n) for n in range(3)}
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
        row("x.mp4", None),
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
        ("x.mp4", "catalog", "unknown-modality"),
        ("y.bin", "catalog", "unknown-modality"),
        ("nowhere", "catalog", "no-media"),
        ("two", "infer", "unexpected-error"),
        ("three", "infer", "non-finite"),
        ("four", "decode", "empty-caption"),
    ]
    assert quarantined[0]["sha256"] == hashlib.sha256(files["broken.png"]).hexdigest()
    assert quarantined[3]["sha256"] is None
    assert quarantined[7]["message"] == "RuntimeError: the encoder chokes"


@pytest.mark.parametrize("uri", ["gopher://host/a.png", "s3://", "s3://bucket/../other/a.png", "file:///", "/a\0b.png"])
def test_uri_that_no_storage_serves_is_quarantined(tmp_path: Path, uri: str) -> None:
    annotator = Annotator(FakeModel(), PLAN, Fetcher(StorageSettings()))  # type: ignore[arg-type]
    _, (found,) = annotator.annotate("0", [row("a", "image") | {"uri": uri}])
    assert (found["stage"], found["error"]) == ("fetch", "unreadable")


def test_storage_that_is_away_stops_the_shard(tmp_path: Path) -> None:
    def away(uri: str, size: int | None, most: int) -> bytes:
        raise StorageUnavailable("no answer")

    with pytest.raises(StorageUnavailable):
        Annotator(FakeModel(), PLAN, away).annotate("0", [row("a.png", "image")])  # type: ignore[arg-type]


def test_modality_without_a_tower_is_quarantined(tmp_path: Path) -> None:
    model = FakeModel()
    model.dims = {"image": 2}
    _, (found,) = annotate(tmp_path, {}, [row("t", "caption", "text", uri=None)], model)
    assert found["error"] == "no-tower"


def test_the_same_shard_gives_the_same_bytes(tmp_path: Path) -> None:
    rows = [row("a.png", "image"), row("b.wav", "music")]
    files = {"a.png": png(7), "b.wav": wav(5, 0.1)}
    first, second = (annotate(tmp_path, files, [dict(one) for one in rows], batch_size=size)[0] for size in (1, 16))
    assert rows_to_parquet(first, ANNOTATION_SCHEMA) == rows_to_parquet(second, ANNOTATION_SCHEMA)


def test_size_is_checked_before_reading(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    fetch = Fetcher(StorageSettings())
    assert fetch(str(tmp_path / "a"), None, 5) == b"12345"
    with pytest.raises(MediaError, match="5 bytes, the limit is 4"):
        fetch(str(tmp_path / "a"), None, 4)
