"""From a caller's words to a plan, and the limits of a run: what is refused, continued and stopped before Ray starts."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError

from mmva.errors import CheckFailed, OperationFailed, UsageError
from mmva_platform.annotation import run as run_module
from mmva_platform.annotation.commit import ShardResult, commit_shard, read_commit
from mmva_platform.annotation.execute import carry_out
from mmva_platform.annotation.item_errors import fetch_error
from mmva_platform.annotation.options import AnnotateOptions, ErrorLimit
from mmva_platform.annotation.plan import PLAN_FILE, ItemReader, Plan, iter_items, read_plan
from mmva_platform.annotation.prepare import look_up, make_plan
from mmva_platform.annotation.preview import preview_run
from mmva_platform.annotation.publish import Manifest, publish
from mmva_platform.annotation.results import Item, quarantine
from mmva_platform.annotation.run import annotate, resume
from mmva_platform.annotation.schema import ANNOTATION_SCHEMA
from mmva_platform.annotation.stored_model import stored_bundle
from mmva_platform.settings import Settings, validate
from mmva_platform.storage import Storage, StorageTooLargeError, open_storage


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    folder = tmp_path / "catalog"
    folder.mkdir()
    for number in range(20):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number:02d}.png")
    return folder


def planned(catalog: Path | str, bundle: Path, out: Path, settings: Settings, **options: Any) -> Plan:
    """What annotate does before it runs shards."""
    chosen = validate(AnnotateOptions, {"engine": "torch", "shard_items": 5} | options, "annotate")
    request = look_up(str(catalog), str(bundle), str(out), settings, chosen)
    return request.continued() or make_plan(request, settings)


def quarantine_all(storage: Storage, plan: Plan, shard: str) -> None:
    ids = ItemReader(storage, plan)(shard)["id"].to_pylist()
    error = fetch_error(StorageTooLargeError("x: 9 bytes, the limit is 8"))
    rejected = quarantine([Item(name, None, "image", error=error) for name in ids], plan, shard)
    commit_shard(storage, plan, shard, ShardResult(ANNOTATION_SCHEMA.empty_table(), rejected))


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Calls of carry_out, which here quarantines every item."""
    calls: list[dict[str, Any]] = []

    def fake(
        storage: Storage, plan: Plan, bundle_dir: Path, _settings: Settings, **options: Any
    ) -> tuple[Manifest, int]:
        files = sorted(file.name for file in bundle_dir.iterdir())
        calls.append({"run": plan.run_id, "files": files, **options})
        for shard in plan.shards:
            quarantine_all(storage, plan, shard)
        return publish(storage, plan, [read_commit(storage, shard) for shard in plan.shards]), 0

    monkeypatch.setattr(run_module, "carry_out", fake)
    return calls


# --- the same call again, and resume


