"""What a checkpoint holds, and how a run continues from it as if it had never stopped.

One file, readable with torch's safe loader (tensors and plain values only): model, its average, optimiser, schedule,
position in the epoch, every worker's random state, the history so far.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import torch

from mmva_platform.training.loop import TrainState, World

RandomState = dict[str, torch.Tensor]


def state_bytes(state: TrainState, rng: list[RandomState]) -> bytes:
    """The state as a file.

    Args:
        state: What to write; of a model with frozen backbones only what training moves.
        rng: Random state of each rank, from `World.all(random_state())`.
    """
    payload = {
        "model": kept(state.model),
        "average": kept(state.average),
        "optimizer": state.optimizer.state_dict(),
        "schedule": state.schedule.state_dict(),
        "penalties": state.penalties,
        "position": {"epoch": state.epoch, "done": state.done, "step": state.step},
        "sums": {name: list(pair) for name, pair in state.sums.items()},
        "rng": rng,
        "history": state.history,
    }
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    return buffer.getvalue()


def read_state(data: bytes) -> dict[str, Any]:
    """A checkpoint's content, on the CPU; nothing in the file can run."""
    payload: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return payload


def restore(state: TrainState, payload: Mapping[str, Any], world: World) -> None:
    """Put a checkpoint's content into a fresh state, in place; with another number of workers only dropout differs."""
    _load_kept(state.model, payload["model"])
    _load_kept(state.average, payload["average"])
    state.optimizer.load_state_dict(payload["optimizer"])
    state.schedule.load_state_dict(payload["schedule"])
    position = payload["position"]
    state.epoch, state.done, state.step = position["epoch"], position["done"], position["step"]
    state.sums = {name: (total, count) for name, (total, count) in payload["sums"].items()}
    state.history = list(payload["history"])
    if world.rank < len(payload["rng"]):
        _set_rng(payload["rng"][world.rank])


def kept(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A module's state without the weights that stay as they were loaded."""
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    return {name: value for name, value in module.state_dict().items() if name not in frozen}


def random_state() -> RandomState:
    """This process's random state."""
    mine = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        mine["cuda"] = torch.cuda.get_rng_state()
    return mine


def _load_kept(module: torch.nn.Module, values: Mapping[str, torch.Tensor]) -> None:
    found = module.load_state_dict(values, strict=False)
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    assert not found.unexpected_keys
    assert set(found.missing_keys) <= frozen, "a checkpoint holds all that training moves"


def _set_rng(mine: RandomState) -> None:
    torch.set_rng_state(mine["cpu"])
    if "cuda" in mine and torch.cuda.is_available():
        torch.cuda.set_rng_state(mine["cuda"])
