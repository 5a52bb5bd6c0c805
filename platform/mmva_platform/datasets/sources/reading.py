"""Reads a source: labeled rows on the unit square, their problems, and the folder of their media."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import pandas as pd

from mmva.affect import DEAM_RANGE
from mmva.data.labels import (
    Labels,
    Problem,
    clean_captions,
    number,
    unreached_scales,
    with_labels,
    without_nameless,
    without_repeated_ids,
)
from mmva.data.splits import SPLITS
from mmva.data.tables import read_cells
from mmva.errors import UsageError
from mmva.imemnet.published import read_image_labels, read_music_labels
from mmva.imemnet.splits import read_split_file
from mmva.modalities import AXES, Modality
from mmva_platform.datasets.sources import published
from mmva_platform.datasets.sources.config import IMEMNET_NAME, DeamSource, ImemnetSource, Range, Source, TableSource
from mmva_platform.settings import StorageSettings
from mmva_platform.storage import Storage, StorageNotFound, open_storage, read_uri

_SPLIT_NAMES: Final = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# Terms of the collections that IMEMNet-C was made of, by the source that its rows name.
IMEMNET_TERMS: Final[Mapping[str, str]] = {
    "IAPS": "on request from its authors, for research; the pictures may not be passed on or shown",
    "NAPS": "on request from its authors, for non-commercial research",
    "EMOTIC": "annotations for non-commercial research; pictures of COCO and ADE20K under their own terms",
    "DEAM": "annotations for research; music under the Creative Commons licences of its artists, some non-commercial",
}
_Scales = Mapping[str, Range]


@dataclass(frozen=True)
class Collection:
    """A source that was read."""

    source: Source
    labels: tuple[Labels, ...]  # by modality
    media: Storage  # where its files are
    split_of: Mapping[str, str] | None = None  # split of each song, for IMEMNet-C with a split file

    @property
    def name(self) -> str:
        """Name of the source."""
        return self.source.name

    @property
    def terms(self) -> dict[str, str]:
        """License or terms by the source that the rows name."""
        named = sorted({str(name) for labels in self.labels for name in labels.rows["source"]})
        own = self.source.license
        known = IMEMNET_TERMS if isinstance(self.source, ImemnetSource) else {}
        return {name: known.get(name, own) for name in named}


def read_source(source: Source, settings: StorageSettings) -> Collection:
    """Read the tables of a source.

    Raises UsageError if a table does not exist, is not a table, or lacks a column, StorageError if the place cannot be
    read.
    """
    if isinstance(source, ImemnetSource):
        return _read_imemnet(source, settings)
    if isinstance(source, TableSource):
        cells, ragged = _table_cells(source, settings)
        labels = _labels(source.name, source.modality, cells, source.scale.model_dump(), ragged)
        return Collection(source, (labels,), open_storage(_inside(source.root, source.media), settings))
    root = open_storage(source.root, settings)
    modality, scale, read = _LAYOUTS[source.layout]
    if isinstance(source, DeamSource) and source.annotations == "dynamic":
        scale, read = dict.fromkeys(AXES, DEAM_RANGE), published.deam_clips
    cells = read(published.Folder(root))
    if isinstance(source, DeamSource) and source.split is not None:
        split_of = _read_splits(_inside(source.root, source.split), settings)
        cells["split"] = [split_of.get(song, "") for song in cells["group"]]
    return Collection(source, (_labels(source.name, modality, cells, scale, ()),), root)


_LAYOUTS: Final[Mapping[str, tuple[Modality, _Scales, Callable[[published.Folder], pd.DataFrame]]]] = {
    "oasis": ("image", dict.fromkeys(AXES, (1.0, 7.0)), published.oasis_cells),
    "emobank": ("caption", dict.fromkeys(AXES, (1.0, 5.0)), published.emobank_cells),
    "pmemo": ("music", dict.fromkeys(AXES, (0.0, 1.0)), published.pmemo_cells),
    "deam": ("music", dict.fromkeys(AXES, (1.0, 9.0)), published.deam_songs),
}


def _table_cells(source: TableSource, settings: StorageSettings) -> tuple[pd.DataFrame, tuple[str, ...]]:
    uri = _inside(source.root, source.table)
    cells = read_cells(_read_file(uri, settings), uri)
    chosen = {ours: theirs for ours, theirs in source.columns.model_dump().items() if theirs is not None}
    by_column = {theirs: cells.choose({theirs: "cell"})["cell"] for theirs in chosen.values()}
    table = pd.DataFrame({ours: by_column[theirs] for ours, theirs in chosen.items()}, index=cells.rows.index)
    table = table.rename(columns={"text": "caption"})
    if "file" in table:
        table["file"] = table["file"].str.strip().str.removeprefix("./")
        starts = table["start_s"] if "start_s" in table else [""] * len(table)
        stems = table["file"].str.replace(r"\.[^./]*$", "", regex=True)
        default = [f"{name}@{start}" if start else name for name, start in zip(stems, starts, strict=True)]
        table["id"] = table.get("id", pd.Series(default, table.index, dtype=object))
    elif "id" not in table:
        table["id"] = [f"{row + 1:06d}" for row in range(len(table))]
    table["file"] = table.get("file", table["id"].str.strip())
    return published.filled(table), cells.ragged


def _labels(name: str, modality: Modality, cells: pd.DataFrame, scale: _Scales, ragged: tuple[str, ...]) -> Labels:
    """Check the cells of a source. Prefix ids and groups with its name, so that no two sources share one."""
    problems = [Problem("ragged-row", "", detail, dropped=1) for detail in ragged]
    rows_in = len(cells) + len(ragged)
    steps: tuple[Callable[[pd.DataFrame], tuple[pd.DataFrame, list[Problem]]], ...] = (
        without_nameless,
        without_repeated_ids,
        lambda table: with_labels(table, scale),
        lambda table: (table, unreached_scales(table, scale)),
        lambda table: _with_texts(table, modality),
        _with_parts,
        _with_splits,
        lambda table: _with_deviations(table, scale),
    )
    for step in steps:
        cells, found = step(cells)
        problems += found
    group = cells["group"].str.strip()
    rows = cells.assign(
        id=name + "/" + cells["id"],
        group=name + "/" + group.where(group != "", cells["id"]),
        file=cells["file"].str.strip(),
        source=name,
    )
    named = [replace(problem, id=f"{name}/{problem.id}") if problem.id else problem for problem in problems]
    return Labels(modality, rows, named, rows_in)


def _with_texts(table: pd.DataFrame, modality: Modality) -> tuple[pd.DataFrame, list[Problem]]:
    if modality != "caption" and not (table["caption"] != "").any():
        return table, []
    captions, problems = clean_captions(table, "unusable-text" if modality == "caption" else "unusable-caption")
    table = table.assign(caption=captions)
    if modality == "caption":
        table = table[table["caption"] != ""].reset_index(drop=True)
    return table, problems


def _with_parts(table: pd.DataFrame) -> tuple[pd.DataFrame, list[Problem]]:
    """Convert start and end to seconds, 0 and 0 for the whole file; drop rows with an invalid part."""
    whole_N = ((table["start_s"] == "") & (table["end_s"] == "")).to_numpy()
    start_N, end_N = (np.array([number(text) for text in table[name]], np.float64) for name in ("start_s", "end_s"))
    wrong_N = ~whole_N & ~((start_N >= 0) & (start_N < end_N) & (end_N < np.inf))
    problems = [
        Problem("unusable-part", table["id"].iloc[row], " to ".join(table[["start_s", "end_s"]].iloc[row]), dropped=1)
        for row in np.flatnonzero(wrong_N)
    ]
    table = table.assign(start_s=np.where(whole_N, 0.0, start_N), end_s=np.where(whole_N, 0.0, end_N))
    return table[~wrong_N].reset_index(drop=True), problems


def _with_splits(table: pd.DataFrame) -> tuple[pd.DataFrame, list[Problem]]:
    """Convert given splits to our names; drop rows with an unknown split and groups in two splits."""
    given = table["split"].str.strip()
    if not (given != "").any():
        return table.assign(split=""), []
    split = given.str.lower().map(_SPLIT_NAMES)
    unknown_N = split.isna().to_numpy()
    problems = [
        Problem("unknown-split", table["id"].iloc[row], f"{given.iloc[row]!r} is not one of {', '.join(SPLITS)}", 1)
        for row in np.flatnonzero(unknown_N)
    ]
    table = table.assign(split=split)[~unknown_N].reset_index(drop=True)
    group = table["group"].str.strip()
    group = group.where(group != "", table["id"])
    splits_of: dict[str, list[str]] = {}
    for name, own in zip(group, table["split"], strict=True):
        splits_of.setdefault(name, []).append(own)
    torn = {name: own for name, own in sorted(splits_of.items()) if len(set(own)) > 1}
    problems += [
        Problem("group-in-two-splits", name, f"{len(own)} rows in {', '.join(sorted(set(own)))}", dropped=len(own))
        for name, own in torn.items()
    ]
    return table[~group.isin(list(torn))].reset_index(drop=True), problems


def _with_deviations(table: pd.DataFrame, scale: _Scales) -> tuple[pd.DataFrame, list[Problem]]:
    """Convert standard deviations to [0, 1], NaN if missing."""
    problems, columns = [], {}
    for axis in AXES:
        name, (low, high) = f"{axis}_sd", scale[axis]
        values_N = np.array([number(text) for text in table[name]], np.float64) / (high - low)
        wrong_N = (table[name] != "").to_numpy() & ~((values_N >= 0) & (values_N < np.inf))
        problems += [
            Problem("unusable-sd", table["id"].iloc[row], f"{name} {table[name].iloc[row]!r}")
            for row in np.flatnonzero(wrong_N)
        ]
        columns[name] = np.where(wrong_N, np.nan, values_N)
    return table.assign(**columns), problems


def _read_imemnet(source: ImemnetSource, settings: StorageSettings) -> Collection:
    """Read IMEMNet-C; a name other than the default replaces those of the collections."""
    images_csv, music_csv = source.images_csv, source.music_csv
    if images_csv is None and music_csv is None:
        root = open_storage(source.root, settings)
        images_csv, music_csv = (name if root.exists(name) else None for name in ("image_va.csv", "music_va.csv"))
    labels = []
    for name, read in ((images_csv, read_image_labels), (music_csv, read_music_labels)):
        if name is not None:
            uri = _inside(source.root, name)
            labels.append(read(_read_file(uri, settings), uri))
    if not labels:
        raise UsageError(f"{source.root}: no image_va.csv or music_va.csv there; give images_csv, music_csv or both")
    if source.name != IMEMNET_NAME:
        labels = [replace(one, rows=one.rows.assign(source=source.name)) for one in labels]
    own_split = source.split in {"song", "clip"}
    split_of = None if own_split else _read_splits(_inside(source.root, source.split), settings)
    return Collection(source, tuple(labels), open_storage(_inside(source.root, source.media), settings), split_of)


def _read_file(uri: str, settings: StorageSettings) -> bytes:
    try:
        return read_uri(uri, settings)
    except StorageNotFound:
        raise UsageError(f"{uri}: no such file") from None


def _read_splits(uri: str, settings: StorageSettings) -> dict[str, str]:
    return read_split_file(_read_file(uri, settings), uri)


def _inside(root: str, path: str) -> str:
    """A path below a root; URIs and absolute paths are unchanged."""
    if "://" in path or path.startswith(("/", "~")) or root == ".":
        return path
    return root if path == "." else f"{root.rstrip('/')}/{path}"