def test_the_same_call_again_continues_the_plan_and_lists_nothing(
    catalog: Path, tiny_bundle: Path, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = planned(catalog, tiny_bundle, tmp_path / "out", settings, roots=("/a", "/b"))
    assert {name: engine.name for name, engine in first.engines.items()} == {"image": "torch"}
    Image.new("RGB", (8, 8)).save(catalog / "uploaded-meanwhile.png")
    os.utime(catalog / "00.png", ns=(1, 1))
    monkeypatch.setattr("mmva_platform.annotation.catalog.Catalog.batches", lambda _self: pytest.fail("listed"))
    for options in ({"engine": "auto"}, {"shard_items": 3, "workers": 2, "max_errors": "7"}, {"incremental": True}):
        again = planned(f"{catalog}/", tiny_bundle, tmp_path / "out", settings, roots=("/b", "/a"), **options)
        assert again == first


def test_a_prefix_that_grew_does_not_refuse_the_same_call(
    s3_endpoint: str, tiny_bundle: Path, tmp_path: Path, settings: Settings
) -> None:
    storage = settings.storage.model_copy(update={"s3_endpoint": s3_endpoint, "s3_region": "us-east-1"})
    settings = settings.model_copy(update={"storage": storage})
    media = open_storage("s3://media/prefix", storage)
    for number in range(20):
        media.write(f"{number}.png", b"1")
    first = planned("s3://media/prefix", tiny_bundle, tmp_path / "out", settings)
    media.write("uploaded-meanwhile.png", b"1")
    assert planned("s3://media/prefix/", tiny_bundle, tmp_path / "out", settings) == first
    assert first.catalog.items == 20


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"engine": "onnx"}, "image engine: torch there, onnx now"),
        ({"hop_s": 3.0}, "hop_s: 1.5 there, 3.0 now"),
        ({"keep_windows": False}, "window embeddings kept: True there, False now"),
        ({"roots": ("/elsewhere",)}, "roots: .*/catalog there, .*/elsewhere"),
        ({"base": "/va/1"}, "base: None there, /va/1 now"),
    ],
)
def test_another_call_is_refused_with_every_difference(
    catalog: Path, tiny_bundle: Path, tmp_path: Path, settings: Settings, changes: dict[str, Any], named: str
) -> None:
    first = planned(catalog, tiny_bundle, tmp_path / "out", settings)
    with pytest.raises(CheckFailed, match=named) as caught:
        planned(catalog, tiny_bundle, tmp_path / "out", settings, **changes)
    assert str(caught.value).count(" there, ") == 1
    assert read_plan(open_storage(tmp_path / "out")) == first


def test_another_catalog_or_model_is_refused(
    catalog: Path, tiny_bundle: Path, make_tiny_bundle: Any, tmp_path: Path, settings: Settings
) -> None:
    planned(catalog, tiny_bundle, tmp_path / "out", settings)
    with pytest.raises(CheckFailed, match=rf"catalog: {catalog} there, {tmp_path} now; roots:"):
        planned(tmp_path, tiny_bundle, tmp_path / "out", settings)
    with pytest.raises(CheckFailed, match="model digest: "):
        planned(catalog, make_tiny_bundle(tmp_path / "other", 1), tmp_path / "out", settings)


def test_resume_needs_nothing_but_the_output(
    catalog: Path, make_tiny_bundle: Any, tmp_path: Path, settings: Settings, executed: list[dict[str, Any]]
) -> None:
    bundle, gone = make_tiny_bundle(tmp_path / "model", 3), tmp_path / "gone"
    files = sorted(file.name for file in bundle.iterdir())
    plan = planned(catalog, bundle, tmp_path / "out", settings)
    bundle.rename(gone)
    catalog.rename(tmp_path / "catalog-gone")
    summary = resume(str(tmp_path / "out"), settings, workers=2, batch_size=4, max_errors="100%")
    (call,) = executed
    assert call == {"run": plan.run_id, "files": files, "workers": 2, "batch_size": 4, "max_errors": "100%"}
    assert (summary.items, summary.quarantined, summary.shards) == (20, 20, 4)


