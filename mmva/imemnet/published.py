"""IMEMNet-C's label files, read as they were published, with everything that is wrong in them reported.

`image_va.csv` has the columns `(row index), img, valence, arousal`, `music_va.csv` the columns `(row index), Clip ID,
Valence, Arousal, Caption`. Known defects: 8 image ids stand on 22 rows with labels up to .74 apart (IAPS suffixes were
lost), and a few labels pass 1.0 by up to .006 (the affine map from DEAM's scale). No label is ever chosen silently:
rows in = rows kept + rows dropped, and every dropped row belongs to a reported problem.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from mmva.errors import MediaError
from mmva.imemnet.tables import read_strings
from mmva.media.captions import clean_caption
from mmva.modalities import AXES, Modality

# Labels this far outside [0, 1] are rounding of the published scale; IMEMNet-C's own pass 1.0 by up to .006.
LABEL_TOLERANCE: Final = 0.01
PROBLEM_CODES: Final[dict[str, str]] = {
    "missing-id": "dropped: the row has no id",
    "ambiguous-id": "dropped, all of its rows: one id with different labels or captions",
    "duplicate-row": "dropped but for the first: the same id with the same content",
    "label-out-of-range": f"dropped: a label is no number, or outside [0, 1] by more than {LABEL_TOLERANCE}",
    "label-over-by-a-hair": f"kept: a label is outside [0, 1] by at most {LABEL_TOLERANCE}",
    "unusable-caption": "kept without its caption: empty, too long or not text",
    "missing-file": "no file has this id as its name",
    "ambiguous-file": "several files have this id as their name",
}
_IMAGE_SOURCES = (
    ("IAPS", re.compile(r"\d+(\.\d)?")),
    ("NAPS", re.compile(r"(Animals|Faces|Landscapes|Objects|People)_\d{3}_[hv]")),
    ("EMOTIC", re.compile(r"COCO_(train|val)2014_\d{12}|(frame|sun|labelme)_[a-z0-9]+|[a-z0-9]{18}")),
)
_CLIP_ID = re.compile(r"(?P<song>.+)-\d+")
_DEAM_CLIP_ID = re.compile(r"\d+-\d+")


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding about one id: a code of PROBLEM_CODES, what was seen, and how many rows it cost."""

    code: str
    id: str
    detail: str
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class Labels:
    """Labels of one modality.

    Attributes:
        modality: "image" or "music".
        rows: One row an id, in the file's order: id, source, group (str), valence, arousal (float64), caption (str, ""
            where there is none).
        problems: What was wrong, in the order of the checks.
        rows_in: Rows of the file.
    """

    modality: Modality
    rows: pd.DataFrame
    problems: list[Problem]
    rows_in: int

    def __post_init__(self) -> None:
        assert self.rows_in == len(self.rows) + self.rows_dropped, "every row of the file is kept or reported"

    @property
    def rows_dropped(self) -> int:
        """Rows that are not in `rows`."""
        return sum(problem.dropped for problem in self.problems)

    @property
    def counts(self) -> dict[str, int]:
        """Number of problems by code."""
        return dict(Counter(problem.code for problem in self.problems))


