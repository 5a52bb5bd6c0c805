"""A normalized catalog on the local disk, between the two passes of planning.

The first pass writes every row by modality; after it, the amount of work and the repeated ids are known. The second
pass reads the rows in the order of the work. Memory holds one batch.
"""

import errno
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mmva.errors import OperationFailed, UsageError
from mmva_platform.annotation.catalog.catalog import Catalog
from mmva_platform.annotation.catalog.roots import AllowedRoots
from mmva_platform.annotation.plan.plan import CatalogInfo
from mmva_platform.annotation.plan.shards import MODALITY_ORDER, units
from mmva_platform.annotation.plan.unique import UniqueIds
from mmva_platform.annotation.schema import CATALOG_SCHEMA, ITEM_SCHEMA, item_digests

OTHER: Final = "other"  # no modality, or one that no model annotates
_ROW: Final = pa.field("row", pa.int64(), nullable=False)
_CHUNK_ROWS: Final = 131_072
_DUPLICATES_SHOWN: Final = 10


class Group(NamedTuple):
    """Items that are read together."""

    modality: str
    stored: bool  # whether the version before has them unchanged


@dataclass
class Spool:
    """A catalog's rows in a temporary folder. `units` sums `shards.units` by group."""

    catalog: CatalogInfo
    rows: Counter[Group]  # of each group, repeated ids included; precise enough to estimate the work
    units: dict[Group, float]
    bytes: tuple[int, int]  # sum of the known sizes, number of unknown sizes
    _folder: Path = field(repr=False)
    _repeated: NDArray[np.int64] = field(repr=False)

    def chunks(self, group: Group) -> Iterator[pa.Table]:
        """Items of a group in the catalog's order (ITEM_SCHEMA), many at a time, without repeated ids."""
        waiting: list[pa.Table] = []
        for table in _read(self._folder, group, self._repeated):
            waiting.append(table.select(ITEM_SCHEMA.names))
            if sum(part.num_rows for part in waiting) >= _CHUNK_ROWS:
                yield pa.concat_tables(waiting).combine_chunks()
                waiting = []
        if waiting:
            yield pa.concat_tables(waiting).combine_chunks()

    @property
    def groups(self) -> list[Group]:
        """The groups that have rows, in the order of the work."""
        order = [*MODALITY_ORDER, OTHER]
        return sorted(self.rows, key=lambda group: (group.stored, order.index(group.modality)))


def as_new(batch: pa.Table) -> pa.Table:
    """Items (ITEM_SCHEMA) of a batch of a catalog (CATALOG_SCHEMA), all of them new."""
    count = batch.num_rows
    columns = [*batch.select(CATALOG_SCHEMA.names).columns, pa.array(item_digests(batch)), np.ones(count, np.int32)]
    return pa.Table.from_arrays([*columns, pa.nulls(count), pa.nulls(count)], schema=ITEM_SCHEMA)


@contextmanager
def spooled(
    catalog: Catalog, roots: Sequence[str] | None = None, lookup: Callable[[pa.Table], pa.Table] = as_new
) -> Iterator[Spool]:
    """Read a catalog once, into a temporary folder that is removed at the end.

    At least one item must be below one of the `roots`, if given. `lookup` gives the items (ITEM_SCHEMA) of a batch of
    the catalog (CATALOG_SCHEMA). Raises UsageError if the catalog cannot be read or all its items are outside the
    roots, OperationFailed if the temporary folder is full.
    """
    with tempfile.TemporaryDirectory(prefix="mmva-plan-") as name, _full_disk_named(name):
        yield _fill(Path(name), catalog, AllowedRoots(roots) if roots is not None else None, lookup)


