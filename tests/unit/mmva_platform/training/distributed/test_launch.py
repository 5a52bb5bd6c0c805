"""What a run says while it starts, waits and fails, and how many workers it takes; no Ray is started."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from mmva.errors import OperationFailed, UsageError
from mmva_platform.draining import Stopped
from mmva_platform.training import trainer
from mmva_platform.training.distributed import checkpoints, launch
from mmva_platform.training.distributed.launch import ReportCallback, Watch, Workers, plan_workers
from mmva_platform.training.recipe import Recipe


@pytest.mark.parametrize(
    ("workers", "gpus", "expected"),
    [
        ("auto", 0, "1 worker (0.5 CPU)"),
        ("auto", 1, "1 worker (0.5 CPU, 1 GPU)"),
        ("auto", 8, "8 workers (0.5 CPU, 1 GPU each)"),
        (2, 2, "2 workers (0.5 CPU, 1 GPU each)"),
        (2, 0, "2 workers (0.5 CPU each)"),
        ((1, 4), 2, "1 to 4 workers (0.5 CPU, 1 GPU each)"),
    ],
)
def test_workers_take_the_gpus_there_are(workers: Any, gpus: float, expected: str) -> None:
    assert str(plan_workers(Recipe(dataset="d", workers=workers), gpus)) == expected


def test_training_beside_an_idle_gpu_is_said(caplog: pytest.LogCaptureFixture) -> None:
    assert "GPU" not in plan_workers(Recipe(dataset="d", workers=2), 1).each
    assert "1 GPUs for 2 workers, so it runs on CPUs; set workers: auto" in caplog.text


def test_more_gpus_than_pairs_of_a_step_is_a_mistake() -> None:
    with pytest.raises(UsageError, match="batch_size 4 leaves some of the 8 workers"):
        plan_workers(Recipe(dataset="d", batch_size=4), 8)


def test_a_full_cluster_is_named_and_nothing_is_silent_for_long(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(launch.time, "monotonic", lambda: clock.now)
    caplog.set_level(logging.INFO, logger=launch.__name__)
    watch = Watch("one", Workers(2, 2, {"CPU": 1.5}))

    def run_for(seconds: float, free: float = 1.0) -> list[str]:
        caplog.clear()
        until = clock.now + seconds
        while clock.now < until:
            clock.now += 0.5
            watch.tick(lambda: {"CPU": free})
        return [record.message for record in caplog.records]

    watch.on_state("SchedulingState", 2)
    assert watch.workerless
    assert run_for(9, free=3.0) == ["training one: workers are starting or reading data (8 s so far)"]
    assert run_for(20) == ["training one: waits for 2 workers (1.5 CPU each); free in the cluster: 1 CPU"] * 2
    caplog.clear()
    watch.on_state("RunningState", 0)
    assert caplog.messages == ["training one: its workers have their resources"]
    assert not watch.workerless
    assert run_for(9) == ["training one: workers are starting or reading data (8 s so far)"]
    watch.on_event("report", [{"epoch": 2, "done": 7, "rows": []}])
    assert run_for(9) == ["training one: epoch 3, 7 steps done"]
    caplog.clear()
    watch.on_state("RestartingState", 0)
    assert caplog.messages == ["training one: continues from its last checkpoint"]
    assert watch.workerless
    assert "waits for 2 workers" in run_for(40, free=3.0)[-1], "3 CPUs on nodes of 1"


def test_a_users_mistake_in_a_worker_ends_the_run_and_a_crash_does_not() -> None:
    events: list[Any] = []
    callback = ReportCallback(SimpleNamespace(put=events.append))  # type: ignore[arg-type]
    callback.after_exception(None, {1: ValueError("a\nb")})
    assert events == [("failure", "worker 1 failed (ValueError: a b)")]
    wrapped = SimpleNamespace(_base_exc=UsageError("media.layers: 9 of 2"))
    with pytest.raises(UsageError, match="9 of 2"):
        callback.after_exception(None, {0: wrapped})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ControllerError(UsageError("dataset: no val")), UsageError, "dataset: no val"),
        (ControllerError(OperationFailed("diverged")), OperationFailed, "diverged"),
        (
            RayError("its head\nis gone"),
            OperationFailed,
            "training one: the cluster was lost (RayError: its head is gone); continue with --resume one",
        ),
        (
            WorkerGroupError("long\ntext", {0: RuntimeError("boom")}),
            OperationFailed,
            (
                "training one: workers failed more than 3 times (RuntimeError: boom); fix the cause, then "
                "continue with --resume one"
            ),
        ),
    ],
)
def test_a_failed_run_has_one_line(error: Exception, kind: type[Exception], message: str) -> None:
    explained = launch._explained("one", error)
    assert type(explained) is kind
    assert str(explained) == message


def at(epoch: int, done: int) -> tuple[str, dict[str, Any]]:
    """A checkpoint as newest_checkpoint finds it."""
    return "folder", {"position": {"epoch": epoch, "done": done}}


@pytest.mark.parametrize(
    ("found", "cut_off", "how"),
    [
        ([None, None], "stopped while it waited for 1 worker (1 CPU)", "{cut_off}, before its first checkpoint"),
        ([None, None], "", "stopped, before its first checkpoint"),
        ([None, at(2, 4)], "", "stopped and saved in epoch 3 after 4 steps"),
        ([at(1, 0), at(2, 4)], "stopped", "stopped; its last checkpoint is in epoch 3 after 4 steps"),
    ],
)
def test_a_run_that_did_not_come_to_its_end_says_where_it_is(
    monkeypatch: pytest.MonkeyPatch, found: list[Any], cut_off: str, how: str
) -> None:
    run = SimpleNamespace(name="one", storage=SimpleNamespace(filesystem=lambda: (None, "")))
    monkeypatch.setattr(checkpoints, "newest_checkpoint", lambda *_: found.pop(0))
    with pytest.raises(Stopped) as error:
        trainer._fitted(run, Recipe(dataset="d", epochs=3), lambda: cut_off)  # type: ignore[arg-type]
    assert str(error.value) == f"training one: {how.format(cut_off=cut_off)}; continue with --resume one"


def test_a_run_whose_epochs_are_done_starts_no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    run = SimpleNamespace(name="one", storage=SimpleNamespace(filesystem=lambda: (None, "")))
    monkeypatch.setattr(checkpoints, "newest_checkpoint", lambda *_: at(3, 0))
    content = trainer._fitted(run, Recipe(dataset="d", epochs=3), lambda: pytest.fail("there is nothing to do"))  # type: ignore[arg-type]
    assert content == at(3, 0)[1]