def read_image_labels(source: str | Path | bytes, name: str = "image_va.csv") -> Labels:
    """Read `image_va.csv`: ids without extension; each image is its own group.

    Args:
        source: Path or content.
        name: What errors call the content when `source` is bytes.

    Raises:
        UsageError: If the file cannot be read as such a table; the message names file and column.
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
    """Read `music_va.csv`; the group of a clip `song-k` is its song, that of any other id the id itself.

    Args:
        source: Path or content. Column names may be written `Clip ID` or `clip_id`, in any case.
        name: What errors call the content when `source` is bytes.
        require_captions: Whether a file without a Caption column is an error or a table of captionless clips.

    Raises:
        UsageError: If the file cannot be read as such a table; the message names file and column.
    """
    columns = {"Clip ID": "id", "Valence": "valence", "Arousal": "arousal", "Caption": "caption"}
    table = read_strings(source, name, columns, optional=() if require_captions else ("Caption",))
    labels, problems = _checked(table)
    if require_captions:
        labels["caption"], found = _clean_captions(labels)
        problems += found
    labels["source"] = ["DEAM" if _DEAM_CLIP_ID.fullmatch(i) else "other" for i in labels["id"]]
    labels["group"] = [song_of(i) for i in labels["id"]]
    return _labels("music", labels, problems, len(table))


def image_source(image_id: str) -> str:
    """Collection that an image id belongs to by its pattern: IAPS, NAPS, EMOTIC or "other"."""
    return next((source for source, pattern in _IMAGE_SOURCES if pattern.fullmatch(image_id)), "other")


def song_of(clip_id: str) -> str:
    """Song of a clip id `song-k`; an id of another form is a song of its own."""
    match = _CLIP_ID.fullmatch(clip_id)
    return match["song"] if match else clip_id


def match_files(
    ids: Iterable[str], names: Iterable[str], extensions: Iterable[str]
) -> tuple[dict[str, str], list[Problem]]:
    """Find the file of each id: the name whose last part without its extension is the id.

    Args:
        ids: Ids without extension, matched exactly; else as the same text in Unicode (macOS writes names in NFD).
        names: Names or relative paths of the files there are.
        extensions: Accepted extensions without the dot, matched in any case (.jpg and .JPG both occur).

    Returns:
        Name by id for the ids that have exactly one file; a problem "missing-file" or "ambiguous-file" for the others.
    """
    accepted = {extension.lower() for extension in extensions}
    by_stem: dict[str, list[str]] = {}
    by_text: dict[str, list[str]] = {}
    for name in names:
        stem, _, extension = name.rsplit("/", 1)[-1].rpartition(".")
        if extension.lower() in accepted:
            by_stem.setdefault(stem, []).append(name)
            by_text.setdefault(unicodedata.normalize("NFC", stem), []).append(name)
    files, problems = {}, []
    for wanted in ids:
        candidates = sorted(by_stem.get(wanted) or by_text.get(unicodedata.normalize("NFC", wanted), []))
        if len(candidates) == 1:
            files[wanted] = candidates[0]
        elif candidates:
            problems.append(Problem("ambiguous-file", wanted, ", ".join(candidates)))
        else:
            problems.append(Problem("missing-file", wanted, f"no {wanted}.{'/.'.join(sorted(accepted))}"))
    return files, problems


def _checked(table: pd.DataFrame) -> tuple[pd.DataFrame, list[Problem]]:
    """Rows with one id each and usable labels as float64, and the problems found on the way."""
    problems: list[Problem] = []
    table = table.assign(id=table["id"].str.strip())
    nameless = table["id"] == ""
    problems += [Problem("missing-id", "", f"row {row}", dropped=1) for row in np.flatnonzero(nameless)]
    table, found = _without_repeated_ids(table[~nameless])
    problems += found
    written = table
    table = table.assign(**{axis: [_number(text) for text in table[axis]] for axis in AXES})
    va_N2 = table[list(AXES)].to_numpy(np.float64)
    excess_N = np.maximum(np.maximum(va_N2 - 1, -va_N2), 0).max(axis=1, initial=0)
    unusable_N = ~(excess_N <= LABEL_TOLERANCE)  # written so that NaN is unusable
    for row in np.flatnonzero(unusable_N | (excess_N > 0)):
        code, dropped = ("label-out-of-range", 1) if unusable_N[row] else ("label-over-by-a-hair", 0)
        texts = {axis: written[axis].iloc[row] for axis, label in zip(AXES, va_N2[row], strict=True) if np.isnan(label)}
        detail = ", ".join(f"{axis} {text!r} is not a number" for axis, text in texts.items())
        detail = detail or f"valence {va_N2[row, 0]:g}, arousal {va_N2[row, 1]:g}"
        problems.append(Problem(code, table["id"].iloc[row], detail, dropped))
    return table[~unusable_N].reset_index(drop=True), problems


def _without_repeated_ids(table: pd.DataFrame) -> tuple[pd.DataFrame, list[Problem]]:
    """Drop every row of an id that is described in two ways, and the copies of one that is described twice alike."""
    problems = []
    dropped: list[int] = []
    repeated = table[table["id"].duplicated(keep=False)]
    for item_id, rows in repeated.groupby("id", sort=False):
        if len(rows.drop_duplicates()) > 1:
            seen = "; ".join(f"({v}, {a})" for v, a in zip(rows["valence"], rows["arousal"], strict=True))
            problems.append(Problem("ambiguous-id", str(item_id), f"{len(rows)} rows: {seen}", dropped=len(rows)))
            dropped += list(rows.index)
        else:
            problems.append(Problem("duplicate-row", str(item_id), f"{len(rows)} equal rows", dropped=len(rows) - 1))
            dropped += list(rows.index[1:])
    return table.drop(index=dropped), problems


def _clean_captions(labels: pd.DataFrame) -> tuple[list[str], list[Problem]]:
    captions, problems = [], []
    for item_id, caption in zip(labels["id"], labels["caption"], strict=True):
        try:
            captions.append(clean_caption(caption))
        except MediaError as error:
            captions.append("")
            problems.append(Problem("unusable-caption", item_id, f"{error.code}: {error}"))
    return captions, problems


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _labels(modality: Modality, rows: pd.DataFrame, problems: list[Problem], rows_in: int) -> Labels:
    return Labels(modality, rows[["id", "source", "group", *AXES, "caption"]], problems, rows_in)
