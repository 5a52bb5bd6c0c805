"""Everything that routes use, in one typed object. Only `ModelClient` uses Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

from fastapi import Depends, Request

from mmva.modalities import MEDIA_KINDS
from mmva_platform.annotation.catalog.roots import AllowedRoots
from mmva_platform.annotation.plan.plan import ModelInfo
from mmva_platform.monitoring.metrics import ApiMetrics
from mmva_platform.serving.limits import Admission, Threads

if TYPE_CHECKING:
    from mmva.zeroshot.prompts import PromptBank
    from mmva_platform.search.explored import ExploredCatalog
    from mmva_platform.serving.auth import Keyring
    from mmva_platform.serving.client import ModelClient
    from mmva_platform.serving.jobs.progress import ProgressReader
    from mmva_platform.serving.jobs.queue import JobQueue
    from mmva_platform.settings import Settings


class ItemRequest(TypedDict):
    """An item to annotate; `data` are the bytes of an upload, and then `uri` is None."""

    id: str
    uri: str | None
    modality: str | None
    caption: str | None
    data: bytes | None


Row = dict[str, Any]


@dataclass(frozen=True)
class Answers:
    """Rows of items, in order, all by one model."""

    model: ModelInfo
    rows: list[Row]


@dataclass
class Context:
    """The objects that routes use."""

    settings: Settings
    keyring: Keyring
    models: ModelClient
    jobs: JobQueue
    progress: ProgressReader
    report: Callable[[str], str]  # URI of a published annotation -> its report as HTML; blocks
    open_index: Callable[[str], ExploredCatalog]  # URI -> its index, opened once per version; blocks
    metrics: ApiMetrics
    # Each is for one kind of storage access, so that slow media never delay a job's state, nor a report a search.
    index_threads: Threads = field(default_factory=lambda: Threads("search", 4))
    media_threads: Threads = field(default_factory=lambda: Threads("media", 4))
    job_threads: Threads = field(default_factory=lambda: Threads("jobs", 4))
    report_threads: Threads = field(default_factory=lambda: Threads("reports", 2, 8))
    banks: dict[str, PromptBank] = field(default_factory=dict)
    scanning: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self.admission = Admission(self.settings.serving, self.metrics)
        self.roots = AllowedRoots(self.settings.serving.roots)
        self.out_roots = AllowedRoots(self.settings.serving.out_roots)

    async def annotated(self, caller: str, items: list[ItemRequest]) -> Answers:
        """Annotate items, within the limits, and count them."""
        with self.admission.enter(caller, len(items)):
            answers = await self.models.annotate(items)
        for row in answers.rows:
            modality = row["modality"] if row.get("modality") in MEDIA_KINDS else "unknown"
            self.metrics.items.inc(1, {"modality": modality, "error": row.get("error", {}).get("code", "")})
        return answers


def context_of(request: Request) -> Context:
    """The context of the application."""
    context: Context = request.app.state.context
    return context


ContextDep = Annotated[Context, Depends(context_of)]
