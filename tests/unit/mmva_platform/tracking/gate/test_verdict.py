"""A verdict: plain, readable, one line when it refuses, never changed."""

from __future__ import annotations

import dataclasses
import json

import pytest

from mmva_platform.tracking.gate.verdict import Finding, GateRefused, Verdict

EXAM = {"dataset": "s3://media/exam", "digest": "d" * 64, "split": "test", "embeddings": None}


def verdict_of(*findings: Finding) -> Verdict:
    return Verdict("promote", 2, 1, "a", "d", findings, False, "ann", "2025-01-01T00:00:00+00:00", "better", exam=EXAM)


def test_a_verdict_is_json_and_readable() -> None:
    verdict = verdict_of(Finding("below-constant", "image/valence", None, 0.024, passed=False, needs="<"))
    assert json.loads(json.dumps(verdict.to_json(), allow_nan=False))["findings"][0]["value"] is None
    assert verdict.failures == list(verdict.findings)
    text = verdict.to_text()
    assert "refused" in text
    assert "exam: split test of s3://media/exam (dddddddddddddddd)" in text
    assert text.splitlines()[3].split() == ["NO", "below-constant", "image/valence", "missing", "<", "0.0240"]
    assert "0 of 1 findings passed" in text


def test_a_refusal_is_one_line_and_carries_the_verdict() -> None:
    verdict = verdict_of(*(Finding("coverage", name, 0.1, 0.85, passed=False, needs=">=") for name in "abcde"))
    refusal = GateRefused("mmva", verdict)
    assert refusal.verdict is verdict
    assert str(refusal) == (
        "the gate refused version 2 of 'mmva': coverage a: 0.1000, needs >= 0.8500; coverage b: 0.1000, "
        "needs >= 0.8500; coverage c: 0.1000, needs >= 0.8500; and 2 more"
    )


def test_a_verdict_does_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        verdict_of().passed = False  # type: ignore[misc]
