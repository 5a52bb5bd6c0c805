"""Options of an annotation run, besides catalog, model and output."""

import re
from typing import Annotated, Final, Self

from pydantic import AfterValidator, Field, model_validator

from mmva.inference.config import check_engine_name
from mmva.media.windows import HOP_S, WINDOW_S
from mmva_platform.settings import Config


def _error_limit(text: str) -> str:
    share = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)%", text)
    valid = float(share[1]) <= 100 if share else re.fullmatch(r"[0-9]+", text)
    if not valid:
        raise ValueError("must be a number of items such as 100, or a share such as 5%")
    return text


def _one_delimiter(text: str) -> str:
    character = "\t" if text == "\\t" else text
    if len(character) != 1 or character in '"\r\n':
        raise ValueError("must be one character, such as ; or \\t, and no quote")
    return character


class TableOptions(Config):
    """How the table files of a catalog are read."""

    lenient: bool = Field(default=False, description="count malformed rows and leave them out, instead of failing")
    delimiter: Annotated[str, AfterValidator(_one_delimiter)] | None = Field(
        None, description=r"separator of CSV files, one character or \t; by default a tab in .tsv and a comma in .csv"
    )


PLAIN_TABLES: Final = TableOptions()


class RetryOptions(Config):
    """Options of a retry, and of every other way to make a version."""

    workers: int | None = Field(None, ge=1, description="actors; by default one per CPU")
    max_errors: Annotated[str, AfterValidator(_error_limit)] | None = Field(
        None, description="stop if more items are quarantined: 100, or 5%; default 20%, for 100 items or more"
    )
    shard_items: int | None = Field(None, ge=1, description="most items of a shard; by default a minute of work")
    batch_size: int = Field(16, ge=1, description="images, windows or captions embedded at once")
    command: tuple[str, ...] = Field((), description="as it was typed, for the run card")


class UpdateOptions(RetryOptions):
    """Options of an update."""

    tables: TableOptions | None = Field(None, description="by default as for the version before")

    catalog: str | None = Field(None, description="by default the same catalog, read again")
    model: str | None = Field(None, description="by default the model of the version before")
    engine: Annotated[str, AfterValidator(check_engine_name)] = Field(
        "auto", description="as for annotate; auto takes the engines of the version before"
    )
    reread: bool = Field(default=False, description="read media again where the backbone or the engine is another one")
    roots: tuple[str, ...] = Field((), description="media may be read from here, too")


class AnnotateOptions(RetryOptions):
    """Options of a run. Those that decide the output are in its plan; a later call must have the same ones."""

    tables: TableOptions = PLAIN_TABLES

    engine: Annotated[str, AfterValidator(check_engine_name)] = Field(
        "auto", description="auto, torch, torch-bf16, onnx, cuda or cuda-bf16; on a resume, auto is the plan's engine"
    )
    roots: tuple[str, ...] = Field((), description="media may be read from here, besides the catalog's own place")
    keep_windows: bool = Field(default=True, description="keep windows' embeddings, for curves without media later")
    window_s: float = Field(WINDOW_S, gt=0, description="length of a window of audio")
    hop_s: float = Field(HOP_S, gt=0, description="seconds between the starts of two windows")

    @model_validator(mode="after")
    def _windows_meet(self) -> Self:
        if self.hop_s > self.window_s:
            raise ValueError(f"hop_s must be at most window_s, got {self.hop_s:g} and {self.window_s:g}")
        return self


class ErrorLimit:
    """The limit of quarantined items of a run, "100" or "5%"; a share is checked from 100 items on."""

    _SMALLEST_SAMPLE = 100
    _DEFAULT = "20%"

    def __init__(self, text: str | None, items: int) -> None:
        """The limit for a catalog of so many items. By default a small catalog has none, and others have 20%."""
        unlimited = text is None and items < self._SMALLEST_SAMPLE
        self.text, self._items = ("100%" if unlimited else text or self._DEFAULT), items

    def exceeded(self, done: int, quarantined: int) -> bool:
        """Whether this number of quarantined items among those done is over the limit."""
        if not self.text.endswith("%"):
            return quarantined > int(self.text)
        enough = done >= min(self._SMALLEST_SAMPLE, self._items)
        return enough and quarantined > float(self.text[:-1]) / 100 * done
