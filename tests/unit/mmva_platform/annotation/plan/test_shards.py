"""Order and cut of the work: every item once, what may be equal side by side, shards of about a minute."""

from itertools import groupby, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmva.inference.config import EngineInfo
from mmva_platform.annotation.plan.shards import (
    Limits,
    cut,
    equals_together,
    limits_for,
    limits_for_stored,
    seconds_per_unit,
    shard_bounds,
    units,
)
from mmva_platform.annotation.schema import ITEM_SCHEMA

MODALITIES = ["image", "music", "video", "caption", "smell", None]
ROW = st.fixed_dictionaries(
    {
        "uri": st.sampled_from([None, "/m/a.png", "/m/b.mp3", "/m/c.WAV", "/m/d"]),
        "modality": st.sampled_from(MODALITIES),
        "caption": st.sampled_from([None, None, "calm", "loud", ""]),
        "bytes": st.sampled_from([None, 0, 7, 8, 10**7, 10**10]),
        "etag": st.none(),
        "base_file": st.none(),
    }
)


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist([{"id": str(n), **row} for n, row in enumerate(rows)], schema=ITEM_SCHEMA)


def uniform(count: int, modality: str, size: int | None = None) -> pa.Table:
    known = {"uri": "/m/x", "modality": modality, "bytes": size, "item_digest": 0, "attempts": 1}
    columns = {field.name: pa.repeat(pa.scalar(known.get(field.name), field.type), count) for field in ITEM_SCHEMA}
    columns["id"] = pa.array([str(n) for n in range(count)], pa.large_string())
    return pa.table(columns, schema=ITEM_SCHEMA)


def engine(name: str, items_per_s: float) -> EngineInfo:
    return EngineInfo.model_validate({"name": name, "items_per_s": {name: items_per_s}})


def sizes(items: pa.Table, limits: Limits) -> list[int]:
    return [shard.num_rows for shard in cut([items], limits)]


@settings(max_examples=200)
@given(st.lists(ROW, max_size=40))
def test_items_that_may_be_equal_stand_where_the_first_of_them_does(rows: list[dict[str, Any]]) -> None:
    def key(row: dict[str, Any]) -> tuple[str, Any]:
        return next(((name, row[name]) for name in ("caption", "bytes") if row[name] is not None), ("uri", row["uri"]))

    found = equals_together(table(rows)).to_pylist()
    assert sorted(row["id"] for row in found) == sorted(str(n) for n in range(len(rows)))
    keys = [key for key, _ in groupby(found, key)]
    assert len(keys) == len(set(keys))
    firsts = [min(int(row["id"]) for row in found if key(row) == each) for each in keys]
    assert firsts == sorted(firsts)


@settings(max_examples=60)
@given(st.lists(ROW, max_size=60), st.integers(1, 60), st.sampled_from([None, 1, 5]))
def test_the_cut_does_not_depend_on_how_the_stream_is_chunked(
    rows: list[dict[str, Any]], chunk: int, shard_items: int | None
) -> None:
    items = table(rows)
    limits = limits_for({"image": 30.0}, len(rows), {}, 1.5, shard_items)
    whole = list(cut([items], limits))
    chunked = list(cut([items.slice(start, chunk) for start in range(0, len(rows), chunk)], limits))
    assert [shard.to_pylist() for shard in chunked] == [shard.to_pylist() for shard in whole]
    assert [row for shard in whole for row in shard.to_pylist()] == items.to_pylist()
    assert all(shard.num_rows for shard in whole)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.floats(0, 3), st.floats(0, 0.7)), max_size=60))
def test_no_shard_is_over_a_limit_unless_it_is_one_item(loads: list[tuple[float, float]]) -> None:
    loads_N2 = np.array(loads).reshape(-1, 2)
    bounds = shard_bounds(loads_N2)
    assert (bounds[0], bounds[-1]) == (0, len(loads))
    for start, stop in pairwise(bounds):
        assert stop > start
        assert stop - start == 1 or loads_N2[start:stop].sum(axis=0).max() <= 1 + 1e-6
        if stop < len(loads):
            assert loads_N2[start : stop + 1].sum(axis=0).max() > 1 - 1e-6  # and none is smaller than it must be


