"""The function of a Ray Train worker: load the newest checkpoint, fit, report progress and checkpoints."""

from __future__ import annotations

import contextlib
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch

from mmva_platform.training.distributed.checkpoints import agreed_checkpoint, checkpoint_name, write_checkpoint
from mmva_platform.training.loop.loop import Source, epoch_row, fit, plan_epoch
from mmva_platform.training.loop.state import Row, TrainState, World
from mmva_platform.training.recipe import Recipe

if TYPE_CHECKING:
    from ray.util.queue import Queue

_PROGRESS_S: Final = 5.0
_EPOCHS_S: Final = 0.5  # Ray Train reads one report per poll, and an epoch on embeddings may be shorter than that
_DRAIN_S: Final = 1.0  # how often to ask Ray whether a node is drained; Ray itself checks every 5 s
_STOP_S: Final = 0.5


def train_worker(config: dict[str, Any]) -> None:
    """Ray Train's per-worker function.

    `config` has `recipe` (plain values), `data` (of the driver's Mode) and `stop` (a queue; an item in it asks the run
    to save and end).
    """
    import ray.train
    from ray.train.torch import get_device, prepare_model

    recipe = Recipe.model_validate(config["recipe"])
    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size())
    device = get_device()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32
    storage = context.get_storage()
    last = agreed_checkpoint(storage.storage_filesystem, storage.experiment_fs_path, world)
    state, source = prepare(recipe, config["data"], last, world, device)
    # DDP reorders its buckets after the first step unless it searches for unused ones. The order changes the rounding
    # of sums over three or more ranks, and a resumed run on CPUs promises the same bits. "all" includes unused weights.
    unused = device.type == "cpu" or "all" in recipe.media.layers.values()
    options = {"broadcast_buffers": False, "find_unused_parameters": unused}
    state.parallel = prepare_model(state.model, move_to_device=device, parallel_strategy_kwargs=options)
    reporter = Reporter(recipe, source, world, config["stop"])
    fit(state, source, recipe, world=world, callback=reporter)
    reporter.close()


def prepare(
    recipe: Recipe, data: Any, last: dict[str, Any] | None, world: World, device: torch.device
) -> tuple[TrainState, Source]:
    """State and source of this rank; `last` is the checkpoint's content to continue from, if any."""
    if recipe.mode == "media":
        import ray
        import ray.train

        from mmva_platform.training.media.run import prepare_media

        processes = ray.train.get_context().get_local_world_size()
        return prepare_media(recipe, ray.get(data), last, world, device, processes=processes)
    from mmva_platform.training.loop.features import prepare_features

    return prepare_features(recipe, data, last, world, device)


class Wanted(NamedTuple):
    """What all ranks do after the next step."""

    stop: bool = False
    save: bool = False
    report: bool = False
    look: bool = False  # ask Ray whether a node is being drained


