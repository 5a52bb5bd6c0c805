"""Suspects that are tried apart now. A trial outlives the request that began it, whose time may be over before the
verdict: who asks again joins the trial under way, instead of waiting behind it for another one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

from mmva_platform.serving.services import Answers, ItemRequest, busy
from mmva_platform.serving.suspects import identity

Annotate = Callable[[list[ItemRequest]], Awaitable[Answers]]


class Trials:
    """Shares one trial of an item between all who ask for it meanwhile."""

    def __init__(self, judge: Annotate, most: int) -> None:
        """Try items by `judge`, `most` of them at a time, but always one request's."""
        self._judge, self._most = judge, most
        self._under_way: dict[str, asyncio.Task[Answers]] = {}

    async def __call__(self, items: Sequence[ItemRequest]) -> Answers:
        """A row for every item, in order, each under its own id.

        Raises:
            ApiError: 503 when too many items wait for their verdict; what the trial raises.
        """
        new = {key: item for item in items if (key := identity(item)) not in self._under_way}
        if self._under_way and len(self._under_way) + len(new) > self._most:
            raise busy("too many items are tried apart", 5.0)
        if new:
            self._under_way |= dict.fromkeys(new, asyncio.create_task(self._trial(new)))
        tasks = list(dict.fromkeys(self._under_way[identity(item)] for item in items))
        answers = await asyncio.gather(*map(asyncio.shield, tasks))
        rows = {row["id"]: row for answer in answers for row in answer.rows}
        return Answers(answers[-1].model, [{**rows[identity(item)], "id": item["id"]} for item in items])

    async def _trial(self, items: Mapping[str, ItemRequest]) -> Answers:
        """Rows under what their items are, since other requests may have other ids for them."""
        try:
            answers = await self._judge(list(items.values()))
        finally:
            for key in items:
                del self._under_way[key]
        named = [{**row, "id": key} for key, row in zip(items, answers.rows, strict=True)]
        return Answers(answers.model, named)
