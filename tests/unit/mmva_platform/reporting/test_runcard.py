"""The run card: counts that balance in every version, drift, and a page and a JSON file that say the same."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mmva.errors import CheckFailed, UsageError
from mmva.evaluation.drift import MIN_ITEMS, reference_quantiles
from mmva.inference.config import EngineInfo, Preprocessing
from mmva.models.bundle import read_bundle_info
from mmva.starter import BUNDLE
from mmva_platform import workflows
from mmva_platform.annotation.catalog.catalog import Catalog
from mmva_platform.annotation.options import RetryOptions
from mmva_platform.annotation.plan.plan import Base, ItemReader, ModelInfo, Plan
from mmva_platform.annotation.run.prepare import store_bundle
from mmva_platform.annotation.run.update import _plan_retry
from mmva_platform.annotation.schema import ANNOTATION_SCHEMA, EMBEDDING_FILE_SCHEMA, QUARANTINE_SCHEMA
from mmva_platform.annotation.table.commit import ShardResult, commit_shard
from mmva_platform.annotation.table.publish import Totals, VersionRecord, publish
from mmva_platform.annotation.table.reader import open_annotation
from mmva_platform.reporting.data import ReportData
from mmva_platform.reporting.html import render, write_report
from mmva_platform.reporting.runcard import NO_BUNDLE, NO_REFERENCE, histograms, run_facts, to_json
from mmva_platform.settings import Settings, TrackingSettings
from mmva_platform.storage import Storage, open_storage

from ...helpers.planned import plan_of, table_of
from ...helpers.published import publish_points, update_points

HOSTILE = """<script>alert('x')</script><img src=x onerror="alert(1)">{{ 7*7 }}"""
MODEL = ModelInfo(name="mmva", version="3", digest="a" * 64)
PREPROCESSING = Preprocessing(fingerprints={"image": "f"}, window_s=3.0, hop_s=1.5, short_side=256)
KINDS = ("image", "music", "caption", "video")


def planned(out: Path, ids: list[str], **changes: Any) -> Plan:
    """The plan of a catalog with two files that are not media and five repeated ids."""
    rows = [
        {"id": id_, "uri": f"/media/{id_}", "modality": KINDS[number % 4], "bytes": 9, "etag": "e"}
        for number, id_ in enumerate([*ids, *[ids[0]] * 5])
    ]

    def read(skipped: Counter[str]) -> list[pa.Table]:
        skipped[".pdf"] += 2
        return [table_of(rows)]

    return plan_of(open_storage(out), Catalog("/media", read), MODEL, PREPROCESSING, 2, **changes)


def annotated(row: Mapping[str, Any], plan: Plan, shard: str) -> dict[str, Any]:
    return dict.fromkeys(ANNOTATION_SCHEMA.names) | {
        "id": row["id"], "uri": row["uri"], "modality": row["modality"], "valence": 0.9, "arousal": 0.9,
        "item_digest": row.get("item_digest", 0), "mood": "excited",
        "tracks": ["image"] if row["modality"] == "video" else None, "duration_s": 8.0,
        "sha256": "0" * 64, "model_name": "mmva", "model_digest": MODEL.digest, "run_id": plan.run_id, "shard": shard,
        "annotated_at": datetime(2026, 1, 1, tzinfo=UTC),
    }  # fmt: skip


def failed(row: Mapping[str, Any], plan: Plan, shard: str) -> dict[str, Any]:
    return dict.fromkeys(QUARANTINE_SCHEMA.names) | {
        "id": row["id"], "modality": row["modality"], "stage": "decode", "error": "corrupt-image", "message": "why",
        "item_digest": row["item_digest"], "attempts": row["attempts"], "run_id": plan.run_id, "shard": shard,
    }  # fmt: skip


def carried_out(storage: Storage, plan: Plan, bad: set[str]) -> VersionRecord:
    """A published version, as workers would have made it."""
    read, commits = ItemReader(storage, plan), []
    for shard in plan.shards:
        rows = read(shard).to_pylist()
        ok = [annotated(row, plan, shard) for row in rows if row["id"] not in bad]
        rejected = [failed(row, plan, shard) for row in rows if row["id"] in bad]
        work = {"media": len(ok), "same bytes": 0, "quarantined": len(rejected)}
        result = ShardResult(
            pa.Table.from_pylist(ok, schema=ANNOTATION_SCHEMA),
            pa.Table.from_pylist(rejected, schema=QUARANTINE_SCHEMA),
            pa.Table.from_pylist(
                [{"id": row["id"], "embedding": [0.0], "windows": None} for row in ok], schema=EMBEDDING_FILE_SCHEMA
            ),
            work=work,
            seconds={"decode": 0.5, "infer": 1.5},
        )
        commits.append(commit_shard(storage, plan, shard, result))
    return publish(storage, plan, commits)


@pytest.fixture
def run(tmp_path: Path) -> tuple[str, Plan]:
    """Version 0 of eight items with three in quarantine, and a retry that mended two of them."""
    out = open_storage(str(tmp_path / "out"))
    plan = planned(Path(out.uri), ["a", "b", "c", "d", "e", "f", "g", "h"])
    carried_out(out, plan, {"a", "b", "c"})
    again = _plan_retry(open_annotation(out), RetryOptions(shard_items=2))
    assert again is not None
    carried_out(out, again, {"b"})
    return out.uri, plan


def record_of(plan: Plan, **changes: Any) -> VersionRecord:
    count = plan.catalog.items
    values: dict[str, Any] = {
        "items": count, "ok": count, "quarantined": 0, "by_modality": {}, "causes": {}, "work": {"media": count},
        "seconds": {"infer": 2.0},
    }  # fmt: skip
    return VersionRecord(
        annotation_version=plan.annotation_version, version=plan.version, kind=plan.kind, created_at=plan.created_at,
        run_id=plan.run_id, plan_fingerprint="f", model=MODEL, catalog=plan.catalog.uri, items=count,
        totals=Totals.model_validate(values | changes), base=plan.base,
    )  # fmt: skip


def facts_of(plan: Plan, rows: pa.Table, provenance: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Facts of a version without a quarantine."""
    return run_facts(plan, record_of(plan, **changes), rows, QUARANTINE_SCHEMA.empty_table(), provenance)