def test_a_shard_is_a_minute_of_this_models_work() -> None:
    def largest(modality: str, of_tower: dict[str, EngineInfo], size: int | None = None) -> int:
        units_of = {modality: 1e6 / seconds_per_unit(of_tower, 1.5).get(modality, 1.0)}  # of 12 days of work
        of_large_catalog = limits_for(units_of, 10**8, of_tower, 1.5)
        return sizes(uniform(100_000, modality, size), of_large_catalog)[0]

    assert largest("image", {"image": engine("onnx", 82.0)}) == 60 * 82
    assert largest("image", {"image": engine("torch", 10.0)}) == 600
    assert largest("caption", {"caption": engine("torch", 200.0)}) == 12_000
    song = 24_000 * 30  # bytes of 30 s of an unknown format at 20 kB a second: 36 s
    assert largest("music", {"music": engine("onnx", 48.0)}, song) == 60 * 48 * 1.5 // 36
    film = 250_000 * 100
    towers = {"image": engine("onnx", 50.0), "music": engine("onnx", 100.0)}
    assert largest("video", towers, film) == 60 // (100 / 1.5 * (1 / 50 + 1 / 100))
    assert 60 <= largest("image", {}) <= 600  # of an engine that was never measured
    assert largest("caption", {"caption": engine("torch", 1e6)}) == 65_536 == largest("smell", {})


def test_shards_of_a_huge_catalog_are_longer_than_a_minute_but_not_too_many() -> None:
    count = 10**10
    limits = limits_for({"image": float(count)}, count, {"image": engine("onnx", 82.0)}, 1.5)
    assert 60 < limits.seconds == pytest.approx(2 * count / 82 / 1_000_000)


def test_a_shard_that_passes_between_two_stages_fits_into_memory() -> None:
    items = uniform(10_000, "image")
    limits = limits_for({"image": 1e9}, 10**9, {"image": engine("cuda", 5_000.0)}, 1.5)
    assert sizes(items, limits)[0] * 400 * 300 * 3 <= 256e6
    assert sizes(items, limits)[0] > 500
    on_cpus = limits_for({"image": 10_000.0}, 10_000, {"image": engine("onnx", 5_000.0)}, 1.5)
    assert len(sizes(items, on_cpus)) == 16  # one stage: nothing decoded waits


def test_a_shard_of_stored_embeddings_fits_into_memory() -> None:
    assert sizes(uniform(600_000, "image"), limits_for_stored(600_000))[0] == 32_768
    assert sizes(uniform(5_000, "image"), limits_for_stored(5_000)) == [4_096, 904]


@pytest.mark.parametrize(("count", "shards"), [(8, 1), (160, 16), (20, 3), (1600, 16)])
def test_small_catalog_has_a_shard_for_every_worker_but_none_tiny(count: int, shards: int) -> None:
    limits = limits_for({"image": float(count)}, count, {"image": engine("onnx", 100.0)}, 1.5)
    assert len(sizes(uniform(count, "image"), limits)) == shards


@pytest.mark.parametrize(("count", "shard_items", "largest"), [(1, 64, 1), (40, 16, 8), (1000, 50, 50), (9, 1, 1)])
def test_shard_items_says_the_size(count: int, shard_items: int, largest: int) -> None:
    found = sizes(uniform(count, "music"), limits_for({"music": 180.0 * count}, count, {}, 1.5, shard_items))
    assert max(found) == largest


def test_units_follow_duration_where_the_size_tells_it() -> None:
    row = {"caption": None, "etag": None, "base_file": None}
    rows = [
        {"uri": "/m/a.wav", "modality": "music", "bytes": 1_764_000, **row},  # 10 s
        {"uri": "/m/a.mp3", "modality": "music", "bytes": 1_764_000, **row},  # 73.5 s
        {"uri": "/m/a.mp3", "modality": "music", "bytes": None, **row},
        {"uri": "/m/a.mp4", "modality": "video", "bytes": 2_500_000, **row},  # 10 s
        {"uri": "/m/a.png", "modality": "image", "bytes": 10**9, **row},
    ]
    assert units(table(rows)).tolist() == pytest.approx([10.0, 73.5, 180.0, 10.0, 1.0])
