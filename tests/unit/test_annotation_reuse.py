"""Heads over stored embeddings and rows carried over from an earlier annotation, and retried generations."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from mmva.inference.config import Preprocessing
from mmva.model import MMVA
from mmva_platform.annotation.base import find_base_beside, open_base
from mmva_platform.annotation.catalog import Catalog
from mmva_platform.annotation.commit import ShardResult, commit_shard, read_commit
from mmva_platform.annotation.plan import ItemReader, ModelInfo, Plan, iter_items
from mmva_platform.annotation.planning import write_plan
from mmva_platform.annotation.publish import generations, publish, read_annotations, read_quarantine, retry_folder
from mmva_platform.annotation.retry import plan_retry
from mmva_platform.annotation.reuse import Reuser
from mmva_platform.annotation.schema import (
    ANNOTATION_SCHEMA,
    QUARANTINE_SCHEMA,
    WINDOW_EMBEDDING_SCHEMA,
)
from mmva_platform.annotation.spool import spooled
from mmva_platform.annotation.verify import verify
from mmva_platform.settings import Settings
from mmva_platform.storage import Storage, open_storage

from .planned import plan_of, table_of

OLD, NEW = (ModelInfo(name="mmva", version=version, digest=version * 64) for version in "12")
CUT = Preprocessing(fingerprints={"image": "f", "music": "g"}, window_s=3.0, hop_s=1.5, short_side=224)
SETTINGS = Settings()
POINTS = {"valence": 0.5, "arousal": 0.5, "mood": "neutral"}


def towers() -> MMVA:
    model = MMVA({"image": 4, "music": 3})
    for tower in model.towers.values():  # from zero every point would be the neutral one
        torch.nn.init.constant_(tower.linear.weight, 0.7)
    model.intervals = {"image": {"valence": 0.2, "arousal": 0.3}}
    return model


def catalog(names: list[str], size: int = 9, etag: str = "e") -> pa.Table:
    known = {"bytes": size, "etag": etag}
    rows = [
        {"id": name, "uri": f"/m/{name}", "modality": "music" if name[0] == "m" else "image", **known} for name in names
    ]
    return table_of(rows)


def row(item: dict[str, Any], plan: Plan, shard: str) -> dict[str, Any]:
    music = item["modality"] == "music"
    known = {
        **POINTS, "id": item["id"], "uri": item["uri"], "modality": item["modality"], "sha256": "0",
        "embedding": np.random.default_rng(ord(item["id"][-1])).normal(size=3 if music else 4),
        "windows": [{"start_s": s, "valence": 0.5, "arousal": 0.5} for s in (0.0, 1.5)] if music else None,
        "model_name": plan.model.name, "model_version": plan.model.version, "model_digest": plan.model.digest,
        "run_id": plan.run_id, "shard": shard, "annotated_at": plan.created_at,
    }  # fmt: skip
    return dict.fromkeys(ANNOTATION_SCHEMA.names) | known


def carry_out(place: Storage, plan: Plan, bad: tuple[str, ...] = ()) -> None:
    """What a run leaves, with embeddings out of a hat."""
    for shard in plan.shards:
        items = ItemReader(place, plan)(shard).to_pylist()
        rows = [row(item, plan, shard) for item in items if item["id"] not in bad]
        windows = [
            {"id": r["id"], "track": "music", "start_s": s, "embedding": np.float16([s, 0.5, -s])}
            for r in rows
            for s in (0.0, 1.5)
            if r["modality"] == "music"
        ]
        lost = [
            {
                "id": item["id"], "uri": item["uri"], "modality": item["modality"], "stage": "decode", "error": "bad",
                "message": "no", "attempts": plan.generation, "run_id": plan.run_id, "shard": shard,
            }
            for item in items
            if item["id"] in bad
        ]  # fmt: skip
        tables = (
            pa.Table.from_pylist(values, schema)
            for values, schema in (
                (rows, ANNOTATION_SCHEMA),
                (lost, QUARANTINE_SCHEMA),
                (windows, WINDOW_EMBEDDING_SCHEMA),
            )
        )
        commit_shard(place, plan, shard, ShardResult(*tables))
    publish(place, plan, [read_commit(place, shard) for shard in plan.shards])


@pytest.fixture
def base(tmp_path: Path) -> Storage:
    storage = open_storage(tmp_path / "runs" / "old")
    carry_out(storage, plan_of(storage, catalog(["a", "b", "c", "m1"]), OLD, CUT, 8), bad=("c",))
    return storage


def plan_upon(base: Storage, out: Storage, model: ModelInfo, items: pa.Table) -> Plan:
    found = open_base(base.uri, SETTINGS)
    with spooled(Catalog.of_table("/m", items), stored_files=found.lookup()) as spool:
        reusable = found.reusable(CUT, found.engines)
        return write_plan(out, spool, model, CUT, base=found.info(model), reusable=reusable, roots=("/m",))


def upon(base: Storage, out: Storage, model: ModelInfo, items: pa.Table) -> tuple[Plan, ShardResult]:
    plan = plan_upon(base, out, model, items)
    planned = ItemReader(out, plan)(plan.shards[0])
    return plan, Reuser(towers, plan, out, SETTINGS)(plan.shards[0], planned)


def reused(base: Storage, items: pa.Table, preprocessing: Preprocessing = CUT) -> list[bool]:
    """Whether each item is taken from the base, in the catalog's order."""
    found = open_base(base.uri, SETTINGS)
    held, reusable = found.lookup()(items).is_valid().to_pylist(), found.reusable(preprocessing, found.engines)
    return [is_held and name in reusable for is_held, name in zip(held, items["modality"].to_pylist(), strict=True)]


