"""What a caller may choose about an annotation run, besides catalog, model and output."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from mmva.media.windows import HOP_S, WINDOW_S
from mmva_platform.settings import Config


def _error_limit(text: str | None) -> str | None:
    """A whole number, or a percentage."""
    if text is not None:
        number = text.removesuffix("%")
        share = number != text
        if not number.replace(".", "", 1 if share else 0).isdigit() or (share and float(number) > 100):
            raise ValueError("must be a number of items such as 100, or a share such as 5%")
    return text


class AnnotateOptions(Config):
    """Options of a run; those that decide the output stand in its plan, and a resume must agree with them."""

    workers: int | None = Field(None, ge=1, description="actors; one a CPU by default")
    engine: str = Field(
        "auto", description="auto, torch, torch-bf16, onnx, cuda or cuda-bf16; auto on a resume adopts the plan's"
    )
    base: str | None = Field(None, description="an earlier annotation, from which what has not changed is taken")
    incremental: bool = Field(default=False, description="take the newest annotation beside the output as the base")
    max_errors: Annotated[str | None, AfterValidator(_error_limit)] = Field(
        None, description="give up when more items than this are quarantined: 100, or 5%"
    )
    roots: tuple[str, ...] = Field((), description="media may be read from here, besides the catalog's own place")
    keep_windows: bool = Field(default=True, description="keep windows' embeddings, for curves without media later")
    shard_items: int | None = Field(None, ge=1, description="largest shard in images; chosen by the catalog's size")
    batch_size: int = Field(16, ge=1, description="images, windows or captions embedded at once")
    window_s: float = Field(WINDOW_S, gt=0, description="length of a window of audio")
    hop_s: float = Field(HOP_S, gt=0, description="seconds between the starts of two windows")
    command: tuple[str, ...] = Field((), description="as it was typed, for the run card")


class ErrorLimit:
    """Whether a run has quarantined more than its caller bears; a share counts from a hundred items on."""

    _SMALLEST_SAMPLE = 100

    def __init__(self, text: str | None, items: int) -> None:
        self._text, self._items = text, items

    def exceeded(self, done: int, quarantined: int) -> bool:
        """With so many items done, so many of them quarantined."""
        if self._text is None:
            return False
        if not self._text.endswith("%"):
            return quarantined > int(self._text)
        enough = done >= min(self._SMALLEST_SAMPLE, self._items)
        return enough and quarantined > float(self._text[:-1]) / 100 * done
