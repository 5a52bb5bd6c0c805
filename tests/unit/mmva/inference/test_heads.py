"""Embeddings to points and curves: one function for fresh and stored embeddings, by start time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mmva.inference.config import Preprocessing
from mmva.inference.heads import predict
from mmva.inference.pipeline import Pipeline
from mmva.inference.tables import EMBEDDING_SCHEMA, ERROR_SCHEMA, WINDOW_SCHEMA, Embedded
from mmva_platform.annotation.catalog.catalog import Catalog
from mmva_platform.annotation.plan.plan import Base, ItemReader, ModelInfo
from mmva_platform.annotation.plan.planning import Stored, write_plan
from mmva_platform.annotation.plan.spool import spooled
from mmva_platform.annotation.run.annotator import flat_windows, nested_windows, stamped
from mmva_platform.annotation.run.lookup import Lookup
from mmva_platform.annotation.run.stored import StoredRows
from mmva_platform.annotation.schema import EMBEDDING_FILE_SCHEMA
from mmva_platform.annotation.table.commit import commit_shard, read_commits
from mmva_platform.annotation.table.publish import publish
from mmva_platform.annotation.table.reader import open_annotation
from mmva_platform.storage import open_storage

from ...helpers.planned import plan_of, table_of
from .inference_world import FakeModel, film

CUT = Preprocessing(fingerprints={}, window_s=2.0, hop_s=1.0, short_side=224)


def embedded_video(hop_s: float) -> Embedded:
    """A video of 4 s whose pictures and sound are cut on grids of their own."""
    model, data = FakeModel(), film(4, sound=True)
    cut = Preprocessing(fingerprints={}, window_s=2 * hop_s, hop_s=hop_s, short_side=224)
    pipeline = Pipeline(model.dims, model.encoder, cut, lambda *_: data)
    return pipeline.embed(pa.table({"id": ["v"], "uri": ["v"], "modality": ["video"]}))


@pytest.mark.parametrize("hop_s", [1.0, 0.3337])
def test_a_curve_has_a_point_for_each_start_time(hop_s: float) -> None:
    embedded = embedded_video(hop_s)
    (row,) = predict(FakeModel(), embedded).rows.to_pylist()  # type: ignore[arg-type]
    at: dict[float, list[float]] = {}
    for window in embedded.windows.to_pylist():
        at.setdefault(window["start_s"], []).append(window["embedding"][0])
    assert [point["start_s"] for point in row["windows"]] == sorted(at)
    assert [point["valence"] for point in row["windows"]] == pytest.approx([np.mean(at[s]) for s in sorted(at)])
    both = [start_s for start_s, values in at.items() if len(values) == 2]
    assert len(both) == (3 if hop_s == 1.0 else 1), "with this hop the grids meet at 0 s only"


@pytest.mark.parametrize("hop_s", [1.0, 0.3337])
def test_stored_embeddings_give_the_curve_of_fresh_ones(hop_s: float) -> None:
    embedded = embedded_video(hop_s)
    nested = nested_windows(embedded.windows, embedded.rows["id"])  # in float16, as a file of embeddings holds them
    columns = {"id": embedded.rows["id"], "embedding": embedded.rows["embedding"], "windows": nested}
    windows = flat_windows(pa.table(columns, schema=EMBEDDING_FILE_SCHEMA))
    stored = Embedded(embedded.ids, embedded.rows, windows, ERROR_SCHEMA.empty_table())
    (fresh,), (again,) = (predict(FakeModel(), one).rows.to_pylist() for one in (embedded, stored))  # type: ignore[arg-type]
    assert [point["start_s"] for point in fresh["windows"]] == [point["start_s"] for point in again["windows"]]
    for axis in ("valence", "arousal"):
        expected = [point[axis] for point in fresh["windows"]]
        assert [point[axis] for point in again["windows"]] == pytest.approx(expected, abs=1e-3)


def rows_of(**embeddings: list[float]) -> Embedded:
    columns = {
        "id": list(embeddings), "uri": list(embeddings), "modality": ["image"] * len(embeddings),
        "embedding": list(embeddings.values()), "tracks": [None] * len(embeddings),
        "duration_s": [None] * len(embeddings), "sha256": ["0"] * len(embeddings),
    }  # fmt: skip
    rows = pa.table(columns, schema=EMBEDDING_SCHEMA)
    windows = pa.table(
        {"id": ["good", "bad"], "track": ["image"] * 2, "start_s": [0.0, 0.0], "embedding": [[0.5, 0.5]] * 2},
        schema=WINDOW_SCHEMA,
    )
    broken = {
        "id": ["broken"],
        "uri": ["broken"],
        "modality": ["image"],
        "stage": ["decode"],
        "error": ["corrupt-image"],
    }
    errors = pa.table(broken | {"message": ["-"], "sha256": [None]}, schema=ERROR_SCHEMA)
    return Embedded(pa.array(["bad", "broken", *list(embeddings)[1:]]), rows, windows, errors)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_an_error_in_its_items_place(value: float) -> None:
    """Also an infinite embedding, which the towers would clip to a finite point."""
    model = FakeModel()
    model.predict_embeddings = lambda _modality, emb_ND: np.clip(emb_ND, 0, 1)  # type: ignore[method-assign]
    found = predict(model, rows_of(bad=[value, 0.5], good=[0.4, 0.5]))  # type: ignore[arg-type]
    assert found.rows["id"].to_pylist() == found.windows["id"].to_pylist() == ["good"]
    errors = [(row["id"], row["stage"], row["error"], row["sha256"]) for row in found.errors.to_pylist()]
    assert errors == [("bad", "infer", "non-finite", "0"), ("broken", "decode", "corrupt-image", None)]


def test_an_annotation_keeps_its_curve_when_only_the_heads_run_again(tmp_path: Path) -> None:
    """Through the stored files: a version, then new heads upon it."""

    class Model(FakeModel):
        dims = {"image": 2, "music": 2}  # noqa: RUF012 - a stand-in

    out, old = open_storage(tmp_path / "out"), ModelInfo(name="mmva", version="1", digest="1" * 64)
    catalog = table_of([{"id": "v", "uri": "/m/v", "modality": "video", "bytes": 9}])
    plan = plan_of(out, catalog, old, CUT, 8, keep_windows=True)
    first = stamped(predict(Model(), embedded_video(0.3337)), plan, "000000", ItemReader(out, plan)("000000"))  # type: ignore[arg-type]
    commit_shard(out, plan, "000000", first)
    publish(out, plan, read_commits(out, 0, ["000000"]))
    before = open_annotation(out)
    (file,) = before.files()
    base = Base(replaced=(file.path,), same_model=False, kept=0, unchanged=1, new=0, changed=0, removed=0)
    new = old.model_copy(update={"version": "2", "digest": "2" * 64})
    with spooled(Catalog.of_table("/m", catalog), None, Lookup(before)) as spool:
        plan = write_plan(
            out, spool, new, CUT,
            shard_items=8, version=1, kind="update", base=base, stored=Stored((), ("video",)), keep_windows=True,
        )  # fmt: skip
    again = StoredRows(Model, plan, before)("000000", ItemReader(out, plan)("000000"))  # type: ignore[arg-type]
    assert again.work == {"heads": 1}
    (then,), (now,) = before.table().to_pylist(), again.ok.to_pylist()
    assert (then["model_digest"], now["model_digest"]) == (old.digest, new.digest)
    assert [point["start_s"] for point in now["windows"]] == [point["start_s"] for point in then["windows"]]
    assert len(now["windows"]) > 19
    for axis in ("valence", "arousal"):
        expected = [point[axis] for point in then["windows"]]
        assert [point[axis] for point in now["windows"]] == pytest.approx(expected, abs=1e-3)
    assert (now["embedding_file"], now["embedding_row"]) == (then["embedding_file"], then["embedding_row"])