def test_only_what_is_unchanged_and_was_annotated_is_reused(base: Storage) -> None:
    assert reused(base, catalog(["a", "b", "c", "m1", "new"])) == [True, True, False, True, False]
    assert reused(base, catalog(["a", "b"], size=10)) == [False, False]
    assert reused(base, catalog(["a", "b"], etag="f")) == [False, False]
    assert reused(base, catalog(["a", "m1"]), CUT.model_copy(update={"window_s": 5.0})) == [False, False]
    other = CUT.model_copy(update={"fingerprints": {"image": "f", "music": "h"}})
    assert reused(base, catalog(["a", "m1"]), other) == [True, False]


def test_a_plan_upon_a_base_holds_its_items_apart_and_counts_them(base: Storage, tmp_path: Path) -> None:
    out = open_storage(tmp_path / "out")
    plan = plan_upon(base, out, OLD, catalog(["new", "b", "m2", "a", "m1"]))
    assert plan.base is not None
    assert plan.base.items == 3
    shards = [items.to_pylist() for items in iter_items(out, plan)]
    assert [[row["id"] for row in shard] for shard in shards] == [["m2", "new"], ["m1", "b", "a"]]
    assert [row["base_file"] is None for shard in shards for row in shard] == [True, True, False, False, False]


def test_items_of_another_backbone_are_planned_from_their_media(base: Storage, tmp_path: Path) -> None:
    found, out = open_base(base.uri, SETTINGS), open_storage(tmp_path / "out")
    with spooled(Catalog.of_table("/m", catalog(["a", "m1"])), stored_files=found.lookup()) as spool:
        plan = write_plan(out, spool, NEW, CUT, base=found.info(NEW), reusable={"image"}, roots=("/m",))
    rows = [row for items in iter_items(out, plan) for row in items.to_pylist()]
    assert [(row["id"], row["base_file"] is None) for row in rows] == [("m1", True), ("a", False)]


def test_carried_rows_are_the_old_ones_under_a_new_name(base: Storage, tmp_path: Path) -> None:
    plan, result = upon(base, open_storage(tmp_path / "out"), OLD, catalog(["b", "a"]))
    old = {r["id"]: r for r in read_annotations(base.uri).to_pylist()}
    assert [r["id"] for r in result.ok.to_pylist()] == ["b", "a"]
    for r in result.ok.to_pylist():
        assert r == old[r["id"]] | {"run_id": plan.run_id, "shard": "000000", "annotated_at": plan.created_at}
    assert result.work == {"carried": 2}


def test_new_heads_run_over_stored_embeddings_and_windows(base: Storage, tmp_path: Path) -> None:
    _, result = upon(base, open_storage(tmp_path / "out"), NEW, catalog(["a", "m1", "b"]))
    assert result.ok.schema.equals(ANNOTATION_SCHEMA)
    for r in result.ok.to_pylist():
        (va_2,) = towers().predict_embeddings(r["modality"], np.array([r["embedding"]], np.float32))
        assert [r["valence"], r["arousal"]] == pytest.approx(va_2, abs=1e-5)
        assert (r["windows"] is not None) == (r["modality"] == "music") == (r["valence_low"] is None)
        assert r["model_digest"] == NEW.digest
    (music,) = [r for r in result.ok.to_pylist() if r["modality"] == "music"]
    assert [window["start_s"] for window in music["windows"]] == [0.0, 1.5]
    assert result.windows.num_rows == 2


def test_the_newest_annotation_beside_is_found(base: Storage, tmp_path: Path) -> None:
    assert find_base_beside(str(tmp_path / "runs" / "new"), SETTINGS) == base.uri
    assert find_base_beside(base.uri, SETTINGS) is None


@pytest.mark.parametrize("dropped", [False, True])
def test_a_retry_holds_exactly_what_was_quarantined(base: Storage, dropped: bool) -> None:
    place = open_storage(base.join(retry_folder(1)))
    if dropped:  # another item instead of the quarantined one, which was annotated before
        carry_out(place, plan_of(place, catalog(["a"]), OLD, CUT, 8, generation=2))
    else:
        carry_out(place, plan_retry(base, place, 8))
    assert len(generations(base)) == 2
    problems = verify(base.uri, SETTINGS).problems
    if dropped:
        assert any("1 quarantined items are not retried: c" in problem for problem in problems)
        assert any("1 items were not quarantined before: a" in problem for problem in problems)
    else:
        assert problems == ()
        assert sorted(read_annotations(base.uri)["id"].to_pylist()) == ["a", "b", "c", "m1"]
        assert read_quarantine(base.uri).num_rows == 0


def test_verify_names_a_missing_windows_file(base: Storage) -> None:
    (entry,) = base.list("windows/")
    base.delete(entry.path)
    assert any("windows/" in problem for problem in verify(base.uri, SETTINGS).problems)
