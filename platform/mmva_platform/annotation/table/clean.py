"""`clean`: lists or deletes files that no kept version needs. Nothing else ever deletes files of an annotation."""

import dataclasses
import re
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from mmva.errors import UsageError
from mmva_platform.annotation.plan.plan import cleaned_mark, index_folder, version_folder
from mmva_platform.annotation.table.delta import latest_version, open_table, run_of
from mmva_platform.annotation.table.reader import open_annotation
from mmva_platform.settings import Settings
from mmva_platform.storage import Entry, Storage, open_storage

_DATA_FILE: Final = re.compile(r"status=.*/([0-9]{6})-[0-9]+-[0-9a-f]{64}\.parquet")
_DELETERS: Final = 16


@dataclass(frozen=True)
class Cleaning:
    """Files that no kept version needs."""

    out: str
    kept: tuple[int, ...]
    lost: tuple[int, ...]  # versions that can no longer be read
    files: int  # number of files
    size: int  # in bytes
    deleted: bool

    def to_json(self) -> dict[str, Any]:
        """Plain values for --json."""
        return dataclasses.asdict(self)

    def to_text(self) -> str:
        """One line for a person."""
        verb = "deleted" if self.deleted else "--delete removes"
        kept, lost = (", ".join(map(str, versions)) or "none" for versions in (self.kept, self.lost))
        return (
            f"{self.out}: {verb} {self.files} files, {self.size / 1e6:.1f} MB; "
            f"versions that stay readable: {kept}; that do not: {lost}"
        )


def clean(out: str, settings: Settings, *, keep: int = 1, delete: bool = False) -> Cleaning:
    """Find data files, embeddings and indexes that none of the `keep` newest versions needs; `delete` removes them.

    Plans, commit records, models and the table's log stay, so the history stays complete. Do not read older versions or
    update the annotation at the same time. Raises UsageError if nothing is published or keep is below 1, CheckFailed if
    a kept version cannot be read; then nothing is deleted.
    """
    if keep < 1:
        raise UsageError(f"keep must be at least 1, got {keep}")
    storage = open_storage(out, settings.storage)
    latest = latest_version(storage)
    if latest is None:
        raise UsageError(f"{storage.uri}: no version is published; there is nothing to clean")
    open_table(storage)  # refuses a table whose newest version another program wrote
    versions = [
        number
        for number in range(latest + 1)
        if not storage.exists(cleaned_mark(number)) and run_of(storage, number) is not None
    ]
    kept, lost = versions[-keep:], versions[:-keep]
    needed = _needed(storage, kept)
    found = [entry for entry in _candidates(storage, latest, kept) if entry.path not in needed]
    if delete:
        for number in lost:  # before the files are deleted, so that readers of these versions get the reason
            storage.put_if_absent(cleaned_mark(number), b"")
        with ThreadPoolExecutor(_DELETERS) as pool:
            list(pool.map(storage.delete, [entry.path for entry in found]))
    size = sum(entry.size for entry in found)
    return Cleaning(storage.uri, tuple(kept), tuple(lost), len(found), size, delete)


def _needed(storage: Storage, versions: Iterable[int]) -> set[str]:
    """Data files of these versions, and the embedding files that their rows refer to."""
    needed: set[str] = set()
    for version in versions:
        annotation = open_annotation(storage, version=version)
        needed |= {file.path for file in annotation.all_files}
        for table in annotation.tables(["embedding_file"]):
            needed.update(table["embedding_file"].unique().to_pylist())
    return needed


def _candidates(storage: Storage, latest: int, kept: Collection[int]) -> Iterable[Entry]:
    """Data files and embeddings of all published versions, and indexes of those that are not kept.

    Files of an unpublished version or of other programs are never candidates.
    """
    for entry in storage.walk("status="):
        ours = _DATA_FILE.fullmatch(entry.path)
        if ours and int(ours[1]) <= latest:
            yield entry
    for version in range(latest + 1):
        yield from storage.walk(f"{version_folder(version)}/embeddings/")
        if version not in kept:
            yield from storage.walk(index_folder(version) + "/")