class Reporter:
    """Reports to Ray Train and saves: by the clock, at the end, and before the run stops or loses a node.

    Rank 0 decides, by its clock. It sends its decision to the other ranks one step ahead, while the step computes, so
    that no rank waits for it.
    """

    def __init__(self, recipe: Recipe, source: Source, world: World, stop: Queue) -> None:
        self._recipe, self._source, self._world, self._stop_queue = recipe, source, world, stop
        self.saved_at = self._reported = self._looked = time.monotonic()
        self._stop, self._closed, self._written = threading.Event(), threading.Event(), threading.Event()
        self._draining, self._rows = False, list[Row]()
        self._written.set()
        self._pending: tuple[torch.Tensor, Any] | None = None
        if world.rank == 0:
            threading.Thread(target=self._listen, name="training-stop", daemon=True).start()
        self._ask()

    def close(self) -> None:
        """Stop listening; the last broadcast must end before the process group does."""
        self._closed.set()
        if self._pending is not None:
            self._agreed()

    def on_step_end(self, state: TrainState, row: Row | None) -> bool:
        """Save or report if it is time; returns whether to stop."""
        self._rows += [] if row is None else [row]
        wanted = self._agreed()
        drained = wanted.look and self._node_is_drained()
        save = wanted.stop or wanted.save or drained or state.epoch == self._recipe.epochs
        if save or wanted.report:
            self._report(state, save=save)
        if not wanted.stop:
            self._ask()
        return wanted.stop

    def _report(self, state: TrainState, *, save: bool) -> None:
        """Report position, rows of new epochs and, with a checkpoint, the loss so far."""
        import ray.train
        from ray.train import Checkpoint, CheckpointUploadMode

        metrics: Row = {"epoch": state.epoch, "done": state.done, "step": state.step, "rows": self._rows}
        metrics["system"] = system_metrics()
        name = checkpoint = upload = None
        if save:
            if state.done > 0:
                plan = plan_epoch(self._source.pairing, self._recipe, state.epoch)
                metrics["loss"] = epoch_row(state, self._source.pairing, self._recipe, plan, self._world)["loss"]
            content = state.state_dict(self._world)
            if self._world.rank == 0:
                self._written.wait()  # one at a time, so that slow storage does not pile up states in memory
                self._written.clear()
                storage, name = ray.train.get_context().get_storage(), checkpoint_name(content["position"])
                path = storage.build_checkpoint_path_from_name(name)
                checkpoint, upload = Checkpoint(path, storage.storage_filesystem), partial(self._write, content)
            self.saved_at = time.monotonic()
        self._rows, self._reported = [], time.monotonic()
        ray.train.report(
            metrics,
            checkpoint,
            checkpoint_dir_name=name,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=False,
            checkpoint_upload_fn=upload,
        )

    def _write(self, content: dict[str, Any], checkpoint: Any, _name: str) -> Any:
        """Runs in Ray Train's upload thread, while training continues."""
        try:
            return write_checkpoint(checkpoint, content)
        finally:
            self._written.set()

    def _agreed(self) -> Wanted:
        assert self._pending is not None
        flags, work = self._pending
        self._pending = None
        if work is not None:
            work.wait()
        return Wanted(*(bool(flag) for flag in flags.tolist()))

    def _ask(self) -> None:
        """Start the broadcast of what rank 0 wants after the next step."""
        now = time.monotonic()
        wanted = Wanted(
            stop=self._stop.is_set(),
            save=now - self.saved_at >= self._recipe.checkpoint.every_s and self._written.is_set(),
            report=now - self._reported >= (_EPOCHS_S if self._rows else _PROGRESS_S),
            look=not self._draining and now - self._looked >= _DRAIN_S,
        )
        flags = torch.tensor(wanted, dtype=torch.uint8)
        work = torch.distributed.broadcast(flags, src=0, async_op=True) if self._world.size > 1 else None
        self._pending = flags, work

    def _node_is_drained(self) -> bool:
        """Whether a node of this run is being drained; a collective call with the same result on every rank."""
        import ray.train

        self._looked = time.monotonic()
        self._draining = ray.train.get_preemption_info() is not None
        return self._draining

    def _listen(self) -> None:
        from ray.exceptions import RayError

        with contextlib.suppress(RayError):  # the driver has ended, and this worker will soon
            while not self._closed.wait(_STOP_S):
                if not self._stop_queue.empty():
                    self._stop.set()
                    return


def system_metrics() -> dict[str, float]:
    """CPU, memory and GPU use of this worker, for MLflow's system metrics."""
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF)
    found = {"cpu_seconds": usage.ru_utime + usage.ru_stime, "peak_memory_megabytes": usage.ru_maxrss / 1024}
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        found["gpu_memory_megabytes"] = (total - free) / 2**20
        with contextlib.suppress(RuntimeError, ModuleNotFoundError):  # without NVML
            found["gpu_utilization_percentage"] = float(torch.cuda.utilization())
    return found
