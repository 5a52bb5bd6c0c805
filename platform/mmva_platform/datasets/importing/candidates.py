"""Matches the labels of a collection with a listing of its media, and cuts the labeled rows into shards."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final, NamedTuple

from mmva.data.labels import Labels, match_files
from mmva.errors import UsageError
from mmva.media.formats import EXTENSIONS
from mmva.modalities import Modality
from mmva_platform.datasets.importing.report import Finding
from mmva_platform.datasets.sources.reading import Collection
from mmva_platform.storage import Entry

# A clip that is cut out of a song has 16 bits of one channel at the usual rate.
_CLIP_BYTES_A_SECOND: Final = 2 * 44_100


class Candidate(NamedTuple):
    """A labeled row whose media file was found, or a sentence.

    `source` is its origin in reports, `collection` the configured source that it was read from; they differ in
    IMEMNet-C. `path` is relative to the media of the collection, "" for a sentence, whose text is the `caption`.
    `split` is the given one, or "". `start_s` to `end_s` is the part of the file that the row is about; 0 to 0 for all.
    """

    modality: Modality
    collection: str
    id: str
    source: str
    group: str
    split: str
    valence: float
    arousal: float
    valence_sd: float
    arousal_sd: float
    caption: str
    path: str
    bytes: int
    start_s: float = 0.0
    end_s: float = 0.0

    @property
    def part(self) -> tuple[Modality, str]:
        """Rows with the same modality and collection are split together, and share shards."""
        return self.modality, self.collection

    @property
    def place(self) -> tuple[Modality, str, str]:
        """Sort key of the dataset's rows."""
        return self.modality, self.collection, self.id


@dataclass(frozen=True)
class PlannedShard:
    """A shard to write: its name, such as image-00000, its candidates of one part, and the split of each."""

    name: str
    modality: Modality
    collection: str
    candidates: tuple[Candidate, ...]
    splits: tuple[str, ...]


def find_media(collection: Collection) -> tuple[list[Candidate], list[Finding]]:
    """Match label rows with files.

    Returns sentences and rows with exactly one file, and findings for all other rows and for problems of the tables.
    Raises UsageError if there is no file at all.
    """
    candidates: list[Candidate] = []
    findings: list[Finding] = []
    entries: dict[str, Entry] = {}
    if any(labels.modality != "caption" for labels in collection.labels):
        entries = {entry.path: entry for entry in collection.media.walk()}
        if not entries:
            raise UsageError(f"{collection.media.uri}: no files there; give the folder or prefix that holds the media")
    for labels in collection.labels:
        problems = list(labels.problems)
        if labels.modality == "caption":
            candidates += _candidates(collection.name, labels, None)
        else:
            keys = dict(zip(labels.rows["id"], labels.rows.get("file", labels.rows["id"]), strict=True))
            files, unmatched = match_files(keys, entries, EXTENSIONS[labels.modality])
            problems += unmatched
            candidates += _candidates(collection.name, labels, {key: entries[path] for key, path in files.items()})
        findings += [Finding(labels.modality, p.code, p.id, p.detail, p.dropped, collection.name) for p in problems]
    return candidates, findings


def _candidates(collection: str, labels: Labels, files: Mapping[str, Entry] | None) -> Iterator[Candidate]:
    optional = {"split": "", "valence_sd": float("nan"), "arousal_sd": float("nan"), "start_s": 0.0, "end_s": 0.0}
    for row in labels.rows.to_dict("records"):
        entry = None if files is None else files.get(row["id"])
        if files is not None and entry is None:
            continue
        values = {name: row[name] for name in ("id", "source", "group", "valence", "arousal", "caption")}
        values |= {name: row.get(name, default) for name, default in optional.items()}
        seconds = values["end_s"] - values["start_s"]
        size = int(seconds * _CLIP_BYTES_A_SECOND) if seconds else entry.size if entry else len(row["caption"])
        path = entry.path if entry else ""
        yield Candidate(modality=labels.modality, collection=collection, path=path, bytes=size, **values)


def plan_shards(
    candidates: Sequence[Candidate], splits: Sequence[str], max_bytes: int, max_rows: int
) -> list[PlannedShard]:
    """Cut candidates, sorted by place, with their `splits` into shards of one modality and collection.

    A shard has at most `max_rows` rows, and `max_bytes` of media unless it has only one row.
    """
    numbers: Counter[str] = Counter()
    shards: list[PlannedShard] = []
    first = 0
    for (modality, collection), part in groupby(candidates, key=lambda candidate: candidate.part):
        own = tuple(part)
        for start, stop in _ranges(own, max_bytes, max_rows):
            name = f"{modality}-{numbers[modality]:05d}"
            chosen = tuple(splits[first + start : first + stop])
            shards.append(PlannedShard(name, modality, collection, own[start:stop], chosen))
            numbers[modality] += 1
        first += len(own)
    return shards


def _ranges(candidates: Sequence[Candidate], max_bytes: int, max_rows: int) -> Iterator[tuple[int, int]]:
    start, size = 0, 0
    for row, candidate in enumerate(candidates):
        if row > start and (row - start >= max_rows or size + candidate.bytes > max_bytes):
            yield start, row
            start, size = row, 0
        size += candidate.bytes
    yield start, len(candidates)
