"""From a caller's words to a plan, and the limits of a run: what is refused and what is continued before Ray starts."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError

from mmva.errors import CheckFailed, OperationFailed, UsageError
from mmva_platform.annotation.catalog.catalog import Catalog
from mmva_platform.annotation.options import AnnotateOptions, ErrorLimit
from mmva_platform.annotation.plan.plan import Plan, plan_file, read_plan
from mmva_platform.annotation.run import runner as run_module
from mmva_platform.annotation.run.prepare import look_up, make_plan, stored_bundle
from mmva_platform.annotation.run.runner import annotate, carry_out, resume
from mmva_platform.annotation.table.commit import committed_shards, read_commits
from mmva_platform.annotation.table.publish import VersionRecord, publish
from mmva_platform.settings import Settings, validate
from mmva_platform.storage import Storage, open_storage

from ....helpers.planned import iter_items, quarantine_all


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


Planner = Callable[..., Plan]


@pytest.fixture
def planned(catalog: Path, tiny_bundle: Path, tmp_path: Path, settings: Settings) -> Planner:
    """What annotate does before it runs shards: a function of what differs from the tests' usual call."""

    def call(uri: Path | str = catalog, model: Path = tiny_bundle, out: str = "out", **options: Any) -> Plan:
        chosen = validate(AnnotateOptions, {"engine": "torch", "shard_items": 5} | options, "annotate")
        request = look_up(str(uri), str(model), str(tmp_path / out), settings, chosen)
        return request.continued() or make_plan(request, settings)

    return call


@pytest.fixture
def out(tmp_path: Path) -> Storage:
    return open_storage(tmp_path / "out")


@pytest.fixture
def not_listed(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, reading a catalog fails the test."""

    def call() -> None:
        monkeypatch.setattr(Catalog, "batches", lambda _self: pytest.fail("listed"))

    return call


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Calls of carry_out, which here quarantines every item."""
    calls: list[dict[str, Any]] = []

    def fake(
        storage: Storage, plan: Plan, bundle_dir: Path, _settings: Settings, **options: Any
    ) -> tuple[VersionRecord, int]:
        files = sorted(file.name for file in bundle_dir.iterdir())
        calls.append({"run": plan.run_id, "files": files, **options})
        for shard in plan.shards:
            quarantine_all(storage, plan, shard)
        return publish(storage, plan, read_commits(storage, plan.version, plan.shards)), 0

    monkeypatch.setattr(run_module, "carry_out", fake)
    return calls


# --- the same call again, and resume


def test_the_same_call_again_continues_the_plan_and_lists_nothing(
    catalog: Path, planned: Planner, not_listed: Callable[[], None]
) -> None:
    first = planned(roots=("/a", "/b"))
    assert {name: engine.name for name, engine in first.engines.items()} == {"image": "torch"}
    Image.new("RGB", (8, 8)).save(catalog / "uploaded-meanwhile.png")
    os.utime(catalog / "00.png", ns=(1, 1))
    not_listed()
    for options in ({"engine": "auto"}, {"shard_items": 3, "workers": 2, "max_errors": "7"}):
        assert planned(f"{catalog}/", roots=("/b", "/a"), **options) == first


def test_a_prefix_that_grew_does_not_refuse_the_same_call(
    s3_endpoint: str, tiny_bundle: Path, tmp_path: Path, settings: Settings
) -> None:
    storage = settings.storage.model_copy(update={"s3_endpoint": s3_endpoint, "s3_region": "us-east-1"})
    settings = settings.model_copy(update={"storage": storage})
    media, options = open_storage("s3://media/prefix", storage), AnnotateOptions(engine="torch")
    for number in range(20):
        media.write(f"{number}.png", b"1")
    first = make_plan(
        look_up("s3://media/prefix", str(tiny_bundle), str(tmp_path / "out"), settings, options), settings
    )
    media.write("uploaded-meanwhile.png", b"1")
    again = look_up("s3://media/prefix/", str(tiny_bundle), str(tmp_path / "out"), settings, options)
    assert again.continued() == first
    assert first.catalog.items == 20


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"engine": "onnx"}, "image engine: torch there, onnx now"),
        ({"hop_s": 3.0}, "hop_s: 1.5 there, 3.0 now"),
        ({"keep_windows": False}, "window embeddings kept: True there, False now"),
        ({"roots": ("/elsewhere",)}, "roots: .*/catalog there, .*/elsewhere"),
    ],
)
def test_another_call_is_refused_with_every_difference(
    planned: Planner, out: Storage, changes: dict[str, Any], named: str
) -> None:
    first = planned()
    with pytest.raises(CheckFailed, match=named) as caught:
        planned(**changes)
    assert str(caught.value).count(" there, ") == 1
    assert read_plan(out) == first


