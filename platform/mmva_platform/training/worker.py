"""What each Ray Train worker runs: load the newest checkpoint, fit, report progress and checkpoints."""

from __future__ import annotations

import contextlib
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch

from mmva_platform.training.checkpoints import agreed_checkpoint, checkpoint_name, write_checkpoint
from mmva_platform.training.loop import Callback, Source, epoch_row, fit, plan_epoch
from mmva_platform.training.recipe import Recipe
from mmva_platform.training.state import Row, TrainState, World

if TYPE_CHECKING:
    from ray.util.queue import Queue

_PROGRESS_S: Final = 5.0
_DRAIN_S: Final = 1.0  # how often to ask Ray whether a node is drained; Ray itself looks every 5 s
_STOP_S: Final = 0.5


def train_worker(config: dict[str, Any]) -> None:
    """Ray Train's per-worker function.

    Args:
        config: `recipe` (plain values), `data` (what the mode's driver side prepared) and `stop` (a queue that is not
            empty once the run is to save and end).
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
    # DDP orders its buckets anew after the first step unless it looks for unused weights. Sums of three and more ranks
    # round by that order, and a resumed run on CPUs promises the same bits. "all" lets weights train that nothing uses.
    unused = device.type == "cpu" or "all" in recipe.media.layers.values()
    options = {"broadcast_buffers": False, "find_unused_parameters": unused}
    state.parallel = prepare_model(state.model, move_to_device=device, parallel_strategy_kwargs=options)
    reporter = Reporter(recipe, source, world, config["stop"])
    fit(state, source, recipe, world=world, callback=reporter)
    reporter.close()


def prepare(
    recipe: Recipe, data: Any, last: dict[str, Any] | None, world: World, device: torch.device
) -> tuple[TrainState, Source]:
    """State and source of this rank, from the content of the last checkpoint if there is one."""
    if recipe.mode == "media":
        import ray
        import ray.train

        from mmva_platform.training.media.run import prepare_media

        processes = ray.train.get_context().get_local_world_size()
        return prepare_media(recipe, ray.get(data), last, world, device, processes=processes)
    from mmva_platform.training.features import prepare_features

    return prepare_features(recipe, data, last, world, device)


class Wanted(NamedTuple):
    """What all ranks do after a step."""

    stop: bool = False
    save: bool = False
    report: bool = False
    look: bool = False  # ask Ray whether a node is drained


class Reporter(Callback):
    """Reports to Ray Train: a checkpoint at an epoch's end, by the clock, and before the run stops or loses a node.

    Rank 0's clock counts. It tells the others one step ahead, while the step computes, so nobody waits for it.
    """

    def __init__(self, recipe: Recipe, source: Source, world: World, stop: Queue) -> None:
        self._recipe, self._source, self._world, self._stop_queue = recipe, source, world, stop
        self._saved = self._reported = self._looked = time.monotonic()
        self._stop, self._closed, self._written = threading.Event(), threading.Event(), threading.Event()
        self._draining = False
        self._written.set()
        self._pending: tuple[torch.Tensor, Any] | None = None
        if world.rank == 0:
            threading.Thread(target=self._listen, name="training-stop", daemon=True).start()
        self._ask()

    def close(self) -> None:
        """Stop listening; the last broadcast has to end before the process group does."""
        self._closed.set()
        if self._pending is not None:
            self._agreed()

    def on_step_end(self, state: TrainState) -> bool:
        """Save or report if it is time; whether to stop."""
        wanted = self._agreed()
        drained = wanted.look and self._node_is_drained()
        if wanted.stop or wanted.save or drained:
            plan = plan_epoch(self._source.pairing, self._recipe, state.epoch)
            row = epoch_row(state, self._source.pairing, self._recipe, plan, self._world)
            self._report(state, {"kind": "step", "step": state.step, "loss": row["loss"]}, save=True)
        elif wanted.report:
            self._report(state, {"kind": "step", "step": state.step}, save=False)
        if wanted.stop:
            return True
        self._ask()
        return False

    def on_epoch_end(self, state: TrainState, row: Row) -> None:
        """Save, with the epoch's row as the metrics."""
        self._report(state, {"kind": "epoch", **row}, save=True)

    def _report(self, state: TrainState, metrics: Row, *, save: bool) -> None:
        import ray.train
        from ray.train import Checkpoint, CheckpointUploadMode

        position = {"epoch": state.epoch, "done": state.done}
        metrics |= {"position": position, "system": system_metrics()}
        checkpoint = upload = None
        if save:
            content = state.state_dict(self._world)
            self._saved = time.monotonic()
            if self._world.rank == 0:
                storage = ray.train.get_context().get_storage()
                path = storage.build_checkpoint_path_from_name(name := checkpoint_name(position))
                checkpoint, upload = Checkpoint(path, storage.storage_filesystem), partial(self._write, content)
                self._written.clear()
        self._reported = time.monotonic()
        ray.train.report(
            metrics,
            checkpoint,
            checkpoint_dir_name=name if checkpoint else None,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=False,
            checkpoint_upload_fn=upload,
        )

    def _write(self, content: dict[str, Any], checkpoint: Any, _name: str) -> Any:
        """In Ray Train's upload thread, while training goes on."""
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
        """Begin to tell all ranks what rank 0 wants after the next step."""
        now = time.monotonic()
        wanted = Wanted(
            stop=self._stop.is_set(),
            # One at a time: a slow storage must not pile up states in memory.
            save=now - self._saved >= self._recipe.checkpoint.every_s and self._written.is_set(),
            report=now - self._reported >= _PROGRESS_S,
            look=not self._draining and now - self._looked >= _DRAIN_S,
        )
        flags = torch.tensor(wanted, dtype=torch.uint8)
        work = torch.distributed.broadcast(flags, src=0, async_op=True) if self._world.size > 1 else None
        self._pending = flags, work

    def _node_is_drained(self) -> bool:
        """Whether Ray has just learned that a node of this run is to go; the same on every rank, a collective call."""
        import ray.train

        self._looked = time.monotonic()
        self._draining = ray.train.get_preemption_info() is not None
        return self._draining

    def _listen(self) -> None:
        from ray.exceptions import RayError

        with contextlib.suppress(RayError):  # the driver is gone, and this worker soon too
            while not self._closed.wait(_STOP_S):
                if not self._stop_queue.empty():
                    self._stop.set()
                    return


def system_metrics() -> dict[str, float]:
    """This worker's processor and memory use, and its GPU's; MLflow shows them as system metrics."""
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF)
    found = {"cpu_seconds": usage.ru_utime + usage.ru_stime, "peak_memory_megabytes": usage.ru_maxrss / 1024}
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        found["gpu_memory_megabytes"] = (total - free) / 2**20
        with contextlib.suppress(RuntimeError, ModuleNotFoundError):  # without NVML
            found["gpu_utilization_percentage"] = float(torch.cuda.utilization())
    return found
