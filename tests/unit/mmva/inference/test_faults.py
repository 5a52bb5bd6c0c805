"""An encoder that fails for every item is the environment's fault; one that fails for some items is theirs."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mmva.errors import EnvironmentFault, MediaError
from mmva.inference.pipeline import Pipeline
from mmva.inference.tables import Embedded

from .inference_world import PLAN, FakeModel, png


class BrokenModel(FakeModel):
    """Its encoder raises what a test says, for the contents that a test says."""

    def __init__(self, error: Exception, fails: Any = lambda _text: True) -> None:
        super().__init__()
        self.error, self.fails = error, fails

    def embed(self, modality: str, items: list[Any]) -> np.ndarray:
        self.batches.append((modality, len(items)))
        if any(self.fails(item) for item in items):
            raise self.error
        return np.zeros((len(items), 2), np.float32)


def captions(texts: list[str]) -> pa.Table:
    return pa.table({
        "id": [str(number) for number in range(len(texts))],
        "uri": pa.nulls(len(texts), pa.string()),
        "modality": ["caption"] * len(texts),
        "caption": texts,
    })  # fmt: skip


def embed(model: FakeModel, texts: list[str], batch_size: int = 16, **options: Any) -> Embedded:
    pipeline = Pipeline(model.dims, model.encoder, PLAN.preprocessing, lambda *_: b"", batch_size=batch_size)
    return pipeline.embed(captions(texts), **options)


TEXTS = [f"text {number}" for number in range(6)]
LOST = RuntimeError("CUDA error: an illegal memory access was encountered")


@pytest.mark.parametrize("batch_size", [16, 1])
def test_an_encoder_that_fails_for_a_batch_and_for_each_of_its_items_is_the_environments(batch_size: int) -> None:
    model = BrokenModel(RuntimeError("library not found"))
    with pytest.raises(EnvironmentFault, match=r"4 items in a row.*last is 3: RuntimeError: library not found"):
        embed(model, TEXTS, batch_size)


@pytest.mark.parametrize("case", ["three items", "one works", "known to work", "MediaError"])
def test_other_failures_are_the_items_own(case: str) -> None:
    error = MediaError("odd", "an odd text", stage="infer") if case == "MediaError" else RuntimeError("chokes")
    model = BrokenModel(error, (lambda text: text != "text 3") if case == "one works" else lambda _text: True)
    texts = TEXTS[:3] if case == "three items" else TEXTS
    found = embed(model, texts, items_at_fault=case == "known to work")
    assert found.rows["id"].to_pylist() == (["3"] if case == "one works" else [])
    assert set(found.errors["error"].to_pylist()) == {"odd" if case == "MediaError" else "unexpected-error"}
    assert found.errors.num_rows + found.rows.num_rows == len(texts)


@pytest.mark.parametrize("items_at_fault", [False, True])
def test_a_lost_gpu_is_never_an_items_error(items_at_fault: bool) -> None:
    with pytest.raises(EnvironmentFault, match="the GPU failed at 0: RuntimeError: CUDA error: an illegal memory"):
        embed(BrokenModel(LOST), TEXTS[:1], items_at_fault=items_at_fault)


def test_a_batch_that_is_too_large_for_the_gpu_is_embedded_one_by_one() -> None:
    class SmallMemory(BrokenModel):
        def embed(self, modality: str, items: list[Any]) -> np.ndarray:
            self.fails = lambda _text: len(items) > 1
            return super().embed(modality, items)

    found = embed(SmallMemory(RuntimeError("CUDA out of memory.")), TEXTS)
    assert found.rows.num_rows == len(TEXTS)


def test_embeddings_that_are_done_outlive_an_error_of_the_call() -> None:
    """An outage at the last item ends the call; the next one embeds only what is missing."""
    answers: dict[str, bytes | Exception] = {name: png(number) for number, name in enumerate("abc")}
    answers["d"] = OSError("no answer")

    def fetch(uri: str, _size: int | None, _most: int) -> bytes:
        answer = answers[uri]
        if isinstance(answer, Exception):
            time.sleep(0.2)
            raise answer
        return answer

    model = FakeModel()
    pipeline = Pipeline(
        model.dims, model.encoder, PLAN.preprocessing, fetch, batch_size=1, is_outage=lambda _error: True
    )
    items = pa.table({"id": list("abcd"), "uri": list("abcd"), "modality": ["image"] * 4})
    with pytest.raises(OSError, match="no answer"):
        pipeline.embed(items)
    answers["d"] = png(9)
    assert pipeline.embed(items).rows.num_rows == 4
    assert model.batches == [("image", 1)] * 4


HANGS = """
import time
from mmva.inference.isolation import TimeLimit
with TimeLimit(0.5) as limit:
    limit.step("{first}")
    time.sleep(1.5)
    print("still here", flush=True)
    limit.step("decode")
    limit.step("infer")
    time.sleep(600)
"""


@pytest.mark.parametrize(("first", "survives"), [("decode", False), ("fetch", True), ("load", True)])
def test_a_step_that_hangs_ends_the_process(first: str, survives: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANGS.format(first=first)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode != 0
    assert ("still here" in done.stdout) == survives
    assert "Timeout" in done.stderr