def _fill(
    folder: Path, catalog: Catalog, allowed: AllowedRoots | None, lookup: Callable[[pa.Table], pa.Table]
) -> Spool:
    ids_folder = folder / "ids"
    ids_folder.mkdir()
    ids = UniqueIds(ids_folder)
    rows: Counter[Group] = Counter()
    units_of: defaultdict[Group, float] = defaultdict(float)
    named: Counter[str] = Counter()
    known_bytes = unknown = 0
    first_outside: str | None = None
    writers: dict[Group, pa.RecordBatchStreamWriter] = {}  # one Arrow file for each group
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with ExitStack() as opened:
        for batch in catalog.batches():
            if allowed is not None:
                uris = batch["uri"].drop_null().to_pylist()
                first_outside = first_outside or next(iter(uris), None)
                if len(uris) < batch.num_rows or any(map(allowed.allow, uris)):
                    allowed = None  # at least one item has no file, or is below a root
            ids.add(batch["id"])
            named.update(_counts(batch["modality"]))
            of_files = batch.filter(pc.and_(batch["uri"].is_valid(), batch["caption"].is_null()))
            known_bytes += pc.sum(of_files["bytes"]).as_py() or 0
            unknown += of_files["bytes"].null_count
            number = pa.array(np.arange(rows.total(), rows.total() + batch.num_rows))
            items = lookup(batch).append_column(_ROW, number)
            for group, table in _grouped(items):
                if group not in writers:
                    writer = pa.ipc.new_stream(_path(folder, group), ITEM_SCHEMA.append(_ROW), options=options)
                    writers[group] = opened.enter_context(writer)
                writers[group].write_table(table)
                rows[group] += table.num_rows
                units_of[group] += float(units(table).sum())
    if allowed is not None:
        raise UsageError(
            f"catalog {catalog.uri}: all {rows.total()} items are outside its own folder, the first is "
            f"{first_outside}; allow the folder or prefix of the media with --root"
        )
    repeated = ids.repeated()
    left_out, shown = _left_out(folder, rows, repeated)
    info = CatalogInfo(
        uri=catalog.uri,
        tables=catalog.tables,
        items=rows.total() - len(repeated),
        by_modality={name: named[name] - left_out[name] for name in named if named[name] > left_out[name]},
        skipped=dict(sorted(catalog.skipped.items())),
        duplicates=len(repeated),
        duplicate_ids=shown,
    )
    return Spool(info, rows, dict(units_of), (known_bytes, unknown), folder, repeated)


def _path(folder: Path, group: Group) -> str:
    return str(folder / f"{group.modality}-{'stored' if group.stored else 'new'}.arrow")


def _read(folder: Path, group: Group, repeated: NDArray[np.int64], *, inverse: bool = False) -> Iterator[pa.Table]:
    """Rows of a group without repeated ids, or with `inverse` only those; ITEM_SCHEMA and the row's number."""
    with pa.OSFile(_path(folder, group)) as source, pa.ipc.open_stream(source) as reader:
        for batch in reader:
            row_N = batch.column(len(ITEM_SCHEMA)).to_numpy()
            place_N = np.minimum(np.searchsorted(repeated, row_N), max(0, len(repeated) - 1))
            again_N = repeated[place_N] == row_N if len(repeated) else np.zeros(len(row_N), dtype=bool)
            yield pa.table(batch.filter(pa.array(again_N if inverse else ~again_N)))


def _left_out(folder: Path, rows: Counter[Group], repeated: NDArray[np.int64]) -> tuple[Counter[str], tuple[str, ...]]:
    """Number of repeated rows by modality, and the first few of their ids."""
    left_out: Counter[str] = Counter()
    first: list[tuple[int, str]] = []
    for group in rows if len(repeated) else ():
        for table in _read(folder, group, repeated, inverse=True):
            left_out.update(_counts(table["modality"]))
            found = zip(table["row"].to_pylist(), table["id"].to_pylist(), strict=True)
            first = sorted([*first, *found])[:_DUPLICATES_SHOWN]
    return left_out, tuple(identity for _, identity in first)


def _grouped(items: pa.Table) -> Iterator[tuple[Group, pa.Table]]:
    known = pa.array(MODALITY_ORDER, pa.large_string())
    position_N = pc.index_in(items["modality"], value_set=known).fill_null(len(known)).to_numpy()
    stored_N = items["base_file"].is_valid().to_numpy()
    for number in np.unique(position_N):
        for stored in (False, True):
            chosen_N = (position_N == number) & (stored_N == stored)
            if chosen_N.any():
                name = MODALITY_ORDER[number] if number < len(known) else OTHER
                yield Group(name, stored), items.filter(pa.array(chosen_N))


def _counts(modalities: pa.ChunkedArray) -> dict[str, int]:
    return {entry["values"] or "unknown": entry["counts"] for entry in modalities.value_counts().to_pylist()}


@contextmanager
def _full_disk_named(folder: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise
        raise OperationFailed(
            f"{folder}: no space left for the temporary files of planning; set TMPDIR to a larger disk"
        ) from error
