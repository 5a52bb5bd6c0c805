"""`mmva quickstart` as a person runs it, small: the tiny preset and the console script."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mmva.errors import UsageError
from mmva_platform.annotation import open_annotation
from mmva_platform.quickstart.flow import QuickstartOptions, fresh_workspace, quickstart_recipe
from mmva_platform.settings import load_config
from mmva_platform.training.recipe import Recipe

MMVA = Path(sys.executable).with_name("mmva")


@pytest.mark.system
def test_quickstart_makes_a_champion_an_annotation_and_a_report(tmp_path: Path) -> None:
    small = ["--preset", "tiny", "--images", "80", "--clips", "80", "--epochs", "4"]
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