def page_of(rows: pa.Table, facts: dict[str, Any]) -> str:
    return render(ReportData(rows, QUARANTINE_SCHEMA.empty_table(), read=lambda _: b"", facts=facts))


def rows_of(plan: Plan, ids: list[str], modality: str = "image") -> pa.Table:
    rows = [annotated({"id": id_, "uri": None, "modality": modality}, plan, "000000") for id_ in ids]
    return pa.Table.from_pylist(rows, schema=ANNOTATION_SCHEMA)


class Words(HTMLParser):
    """The text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.feed(html)

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


def settings_without_registry(home: Path) -> Settings:
    """With a model of another name, so that the registry is not asked."""
    return Settings(home=home, tracking=TrackingSettings(model_name="another"))


def text_of(html: str) -> str:
    return " ".join("".join(Words(html).parts).split())


def reported(out: str, home: Path, version: int | None = None) -> tuple[dict[str, Any], str]:
    """Facts and page of a report."""
    workflows.report_annotation(out, home / "report.html", Settings(home=home / "home"), version)
    return json.loads((home / "report.json").read_text()), (home / "report.html").read_text()


@pytest.mark.slow  # imports MLflow
def test_counts_balance_in_every_version(run: tuple[str, Plan], tmp_path: Path) -> None:
    out, plan = run
    facts, page = reported(out, tmp_path)
    counts = facts["counts"]
    assert (counts["catalog_rows"], counts["duplicates"], counts["items"]) == (13, 5, 8)
    assert (counts["annotated"], counts["quarantined"]) == (7, 1)
    assert counts["work"] == {"media": 2, "quarantined": 1}
    assert sum(counts["by_modality"].values()) == 7
    assert facts["drift"]["note"] == NO_BUNDLE  # this annotation was made up, without one
    for axes in facts["histograms"].values():
        assert {sum(each["counts"]) for each in axes.values()} <= set(counts["by_modality"].values())
    assert facts["quarantine"] == {"corrupt-image": 1}
    assert facts["version"] == {"number": 1, "kind": "retry"}
    assert facts["throughput"]["stages"]["infer"]["seconds"] == pytest.approx(1.5 * 2)  # of two items and of one
    assert facts["throughput"]["items"] == 3
    assert "13 catalog rows = 5 duplicates left out + 8 items" in text_of(page)
    assert "7 annotated + 1 in quarantine" in text_of(page)
    assert "Work of this version: 2 from their media, 1 quarantined." in text_of(page)
    assert "Version 1 (retry)" in text_of(page)

    facts, page = reported(out, tmp_path, version=0)
    assert (facts["counts"]["annotated"], facts["counts"]["quarantined"]) == (5, 3)
    assert facts["counts"]["work"] == {"media": 5, "quarantined": 3}
    assert (facts["version"], facts["changes"]) == ({"number": 0, "kind": "annotate"}, None)
    assert facts["throughput"]["stages"]["infer"]["seconds"] == pytest.approx(1.5 * len(plan.shards))
    assert "5 annotated + 3 in quarantine" in text_of(page)
    assert "since the version before" not in text_of(page)


def test_the_report_of_an_update_shows_its_version_its_kind_and_what_changed(tmp_path: Path) -> None:
    rows = [(f"{number}.png", "image", number / 20, 0.5) for number in range(20)]
    out = publish_points(tmp_path / "va", rows)
    update_points(out, [("0.png", "image", 0.9, 0.9), *rows[3:], ("new.wav", "music", 0.2, 0.2)])
    facts, page = reported(str(out), tmp_path)
    assert facts["version"] == {"number": 1, "kind": "update"}
    assert facts["changes"] == {"unchanged": 17, "new": 1, "changed": 1, "removed": 2}
    assert facts["counts"]["by_modality"] == {"image": 18, "music": 1}
    shown = text_of(page)
    assert "Version 1 (update): 17 unchanged, 1 new, 1 changed, 2 removed since the version before." in shown
    assert f"{out} version 1" in shown
    assert "new.wav" in page


def test_a_version_that_is_not_there_is_no_report(run: tuple[str, Plan], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no version 2; versions are 0 to 1"):
        reported(run[0], tmp_path, version=2)
    assert not (tmp_path / "report.html").exists()


def test_counts_that_do_not_balance_are_no_report(tmp_path: Path) -> None:
    plan = planned(tmp_path, ["a", "b"])
    with pytest.raises(CheckFailed, match="1 annotated and 0 quarantined are not 2 items"):
        facts_of(plan, rows_of(plan, ["a"]))


def test_a_report_holds_no_embeddings(run: tuple[str, Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[ReportData] = []
    monkeypatch.setattr("mmva_platform.reporting.html.write_report", lambda _, data: shown.append(data))
    monkeypatch.setattr(workflows, "_provenance_of", lambda *_: None)
    workflows.report_annotation(run[0], tmp_path / "report.html", settings_without_registry(tmp_path))
    assert not {"embedding", "windows"} & set(shown[0].annotations.column_names)


def test_figures_and_drift_of_a_model_without_a_registry_are_those_of_the_bundle_in_the_annotation(
    tmp_path: Path,
) -> None:
    model = ModelInfo(name="starter", version=None, digest=read_bundle_info(BUNDLE).digest)
    out = publish_points(tmp_path / "va", [("a.png", "image", 0.5, 0.5), ("b.mp4", "video", 0.5, 0.5)], model)
    store_bundle(open_storage(out), BUNDLE, model)
    facts, page = reported(str(out), tmp_path)
    assert facts["drift"]["by_modality"]["image"]["valence"]["verdict"] == "too few items"
    assert facts["drift"]["note"] == "no reference for video"
    shown = text_of(page)
    known = read_bundle_info(BUNDLE).provenance["folds"]
    figures = [
        f"{known['floors']['image']['valence']:.4f}",
        f"{known['metrics']['image']['valence']['mse']['value']:.4f}",
    ]
    for part in ("annotated. On media it never saw", "Measured in 5 folds by group", "836 images", *figures):
        assert part in shown
    assert "There are no figures" not in shown

    (stored,) = (out / "_mmva" / "model").glob("*/bundle.json")
    stored.write_text("{}")
    facts, page = reported(str(out), tmp_path)
    assert facts["drift"] == {"note": NO_BUNDLE, "by_modality": {}}
    assert "There are no figures: neither the registry nor the model's own files hold an evaluation" in text_of(page)


def test_a_catalog_that_lies_elsewhere_has_drifted(tmp_path: Path) -> None:
    plan = planned(tmp_path, [str(number) for number in range(MIN_ITEMS)])
    reference = {
        "image": reference_quantiles(np.random.default_rng(0).uniform(0.1, 0.5, (1000, 2))),
        "items": {"image": 1000},
    }
    rows = rows_of(plan, [str(number) for number in range(MIN_ITEMS)])
    facts = facts_of(plan, rows, {"reference": reference})
    drift = facts["drift"]["by_modality"]["image"]["valence"]
    assert drift["verdict"] == "strongly shifted"
    assert drift["wasserstein"] == pytest.approx(0.6, abs=0.02)
    page = page_of(rows, facts)
    assert "strongly shifted" in text_of(page)
    assert f"{drift['wasserstein']:.3f}" in text_of(page)


@pytest.mark.parametrize(
    ("provenance", "note"), [(None, NO_BUNDLE), ({"run_name": "old"}, NO_REFERENCE), ({"reference": {}}, NO_REFERENCE)]
)
def test_a_bundle_without_a_reference_says_so(tmp_path: Path, provenance: dict[str, Any] | None, note: str) -> None:
    plan = planned(tmp_path, ["a"])
    rows = rows_of(plan, ["a"])
    facts = facts_of(plan, rows, provenance)
    assert facts["drift"] == {"note": note, "by_modality": {}}
    assert note in text_of(page_of(rows, facts))


def test_the_page_shows_what_the_json_holds(tmp_path: Path) -> None:
    base = Base(
        replaced=("status=ok/modality=video/000000-000000-a.parquet",), same_model=False, kept=0, unchanged=2, new=1,
        changed=0, removed=1_234,
    )  # fmt: skip
    engines = {"image": EngineInfo(name="onnx", max_va_difference=3.2e-4, min_cosine=0.99995)}
    command = ("mmva", "annotate", "s3://bucket/catalog.parquet", "--out", "s3://va/my 11")
    plan = planned(tmp_path, ["a", "b", "c"], engines=engines, command=command)
    plan = plan.model_copy(update={"base": base, "version": 7, "kind": "update"})
    rows = rows_of(plan, ["a", "b", "c"], "video")
    facts = facts_of(plan, rows, work={"heads": 2, "same bytes": 1}, seconds={"fetch": 1.0, "heads": 3.0})
    shown = text_of(page_of(rows, facts))
    assert json.loads(to_json(facts)) == facts
    for part in (
        "Version 7 (update): 2 unchanged, 1 new, 0 changed, 1,234 removed", "onnx", "3.2e-04", "0.999950",
        "--out 's3://va/my 11'", "2 from stored embeddings, 1 with the same bytes as another item", "3 videos",
        "valence of videos; highest bar 3",
        ".pdf 2", "75%", "0.75 items per worker-second", plan.created_at.isoformat(),
    ):  # fmt: skip
        assert part in shown, part


def test_hostile_facts_stay_text(tmp_path: Path) -> None:
    base = Base(replaced=(), same_model=True, kept=0, unchanged=1, new=0, changed=0, removed=0)
    plan = planned(tmp_path, [HOSTILE], command=[HOSTILE]).model_copy(update={"base": base, "version": 1})
    rows = rows_of(plan, [HOSTILE], "video")
    facts = facts_of(plan, rows, work={HOSTILE: 1}, seconds={HOSTILE: 1.0}, causes={HOSTILE: 1})
    drift = {"psi": None, "wasserstein": None, "verdict": HOSTILE, "items": 1, "reference_items": 1}
    facts |= {
        "version": {"number": 1, "kind": HOSTILE},
        "changes": {HOSTILE: 1},
        "engines": {HOSTILE: EngineInfo(name="torch").model_dump() | {"name": HOSTILE}},
        "drift": {"note": HOSTILE, "by_modality": {HOSTILE: {HOSTILE: drift}}},
        "histograms": {HOSTILE: {HOSTILE: facts["histograms"]["video"]["valence"]}},
    }
    facts["counts"]["skipped_files"] = {HOSTILE: 1}
    facts["run"]["created_at"] = HOSTILE
    page = page_of(rows, facts)
    assert "<script" not in page
    assert "<img" not in page
    assert page.count("&lt;script&gt;") >= 15


def test_histograms_count_every_item_once() -> None:
    va_N2 = np.array([[0.0, 1.0], [1.0, 1.0], [-1e-7, 0.5], [0.05, 0.999]])
    found = histograms(va_N2)
    assert found["valence"]["counts"][:2] == [2, 1]
    assert found["valence"]["counts"][-1] == 1
    assert found["arousal"]["counts"][-1] == 3
    assert all(sum(each["counts"]) == 4 and len(each["edges"]) == 21 for each in found.values())


def test_facts_are_json_or_an_error() -> None:
    with pytest.raises(ValueError, match="Out of range"):
        to_json({"share": float("nan")})


def test_a_report_named_json_or_like_a_folder_is_refused(tmp_path: Path) -> None:
    data = ReportData(ANNOTATION_SCHEMA.empty_table(), QUARANTINE_SCHEMA.empty_table(), read=lambda _: b"")
    with pytest.raises(UsageError, match="name an HTML file"):
        write_report(tmp_path / "report.json", data)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        write_report(tmp_path / "folder", data)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