def test_another_catalog_or_model_is_refused(
    catalog: Path, make_tiny_bundle: Any, tmp_path: Path, planned: Planner
) -> None:
    planned()
    with pytest.raises(CheckFailed, match=rf"catalog: {catalog} there, {tmp_path} now; roots:"):
        planned(tmp_path)
    with pytest.raises(CheckFailed, match="model digest: "):
        planned(model=make_tiny_bundle(tmp_path / "other", 1))


def test_a_refused_engine_does_not_occupy_the_output(
    catalog: Path, tiny_bundle: Path, out: Storage, settings: Settings, planned: Planner
) -> None:
    on_gpus = validate(AnnotateOptions, {"engine": "cuda", "shard_items": 5}, "annotate")
    request = look_up(str(catalog), str(tiny_bundle), out.uri, settings, on_gpus)
    without_gpus: Any = SimpleNamespace(have_gpus=lambda: False)
    with pytest.raises(UsageError, match="engine cuda: the cluster has no GPU"):
        make_plan(request, settings, without_gpus)
    assert planned(engine="torch").engines["image"].name == "torch"


def test_resume_needs_nothing_but_the_output(
    catalog: Path, make_tiny_bundle: Any, settings: Settings, planned: Planner, executed: list[dict[str, Any]]
) -> None:
    bundle = make_tiny_bundle(catalog.parent / "model", 3)
    files = sorted(file.name for file in bundle.iterdir())
    plan = planned(model=bundle)
    bundle.rename(bundle.with_name("model-gone"))
    catalog.rename(catalog.with_name("catalog-gone"))
    out = str(catalog.with_name("out"))
    summary = resume(out, settings, workers=2, batch_size=4, max_errors="100%")
    (call,) = executed
    assert call == {"run": plan.run_id, "files": files, "workers": 2, "batch_size": 4, "max_errors": "100%"}
    assert (summary.items, summary.quarantined, summary.shards) == (20, 20, 4)


def test_resume_of_a_published_run_says_so(
    settings: Settings,
    planned: Planner,
    out: Storage,
    executed: list[dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    planned()
    first = resume(out.uri, settings)
    assert [call["max_errors"] for call in executed] == [None]
    caplog.set_level(logging.INFO)
    again = resume(out.uri, settings)
    assert len(executed) == 1
    assert "version 0 is published, nothing is under way" in caplog.text
    assert (again.items, again.causes, again.resumed_shards) == (first.items, first.causes, 4)


def test_resume_refuses_a_model_that_was_changed(planned: Planner, out: Storage, settings: Settings) -> None:
    plan = planned()
    (card,) = [entry.path for entry in out.list("_mmva/model/") if entry.path.endswith("card.md")]
    out.write(card, b"another model")
    with pytest.raises(CheckFailed, match=r"out/_mmva/model/.*: not the run's model \(.*card\.md"):
        resume(out.uri, settings)
    for entry in list(out.list("_mmva/model/")):
        out.delete(entry.path)
    with pytest.raises(CheckFailed, match="not the run's model"), stored_bundle(out, plan.model):
        pass


def test_resume_without_a_run_names_what_is_missing(out: Storage, settings: Settings) -> None:
    with pytest.raises(UsageError, match=r"no annotation here \(_mmva/000000/plan\.json is missing\)"):
        resume(out.uri, settings)


def test_an_output_of_the_earlier_format_is_not_mixed_with(
    planned: Planner, out: Storage, not_listed: Callable[[], None], settings: Settings
) -> None:
    out.write("plan.json", b"{}")
    not_listed()
    for call in (planned, lambda: resume(out.uri, settings)):
        with pytest.raises(UsageError, match="of an earlier format; `mmva annotations convert` makes a table of them"):
            call()
    assert [entry.path for entry in out.list()] == ["plan.json"]


# --- names first


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"engine": "onxx"}, "engine 'onxx' is unknown; choose one of auto, torch, "),
        ({"max_errors": "²"}, "a number of items such as 100, or a share such as 5%"),
        ({"hop_s": 4.0}, "hop_s must be at most window_s, got 4 and 3"),
        ({"model": "no-such-folder"}, "no such folder"),
        ({"roots": ("http://host/x",)}, "unknown scheme 'http'"),
    ],
)
def test_names_are_checked_before_anything_is_listed(
    planned: Planner, out: Storage, not_listed: Callable[[], None], options: dict[str, Any], says: str
) -> None:
    not_listed()
    with pytest.raises(UsageError) as caught:
        planned(**options)
    assert says in str(caught.value)
    assert list(out.list()) == []


