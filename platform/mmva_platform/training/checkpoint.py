"""What a checkpoint holds, and how a run continues from it as if it had never stopped.

One file, readable with torch's safe loader (tensors and plain values only): model, its average, optimiser, schedule,
position of the sampler, every worker's random state, the history so far.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mmva_platform.training.loop import TrainState, World

FILE = "state.pt"
RandomState = dict[str, torch.Tensor]


def save_state(state: TrainState, folder: Path, rng: list[RandomState]) -> None:
    """Write the state after an epoch into a folder.

    Args:
        state: What to write.
        folder: An existing folder.
        rng: Random state of each rank, from `gather_rng`.
    """
    payload = {
        "model": state.model.state_dict(),
        "average": state.average.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "schedule": state.schedule.state_dict(),
        "position": {"epoch": state.epoch, "step": state.step},
        "rng": rng,
        "history": state.history,
    }
    torch.save(payload, folder / FILE)


def read_state(folder: Path) -> dict[str, Any]:
    """The checkpoint's content, on the CPU; nothing in the file can run."""
    payload: dict[str, Any] = torch.load(folder / FILE, map_location="cpu", weights_only=True)
    return payload


def restore(state: TrainState, payload: dict[str, Any], world: World) -> None:
    """Put a checkpoint's content into a fresh state, in place; with another number of workers only dropout differs."""
    state.model.load_state_dict(payload["model"])
    state.average.load_state_dict(payload["average"])
    state.optimizer.load_state_dict(payload["optimizer"])
    state.schedule.load_state_dict(payload["schedule"])
    state.epoch, state.step = payload["position"]["epoch"], payload["position"]["step"]
    state.history = list(payload["history"])
    if world.rank < len(payload["rng"]):
        _set_rng(payload["rng"][world.rank])


def gather_rng(world: World) -> list[RandomState]:
    """Every rank's random state, on every rank (a collective call)."""
    mine = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        mine["cuda"] = torch.cuda.get_rng_state()
    if world.size == 1:
        return [mine]
    states: list[RandomState] = [{} for _ in range(world.size)]
    torch.distributed.all_gather_object(states, mine)
    return states


def _set_rng(mine: RandomState) -> None:
    torch.set_rng_state(mine["cpu"])
    if "cuda" in mine and torch.cuda.is_available():
        torch.cuda.set_rng_state(mine["cuda"])
