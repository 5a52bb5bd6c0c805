"""What the application needs of the world, and the errors by which routes say no. Ray stays behind `Services`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

from fastapi import HTTPException

from mmva_platform.annotation.plan import ModelInfo
from mmva_platform.annotation.roots import AllowedRoots

if TYPE_CHECKING:
    from mmva_platform.serving.jobs import JobQueue
    from mmva_platform.serving.keys import Keyring
    from mmva_platform.settings import Settings


class ItemRequest(TypedDict):
    """An item on its way to a model; `data` are an upload's bytes, and then `uri` is None."""

    id: str
    uri: str | None
    modality: str | None
    caption: str | None
    data: bytes | None


Row = dict[str, Any]


@dataclass(frozen=True)
class Answers:
    """Rows of some items, in their order, each with its model's version; and the model that answered last."""

    model: ModelInfo
    rows: list[Row]


class Models(Protocol):
    """The replicas that hold the model."""

    async def annotate(self, items: Sequence[ItemRequest]) -> Answers:
        """A row for every item: its point, or its error. Raises ApiError when no replica answers."""

    async def current(self) -> ModelInfo | None:
        """The model that answers now; None while there is none."""

    async def versions(self) -> list[dict[str, Any]]:
        """What is registered."""


@dataclass(frozen=True)
class Services:
    """Everything that routes call.

    Attributes:
        settings: Of the platform.
        keyring: Who may do what.
        models: See Models.
        jobs: The queue of annotation jobs.
        report: A published annotation's URI -> its report as HTML; blocking.
        open_index: A published annotation's URI -> its search index, opened once; blocking.
    """

    settings: Settings
    keyring: Keyring
    models: Models
    jobs: JobQueue
    report: Callable[[str], str]
    open_index: Callable[[str], Any]
    roots: AllowedRoots = field(init=False)
    out_roots: AllowedRoots = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "roots", AllowedRoots(self.settings.serving.roots))
        object.__setattr__(self, "out_roots", AllowedRoots(self.settings.serving.out_roots))


class ApiError(HTTPException):
    """An answer that is an error: a stable code to program against, and one line for a person."""

    def __init__(self, status: int, code: str, message: str, retry_after_s: float | None = None) -> None:
        headers = {"Retry-After": str(max(1, round(retry_after_s)))} if retry_after_s is not None else None
        super().__init__(status, detail=message, headers=headers)
        self.code = code


def busy(message: str, retry_after_s: float = 1.0) -> ApiError:
    """503: everybody is to come back later."""
    return ApiError(503, "busy", message, retry_after_s)