def test_an_unknown_option_is_named(catalog: Path, tiny_bundle: Path, out: Storage, settings: Settings) -> None:
    with pytest.raises(UsageError, match="did you mean 'workers'"):
        annotate(str(catalog), str(tiny_bundle), out.uri, settings, worker=2)


# --- the plan


def test_a_catalog_outside_its_own_folder_names_the_way_out(catalog: Path, planned: Planner) -> None:
    table = catalog.with_name("elsewhere") / "list.csv"
    table.parent.mkdir()
    table.write_text("uri\n" + "\n".join(str(path) for path in sorted(catalog.iterdir())))
    with pytest.raises(UsageError, match=r"all 20 items are outside its own folder, the first is .*00\.png.*--root"):
        planned(table)
    assert planned(table, roots=(str(catalog),)).catalog.items == 20


def test_temporary_files_are_removed_and_a_full_disk_is_named(
    tmp_path: Path, planned: Planner, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    planned()
    assert list(temporary.iterdir()) == []
    monkeypatch.setattr("mmva_platform.annotation.plan.spool._path", lambda _folder, _group: "/dev/full")
    with pytest.raises(OperationFailed, match=rf"^{temporary}/mmva-plan-.*: no space left .*set TMPDIR"):
        planned(out="full")
    assert list(temporary.iterdir()) == []
    assert not open_storage(tmp_path / "full").exists(plan_file(0))


_PLANNED = """
import sys
from pathlib import Path
from mmva_platform.annotation.catalog import tables as catalog_tables
from mmva_platform.annotation.plan import spool
from mmva_platform.annotation.catalog.catalog import open_catalog
from mmva_platform.annotation.plan.plan import ModelInfo
from mmva_platform.annotation.plan.planning import write_plan
from mmva_platform.annotation.plan.spool import spooled
from mmva_platform.settings import StorageSettings
from mmva_platform.storage import open_storage
from mmva.inference.config import Preprocessing

catalog_tables._BATCH_ROWS, spool._CHUNK_ROWS = 4_000, 8_000

def plan(catalog):
    with spooled(open_catalog(catalog, StorageSettings())) as spool:
        write_plan(
            open_storage(f"{catalog}.out"), spool, ModelInfo(name="m", version=None, digest="d" * 64),
            Preprocessing(fingerprints={}, window_s=3.0, hop_s=1.5, short_side=224),
        )
    # Not ru_maxrss, which begins at what the parent process held.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))

print(plan(sys.argv[1]), plan(sys.argv[2]))
"""


@pytest.mark.slow
def test_memory_of_planning_does_not_grow_with_the_catalog(tmp_path: Path) -> None:
    counts = {"small": 20_000, "large": 110_000}
    for name, count in counts.items():
        folder = tmp_path / f"{name}.parquet"
        folder.mkdir()
        for start in range(0, count, 10_000):
            uris = [f"s3://bucket/{'long/' * 60}picture-{row:09d}.jpg" for row in range(start, start + 10_000)]
            pq.write_table(pa.table({"uri": uris}), folder / f"part-{start:09d}.parquet")
    command = [sys.executable, "-c", _PLANNED, *(str(tmp_path / f"{name}.parquet") for name in counts)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    small_mb, large_mb = map(float, done.stdout.split())
    grown_mb = large_mb - small_mb
    assert grown_mb < 30  # 90,000 URIs of 330 bytes, and ids as long, are 60 MB
    out = open_storage(tmp_path / "large.parquet.out")
    assert sum(items.num_rows for items in iter_items(out, read_plan(out))) == 110_000


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
        (None, 1000, 100, 20, False),
        (None, 1000, 100, 21, True),
        (None, 20, 20, 20, False),  # a few files of one person
    ],
)
def test_when_a_run_is_given_up(text: str | None, items: int, done: int, quarantined: int, exceeded: bool) -> None:
    assert ErrorLimit(text, items).exceeded(done, quarantined) is exceeded


@pytest.mark.parametrize("text", ["", "%", "-1", "1.5", "five", "101%", "5 %", "²", "²%", "\u0665"])
def test_texts_that_are_not_a_limit(text: str) -> None:
    with pytest.raises(ValidationError, match="a number of items such as 100, or a share such as 5%"):
        AnnotateOptions(max_errors=text)


def test_a_run_over_its_limit_ends_with_the_commonest_cause_and_keeps_what_is_committed(
    tiny_bundle: Path, planned: Planner, out: Storage, settings: Settings
) -> None:
    plan = planned()
    quarantine_all(out, plan, "000000")
    with pytest.raises(CheckFailed, match=r"5 of 5 items are quarantined \(5 too-many-bytes\), over the limit of 4"):
        carry_out(out, plan, tiny_bundle, settings, max_errors="4")
    assert committed_shards(out, 0) == {"000000"}
