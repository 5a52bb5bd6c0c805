"""Decoding on one machine and embedding on another gives what one call gives, within a bound on what travels."""

from __future__ import annotations

import io
import pickle
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from mmva.errors import EnvironmentFault
from mmva.inference import stages
from mmva.inference.batching import Overlapped
from mmva.inference.interleave import interleaved
from mmva.inference.pipeline import Pipeline
from mmva.inference.stages import DecodeStage
from mmva.inference.tables import Embedded

from .inference_world import PLAN, RATE, FakeEncoder, FakeModel, film, png, wav


class LaunchingEncoder(FakeEncoder):
    """An encoder as one on a GPU is: errors of a launch may be reported when it is collected."""

    def __init__(self, model: FakeModel, modality: str) -> None:
        super().__init__(model, modality)
        self.threads: set[str] = set()
        self.order: list[str] = []

    def prepare(self, item: Any) -> Any:
        self.threads.add(threading.current_thread().name)
        time.sleep(0.01)
        return ("prepared", item)

    def launch(self, prepared: Sequence[Any]) -> list[Any]:
        self.order.append("launch")
        return [item for _, item in prepared]

    def collect(self, launched: list[Any]) -> np.ndarray:
        self.order.append("collect")
        return self._model.embed(self._modality, launched)


FILES = {
    "a.png": png(10),
    "same-as-a.png": png(10),
    "b.png": png(200),
    "broken.png": png(9)[:40],
    "same-as-broken.png": png(9)[:40],
    "short.wav": wav(1.5, 0.3),
    "long.wav": wav(9, 0.6),
    "other.wav": wav(5, 0.5),
    "film.mp4": film(4, sound=True),
    "text.txt": b"calm piano",
}
KINDS = {"png": "image", "wav": "music", "mp4": "video", "txt": "caption"}


def table() -> pa.Table:
    names = [*FILES, "gone.png", "inline", "nowhere"]
    return pa.table({
        "id": names,
        "uri": [name if name not in {"inline", "nowhere"} else None for name in names],
        "modality": [KINDS.get(name.rpartition(".")[2], "caption") for name in names],
        "caption": ["sad song" if name == "inline" else None for name in names],
        "bytes": pa.nulls(len(names), pa.int64()),
    })  # fmt: skip


def fetch(uri: str, _size: int | None, _most: int) -> bytes:
    if uri not in FILES:
        raise FileNotFoundError(uri)
    return FILES[uri]


def pipeline(model: FakeModel, encoder: Any = None, **options: Any) -> Pipeline:
    return Pipeline(model.dims, encoder or model.encoder, PLAN.preprocessing, fetch, **options)


def same(found: Embedded, expected: Embedded) -> None:
    assert found.rows.drop_columns("embedding").equals(expected.rows.drop_columns("embedding"))
    for mine, theirs in zip(found.rows["embedding"].to_pylist(), expected.rows["embedding"].to_pylist(), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-6)
    assert found.windows.drop_columns("embedding").equals(expected.windows.drop_columns("embedding"))
    assert found.errors.equals(expected.errors)
    assert found.same_bytes.to_pylist() == expected.same_bytes.to_pylist()


@pytest.mark.parametrize("small", [stages._SMALL, 20_000])
@pytest.mark.parametrize("threads", [0, 3])
def test_two_stages_give_what_one_call_gives(monkeypatch: pytest.MonkeyPatch, threads: int, small: int) -> None:
    monkeypatch.setattr(stages, "_SMALL", small)
    expected = pipeline(FakeModel()).embed(table())
    assert (expected.rows.num_rows, expected.errors.num_rows) == (9, 4)
    model = FakeModel()
    decoded = DecodeStage(model.dims, RATE, PLAN.preprocessing, fetch)(table())
    decoded = pickle.loads(pickle.dumps(decoded))
    how = {
        row["id"]: "units" if row["units"] is not None else "media" if row["media"] is not None else None
        for row in decoded.to_pylist()
    }
    assert how["a.png"] == how["text.txt"] == "units"
    assert how["same-as-a.png"] is None
    assert how["film.mp4"] == "media"
    assert how["long.wav"] == ("units" if small > 20_000 else "media")
    same(pipeline(model, decode_threads=threads).embed_decoded(decoded), expected)


