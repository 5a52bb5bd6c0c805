"""Reads each published collection as one table with the columns CELLS; every cell is a string, "" if it is empty.

The tables of a collection are joined here and checked elsewhere.
"""

import re
from collections.abc import Mapping
from typing import Final

import numpy as np
import pandas as pd

from mmva.data.labels import number
from mmva.data.tables import Cells, read_cells
from mmva.errors import UsageError
from mmva.modalities import AXES
from mmva_platform.storage import Entry, Storage

CELLS: Final = (
    "id", "file", "caption", "valence", "arousal", "valence_sd", "arousal_sd", "group", "split", "start_s", "end_s",
)  # fmt: skip
_CLIP_S: Final = 2
_HZ: Final = 2
_SAMPLE: Final = re.compile(r"sample_(\d+)ms")
_DYNAMIC: Final = "dynamic (per second annotations)"
_SENTENCE: Final = re.compile(r"(?P<document>.+?)_\d+_\d+")


class Folder:
    """The files of a collection by name, in any folder."""

    def __init__(self, storage: Storage) -> None:
        """List the files. Raises UsageError if there are none."""
        self.storage = storage
        self.entries: Mapping[str, Entry] = {entry.path: entry for entry in storage.walk()}
        if not self.entries:
            raise UsageError(f"{storage.uri}: no files there; give the folder or prefix that holds the collection")

    def find(self, name: str, folder: str = "") -> str | None:
        """Path of the file with this name (and folder's name); of several, the one nearest to the root."""
        wanted = f"/{folder}/{name}" if folder else f"/{name}"
        found = [path for path in self.entries if f"/{path}".endswith(wanted)]
        return min(found, key=lambda path: (path.count("/"), path), default=None)

    def cells(self, name: str, folder: str = "") -> Cells:
        """The table with this name. Raises UsageError if there is none."""
        path = self.find(name, folder)
        if path is None:
            raise UsageError(f"{self.storage.uri}: no {name} below it; give the folder of the collection as root")
        return read_cells(self.storage.read(path), self.storage.uri_of(path))


def oasis_cells(folder: Folder) -> pd.DataFrame:
    """OASIS.csv: `Theme` is the name of a picture ("Acorns 1"); without its number it is the group."""
    columns = {"Theme": "id"} | {
        f"{axis}_{theirs}": f"{axis}{ours}" for axis in AXES for theirs, ours in (("mean", ""), ("SD", "_sd"))
    }
    table = folder.cells("OASIS.csv").choose(columns)
    table["id"] = table["id"].str.strip()
    return filled(table.assign(file=table["id"], group=table["id"].str.replace(r"\s*\d+$", "", regex=True)))


def emobank_cells(folder: Folder) -> pd.DataFrame:
    """emobank.csv. Its own split divides documents, so it is not used; meta.tsv names the document of a sentence."""
    table = folder.cells("emobank.csv").choose({"id": "id", "V": "valence", "A": "arousal", "text": "caption"})
    document_of: dict[str, str] = {}
    if folder.find("meta.tsv"):
        meta = folder.cells("meta.tsv").choose({"id": "id", "document": "document"})
        document_of = dict(zip(meta["id"], meta["document"], strict=True))
    return filled(table.assign(group=[document_of.get(item) or _document(item) for item in table["id"]]))


def pmemo_cells(folder: Folder) -> pd.DataFrame:
    """static_annotations.csv, with the raters' deviations and the artists if their tables exist."""
    names = {"musicId": "id", "Valence(mean)": "valence", "Arousal(mean)": "arousal"}
    table = folder.cells("static_annotations.csv").choose(names)
    if folder.find("static_annotations_std.csv"):
        names = {"musicId": "id", "Valence(std)": "valence_sd", "Arousal(std)": "arousal_sd"}
        deviations = folder.cells("static_annotations_std.csv").choose(names)
        table = table.merge(deviations.drop_duplicates("id"), on="id", how="left")
    if folder.find("metadata.csv"):
        artists = folder.cells("metadata.csv").choose({"musicId": "id", "artist": "group"})
        table = table.merge(artists.drop_duplicates("id"), on="id", how="left")
    return filled(table.assign(file=table["id"]))


def deam_songs(folder: Folder) -> pd.DataFrame:
    """The averaged static annotations of songs, which are in two tables."""
    names = {"song_id": "id"} | {
        f"{axis}_{theirs}": f"{axis}{ours}" for axis in AXES for theirs, ours in (("mean", ""), ("std", "_sd"))
    }
    tables = [
        folder.cells(name).choose(names)
        for name in ("static_annotations_averaged_songs_1_2000.csv", "static_annotations_averaged_songs_2000_2058.csv")
        if folder.find(name) or name.endswith("1_2000.csv")
    ]
    table = pd.concat(tables, ignore_index=True)
    table["id"] = table["id"].str.strip()
    return filled(table.assign(file=table["id"], group=table["id"]))


def deam_clips(folder: Folder) -> pd.DataFrame:
    """The dynamic annotations as IMEMNet's clips.

    Clip `song-k` is the window [2k - 2, 2k) s; its label is the mean of the four values in it. Windows without all of
    the values (before 15 s, and at the end of a song) are not clips.
    """
    means = {axis: _window_means(folder.cells(f"{axis}.csv", _DYNAMIC)) for axis in AXES}
    rows: list[tuple[str, ...]] = []
    for (song, k), valence in means["valence"].items():
        arousal = means["arousal"].get((song, k))
        if arousal is not None:
            rows.append(
                (f"{song}-{k}", song, repr(valence), repr(arousal), song, str(_CLIP_S * (k - 1)), str(_CLIP_S * k))
            )
    return filled(pd.DataFrame(rows, columns=["id", "file", *AXES, "group", "start_s", "end_s"], dtype=object))


def _window_means(cells: Cells) -> dict[tuple[str, int], float]:
    """Mean by song and clip number."""
    columns = [str(column).strip() for column in cells.rows.columns]
    times = {int(found[1]): at for at, name in enumerate(columns) if (found := _SAMPLE.fullmatch(name))}
    songs = cells.choose({"song_id": "id"})["id"].str.strip()
    step_ms, clip_ms = 1000 // _HZ, 1000 * _CLIP_S
    last = max(times, default=0) // clip_ms + 1
    windows = {
        k: [times[at] for at in range(clip_ms * (k - 1), clip_ms * k, step_ms)]
        for k in range(1, last + 1)
        if all(at in times for at in range(clip_ms * (k - 1), clip_ms * k, step_ms))
    }
    means: dict[tuple[str, int], float] = {}
    for song, row in zip(songs, cells.rows.itertuples(index=False), strict=True):
        for k, places in windows.items():
            mean = float(np.mean([number(str(row[at])) for at in places]))
            if np.isfinite(mean):
                means[song, k] = mean
    return means


def _document(sentence: str) -> str:
    found = _SENTENCE.fullmatch(sentence)
    return found["document"] if found else sentence


def filled(table: pd.DataFrame) -> pd.DataFrame:
    """The table with all columns of CELLS."""
    cells = {name: table[name].fillna("") if name in table else "" for name in CELLS}
    return pd.DataFrame(cells, index=table.index)
