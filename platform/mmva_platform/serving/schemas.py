"""Bodies of requests and answers; OpenAPI is generated from them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from mmva.modalities import MediaKind
from mmva_platform.annotation.plan.plan import ModelInfo
from mmva_platform.search import Hit
from mmva_platform.serving.jobs.queue import JobSpec, State


def _unicode(text: str) -> str:
    """JSON can hold lone surrogates, which an answer cannot repeat."""
    if not text.isascii() and text.encode(errors="replace").decode() != text:
        raise ValueError("not valid Unicode")
    return text


Unicode = Annotated[str, AfterValidator(_unicode)]
Text = Annotated[Unicode, Field(max_length=20_000)]
Uri = Annotated[Unicode, Field(min_length=1, max_length=2_000)]
Name = Annotated[Unicode, Field(max_length=500)]
Unit = Annotated[float, Field(ge=0, le=1)]
Range = tuple[Unit, Unit]


class Body(BaseModel):
    """Base of requests: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid")


class Problem(BaseModel):
    """An error."""

    code: str = Field(description="stable, for programs")
    message: str


class ErrorOut(BaseModel):
    """The body of every error."""

    error: Problem


class ItemIn(Body):
    """An item by URI or as caption text."""

    id: Name | None = Field(None, description="repeated in the answer; default: the item's number")
    uri: Uri | None = Field(None, description="below a root that the server allows")
    caption: Unicode | None = Field(None, description="the text")
    modality: MediaKind | None = Field(None, description="default: by the URI's extension")


class AnnotateIn(Body):
    """Items to annotate."""

    items: list[ItemIn] = Field(min_length=1)
    embeddings: bool = Field(default=False, description="return each item's embedding")


class ItemProblem(Problem):
    """Why an item has no point."""

    stage: str = Field(description="catalog, fetch, decode or infer")


class Window(BaseModel):
    """A point of a curve."""

    start_s: float
    valence: float
    arousal: float


class ItemOut(BaseModel):
    """An item's point, or its error."""

    id: str
    status: Literal["ok", "error"]
    modality: str | None = None
    valence: float | None = None
    arousal: float | None = None
    interval: dict[str, tuple[float, float]] | None = Field(None, description="90 %, if the model has intervals")
    mood: str | None = None
    duration_s: float | None = None
    windows: list[Window] | None = Field(None, description="of music and video with more than one window")
    sha256: str | None = None
    embedding: list[float] | None = None
    error: ItemProblem | None = None
    model_version: str | None = None
    model_digest: str


class AnnotateOut(BaseModel):
    """Rows in the order of the request's items."""

    model: ModelInfo
    items: list[ItemOut]


class JobIn(Body):
    """A catalog to annotate."""

    catalog: Uri = Field(description="a folder, prefix or table below a root that the server allows")
    out: Uri = Field(description="the run directory, below a root for outputs")
    model: str | None = Field(
        None,
        pattern=r"^models:/[A-Za-z0-9_.-]{1,100}[@/][A-Za-z0-9_.-]{1,100}$",
        description="models:/NAME@ALIAS or models:/NAME/VERSION; default: the server's model",
    )
    max_errors: str | None = Field(None, pattern=r"^\d{1,12}%?$", description="most quarantined items: 100, or 5%")


class JobProgress(BaseModel):
    """Progress of a run directory."""

    shards: int
    shards_done: int
    items: int
    items_done: int
    annotated: int
    quarantined: int
    causes: dict[str, int]
    published: bool
    eta_s: float | None = Field(description="seconds left at the current pace; null before the first shard")
    model_version: str | None
    model_digest: str


class JobOut(JobSpec):
    """A job."""

    id: str
    state: State
    owner: str = Field(description="name of the key that submitted it")
    submitted_at: datetime
    changed_at: datetime
    message: str | None = Field(description="why it failed")
    progress: JobProgress | None = Field(None, description="null before there is a plan, and in lists by default")


class JobsOut(BaseModel):
    """A page of jobs, the newest first."""

    jobs: list[JobOut]
    total: int


class ModelsOut(BaseModel):
    """The current model, and the registered versions."""

    serving: ModelInfo | None
    following: str
    versions: list[dict[str, Any]]


class QueryIn(Body):
    """A query: one of text, URI and point of the plane."""

    text: Text | None = None
    uri: Uri | None = None
    modality: MediaKind | None = Field(None, description="of the URI; default: by its extension")
    point: Range | None = Field(None, description="valence and arousal")

    def given(self) -> int:
        """How many of text, URI, point and `like` are given."""
        return sum(getattr(self, name, None) is not None for name in ("text", "uri", "point", "like"))


class RegionIn(Body):
    """A rectangle of the plane."""

    valence: Range = (0.0, 1.0)
    arousal: Range = (0.0, 1.0)

    @model_validator(mode="after")
    def _ordered(self) -> RegionIn:
        for axis in (self.valence, self.arousal):
            if axis[0] > axis[1]:
                raise ValueError("the lower bound must come first")
        return self


class SearchIn(QueryIn):
    """A query against a published annotation."""

    annotation: Uri = Field(description="a name that the server knows, or a URI below its roots")
    top: int = Field(10, ge=1, le=1000)
    offset: int = Field(0, ge=0, le=1_000_000)
    only: MediaKind | None = Field(None, description="only items of this modality")
    region: RegionIn | None = None
    like: Name | None = Field(None, description="id of an annotated item, instead of a text, URI or point")
    by: Literal["va", "embedding"] = Field("va", description="with `like`: the plane, or cosine within its modality")

    @model_validator(mode="after")
    def _embedding_of_an_item(self) -> SearchIn:
        if self.by == "embedding" and self.like is None:
            raise ValueError("search by embedding needs `like`, the id of an annotated item")
        return self


class SearchOut(BaseModel):
    """Hits, the nearest first."""

    model: ModelInfo
    annotation: str
    query: dict[str, float]
    hits: list[Hit] = Field(description="by embedding: the most similar first")


class PromptOut(BaseModel):
    """A prompt for a text-to-music generator, and its parts."""

    model: ModelInfo
    query: dict[str, float]
    prompt: str
    details: dict[str, Any]


class SummaryIn(Body):
    """A video to summarise; leave out `uri` with an upload."""

    uri: Uri | None = None
    seconds: float = Field(15.0, gt=0, le=3600, description="longest duration of the summary")
    annotation: Uri | None = Field(None, description="suggest the nearest music of this annotation for each segment")


class SegmentOut(BaseModel):
    """A segment of the video in which its mood changes."""

    start_s: float
    end_s: float
    change: float = Field(description="its share of the whole video's change")
    valence: float
    arousal: float
    mood: str
    music: Hit | None = None


class SummaryOut(BaseModel):
    """The chosen segments in order, and the curve from which they were chosen."""

    model: ModelInfo
    duration_s: float
    segments: list[SegmentOut]
    curve: list[Window]
