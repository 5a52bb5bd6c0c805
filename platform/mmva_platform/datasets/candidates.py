"""Label files and a listing of media -> labeled rows with their file, cut into shards, and findings for the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mmva.errors import UsageError
from mmva.imemnet.published import Labels, match_files, read_image_labels, read_music_labels
from mmva.media.formats import EXTENSIONS
from mmva.modalities import Modality
from mmva_platform.datasets.report import Finding
from mmva_platform.settings import StorageSettings
from mmva_platform.storage import Entry, Storage, StorageNotFound, read_uri


class Candidate(NamedTuple):
    """A labeled row whose media file was found; the file's path is relative to the root of the media."""

    modality: Modality
    id: str
    source: str
    group: str
    valence: float
    arousal: float
    caption: str
    path: str
    bytes: int


@dataclass(frozen=True)
class PlannedShard:
    """A shard to be written: its name, such as image-00000, its candidates of one modality, and the split of each."""

    name: str
    modality: Modality
    candidates: tuple[Candidate, ...]
    splits: tuple[str, ...]


def read_labels(images_csv: str | None, music_csv: str | None, settings: StorageSettings) -> list[Labels]:
    """Read the label files that are given.

    Raises:
        UsageError: If none is given, or one does not exist or is not such a file.
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
    """Content of a file that the user named.

    Raises:
        UsageError: If it does not exist.
    """
    try:
        return read_uri(uri, settings)
    except StorageNotFound:
        raise UsageError(f"{uri}: no such file") from None


def find_media(labels: Sequence[Labels], media: Storage) -> tuple[list[Candidate], list[Finding]]:
    """Match label rows with files.

    Returns:
        The rows with exactly one file, and findings for all others and for what the label files reported.

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


def plan_shards(
    candidates: Sequence[Candidate], splits: Sequence[str], max_bytes: int, max_rows: int
) -> list[PlannedShard]:
    """Cut candidates, which are sorted by modality, into shards of one modality.

    Args:
        candidates: N of them.
        splits: Split of each.
        max_bytes: Most bytes of media in a shard, if it has more than one row.
        max_rows: Most rows of a shard.
    """
    numbers: Counter[str] = Counter()
    shards: list[PlannedShard] = []
    for start, stop in _ranges(candidates, max_bytes, max_rows):
        modality = candidates[start].modality
        name = f"{modality}-{numbers[modality]:05d}"
        shards.append(PlannedShard(name, modality, tuple(candidates[start:stop]), tuple(splits[start:stop])))
        numbers[modality] += 1
    return shards


def _ranges(candidates: Sequence[Candidate], max_bytes: int, max_rows: int) -> Iterator[tuple[int, int]]:
    start, size = 0, 0
    for row, candidate in enumerate(candidates):
        full = row - start >= max_rows or size + candidate.bytes > max_bytes
        if row > start and (full or candidates[start].modality != candidate.modality):
            yield start, row
            start, size = row, 0
        size += candidate.bytes
    if candidates:
        yield start, len(candidates)
