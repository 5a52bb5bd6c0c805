"""Gradients in one buffer, so that ranks add them up in one collective call without copying them to and fro."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch


class Gradients:
    """The gradients of all that trains as views of one buffer, with room for the loss's sums behind them."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter], sums: int) -> None:
        first = parameters[0]
        self._buffer = torch.zeros(sum(p.numel() for p in parameters) + sums, dtype=first.dtype, device=first.device)
        self._sums_T = self._buffer[len(self._buffer) - sums :]
        pieces = torch.split(self._buffer[: len(self._buffer) - sums], [p.numel() for p in parameters])
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter)

    def clear(self) -> None:
        """Zero them, before the first backward pass of a step."""
        self._buffer.zero_()

    def add_up(self, sums_T: torch.Tensor, add: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Replace all gradients by their sum over ranks, and return these sums' own.

        Args:
            sums_T: This rank's.
            add: Adds a tensor up over ranks, in place.
        """
        self._sums_T.copy_(sums_T)
        add(self._buffer)
        return self._sums_T.to(sums_T)
