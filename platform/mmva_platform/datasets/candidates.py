"""Label files and a listing of media -> labelled rows with their file, and findings for all the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from mmva.errors import UsageError
from mmva.imemnet.published import Labels, match_files, read_image_labels, read_music_labels
from mmva.media.formats import EXTENSIONS
from mmva.modalities import Modality
from mmva_platform.datasets.report import Finding
from mmva_platform.settings import StorageSettings
from mmva_platform.storage import Entry, Storage, StorageNotFound, read_uri


class Candidate(NamedTuple):
    """A labelled row whose media file was found; the file's path is relative to the media's root."""

    modality: Modality
    id: str
    source: str
    group: str
    valence: float
    arousal: float
    caption: str
    path: str
    bytes: int


def read_labels(images_csv: str | None, music_csv: str | None, settings: StorageSettings) -> list[Labels]:
    """Read the label files that are given.

    Raises:
        UsageError: If none is given, or one is missing or no such file.
    """
    labels = []
    if images_csv is not None:
        labels.append(read_image_labels(read_table(images_csv, settings), images_csv))
    if music_csv is not None:
        labels.append(read_music_labels(read_table(music_csv, settings), music_csv))
    if not labels:
        raise UsageError("import: give images_csv, music_csv or both")
    return labels


def read_table(uri: str, settings: StorageSettings) -> bytes:
    """Content of a file that the user named; UsageError when there is none."""
    try:
        return read_uri(uri, settings)
    except StorageNotFound:
        raise UsageError(f"{uri}: no such file") from None


def find_media(labels: Sequence[Labels], media: Storage) -> tuple[list[Candidate], list[Finding]]:
    """Rows with exactly one file, and findings for all that the label files and the listing give away.

    Raises:
        UsageError: If there is no file at all.
    """
    entries = {entry.path: entry for entry in media.list()}
    if not entries:
        raise UsageError(f"{media.uri}: no files there; give the folder or prefix that holds the media")
    candidates: list[Candidate] = []
    findings: list[Finding] = []
    for table in labels:
        files, problems = match_files(table.rows["id"], entries, EXTENSIONS[table.modality])
        findings += [Finding(table.modality, p.code, p.id, p.detail, p.dropped) for p in table.problems]
        findings += [Finding(table.modality, p.code, p.id, p.detail, dropped=1) for p in problems]
        candidates += _with_files(table, files, entries)
    return candidates, findings


def _with_files(table: Labels, files: Mapping[str, str], entries: Mapping[str, Entry]) -> Iterator[Candidate]:
    for row in table.rows.to_dict("records"):
        if row["id"] in files:
            entry = entries[files[row["id"]]]
            labels = {name: row[name] for name in ("id", "source", "group", "valence", "arousal", "caption")}
            yield Candidate(modality=table.modality, **labels, path=entry.path, bytes=entry.size)
