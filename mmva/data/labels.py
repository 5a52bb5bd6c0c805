"""Labeled rows of one modality on the unit square, and the problems of dropped rows.

rows in = rows kept + rows dropped, and every dropped row belongs to a reported problem.
"""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import pandas as pd

from mmva.errors import MediaError
from mmva.media.captions import clean_caption
from mmva.modalities import AXES, Modality

_composed = partial(unicodedata.normalize, "NFC")

# Labels this far outside [0, 1] come from rounding of the published scale; IMEMNet-C's exceed 1.0 by up to .006.
LABEL_TOLERANCE: Final = 0.01
PROBLEM_CODES: Final[dict[str, str]] = {
    "missing-id": "dropped: the row has no id",
    "ragged-row": "dropped: the row is malformed, or has more cells than the table's header",
    "ambiguous-id": "all rows dropped: one id with different labels or captions",
    "duplicate-row": "all but the first dropped: the same id with the same content",
    "label-not-a-number": "dropped: a label is empty or not a number, such as 0,5 with a decimal comma",
    "label-out-of-range": f"dropped: a label is outside its scale by more than {LABEL_TOLERANCE:.0%} of it",
    "label-over-by-a-hair": f"kept: a label is outside its scale by at most {LABEL_TOLERANCE:.0%} of it",
    "scale-not-reached": "kept: the labels lie in less than half of their scale; it may be the wrong one",
    "unusable-part": "dropped: start and end are not numbers, or the end is not after the start",
    "unusable-sd": "kept without it: a standard deviation is not a number, or below 0",
    "unknown-split": "dropped: its split is not train, val or test",
    "group-in-two-splits": "all rows dropped: the group has rows in more than one split",
    "unusable-caption": "kept without its caption: empty, too long or not text",
    "unusable-text": "dropped: a sentence is empty, too long or not text",
    "missing-file": "dropped: no file has this name, or this id as its name",
    "ambiguous-file": "dropped: several files have this id as their name",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem of one id: a code of PROBLEM_CODES, details, and the number of dropped rows."""

    code: str
    id: str
    detail: str
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class Labels:
    """Labels of one modality.

    `rows` has one row per id, in the file's order: id, source, group (str), valence, arousal (float64), caption (str,
    "" if missing). Readers of other tables than IMEMNet-C's add valence_sd, arousal_sd (float64, NaN if missing), split
    ("" if missing), file, start_s and end_s (0, 0 for the whole file). `problems` are in the order of the checks;
    `rows_in` is the number of rows in the file.
    """

    modality: Modality
    rows: pd.DataFrame
    problems: list[Problem]
    rows_in: int

    def __post_init__(self) -> None:
        assert self.rows_in == len(self.rows) + self.rows_dropped, "every row of the file is kept or reported"

    @property
    def rows_dropped(self) -> int:
        """Number of rows that are not in `rows`."""
        return sum(problem.dropped for problem in self.problems)

    @property
    def counts(self) -> dict[str, int]:
        """Number of problems by code."""
        return dict(Counter(problem.code for problem in self.problems))


def without_nameless(table: pd.DataFrame) -> tuple[pd.DataFrame, list[Problem]]:
    """Rows with an id (stripped), and a problem for each row without one."""
    table = table.assign(id=table["id"].str.strip())
    nameless = table["id"] == ""
    problems = [Problem("missing-id", "", f"row {row}", dropped=1) for row in np.flatnonzero(nameless)]
    return table[~nameless], problems


def without_repeated_ids(table: pd.DataFrame) -> tuple[pd.DataFrame, list[Problem]]:
    """Drop all rows of an id with different rows, and all but the first of an id with equal rows."""
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


def with_labels(table: pd.DataFrame, scale: Mapping[str, tuple[float, float]]) -> tuple[pd.DataFrame, list[Problem]]:
    """Rows with usable labels as float64, mapped linearly from each axis' (lowest, highest) to [0, 1].

    A label outside its scale by at most LABEL_TOLERANCE of it is kept unchanged, and reported.
    """
    problems: list[Problem] = []
    raw_N2 = np.array([[number(text) for text in table[axis]] for axis in AXES], np.float64).reshape(2, -1).T
    low_2, high_2 = (np.array([scale[axis][end] for axis in AXES], np.float64) for end in range(2))
    va_N2 = (raw_N2 - low_2) / (high_2 - low_2)
    no_number_N = np.asarray(np.isnan(va_N2).any(axis=1))
    excess_N = np.maximum(np.maximum(va_N2 - 1, -va_N2), 0).max(axis=1, initial=0)
    for row in np.flatnonzero(no_number_N | (excess_N > 0)):
        name = table["id"].iloc[row]
        if no_number_N[row]:
            axis = AXES[int(np.isnan(va_N2[row]).argmax())]
            text = table[axis].iloc[row]
            hint = "; write a decimal point" if "," in text else ""
            problems.append(Problem("label-not-a-number", name, f"{axis} {text!r} is not a number{hint}", dropped=1))
            continue
        out = excess_N[row] > LABEL_TOLERANCE
        detail = ", ".join(
            f"{axis} {value:g} of {low:g} to {high:g}"
            for axis, value, low, high in zip(AXES, raw_N2[row], low_2, high_2, strict=True)
        )
        problems.append(
            Problem("label-out-of-range" if out else "label-over-by-a-hair", name, detail, dropped=int(out))
        )
    usable_N = ~no_number_N & (excess_N <= LABEL_TOLERANCE)
    table = table[usable_N].reset_index(drop=True)
    return table.assign(**{axis: va_N2[usable_N, column] for column, axis in enumerate(AXES)}), problems


def unreached_scales(table: pd.DataFrame, scale: Mapping[str, tuple[float, float]]) -> list[Problem]:
    """A problem for each axis whose labels (on [0, 1]) cover less than half of the scale."""
    problems = []
    for axis in AXES:
        low, high = scale[axis]
        lowest, highest = (low + (high - low) * float(end) for end in (table[axis].min(), table[axis].max()))
        if len(table) > 1 and highest - lowest < (high - low) / 2:
            detail = f"all labels lie in {lowest:g} to {highest:g}, the scale is {low:g} to {high:g}; is it theirs?"
            problems.append(Problem("scale-not-reached", axis, detail))
    return problems


def clean_captions(table: pd.DataFrame, code: str) -> tuple[list[str], list[Problem]]:
    """Cleaned captions of the rows, and a problem with this code for each unusable one, which becomes ""."""
    captions, problems = [], []
    dropped = int(code == "unusable-text")
    for item_id, caption in zip(table["id"], table["caption"], strict=True):
        try:
            captions.append(clean_caption(caption))
        except MediaError as error:
            captions.append("")
            problems.append(Problem(code, item_id, f"{error.code}: {error}", dropped))
    return captions, problems


def match_files(
    keys: Mapping[str, str], names: Iterable[str], extensions: Sequence[str]
) -> tuple[dict[str, str], list[Problem]]:
    """Find the file of each id: the file at its key, or the only file whose name without extension is the key.

    `keys` are paths, or names without folder and extension; they match exactly, or else in Unicode's NFC (macOS writes
    names in NFD). `extensions` have no dot; case does not matter. Returns the file by id for ids with exactly one file,
    and a problem "missing-file" or "ambiguous-file" for the others.
    """
    accepted = {extension.lower() for extension in extensions}
    paths = set(names)
    by_stem: defaultdict[str, list[str]] = defaultdict(list)
    by_text: defaultdict[str, list[str]] = defaultdict(list)
    for name in paths:
        by_text[_composed(name)].append(name)
        stem, _, extension = name.rsplit("/", 1)[-1].rpartition(".")
        if extension.lower() in accepted:
            by_stem[stem].append(name)
            by_text[_composed(stem)].append(name)
    files, problems = {}, []
    for item_id, key in keys.items():
        candidates = [key] if key in paths else sorted(by_stem.get(key) or by_text.get(_composed(key), []))
        if len(candidates) == 1:
            files[item_id] = candidates[0]
        elif candidates:
            problems.append(Problem("ambiguous-file", item_id, ", ".join(candidates), dropped=1))
        else:
            wanted = f"no file {key}, nor {key}.{'/.'.join(sorted(accepted))}"
            problems.append(Problem("missing-file", item_id, wanted, dropped=1))
    return files, problems


def number(text: str) -> float:
    """The number in a cell; NaN if it is not a number."""
    try:
        return float(text)
    except ValueError:
        return float("nan")
