"""What each Ray Train worker runs: restore, fit, checkpoints at epochs' ends, by the clock and before it must go."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

from mmva.errors import CheckFailed, OperationFailed, UsageError
from mmva_platform.training.loop import Row, TrainState, Unwatched, Wishes, World
from mmva_platform.training.recipe import Recipe

if TYPE_CHECKING:
    from mmva_platform.training.checkpoints import Checkpoints
    from mmva_platform.training.loop import Source


def train_worker(config: dict[str, Any]) -> None:
    """Ray Train's per-worker function.

    Args:
        config: `recipe` (plain values), `features` (see share_features: workers of one machine read the same memory) or
            `media` (a reference of MediaPlan), `checkpoints` (the run's) and `channel` (a Channel's handle).
    """
    import ray
    from ray.train.torch import get_device

    from mmva_platform.training.loop import fit

    recipe = Recipe.model_validate(config["recipe"])
    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size())
    try:
        state, source = prepare(recipe, config, world, get_device())
        keeper = Keeper(config["checkpoints"], world, recipe.checkpoint.every_s, config["channel"])
        fit(state, source, recipe, world=world, watcher=keeper)
    except (UsageError, CheckFailed, OperationFailed) as error:
        ray.get(config["channel"].fail.remote(error))  # its one line says more than Ray's report of it
        raise


def prepare(recipe: Recipe, config: dict[str, Any], world: World, device: Any) -> tuple[TrainState, Source]:
    """State and source of this rank, from the last checkpoint if there is one."""
    last = read_last(config["checkpoints"], world)
    if recipe.mode == "media":
        import ray

        from mmva_platform.training.media.run import prepare_media

        return prepare_media(recipe, ray.get(config["media"]), last, world, device)
    from mmva_platform.training.build import build_model, new_state, state_around
    from mmva_platform.training.checkpoint import restore
    from mmva_platform.training.data import triplets
    from mmva_platform.training.memory import shared_features
    from mmva_platform.training.source import FeatureSource

    features = shared_features(config["features"])
    train, val = triplets(features, "train"), triplets(features, "val")
    model = build_model(recipe, train).to(device)
    if last is None:
        state = new_state(model, recipe, train, val, world)
    else:
        state = state_around(model, recipe, train, last["penalties"], world)
        restore(state, last, world)
    return state, FeatureSource(train, val, recipe.loss.sigma)


def read_last(checkpoints: Checkpoints, world: World) -> dict[str, Any] | None:
    """The last whole checkpoint: rank 0 says which one that is, so that all go on from the same."""
    found = checkpoints.latest() if world.rank == 0 else None
    chosen = world.first(None if found is None else found[0])
    if chosen is None:
        return None
    return found[1] if found is not None else checkpoints.read(chosen)


class Keeper(Unwatched):
    """Saves checkpoints, tells of epochs, and asks all ranks for a save or a stop when it is time.

    Rank 0's clock and flag count; a node that is to be taken away may be any rank's.
    """

    def __init__(self, checkpoints: Checkpoints, world: World, every_s: float, channel: Any) -> None:
        self._checkpoints, self._world, self._every_s, self._channel = checkpoints, world, every_s, channel
        self._saved_at = time.monotonic()
        self._stop = threading.Event()
        self._leaving = False
        if world.rank == 0:
            threading.Thread(target=self._listen, name="training-stop", daemon=True).start()

    def wishes(self) -> Wishes:
        """Stop when told to; save when the clock says so, and once when this job's machines are to go."""
        leaving = self._must_leave()  # by all ranks or by none, whatever rank 0's clock says: Ray makes it a barrier
        due = self._world.rank == 0 and time.monotonic() - self._saved_at >= self._every_s
        return Wishes(stop=self._stop.is_set(), save=due or leaving)

    def after_step(self, state: TrainState, wishes: Wishes) -> None:
        """Save in the middle of an epoch."""
        if wishes.stop or wishes.save:
            self._save(state)

    def after_epoch(self, state: TrainState, row: Row) -> None:
        """Save, then tell."""
        self._save(state)
        if self._world.rank == 0:
            import ray

            ray.get(self._channel.tell.remote(row))

    def _save(self, state: TrainState) -> None:
        """Rank 0 writes; the others go on as soon as it has their random states."""
        from mmva_platform.training.checkpoint import random_state, state_bytes

        rng = self._world.all(random_state())
        if self._world.rank == 0:
            data = state_bytes(state, rng)
            self._checkpoints.save(data, epoch=state.epoch, done=state.done, history=state.history)
            self._saved_at = time.monotonic()

    def _must_leave(self) -> bool:
        """Whether Ray has just learned that a node of this job is being drained."""
        import ray.train

        if self._leaving or ray.train.get_preemption_info() is None:
            return False
        self._leaving = True
        return True

    def _listen(self) -> None:
        import ray
        from ray.exceptions import RayError

        with contextlib.suppress(RayError):  # the driver is gone, and this worker soon too
            ray.get(self._channel.stopped.remote())
            self._stop.set()
