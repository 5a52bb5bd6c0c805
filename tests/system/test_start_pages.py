"""README.md and the pages to start from are true: their blocks run one after the other, as a new user would.

The page for a cluster runs in test_job_submission.py, where its servers are.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest
import soundfile

from mmva_platform.annotation import open_annotation
from mmva_platform.quickstart.demo_catalog import photographs
from mmva_platform.quickstart.demo_music import PIECES, RATE, render_piece

from .documented import blocks, run_page
from .serving_process import free_port

pytestmark = pytest.mark.system
ENVIRONMENT = os.environ | {"RAY_AUTH_MODE": "disabled"}  # as in the tests of serving


def explored(port: int) -> str:
    """`mmva explore` until its page answers, then Ctrl-C."""
    return f"""mmva explore photos-va --no-browser --port {port} & PAGE=$!
timeout 240 bash -c 'until curl -sf http://127.0.0.1:{port}/ > page.html; do sleep 1; done'
kill -INT $PAGE
wait $PAGE
"""


def test_a_folder_of_photos_on_a_laptop(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in photographs()[:4]:
        (photos / path.name).write_bytes(path.read_bytes())
    soundfile.write(photos / "song.mp3", render_piece(PIECES[0], 0)[: 6 * RATE], RATE)
    (photos / "words.txt").write_text("A choir hums quietly in a sunlit chapel.")
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff not a picture")
    run_page("README.md", tmp_path, environment=ENVIRONMENT)
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert {language for language, _ in blocks("README.md")} == {"bash", "python"}
    # The README's annotation is there, so that the page's same command has nothing to do but one new picture.
    (photos / "new.png").write_bytes(photographs()[4].read_bytes())
    replaced = {"mmva explore photos-va\n": explored(free_port())}
    said = run_page("docs/start/laptop.md", tmp_path, replaced=replaced, environment=ENVIRONMENT)
    assert "6 annotated" in said
    assert "1 new" in said
    annotation = open_annotation(str(tmp_path / "photos-va"))
    assert (annotation.version, annotation.count("ok"), annotation.count("quarantined")) == (1, 7, 1)
    with (tmp_path / "photos.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 6
    assert "<title>" in (tmp_path / "page.html").read_text()
    assert (tmp_path / "photos.html").stat().st_size > 10_000


def test_from_ratings_to_a_model(tmp_path: Path) -> None:
    run_page("docs/start/research.md", tmp_path)
    assert (tmp_path / "verdict.html").stat().st_size > 1_000
    record = open_annotation(str(tmp_path / "annotation")).record
    assert (record.items, record.totals.ok, record.model.version) == (120, 120, "1")
