"""The verdict's page: a pure function of its JSON, complete, self-contained, and safe whatever a reason holds."""

from __future__ import annotations

import dataclasses
import json
from html.parser import HTMLParser
from typing import Any

import pytest

from mmva_platform.tracking.gate.evidence import Evidence
from mmva_platform.tracking.gate.page import verdict_page
from mmva_platform.tracking.gate.rules import judge
from mmva_platform.tracking.gate.verdict import Verdict

from .gate_case import BEST, CANDIDATE, CHAMPION, EXAM, FACTS, evidence, rows_with, scaled

HOSTILE = """<script>alert('x')</script><img src=x onerror="alert(1)">{{ 7*7 }}"""


class Tags(HTMLParser):
    """Counts tags, collects what a browser would fetch, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in {"src", "href", "srcset"}]

    def handle_data(self, data: str) -> None:
        self.text += data


def record(given: Evidence, **changed: Any) -> dict[str, Any]:
    findings = tuple(judge(given))
    verdict = Verdict(
        "promote", 2, None if given.champion is None else 1, "a" * 64, "d" * 64, findings,
        all(finding.passed for finding in findings), "ann@host", "2026-01-01T00:00:00+00:00", "better",
        policy=given.policy.model_dump(mode="json"), exam=EXAM.model_dump(mode="json"),
    )  # fmt: skip
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.replace(verdict, **changed).to_json()))
    return plain


@pytest.fixture(scope="module")
def refused() -> dict[str, Any]:
    rows = rows_with("image", candidate=scaled("image", 1.2), best=scaled("image", 1.0))
    models = {CANDIDATE: FACTS, CHAMPION: FACTS, BEST: FACTS}
    return record(evidence(**rows, best={"image": BEST}, models=models), why=HOSTILE)


def test_every_finding_and_every_plot_is_there(refused: dict[str, Any]) -> None:
    page = Tags(verdict_page(refused))
    assert "Promote version 2: refused" in " ".join(page.text.split())
    for finding in refused["findings"]:
        assert finding["subject"] in page.text
    drawn = [f for f in refused["findings"] if f["rule"] in {"non-inferior", "best-so-far", "slice"} and f["detail"]]
    bars = [f for f in refused["findings"] if f["rule"] in {"coverage", "retrieval"}]
    assert len(drawn) > 20
    assert page.tags.count("circle") == len(drawn)
    assert verdict_page(refused).count('class="bar"') == len(bars)
    assert "largest_shortfall: 0.05" in page.text
    assert "split test of exam" in " ".join(page.text.split())
    assert "best champion so far" in page.text


def test_it_fetches_nothing_runs_nothing_and_escapes_what_people_write(refused: dict[str, Any]) -> None:
    page = Tags(verdict_page(refused))
    assert page.fetched == []
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert HOSTILE in page.text


def test_a_whisker_beyond_its_limit_is_marked(refused: dict[str, Any]) -> None:
    page = verdict_page(refused)
    row, _ = (part for part in page.split("<tr") if "✗ image/valence" in part and "<circle" in part)
    assert row.startswith(' class="bad"')
    x = {name: float(row.split(f'class="{name}" x1="')[1].split('"')[0]) for name in ("limit", "zero")}
    high = float(row.split('class="whisker"')[1].split('x2="')[1].split('"')[0])
    assert x["zero"] < x["limit"] < high


def test_the_same_record_is_the_same_page_and_the_first_champion_has_one(refused: dict[str, Any]) -> None:
    assert verdict_page(refused) == verdict_page(refused)
    first = record(dataclasses.replace(evidence(), champion=None))
    assert "There was no champion yet" in verdict_page(first)
    whole = first | {"number": 1, "prior": "0" * 64, "model": "mmva"}
    none = {"champion": None, "previous": None, "challenger": None}
    page = verdict_page(whole | {"before": none, "after": none | {"champion": 2}})
    assert "champion = 2" in page
    rollback = record(evidence(), action="rollback", findings=(), policy=None)
    assert "Rollback version 2" in verdict_page(rollback)
