"""A source file: where a labeled collection is, the columns of its table, and its rating scale.

name: Holiday pictures
license: ours
modality: image
table: ratings.csv
columns: {file: picture, valence: pleasant, arousal: active, group: day}
scale: [1, 9]
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, field_validator, model_validator

from mmva.errors import UsageError
from mmva.modalities import Modality
from mmva_platform.settings import Config, did_you_mean, read_yaml, validate

_NAME: Final = r"^[^/\\|]{1,64}$"
IMEMNET_NAME: Final = "IMEMNet-C"
_VARIABLE: Final = re.compile(r"\$\{?(\w+)\}?")
Range = tuple[float, float]


class Scale(Config):
    """Lowest and highest rating of each axis, which become 0 and 1. A single pair applies to both axes."""

    valence: Range
    arousal: Range

    @model_validator(mode="before")
    @classmethod
    def _one_for_both(cls, value: Any) -> Any:
        return {"valence": value, "arousal": value} if isinstance(value, list | tuple) else value

    @field_validator("valence", "arousal")
    @classmethod
    def _rises(cls, value: Range) -> Range:
        if not value[0] < value[1]:
            raise ValueError("give the lowest rating, then the highest")
        return value


class Columns(Config):
    """The table's column for each value; other columns are not read."""

    id: str | None = Field(None, description="default: the file without extension (and @start_s), or the row's number")
    file: str | None = Field(None, description="path below `media`, or the file's name without folder and extension")
    text: str | None = Field(None, description="the sentence; with a music file, the clip's caption")
    valence: str = "valence"
    arousal: str = "arousal"
    valence_sd: str | None = Field(None, description="standard deviation of the raters, on the scale of the rating")
    arousal_sd: str | None = None
    group: str | None = Field(None, description="rows with the same value are in one split: a theme, a document")
    split: str | None = Field(None, description="train, val (or dev) or test; without it the rows are split by group")
    start_s: str | None = Field(None, description="an item is this part of its file, in seconds; music only")
    end_s: str | None = None


class _Source(Config):
    layout: str
    name: str = Field(pattern=_NAME, description="used in ids, reports and model cards")
    license: str = Field("see its source", description="license or terms; shown in model cards")
    root: str = Field(".", description="folder or URI of its files; relative to the source file, ${VARIABLES} allowed")


class TableSource(_Source):
    """One table of ratings, with media files or sentences."""

    layout: Literal["table"] = "table"
    modality: Modality
    table: str = Field(description="CSV, TSV, Parquet or JSON lines, below `root`")
    media: str = Field(".", description="folder of the media files, below `root`")
    columns: Columns = Columns()
    scale: Scale

    @model_validator(mode="after")
    def _columns_fit(self) -> Self:
        columns = self.columns
        if self.modality == "caption" and (columns.text is None or columns.file is not None):
            raise ValueError("sentences need columns.text and no columns.file")
        if self.modality != "caption" and columns.file is None and columns.id is None:
            raise ValueError("media need columns.file, or columns.id if the files are named by it")
        if self.modality == "image" and columns.text is not None:
            raise ValueError("pictures have no columns.text; make the sentences a source of their own")
        if (columns.start_s is None) != (columns.end_s is None) or (columns.start_s and self.modality != "music"):
            raise ValueError("columns.start_s and columns.end_s go together, and are for music")
        return self


class OasisSource(_Source):
    """OASIS as published: OASIS.csv and the pictures, `Acorns 1.jpg`; the group is the theme."""

    layout: Literal["oasis"]
    name: str = Field("OASIS", pattern=_NAME)
    license: str = "open for research; cite Kurdi, Lozano, Banaji 2017"


class EmobankSource(_Source):
    """EmoBank as published: emobank.csv, and meta.tsv if it is there; the group is the document."""

    layout: Literal["emobank"]
    name: str = Field("EmoBank", pattern=_NAME)
    license: str = "CC-BY-SA 4.0; cite Buechel, Hahn 2017"


class PmemoSource(_Source):
    """PMEmo 2019 as published: static annotations of choruses; the group is the artist, or else the song."""

    layout: Literal["pmemo"]
    name: str = Field("PMEmo", pattern=_NAME)
    license: str = "for research; cite Zhang et al. 2018"


class DeamSource(_Source):
    """DEAM as published; the group is the song.

    `static` are whole songs with their averaged annotations (1 to 9). `dynamic` are IMEMNet's clips: windows of 2 s
    whose label is the mean of the four values in them, on IMEMNet's scale.
    """

    layout: Literal["deam"]
    name: str = Field("DEAM", pattern=_NAME)
    license: str = (
        "annotations for research; music under the Creative Commons licences of its artists, some non-commercial"
    )
    annotations: Literal["static", "dynamic"] = "static"
    split: str | None = Field(None, description="CSV of song_id,split, such as IMEMNet's; other songs are dropped")


class ImemnetSource(_Source):
    """IMEMNet-C as published. With the default name, each row's source is the collection that its id belongs to.

    Without images_csv and music_csv, image_va.csv and music_va.csv below the root are read, if they exist.
    """

    layout: Literal["imemnet-c"] = "imemnet-c"
    name: str = Field(IMEMNET_NAME, pattern=_NAME)
    images_csv: str | None = Field(None, description="as image_va.csv: img, valence, arousal")
    music_csv: str | None = Field(None, description="as music_va.csv: Clip ID, Valence, Arousal, Caption")
    media: str = Field(".", description="folder or URI that holds the media files, at any depth")
    split: str = Field("song", description='"song" (no leakage), "clip" (leaks), or a CSV of song_id,split')


Source = Annotated[
    TableSource | OasisSource | EmobankSource | PmemoSource | DeamSource | ImemnetSource, Field(discriminator="layout")
]
LAYOUTS: Final[Mapping[str, type[_Source]]] = {
    "table": TableSource, "oasis": OasisSource, "emobank": EmobankSource, "pmemo": PmemoSource, "deam": DeamSource,
    "imemnet-c": ImemnetSource,
}  # fmt: skip


def load_source(path: str | Path, root: str | None = None) -> Source:
    """Read a source file (YAML); `root` replaces its own `root` and is relative to the working directory.

    Raises UsageError, one line with the file and the key.
    """
    values = read_yaml(Path(path))
    layout = values.get("layout", "table")
    if not isinstance(layout, str) or layout not in LAYOUTS:
        raise UsageError(f"{path}: layout: {layout!r} is unknown; {did_you_mean(str(layout), LAYOUTS, 'layouts')}")
    found = validate(LAYOUTS[layout], {**values, "layout": layout}, str(path))
    if root is None:
        root = _expanded(found.root, path)
        if "://" not in root and not root.startswith("~"):
            root = str(Path(path).parent / root)
    return found.model_copy(update={"root": root})  # type: ignore[return-value]


def _expanded(text: str, path: str | Path) -> str:
    for name in _VARIABLE.findall(text):
        if name not in os.environ:
            raise UsageError(f"{path}: root: the variable {name} is not set; set it, or give the folder with --root")
    return os.path.expandvars(text)
