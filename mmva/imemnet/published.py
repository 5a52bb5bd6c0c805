"""Read IMEMNet-C's published label files, and report all of their defects.

`image_va.csv` has the columns `(row index), img, valence, arousal`; `music_va.csv` has `(row index), Clip ID, Valence,
Arousal, Caption`. Known defects: 8 image ids are on 22 rows with labels up to .74 apart (IAPS suffixes were lost), and
a few labels exceed 1.0 by up to .006 (the affine map from DEAM's scale).
"""

import re
from pathlib import Path
from typing import Final

import pandas as pd

from mmva.data.labels import Labels, Problem, clean_captions, with_labels, without_nameless, without_repeated_ids
from mmva.data.tables import read_strings
from mmva.modalities import AXES, Modality

_UNIT_SCALE: Final = dict.fromkeys(AXES, (0.0, 1.0))
_IMAGE_SOURCES = (
    ("IAPS", re.compile(r"\d+(\.\d)?")),
    ("NAPS", re.compile(r"(Animals|Faces|Landscapes|Objects|People)_\d{3}_[hv]")),
    ("EMOTIC", re.compile(r"COCO_(train|val)2014_\d{12}|(frame|sun|labelme)_[a-z0-9]+|[a-z0-9]{18}")),
)
_CLIP_ID = re.compile(r"(?P<song>.+)-\d+")
_DEAM_CLIP_ID = re.compile(r"\d+-\d+")


def read_image_labels(source: str | Path | bytes, name: str = "image_va.csv") -> Labels:
    """Read `image_va.csv` (a path, or its content with a name for errors); each image is its own group.

    Raises UsageError with file and column if the file is not such a table.
    """
    table = read_strings(source, name, {"img": "id", "valence": "valence", "arousal": "arousal"})
    table["caption"] = ""
    labels, problems = _checked(table)
    labels["source"] = [image_source(i) for i in labels["id"]]
    labels["group"] = labels["id"]
    return _labels("image", labels, problems, len(table))


def read_music_labels(
    source: str | Path | bytes, name: str = "music_va.csv", *, require_captions: bool = True
) -> Labels:
    """Read `music_va.csv`; the group of a clip is its song (see song_of).

    Without `require_captions`, the Caption column is optional and ignored. Raises UsageError with file and column if
    the file is not such a table.
    """
    columns = {"Clip ID": "id", "Valence": "valence", "Arousal": "arousal", "Caption": "caption"}
    table = read_strings(source, name, columns, optional=() if require_captions else ("Caption",))
    labels, problems = _checked(table)
    if require_captions:
        labels["caption"], found = clean_captions(labels, "unusable-caption")
        problems += found
    labels["source"] = ["DEAM" if _DEAM_CLIP_ID.fullmatch(i) else "other" for i in labels["id"]]
    labels["group"] = [song_of(i) for i in labels["id"]]
    return _labels("music", labels, problems, len(table))


def image_source(image_id: str) -> str:
    """Collection of an image id by its pattern: IAPS, NAPS, EMOTIC or "other"."""
    return next((source for source, pattern in _IMAGE_SOURCES if pattern.fullmatch(image_id)), "other")


def song_of(clip_id: str) -> str:
    """Song of a clip id `song-k`; any other id is its own song."""
    match = _CLIP_ID.fullmatch(clip_id)
    return match["song"] if match else clip_id


def _checked(table: pd.DataFrame) -> tuple[pd.DataFrame, list[Problem]]:
    """Rows with unique ids and usable labels as float64, and the problems of the others."""
    table, nameless = without_nameless(table)
    table, repeated = without_repeated_ids(table)
    table, labels = with_labels(table, _UNIT_SCALE)
    return table, [*nameless, *repeated, *labels]


def _labels(modality: Modality, rows: pd.DataFrame, problems: list[Problem], rows_in: int) -> Labels:
    return Labels(modality, rows[["id", "source", "group", *AXES, "caption"]], problems, rows_in)
