"""The difference of two catalogs names what was added, removed and changed, and nothing else."""

from typing import Any

import pyarrow as pa
import pytest

from mmva_platform.annotation.differences import catalog_difference
from mmva_platform.annotation.schema import CATALOG_SCHEMA

ROW = {"uri": "/m/x.png", "modality": "image", "caption": None, "bytes": 5, "etag": "e"}


def catalog(*ids: str, **changes: Any) -> pa.Table:
    """Rows by id; `changes` are of the row whose id is "b"."""
    rows = [{"id": name, **ROW, **(changes if name == "b" else {})} for name in ids]
    return pa.Table.from_pylist(rows, schema=CATALOG_SCHEMA)


def test_added_and_removed() -> None:
    assert (
        catalog_difference(catalog("a", "b"), catalog("b", "c", "d")) == "catalog items 2 added (c, d); 1 removed (a)"
    )


def test_nothing_in_common() -> None:
    said = catalog_difference(catalog("a"), catalog("c"))
    assert said == "catalog items 1 added (c); 1 removed (a)"


@pytest.mark.parametrize(
    "change",
    [{"uri": "/m/y.png"}, {"modality": None}, {"caption": "calm"}, {"bytes": 6}, {"bytes": None}, {"etag": "f"}],
)
def test_each_column_counts_as_change_both_ways(change: dict[str, Any]) -> None:
    before, after = catalog("a", "b", "c"), catalog("c", "b", "a", **change)
    assert catalog_difference(before, after) == "catalog items 1 changed (b)"
    assert catalog_difference(after, before) == "catalog items 1 changed (b)"


def test_many_are_counted_and_the_first_named() -> None:
    names = [f"n{number}" for number in range(7)]
    assert catalog_difference(catalog("a"), catalog("a", *names)) == "catalog items 7 added (n0, n1, n2, ...)"


def test_order_alone() -> None:
    assert catalog_difference(catalog("a", "b"), catalog("b", "a")) == "catalog items are the same in another order"


def test_tables_of_several_chunks() -> None:
    there = pa.concat_tables([catalog("a"), catalog("b")])
    now = pa.concat_tables([catalog("b", bytes=6), catalog("c")])
    assert catalog_difference(there, now) == "catalog items 1 added (c); 1 removed (a); 1 changed (b)"
