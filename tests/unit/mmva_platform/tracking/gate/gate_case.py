"""A challenger that every rule of the gate lets through, to be changed in one respect at a time."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np

from mmva.modalities import AXES, MODALITIES, Modality
from mmva_platform.datasets.identity import Seen
from mmva_platform.tracking.gate.evidence import Evidence, Examined, ExamRows, ModelFacts
from mmva_platform.tracking.gate.policy import Exam, GatePolicy
from mmva_platform.tracking.gate.rules import judge

ROWS, GROUPS = 240, 60
CHAMPION, CANDIDATE, BEST = 1, 2, 3
EXAM = Exam(dataset="exam", digest="d" * 64)
FACTS = ModelFacts(
    MODALITIES, {m: dict.fromkeys(AXES, 0.5) for m in MODALITIES}, 0, {m: Seen(ROWS, 0, 0) for m in MODALITIES}
)


def exam_rows(seed: int = 0) -> ExamRows:
    """240 rows of 60 groups, four a group, in all four quadrants and two sources; both versions predict the same."""
    rng = np.random.default_rng(seed)
    label = rng.uniform(0.1, 0.9, (ROWS, 2))
    points = label + rng.normal(0, 0.1, label.shape)
    group = np.repeat(np.arange(GROUPS), ROWS // GROUPS)
    source = np.where(group % 2, "deam", "pmemo")
    trait = rng.permutation(GROUPS)[group] / GROUPS  # one value a group
    return ExamRows(label, {CANDIDATE: points, CHAMPION: points.copy()}, group.astype(str), source, trait)


def examined(**changed: Any) -> Examined:
    rows = {modality: exam_rows(i) for i, modality in enumerate(MODALITIES)}
    whole = Examined("d" * 64, 0, dict.fromkeys(MODALITIES, ROWS), rows, {CANDIDATE: FACTS, CHAMPION: FACTS})
    return dataclasses.replace(whole, **changed)


def evidence(**changed: Any) -> Evidence:
    """What is not a field of the evidence is one of its examination."""
    fields = {field.name for field in dataclasses.fields(Evidence)}
    inside = {name: changed.pop(name) for name in list(changed) if name not in fields}
    return dataclasses.replace(
        Evidence(CANDIDATE, CHAMPION, GatePolicy(resamples=200), EXAM, examined(**inside)), **changed
    )


def rows_with(modality: Modality, **changed: Any) -> dict[str, Any]:
    """The rows with one modality's changed; `candidate` and `champion` are points [N, 2]."""
    rows = dict(examined().rows)
    points = dict(rows[modality].points)
    for name, version in (("candidate", CANDIDATE), ("champion", CHAMPION), ("best", BEST)):
        if name in changed:
            points[version] = changed.pop(name)
    rows[modality] = dataclasses.replace(rows[modality], points=points, **changed)
    return {"rows": rows}


def scaled(modality: Modality, factor: Any) -> np.ndarray:
    """The candidate's points of a modality with its errors times a factor."""
    rows = examined().rows[modality]
    points: np.ndarray = rows.label_N2 + factor * (rows.points[CANDIDATE] - rows.label_N2)
    return points


def facts(version: int = CANDIDATE, **changed: Any) -> dict[str, Any]:
    """The models with one version's facts changed."""
    return {"models": dict(examined().models) | {version: dataclasses.replace(FACTS, **changed)}}


def without(*modalities: str) -> tuple[Modality, ...]:
    return tuple(modality for modality in MODALITIES if modality not in modalities)


def refusals(given: Evidence) -> list[tuple[str, str]]:
    """Rule and subject of the findings that refuse."""
    findings = judge(given)
    assert findings
    json.dumps([dataclasses.asdict(finding) for finding in findings], allow_nan=False)
    return [(finding.rule, finding.subject) for finding in findings if not finding.passed]
