"""Order and cut of the work: every item once, what may be equal side by side, bases apart, shards of a useful size."""

from itertools import groupby, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmva_platform.annotation.schema import ITEM_SCHEMA
from mmva_platform.annotation.shards import as_counts, auto_shard_items, cut, estimated_costs, ordered, shard_bounds

MODALITIES = ["image", "music", "video", "caption", "smell", None]
ROW = st.fixed_dictionaries(
    {
        "uri": st.sampled_from([None, "/m/a.png", "/m/b.mp3", "/m/c.WAV", "/m/d"]),
        "modality": st.sampled_from(MODALITIES),
        "caption": st.sampled_from([None, None, "calm", "loud", ""]),
        "bytes": st.sampled_from([None, 0, 7, 8, 10**7, 10**10]),
        "etag": st.none(),
        "base_file": st.sampled_from([None, None, "data/1.parquet", "retries/0001/data/2.parquet"]),
    }
)


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist([{"id": str(n), **row} for n, row in enumerate(rows)], schema=ITEM_SCHEMA)


def uniform(count: int, modality: str, base_file: str | None = None) -> pa.Table:
    row = {"uri": "/m/x", "modality": modality, "caption": None, "bytes": None, "etag": None, "base_file": base_file}
    columns = {"id": [str(n) for n in range(count)], **{name: [value] * count for name, value in row.items()}}
    return pa.table(columns, schema=ITEM_SCHEMA)


def twin_key(row: dict[str, Any]) -> tuple[str, Any]:
    for name in ("caption", "bytes"):
        if row[name] is not None:
            return name, row[name]
    return "uri", row["uri"]


@settings(max_examples=200, deadline=None)
@given(st.lists(ROW, max_size=40), st.sampled_from([None, 1, 3, 64]), st.booleans())
def test_every_item_is_in_one_shard_and_equals_stand_together(
    rows: list[dict[str, Any]], shard_items: int | None, chunked: bool
) -> None:
    given_items = table(rows)
    if chunked and len(rows) > 2:
        given_items = pa.concat_tables([given_items.slice(0, 2), given_items.slice(2)])
    items = ordered(given_items)
    found = items.to_pylist()
    assert sorted(row["id"] for row in found) == sorted(str(n) for n in range(len(rows)))
    anew = [row for row in found if row["base_file"] is None]
    assert found[: len(anew)] == anew
    names = [name for name, _ in groupby(row["modality"] for row in anew if row["modality"] in MODALITIES[:4])]
    assert len(names) == len(set(names))
    for name in names:
        group = [row for row in anew if row["modality"] == name]
        keys = [key for key, _ in groupby(group, twin_key)]
        assert len(keys) == len(set(keys))
        firsts = [min(int(row["id"]) for row in group if twin_key(row) == key) for key in keys]
        assert firsts == sorted(firsts)
    base_runs = [name for name, _ in groupby(found[len(anew) :], lambda row: row["base_file"])]
    assert len(base_runs) == len(set(base_runs))
    bounds = cut(items, shard_items)
    assert (bounds[0], bounds[-1]) == (0, len(rows))
    assert all(start < stop for start, stop in pairwise(bounds))
    for start, stop in pairwise(bounds):
        assert len({row["base_file"] is None for row in found[start:stop]}) == 1


def test_modalities_come_longest_work_first_each_in_one_run() -> None:
    rows = [
        {"uri": f"/m/{n}", "modality": name, "caption": None, "bytes": None, "etag": None, "base_file": None}
        for n, name in enumerate(["caption", "image", None, "music", "image", "video", "caption", "music"])
    ]
    assert [row["modality"] for row in ordered(table(rows)).to_pylist()] == [
        *["video", "music", "music", "image", "image", "caption", "caption", None]
    ]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0.002, 5000), max_size=60), st.integers(1, 100), st.sampled_from([None, 1, 5]))
def test_no_shard_is_more_than_its_target_unless_it_is_one_item(
    costs: list[float], shard_items: int, most: int | None
) -> None:
    bounds = shard_bounds(costs, shard_items, most)
    assert (bounds[0], bounds[-1]) == (0, len(costs))
    for start, stop in pairwise(bounds):
        assert stop > start
        assert stop - start <= (most or 8 * shard_items)
        assert stop - start == 1 or sum(costs[start:stop]) <= shard_items * (1 + 1e-6)


@pytest.mark.parametrize(("modality", "base_file"), [(name, None) for name in MODALITIES[:4]] + [("image", "data/1")])
def test_ten_million_items_are_thousands_of_shards(modality: str, base_file: str | None) -> None:
    one = float(estimated_costs(uniform(1, modality, base_file))[0])
    costs_N = np.full(10_000_000, one)
    size = auto_shard_items(float(costs_N.sum()))
    most = None if base_file is None else int(size / one)
    shards = len(shard_bounds(costs_N, size, most)) - 1
    assert 16 <= shards <= 20_000


def test_shard_of_stored_embeddings_fits_into_memory_beside_long_work() -> None:
    bounds = cut(uniform(600_000, "image", "data/1"), 100_000)
    assert max(np.diff(bounds)) == 32_768


def test_small_catalog_has_a_shard_for_every_actor_but_none_tiny() -> None:
    assert len(cut(uniform(160, "image"), None)) - 1 == 16
    assert len(cut(uniform(8, "image"), None)) - 1 == 1
    assert len(cut(uniform(10_000, "image"), None)) - 1 == 157


def test_costs_follow_duration_where_the_size_tells_it() -> None:
    row = {"caption": None, "etag": None, "base_file": None}
    rows = [
        {"uri": "/m/a.wav", "modality": "music", "bytes": 1_764_000, **row},  # 10 s
        {"uri": "/m/a.mp3", "modality": "music", "bytes": 1_764_000, **row},  # 73.5 s
        {"uri": "/m/a.mp3", "modality": "music", "bytes": None, **row},
        {"uri": "/m/a.mp4", "modality": "video", "bytes": 2_500_000, **row},  # 10 s
        {"uri": "/m/a.mp4", "modality": "video", "bytes": 2_500_000, **row, "base_file": "data/1.parquet"},
        {"uri": "/m/a.png", "modality": "image", "bytes": 10**9, **row},
    ]
    assert estimated_costs(table(rows)).tolist() == pytest.approx([20.0, 147.0, 10.0, 50.0, 0.002, 1.0])


def test_counts_by_modality() -> None:
    rows = pa.table({"modality": pa.array(["music", None, "music", "image"])})
    assert as_counts(rows) == {"music": 2, "unknown": 1, "image": 1}
