"""Splits that do not leak: all clips of a song are in one split.

IMEMNet's own split is by song, 1,442 / 90 / 270 for train / val / test: the fractions .8 / .05 / .15 of 1,802 songs.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mmva.data.splits import SPLITS
from mmva.data.tables import read_strings
from mmva.errors import UsageError

FRACTIONS: Final = (0.8, 0.05, 0.15)
LEAKAGE_WARNING: Final = (
    "This dataset was split by clip, so clips of one song are in several splits. Neighbouring 2 s clips of a song "
    "differ by an MSE of only .00015: a model that recognises the song scores far better than one that hears the "
    "emotion (MMVA reports a music-arousal MSE of .0002; .010-.015 is state of the art when songs are disjoint). Do "
    "not compare these figures with those of a split by song."
)


def split_by_group(
    groups: Sequence[str], seed: int = 0, fractions: tuple[float, float, float] = FRACTIONS
) -> NDArray[np.str_]:
    """Split of each item, the same for all items of a group.

    Groups are sorted by a hash of seed and name, then divided: the result does not depend on the order or number of a
    group's rows. The fractions (train, val, test) of groups sum to 1 and are exact to rounding, with at least one group
    in every split whose fraction is above 0. Raises UsageError for invalid fractions, or fewer groups than splits.
    """
    if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6 or fractions[0] == 0:
        raise UsageError(f"split fractions must be >= 0, sum to 1 and be above 0 for train, got {fractions}")
    ordered = sorted(set(groups), key=lambda group: _rank(group, seed))
    held_out = [max(1, round(share * len(ordered))) if share > 0 else 0 for share in fractions[1:]]
    train = len(ordered) - sum(held_out)
    if len(groups) > 0 and train < 1:
        raise UsageError(f"{len(ordered)} groups are too few for the split fractions {fractions}; add data")
    names = np.repeat(SPLITS, [train, *held_out]) if len(groups) > 0 else np.array([], dtype="<U5")
    by_group = dict(zip(ordered, names, strict=True))
    return np.array([by_group[group] for group in groups], dtype="<U5")


def read_split_file(source: str | Path | bytes, name: str = "song_split.csv") -> dict[str, str]:
    """Split of each song from a published file with the columns song_id and split.

    Raises UsageError if a column is missing, a split is not one of train, val and test, or a song is on several rows.
    """
    table = read_strings(source, name, {"song_id": "song_id", "split": "split"})
    unknown = sorted(set(table["split"]) - set(SPLITS))
    if unknown:
        raise UsageError(f"{name}: column 'split' contains {unknown[0]!r}; it must be one of {', '.join(SPLITS)}")
    repeated = table["song_id"][table["song_id"].duplicated()]
    if len(repeated):
        raise UsageError(f"{name}: song {repeated.iloc[0]!r} is on several rows; keep one")
    return dict(zip(table["song_id"], table["split"], strict=True))


def split_by_file(groups: Sequence[str], split_of: Mapping[str, str]) -> NDArray[np.str_]:
    """Split of each item by its group's entry in a split file. Raises UsageError if a group has no entry."""
    missing = sorted(set(groups) - set(split_of))
    if missing:
        raise UsageError(f"the split file has no row for {len(missing)} songs, such as {missing[0]!r}; add them")
    return np.array([split_of[group] for group in groups], dtype="<U5")


def _rank(group: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{group}".encode("utf-8", "surrogatepass")).digest()