def test_resume_of_a_published_run_says_so(
    catalog: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    settings: Settings,
    executed: list[dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = {"engine": "torch", "shard_items": 5}
    first = annotate(str(catalog), str(tiny_bundle), str(tmp_path / "out"), settings, **options)
    assert [call["max_errors"] for call in executed] == ["20%"]
    caplog.set_level(logging.INFO)
    again = resume(str(tmp_path / "out"), settings)
    assert len(executed) == 1
    assert "already published" in caplog.text
    assert (again.items, again.causes, again.resumed_shards) == (first.items, first.causes, 4)


def test_resume_refuses_a_model_that_was_changed(
    catalog: Path, tiny_bundle: Path, tmp_path: Path, settings: Settings
) -> None:
    plan = planned(catalog, tiny_bundle, tmp_path / "out", settings)
    storage = open_storage(tmp_path / "out")
    (card,) = [entry.path for entry in storage.list("model/") if entry.path.endswith("card.md")]
    storage.write(card, b"another model")
    with pytest.raises(CheckFailed, match=r"out/model/.*: not the run's model \(.*card\.md"):
        resume(str(tmp_path / "out"), settings)
    for entry in list(storage.list("model/")):
        storage.delete(entry.path)
    with pytest.raises(CheckFailed, match="not the run's model"), stored_bundle(storage, plan.model):
        pass


def test_resume_without_a_run_names_what_is_missing(tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(UsageError, match=r"no annotation run here \(plan\.json is missing\)"):
        resume(str(tmp_path / "out"), settings)


# --- names first


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"engine": "onxx"}, "engine 'onxx' is unknown; choose one of auto, torch, "),
        ({"max_errors": "²"}, "a number of items such as 100, or a share such as 5%"),
        ({"hop_s": 4.0}, "hop_s must be at most window_s, got 4 and 3"),
        ({"model": "models:/nobody@champion"}, "nobody"),
        ({"model": "no-such-folder"}, "no such folder"),
        ({"roots": ("http://host/x",)}, "unknown scheme 'http'"),
        ({"base": "/no/such/run"}, "/no/such/run: no annotation run here"),
    ],
)
def test_names_are_checked_before_anything_is_listed(
    catalog: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    says: str,
) -> None:
    monkeypatch.setattr("mmva_platform.annotation.catalog.Catalog.batches", lambda _self: pytest.fail("listed"))
    model = options.pop("model", str(tiny_bundle))
    with pytest.raises(UsageError) as caught:
        annotate(str(catalog), model, str(tmp_path / "out"), settings, **options)
    assert says in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_unknown_option_is_named(catalog: Path, tiny_bundle: Path, tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(UsageError, match="did you mean 'workers'"):
        annotate(str(catalog), str(tiny_bundle), str(tmp_path / "out"), settings, worker=2)


# --- the plan


def test_a_catalog_outside_its_own_folder_names_the_way_out(
    catalog: Path, tiny_bundle: Path, tmp_path: Path, settings: Settings
) -> None:
    table = tmp_path / "elsewhere" / "list.csv"
    table.parent.mkdir()
    table.write_text("uri\n" + "\n".join(str(path) for path in sorted(catalog.iterdir())))
    with pytest.raises(UsageError, match=r"all 20 items are outside its own folder, the first is .*00\.png.*--root"):
        planned(table, tiny_bundle, tmp_path / "out", settings)
    plan = planned(table, tiny_bundle, tmp_path / "out", settings, roots=(str(catalog),))
    assert plan.catalog.items == 20


def test_the_same_call_of_an_incremental_run_keeps_what_it_was_planned_with(
    catalog: Path, tiny_bundle: Path, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = planned(catalog, tiny_bundle, tmp_path / "out", settings, incremental=True)
    monkeypatch.setattr("mmva_platform.annotation.prepare.find_base_beside", lambda *_: pytest.fail("asked again"))
    again = planned(catalog, tiny_bundle, tmp_path / "out", settings, incremental=True)
    assert again == first
    assert first.base is None


def test_a_plan_is_shown_without_a_trace_in_the_output(
    catalog: Path, tiny_bundle: Path, tmp_path: Path, settings: Settings
) -> None:
    found = preview_run(str(catalog), str(tiny_bundle), str(tmp_path / "out"), settings, shard_items=5)
    assert (found.state, found.items, found.shards) == ("new", {"image": 20}, 4)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_temporary_files_are_removed_and_a_full_disk_is_named(
    catalog: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    settings: Settings,
    temporary: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    planned(catalog, tiny_bundle, tmp_path / "out", settings)
    assert list(temporary.iterdir()) == []
    with monkeypatch.context() as patch:
        patch.setattr("mmva_platform.annotation.spool._path", lambda _folder, _group: "/dev/full")
        with pytest.raises(OperationFailed, match=rf"^{temporary}/mmva-plan-.*: no space left .*set TMPDIR"):
            planned(catalog, tiny_bundle, tmp_path / "full", settings)
    assert list(temporary.iterdir()) == []
    assert not open_storage(tmp_path / "full").exists(PLAN_FILE)


_PLANNED = """
import resource, sys
from pathlib import Path
from mmva_platform.annotation.catalog import open_catalog
from mmva_platform.annotation.plan import ModelInfo
from mmva_platform.annotation.planning import write_plan
from mmva_platform.annotation.spool import spooled
from mmva_platform.settings import StorageSettings
from mmva_platform.storage import open_storage
from mmva.inference.config import Preprocessing

def plan(catalog):
    with spooled(open_catalog(catalog, StorageSettings())) as spool:
        write_plan(
            open_storage(f"{catalog}.out"), spool, ModelInfo(name="m", version=None, digest="d" * 64),
            Preprocessing(fingerprints={}, window_s=3.0, hop_s=1.5, short_side=224),
        )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

small = plan(sys.argv[1])
print(plan(sys.argv[2]) - small)
"""


@pytest.mark.slow
def test_memory_of_planning_does_not_grow_with_the_catalog(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    counts = {"small": 100_000, "large": 600_000}
    for name, count in counts.items():
        folder = tmp_path / f"{name}.parquet"
        folder.mkdir()
        for start in range(0, count, 50_000):
            uris = [f"s3://bucket/{'long/' * 20}picture-{row:09d}.jpg" for row in range(start, start + 50_000)]
            pq.write_table(pa.table({"uri": uris}), folder / f"part-{start:09d}.parquet")
    done = subprocess.run(
        [sys.executable, "-c", _PLANNED, *(str(tmp_path / f"{name}.parquet") for name in counts)],
        capture_output=True,
        text=True,
        check=True,
    )
    grown_mb = float(done.stdout)
    assert grown_mb < 60  # 500,000 URIs of 140 bytes and their ids are 140 MB
    plan = read_plan(open_storage(tmp_path / "large.parquet.out"))
    assert sum(items.num_rows for items in iter_items(open_storage(tmp_path / "large.parquet.out"), plan)) == 600_000


# --- error limit


@pytest.mark.parametrize(
    ("text", "items", "done", "quarantined", "exceeded"),
    [
        ("3", 1000, 10, 3, False),
        ("3", 1000, 10, 4, True),
        ("5%", 1000, 99, 99, False),  # too few to speak of a share
        ("5%", 1000, 100, 5, False),
        ("5%", 1000, 100, 6, True),
        ("5%", 20, 20, 2, True),  # all there are
        ("0.5%", 1000, 1000, 6, True),
    ],
)
def test_when_a_run_is_given_up(text: str, items: int, done: int, quarantined: int, exceeded: bool) -> None:
    assert ErrorLimit(text, items).exceeded(done, quarantined) is exceeded


@pytest.mark.parametrize("text", ["", "%", "-1", "1.5", "five", "101%", "5 %", "²", "²%", "\u0665"])
def test_texts_that_are_not_a_limit(text: str) -> None:
    with pytest.raises(ValidationError, match="a number of items such as 100, or a share such as 5%"):
        AnnotateOptions(max_errors=text)


def test_a_run_over_its_limit_ends_with_the_commonest_cause_and_keeps_what_is_committed(
    catalog: Path, tiny_bundle: Path, tmp_path: Path, settings: Settings
) -> None:
    plan = planned(catalog, tiny_bundle, tmp_path / "out", settings)
    storage = open_storage(tmp_path / "out")
    quarantine_all(storage, plan, "000000")
    with pytest.raises(CheckFailed, match=r"5 of 5 items are quarantined \(5 too-many-bytes\), over the limit of 4"):
        carry_out(storage, plan, tiny_bundle, settings, max_errors="4")
    assert [entry.path for entry in storage.list("commits/")] == ["commits/000000.json"]
