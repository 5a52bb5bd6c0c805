"""How two catalogs differ, in words: why a resume with another catalog is refused."""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_IDS_SHOWN: Final = 3
_COMPARED: Final = ("uri", "modality", "caption", "bytes", "etag")


def catalog_difference(there: pa.Table, now: pa.Table) -> str:
    """Counts of added, removed and changed items (CATALOG_SCHEMA columns), with the first few ids of each."""
    place = pc.index_in(now.column("id"), value_set=there.column("id").combine_chunks())
    known = place.is_valid()
    mine = now.filter(known)
    theirs = there.take(place.filter(known))
    changed = np.zeros(mine.num_rows, dtype=bool)
    for name in _COMPARED:
        left, right = mine.column(name), theirs.column(name)
        unequal = pc.fill_null(pc.not_equal(left, right), False).to_numpy()  # noqa: FBT003 - Arrow's own signature
        changed |= unequal | (left.is_null().to_numpy() != right.is_null().to_numpy())
    removed = pc.is_in(there.column("id"), value_set=now.column("id").combine_chunks())
    parts = {
        "added": now.column("id").filter(pc.invert(known)),
        "removed": there.column("id").filter(pc.invert(removed)),
        "changed": mine.column("id").filter(pa.array(changed)),
    }
    said = [_count(name, ids) for name, ids in parts.items() if len(ids)]
    return "catalog items " + ("; ".join(said) if said else "are the same in another order")


def _count(name: str, ids: pa.ChunkedArray) -> str:
    shown = ids.slice(0, _IDS_SHOWN).to_pylist()
    return f"{len(ids)} {name} ({', '.join(shown)}{', ...' if len(ids) > len(shown) else ''})"
