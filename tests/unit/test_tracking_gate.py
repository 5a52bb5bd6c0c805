"""The gate's rules, each failing alone, and the audit log."""

from __future__ import annotations

import copy
import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mmva.errors import CheckFailed
from mmva.modalities import AXES, MODALITIES
from mmva_platform.tracking import audit
from mmva_platform.tracking.gate import Contender, Evidence, Finding, GatePolicy, Verdict, judge, mean_mse


def evaluation(mse: float = 0.02, floor: float = 0.03, digest: str = "d" * 64) -> dict[str, Any]:
    figures = {"mse": {"value": mse, "low": mse - 0.01, "high": mse + 0.01}}
    return {
        "split": "test",
        "dataset_digest": digest,
        "metrics": {modality: {axis: copy.deepcopy(figures) for axis in AXES} for modality in MODALITIES},
        "floors": {modality: dict.fromkeys(AXES, floor) for modality in MODALITIES},
    }


def contender(version: int, values: dict[str, Any]) -> Contender:
    return Contender(version, f"run{version}", "a" * 64, values)


def failures(candidate: dict[str, Any], champion: dict[str, Any] | None = None, margin: float = 0.02) -> list[Finding]:
    against = None if champion is None else contender(1, champion)
    findings = judge(Evidence(contender(2, candidate), against, GatePolicy(margin=margin)))
    assert findings
    return [finding for finding in findings if not finding.passed]


def test_a_first_champion_passes_when_it_beats_every_constant() -> None:
    assert failures(evaluation(mse=0.02, floor=0.03)) == []


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("bad", [0.03, 0.031, math.nan, math.inf, None, "0.01", True])
def test_one_axis_that_does_not_beat_its_constant_fails_alone(modality: str, axis: str, bad: object) -> None:
    values = evaluation(mse=0.02, floor=0.03)
    values["metrics"][modality][axis]["mse"]["value"] = bad
    assert [(each.rule, each.subject) for each in failures(values)] == [("below-constant", f"{modality}/{axis}")]


@pytest.mark.parametrize("path", [("metrics",), ("floors",), ("metrics", "music"), ("floors", "caption", "arousal")])
def test_what_is_missing_fails(path: tuple[str, ...]) -> None:
    values = evaluation()
    node = values
    for key in path[:-1]:
        node = node[key]
    del node[path[-1]]
    assert {each.rule for each in failures(values)} == {"below-constant"}


def test_an_empty_evaluation_fails_on_everything() -> None:
    assert len(failures({})) == len(MODALITIES) * len(AXES)


def test_a_challenger_within_the_margin_passes_and_just_beyond_it_fails() -> None:
    champion = evaluation(mse=0.0200)
    assert failures(evaluation(mse=0.0203), champion) == []
    beyond = failures(evaluation(mse=0.0205), champion)
    assert [(each.rule, each.subject) for each in beyond] == [("not-worse", modality) for modality in MODALITIES]


def test_one_worse_modality_fails_alone_however_good_the_others_are() -> None:
    candidate = evaluation(mse=0.005)
    for axis in AXES:
        candidate["metrics"]["music"][axis]["mse"]["value"] = 0.025
    assert [each.subject for each in failures(candidate, evaluation(mse=0.02))] == ["music"]


@pytest.mark.parametrize(("key", "value"), [("dataset_digest", "e" * 64), ("split", "val"), ("dataset_digest", "")])
def test_other_rows_fail_alone(key: str, value: str) -> None:
    assert [each.rule for each in failures(evaluation() | {key: value}, evaluation())] == ["same-rows"]


def test_a_champion_without_figures_cannot_be_compared_with() -> None:
    champion = evaluation()
    champion["metrics"]["image"]["valence"]["mse"]["value"] = None
    assert [(each.rule, each.subject) for each in failures(evaluation(), champion)] == [("not-worse", "image")]


def test_mean_mse_needs_both_axes() -> None:
    values = evaluation(mse=0.02)
    values["metrics"]["image"]["arousal"]["mse"]["value"] = 0.04
    assert mean_mse(values, "image") == pytest.approx(0.03)
    del values["metrics"]["image"]["valence"]
    assert mean_mse(values, "image") is None


def test_a_verdict_is_json_and_readable() -> None:
    findings = (Finding("below-constant", "image/valence", None, 0.024, passed=False),)
    verdict = Verdict("promote", 2, 1, "a", "d", findings, False, "ann", "2025-01-01T00:00:00+00:00", "better")
    assert json.loads(json.dumps(verdict.to_json(), allow_nan=False))["findings"][0]["value"] is None
    assert verdict.failures == list(findings)
    text = verdict.to_text()
    assert "refused" in text
    assert "below-constant image/valence: missing against 0.0240" in text


def test_the_audit_log_keeps_every_record_in_order(tmp_path: Path) -> None:
    assert audit.read(tmp_path / "home") == []
    for number in range(3):
        audit.append(tmp_path / "home", {"number": number, "why": "a\nb ü"})
    assert [record["number"] for record in audit.read(tmp_path / "home")] == [0, 1, 2]


def test_a_damaged_audit_log_is_named_by_line(tmp_path: Path) -> None:
    path = audit.append(tmp_path, {"number": 0})
    path.write_text(path.read_text() + "not json\n")
    with pytest.raises(CheckFailed, match="line 2"):
        audit.read(tmp_path)


def test_records_written_at_once_never_interleave(tmp_path: Path) -> None:
    def append_many(writer: int) -> None:
        for number in range(50):
            audit.append(tmp_path, {"writer": writer, "number": number, "filler": "x" * 2000})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(append_many, range(4)))
    records = audit.read(tmp_path)
    for writer in range(4):
        assert [record["number"] for record in records if record["writer"] == writer] == list(range(50))