def test_what_passes_the_bound_is_fetched_in_the_second_stage() -> None:
    model = FakeModel()
    decoded = DecodeStage(model.dims, RATE, PLAN.preprocessing, fetch, most_bytes=100)(table())
    fetched = [row["id"] for row in decoded.to_pylist() if row["sha256"] is not None]
    assert fetched == ["a.png"]
    same(pipeline(model).embed_decoded(decoded), pipeline(FakeModel()).embed(table()))


def test_a_large_image_travels_as_its_file() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (2000, 1000), "red").save(buffer, "PNG")
    stage = DecodeStage(("image",), None, PLAN.preprocessing, lambda *_: buffer.getvalue())
    decoded = stage(pa.table({"id": ["a"], "uri": ["a"], "modality": ["image"]}))
    assert decoded["media"].to_pylist() == [buffer.getvalue()]
    assert decoded["units"].to_pylist() == [None]


def test_the_network_runs_while_the_next_items_are_prepared_in_threads() -> None:
    model = FakeModel()
    encoders = {name: LaunchingEncoder(model, name) for name in model.dims}
    assert isinstance(encoders["image"], Overlapped)
    assert not isinstance(model.encoder("image"), Overlapped)
    found = pipeline(model, encoders.__getitem__, decode_threads=4, batch_size=2).embed(table())
    same(found, pipeline(FakeModel()).embed(table()))
    for encoder in encoders.values():
        assert all(name.startswith("mmva-decode") for name in encoder.threads)
    order = encoders["image"].order + encoders["music"].order
    assert order.count("launch") == order.count("collect") > 4
    assert ["launch", "launch"] in [order[index : index + 2] for index in range(len(order))]


def test_an_error_that_is_reported_late_costs_its_item_only() -> None:
    model = FakeModel()
    encoders = {name: LaunchingEncoder(model, name) for name in model.dims}
    texts = ["calm", "poison", "sad", "gay", "poison too"]
    items = pa.table({
        "id": texts, "uri": pa.nulls(5, pa.string()), "modality": ["caption"] * 5, "caption": texts
    })  # fmt: skip
    found = pipeline(model, encoders.__getitem__, decode_threads=2, batch_size=2).embed(items)
    assert found.rows["id"].to_pylist() == ["calm", "sad", "gay"]
    assert found.errors["id"].to_pylist() == ["poison", "poison too"]
    assert set(found.errors["stage"].to_pylist()) == {"infer"}


def test_an_error_of_the_environment_ends_the_threads() -> None:
    model = FakeModel()
    encoders = {name: LaunchingEncoder(model, name) for name in model.dims}

    def denied(uri: str, _size: int | None, _most: int) -> bytes:
        error = PermissionError("token expired")
        error.environment = True  # type: ignore[attr-defined]
        raise error

    stage = Pipeline(model.dims, encoders.__getitem__, PLAN.preprocessing, denied, decode_threads=3)
    with pytest.raises(EnvironmentFault, match="token expired"):
        stage.embed(table())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("mmva-decode")]


@pytest.mark.parametrize("threads", [0, 3])
def test_streams_keep_their_order_and_their_errors(threads: int) -> None:
    def stream(number: int) -> Iterator[int]:
        yield from range(number)

    found: dict[int, list[int]] = {}
    for key, value in interleaved(((n, stream(n)) for n in range(20)), threads):
        found.setdefault(key, []).append(value)
    assert found == {number: list(range(number)) for number in range(1, 20)}

    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("in a stream")

    with pytest.raises(ValueError, match="in a stream"):
        list(interleaved(iter([(1, broken())]), threads))
