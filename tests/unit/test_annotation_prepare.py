"""From a caller's words to a plan, and the limits of a run: what is refused, adopted and given up before Ray starts."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError

from mmva.errors import CheckFailed, MediaError, UsageError
from mmva.inference.items import Item, error_table
from mmva.inference.tables import ROW_SCHEMA, WINDOW_SCHEMA, Predicted
from mmva_platform.annotation.commit import commit_shard
from mmva_platform.annotation.execute import carry_out
from mmva_platform.annotation.options import AnnotateOptions, ErrorLimit
from mmva_platform.annotation.plan import ItemReader, settle_plan
from mmva_platform.annotation.prepare import Prepared, prepare
from mmva_platform.annotation.results import stamped
from mmva_platform.annotation.run import annotate, preview_run
from mmva_platform.settings import Settings


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


def prepared(catalog: Path, bundle: Path, out: Path, settings: Settings, **options: Any) -> Prepared:
    chosen = AnnotateOptions.model_validate({"engine": "torch", "shard_items": 5} | options)
    return prepare(str(catalog), str(bundle), str(out), settings, chosen)


def test_a_resume_with_auto_adopts_the_settled_engines_and_another_is_refused(
    catalog: Path, tiny_bundle: Path, tmp_path: Path, settings: Settings
) -> None:
    first = prepared(catalog, tiny_bundle, tmp_path / "out", settings)
    assert {name: engine.name for name, engine in first.plan.engines.items()} == {"image": "torch"}
    plan = settle_plan(first.storage, first.plan, first.contents)
    again = prepared(catalog, tiny_bundle, tmp_path / "out", settings, engine="auto")
    assert settle_plan(again.storage, again.plan, again.contents) == plan
    other = again.plan.model_copy(
        update={"engines": {"image": plan.engines["image"].model_copy(update={"name": "onnx"})}}
    )
    with pytest.raises(CheckFailed, match="image engine: torch there, onnx now"):
        settle_plan(again.storage, other, again.contents)


def test_a_catalog_outside_its_own_folder_names_the_way_out(
    catalog: Path, tiny_bundle: Path, tmp_path: Path, settings: Settings
) -> None:
    table = tmp_path / "elsewhere" / "list.csv"
    table.parent.mkdir()
    table.write_text("uri\n" + "\n".join(str(path) for path in sorted(catalog.iterdir())))
    with pytest.raises(UsageError, match=r"all 20 items lie outside its own folder.*--root"):
        prepared(table, tiny_bundle, tmp_path / "out", settings)
    allowed = prepared(table, tiny_bundle, tmp_path / "out", settings, roots=(str(catalog),))
    assert allowed.plan.catalog.items == 20


def test_the_resume_of_an_incremental_run_keeps_what_it_was_planned_with(
    catalog: Path, tiny_bundle: Path, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepared(catalog, tiny_bundle, tmp_path / "out", settings, incremental=True)
    settle_plan(first.storage, first.plan, first.contents)
    monkeypatch.setattr("mmva_platform.annotation.base.find_base_beside", lambda *_: pytest.fail("asked again"))
    again = prepared(catalog, tiny_bundle, tmp_path / "out", settings, incremental=True)
    assert again.plan.base is None
    assert settle_plan(again.storage, again.plan, again.contents).run_id == first.plan.run_id


def test_a_plan_is_shown_without_a_trace_in_the_output(
    catalog: Path, tiny_bundle: Path, tmp_path: Path, settings: Settings
) -> None:
    found = preview_run(str(catalog), str(tiny_bundle), str(tmp_path / "out"), settings, shard_items=5)
    assert (found.state, found.items, found.shards) == ("new", {"image": 20}, 4)
    assert not (tmp_path / "out").exists()


def test_an_unknown_option_is_named(catalog: Path, tiny_bundle: Path, tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(UsageError, match="did you mean 'workers'"):
        annotate(str(catalog), str(tiny_bundle), str(tmp_path / "out"), settings, worker=2)


# --- error limit


@pytest.mark.parametrize(
    ("text", "items", "done", "quarantined", "exceeded"),
    [
        (None, 1000, 1000, 1000, False),
        ("3", 1000, 10, 3, False),
        ("3", 1000, 10, 4, True),
        ("5%", 1000, 99, 99, False),  # too few to speak of a share
        ("5%", 1000, 100, 5, False),
        ("5%", 1000, 100, 6, True),
        ("5%", 20, 20, 2, True),  # all there are
        ("0.5%", 1000, 1000, 6, True),
    ],
)
def test_when_a_run_is_given_up(text: str | None, items: int, done: int, quarantined: int, exceeded: bool) -> None:
    assert ErrorLimit(text, items).exceeded(done, quarantined) is exceeded


@pytest.mark.parametrize("text", ["", "%", "-1", "1.5", "five", "101%", "5 %"])
def test_what_is_no_limit(text: str) -> None:
    with pytest.raises(ValidationError, match="a number of items such as 100, or a share such as 5%"):
        AnnotateOptions(max_errors=text)


def test_a_run_over_its_limit_ends_with_the_commonest_cause_and_keeps_what_is_committed(
    catalog: Path, tiny_bundle: Path, tmp_path: Path, settings: Settings
) -> None:
    found = prepared(catalog, tiny_bundle, tmp_path / "out", settings)
    plan = settle_plan(found.storage, found.plan, found.contents)
    ids = ItemReader(found.storage, plan)("000000")["id"].to_pylist()
    error = MediaError("too-many-bytes", "x: 9 bytes, the limit is 8", stage="fetch")
    errors = error_table([Item(name, None, "image", error=error) for name in ids])
    predicted = Predicted(ROW_SCHEMA.empty_table(), WINDOW_SCHEMA.empty_table(), errors)
    commit_shard(found.storage, plan, "000000", stamped(predicted, plan, "000000"))
    with pytest.raises(CheckFailed, match=r"5 of 5 items are quarantined \(5 too-many-bytes\), over the limit of 4"):
        carry_out(found.storage, plan, tiny_bundle, settings, max_errors="4")
    assert [entry.path for entry in found.storage.list("commits/")] == ["commits/000000.json"]
