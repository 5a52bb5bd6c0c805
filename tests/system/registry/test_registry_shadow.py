"""Two registered versions on the same unlabelled media, from the command line to the page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from inline_pass import install_annotation
from PIL import Image
from registry_cases import records

from mmva_platform.cli.context import DONE, WRONG_USAGE
from mmva_platform.cli.main import run
from mmva_platform.settings import Settings

pytestmark = [pytest.mark.slow, pytest.mark.system]


@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
def test_a_sample_of_a_catalog_is_annotated_with_both_and_compared(
    settings: Settings,
    registered: Callable[..., int],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = install_annotation(monkeypatch)  # without Ray: other tests have it
    monkeypatch.setattr("mmva_platform.cluster.ray_session", cluster.ray_session)
    registered(), registered()
    rng = np.random.default_rng(0)
    (catalog := tmp_path / "photos").mkdir()
    for number in range(12):
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(catalog / f"{number}.png")
    (catalog / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    (catalog / "words.txt").write_text("a calm piano piece")
    (tmp_path / "settings.yaml").write_text(
        json.dumps({"home": str(settings.home), "tracking": {"model_name": settings.tracking.model_name}})
    )
    page = tmp_path / "shadow.html"

    def compare(*options: str) -> int:
        words = ["models", "compare", "2", "1", "--on", str(catalog), "--report", str(page), *options]
        return run(["--settings", str(tmp_path / "settings.yaml"), *words])

    assert compare("--json") == DONE
    found = json.loads(capfd.readouterr().out)
    assert (found["sample"], found["catalog_items"], found["neither"]) == (14, 14, 1)
    assert {modality: each["items"] for modality, each in found["agreements"].items()} == {"image": 12, "caption": 1}
    assert found["agreements"]["image"]["axes"]["valence"]["correlation"] is None, "untrained heads say .5 to all"
    assert len(found["furthest"]) == 12
    html = page.read_text()
    assert "version 2 compared with version 1" in html
    assert "1 that neither could" in html
    assert "data:image/jpeg" in html

    # The same sample again is not annotated again; another is drawn with another seed.
    with monkeypatch.context() as patch:
        patch.setattr("mmva_platform.annotation.run.runner.run_pass", None)
        assert compare() == DONE
    assert "version 2 and version 1 on 14 of 14 items" in capfd.readouterr().out
    assert compare("--sample", "5", "--seed", "1", "--json") == DONE
    assert json.loads(capfd.readouterr().out)["sample"] == 5
    assert records(settings) == [], "a comparison is no promotion"
    assert (
        run(["--settings", str(tmp_path / "settings.yaml"), "models", "compare", "1", "1", "--on", "x"]) == WRONG_USAGE
    )
