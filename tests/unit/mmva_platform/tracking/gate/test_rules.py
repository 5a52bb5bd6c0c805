"""The gate's rules: for each a case in which only that rule refuses, and cases that must pass."""

from __future__ import annotations

import dataclasses
import math
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from mmva.affect import quadrant
from mmva.modalities import AXES, MODALITIES
from mmva_platform.datasets.identity import Seen
from mmva_platform.tracking.gate import rules
from mmva_platform.tracking.gate.evidence import Evidence
from mmva_platform.tracking.gate.policy import GatePolicy, Margins, PerAxis, PerModality, Slices
from mmva_platform.tracking.gate.rules import judge

from .gate_case import (
    BEST,
    CANDIDATE,
    CHAMPION,
    FACTS,
    ROWS,
    evidence,
    exam_rows,
    examined,
    facts,
    refusals,
    rows_with,
    scaled,
    without,
)

NO_SLICES = Slices(apply=False)


@pytest.fixture(scope="module", autouse=True)
def _once() -> Iterator[None]:
    """A case changes one modality of three: what the others give is computed once."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("retrieval_per_query", "bootstrap_paired_mse"):
            patch.setattr(rules, name, _remembering(getattr(rules, name)))
        yield


def _remembering(function: Callable[..., Any]) -> Callable[..., Any]:
    known: dict[bytes, Any] = {}

    def remembered(*arrays: np.ndarray, **options: Any) -> Any:
        key = pickle.dumps(([array.tolist() for array in arrays], options))
        if key not in known:
            known[key] = function(*arrays, **options)
        return known[key]

    return remembered


def test_a_challenger_that_predicts_the_same_passes_every_rule() -> None:
    assert refusals(evidence()) == []
    kinds = {f.subject.partition("/")[2].partition("=")[0] for f in judge(evidence()) if f.rule == "slice"}
    assert kinds == {"source", "quadrant", "loudness", "brightness"}
    assert {finding.rule for finding in judge(evidence())} == {
        "exam-digest", "split-disjoint", "exam-unseen", "rows-counted", "below-constant", "covers-champion",
        "enough-groups", "non-inferior", "slice", "coverage", "retrieval",
    }  # fmt: skip


def test_a_first_champion_is_judged_on_the_exam_by_the_absolute_rules() -> None:
    first = evidence(champion=None)
    assert refusals(first) == []
    assert {finding.rule for finding in judge(first)} == {
        "exam-digest", "split-disjoint", "exam-unseen", "rows-counted", "below-constant",
    }  # fmt: skip


@pytest.mark.parametrize("champion", [CHAMPION, None])
def test_no_examination_refuses_alone_and_says_why(champion: int | None) -> None:
    given = evidence(champion=champion, examined=None, trouble="no dataset there")
    assert refusals(given) == [("exam-taken", "all versions")]
    assert "no dataset there" in str(judge(given)[0])


@pytest.mark.parametrize("champion", [CHAMPION, None])
def test_another_dataset_than_the_pinned_one_refuses_alone(champion: int | None) -> None:
    assert refusals(evidence(champion=champion, digest="e" * 64)) == [("exam-digest", "dataset")]


@pytest.mark.parametrize("champion", [CHAMPION, None])
def test_a_leaking_split_refuses_alone_as_exam_and_as_training_data(champion: int | None) -> None:
    assert refusals(evidence(champion=champion, shared_groups=3)) == [("split-disjoint", "exam")]
    assert refusals(evidence(champion=champion, **facts(shared_groups=1))) == [("split-disjoint", "candidate")]
    assert refusals(evidence(**facts(CHAMPION, shared_groups=1))) == []


@pytest.mark.parametrize("champion", [CHAMPION, None])
def test_a_candidate_that_was_trained_on_one_row_of_the_exam_refuses_alone(champion: int | None) -> None:
    seen = {m: Seen(ROWS, int(m == "music"), 0) for m in MODALITIES}
    assert refusals(evidence(champion=champion, **facts(seen=seen))) == [("exam-unseen", "candidate/music")]
    assert refusals(evidence(champion=champion, **facts(seen=None))) == [("exam-unseen", "candidate")]


def test_a_champion_that_was_trained_on_the_exam_refuses_alone_and_an_old_one_that_does_not_say_passes() -> None:
    seen = {m: Seen(ROWS, ROWS, 0) for m in MODALITIES}
    assert refusals(evidence(**facts(CHAMPION, seen=seen))) == [("exam-unseen", f"champion/{m}") for m in MODALITIES]
    assert refusals(evidence(**facts(CHAMPION, seen=None))) == []


def test_a_few_sentences_may_be_the_same_and_not_more() -> None:
    few, more = ({m: Seen(ROWS, 0, rows * (m == "caption")) for m in MODALITIES} for rows in (4, 5))
    assert refusals(evidence(**facts(seen=few))) == []
    assert refusals(evidence(**facts(seen=more))) == [("exam-unseen", "candidate/caption")]
    assert refusals(evidence(**facts(seen=more), policy=GatePolicy(text_overlap=0.03))) == []


@pytest.mark.parametrize("expected", [ROWS + 1, ROWS - 1])
def test_a_row_that_was_not_counted_refuses_alone(expected: int) -> None:
    counts = dict(examined().expected) | {"music": expected}
    assert refusals(evidence(expected=counts)) == [("rows-counted", "music")]


def test_a_tower_that_the_exam_has_no_rows_for_refuses_alone() -> None:
    rows = {m: each for m, each in examined().rows.items() if m != "caption"}
    assert refusals(evidence(rows=rows, expected=dict.fromkeys(rows, ROWS))) == [("rows-counted", "caption")]


@pytest.mark.parametrize("champion", [CHAMPION, None])
@pytest.mark.parametrize(("modality", "axis"), [("image", 0), ("music", 1), ("caption", 0)])
def test_one_axis_that_does_not_beat_the_best_constant_refuses_alone(
    modality: Any, axis: int, champion: int | None
) -> None:
    rows = examined().rows[modality]
    points = rows.points[CANDIDATE].copy()
    points[:, axis] = rows.label_N2[:, axis].mean()  # exactly the best constant
    given = evidence(champion=champion, **rows_with(modality, candidate=points, champion=points))
    assert refusals(given) == [("below-constant", f"{modality}/{AXES[axis]}")]


def test_a_ceiling_and_a_share_of_the_constant_hold_for_a_first_champion_too() -> None:
    error = float(np.square(exam_rows(1).points[CANDIDATE] - exam_rows(1).label_N2)[:, 1].mean())
    ceilings = PerModality(music=PerAxis(arousal=0.99 * error))
    for champion in (CHAMPION, None):
        given = evidence(champion=champion, policy=GatePolicy(ceilings=ceilings))
        assert refusals(given) == [("below-ceiling", "music/arousal")]
    assert len(refusals(evidence(champion=None, policy=GatePolicy(constant_share=0.1)))) == 6


@pytest.mark.parametrize("lost", MODALITIES)
def test_a_candidate_without_a_tower_of_the_champion_refuses_alone(lost: Any) -> None:
    rows = {m: each for m, each in examined().rows.items() if m != lost}
    given = evidence(rows=rows, **facts(modalities=without(lost)))
    assert refusals(given) == [("covers-champion", lost)]
    assert refusals(dataclasses.replace(given, champion=None)) == [], "as a first champion it lacks nothing"


@pytest.mark.parametrize("own", [("image",), ("music", "caption")])
def test_models_with_one_or_two_towers_pass(own: Any) -> None:
    """Against a champion with the same towers, or with fewer: a new tower has nobody to be compared with."""
    rows = {m: examined().rows[m] for m in own}
    seen = {m: Seen(ROWS, 0, 0) for m in own}
    mine = dataclasses.replace(FACTS, modalities=own, seen=seen)
    assert refusals(evidence(rows=rows, models={CANDIDATE: mine, CHAMPION: mine})) == []
    fewer = dataclasses.replace(mine, modalities=own[:1])
    only = {m: dataclasses.replace(rows[m], points={CANDIDATE: rows[m].points[CANDIDATE]}) for m in own[1:]}
    given = evidence(rows=rows | only, models={CANDIDATE: mine, CHAMPION: fewer})
    assert refusals(given) == []
    assert {f.subject for f in judge(given) if f.rule == "below-constant"} == {
        f"{m}/{axis}" for m in own for axis in AXES
    }


def test_many_rows_of_few_groups_are_too_small_a_sample() -> None:
    few = np.repeat(np.arange(29), 9)[:ROWS].astype(str)
    given = evidence(**rows_with("caption", group_N=few), policy=GatePolicy(slices=NO_SLICES))
    assert refusals(given) == [("enough-groups", "caption")]


@pytest.mark.parametrize("axis", [0, 1])
def test_one_axis_worse_than_the_margin_refuses_alone(axis: int) -> None:
    factor = np.where(np.arange(2) == axis, 1.06**0.5, 1.0)  # MSE + 6 %
    given = evidence(**rows_with("image", candidate=scaled("image", factor)))
    assert refusals(given) == [("non-inferior", f"image/{AXES[axis]}")]
    margins = Margins(image=PerAxis.model_validate({AXES[axis]: 0.08}))
    assert refusals(dataclasses.replace(given, policy=GatePolicy(margins=margins))) == []


def test_equal_on_average_but_unsure_is_not_enough() -> None:
    rows = examined().rows["music"]
    swapped = rows.label_N2 - (rows.points[CANDIDATE] - rows.label_N2)[::-1]  # the same errors on other rows
    lax = GatePolicy(slices=NO_SLICES, retrieval_margin=0.9)
    given = evidence(**rows_with("music", candidate=swapped), policy=lax)
    assert refusals(given) == [("non-inferior", "music/valence"), ("non-inferior", "music/arousal")]


@pytest.mark.parametrize("side", ["candidate", "champion"])
def test_one_point_that_is_not_a_number_refuses(side: str) -> None:
    points = examined().rows["image"].points[CANDIDATE].copy()
    points[17, 1] = math.nan
    found = refusals(evidence(**rows_with("image", **{side: points})))
    assert {("non-inferior", "image/valence"), ("non-inferior", "image/arousal")} <= set(found)


def drifted(step: float, best: dict[Any, int]) -> Evidence:
    """A candidate a little worse than the champion, which was a little worse than the best champion before it."""
    rows = rows_with("music", candidate=scaled("music", step), best=scaled("music", 1 / step))
    return evidence(**rows, best=best, models={CANDIDATE: FACTS, CHAMPION: FACTS, BEST: FACTS})


def test_a_slow_decline_refuses_alone() -> None:
    """4 % a step is inside the margin of 5 % each time, and 8 % against the best champion so far."""
    found = refusals(drifted(1.04**0.5, {"music": BEST}))
    assert found == [("best-so-far", "music/valence"), ("best-so-far", "music/arousal")]
    assert refusals(drifted(1.04**0.5, {})) == []
    assert refusals(drifted(1.04**0.5, {"music": CHAMPION})) == []
    assert refusals(drifted(1.01**0.5, {"music": BEST})) == []


def test_one_worse_source_refuses_alone_however_good_the_rest_is() -> None:
    factor = np.where(examined().rows["music"].source_N == "deam", 1.2, 0.5)[:, None]
    policy = GatePolicy(slices=Slices(by=("source",)))
    given = evidence(**rows_with("music", candidate=scaled("music", factor)), policy=policy)
    assert refusals(given) == [("slice", "music/source=deam")]


def test_one_worse_quadrant_refuses_alone() -> None:
    factor = np.where(quadrant(examined().rows["image"].label_N2) == "calm", 1.15, 0.9)[:, None]
    policy = GatePolicy(slices=Slices(by=("quadrant",)))
    given = evidence(**rows_with("image", candidate=scaled("image", factor)), policy=policy)
    assert refusals(given) == [("slice", "image/quadrant=calm")]


@pytest.mark.parametrize(
    ("modality", "kind", "name"),
    [("music", "loudness", "quiet"), ("music", "loudness", "loud"), ("image", "brightness", "dark")],
)
def test_one_worse_third_of_loudness_or_brightness_refuses_alone(modality: Any, kind: str, name: str) -> None:
    trait_N = examined().rows[modality].trait_N
    assert trait_N is not None
    worst_N = trait_N > np.quantile(trait_N, 2 / 3) if name == "loud" else trait_N < np.quantile(trait_N, 1 / 3)
    factor = np.where(worst_N, 1.15, 0.8)[:, None]
    policy = GatePolicy.model_validate({"slices": {"by": [kind]}})
    given = evidence(**rows_with(modality, candidate=scaled(modality, factor)), policy=policy)
    assert refusals(given) == [("slice", f"{modality}/{kind}={name}")]


@pytest.mark.parametrize("unknown", [None, np.where(np.arange(ROWS) == 7, np.nan, 0.5)])
def test_a_trait_that_is_not_known_of_every_row_refuses_alone(unknown: Any) -> None:
    given = evidence(**rows_with("music", trait_N=unknown))
    assert refusals(given) == [("slice", "music/loudness")]
    policy = GatePolicy(slices=Slices(by=("source", "brightness")))
    assert refusals(dataclasses.replace(given, policy=policy)) == []


def test_a_slice_with_too_few_groups_is_said_and_refuses_where_the_policy_wants_it() -> None:
    given = evidence(**rows_with("music", source_N=np.where(np.arange(ROWS) < 8, "rare", "deam")))
    (found,) = [finding for finding in judge(given) if finding.subject == "music/source=rare"]
    assert (found.value, found.passed, found.note) == ("too few", True, "2 groups, 20 needed")
    strict = GatePolicy(slices=Slices(too_few_fails=True))
    assert refusals(dataclasses.replace(given, policy=strict)) == [("slice", "music/source=rare")]


def widths(modality: str, axis: str, width: float) -> dict[str, Any]:
    intervals: dict[str, dict[str, float]] = {m: dict.fromkeys(AXES, 0.5) for m in MODALITIES}
    intervals[modality][axis] = width
    return intervals


def test_intervals_that_surely_hold_too_few_labels_refuse_alone() -> None:
    rows = examined().rows["caption"]
    error_N = np.abs(rows.points[CANDIDATE] - rows.label_N2)[:, 0]
    narrow = facts(intervals=widths("caption", "valence", float(np.quantile(error_N, 0.75))))
    assert refusals(evidence(**narrow)) == [("coverage", "caption/valence")]
    assert refusals(evidence(**narrow, policy=GatePolicy(largest_shortfall=0.2))) == []
    unlucky = facts(intervals=widths("caption", "valence", float(np.quantile(error_N, 0.83))))
    assert refusals(evidence(**unlucky)) == [], "of 60 groups .83 may be chance"
    unknown = widths("caption", "valence", 0.5)
    del unknown["caption"]["valence"]
    assert refusals(evidence(**facts(intervals=unknown))) == [("coverage", "caption/valence")]


def test_a_calibrated_model_is_hardly_ever_refused_for_its_coverage_and_an_overconfident_one_always() -> None:
    """30 songs of six clips that err alike, intervals calibrated on 30 others: by rows one in two was refused."""
    from mmva.evaluation.intervals import conformal_intervals

    refused = {1.0: 0, 0.4: 0}
    for seed in range(40):
        rng = np.random.default_rng(seed)
        label = rng.uniform(0.2, 0.8, (360, 2))
        song = np.repeat(np.arange(60), 6)
        points = label + (rng.normal(0, 0.1, (60, 2))[song] + rng.normal(0, 0.02, label.shape))
        calibrated = conformal_intervals(points[:180], label[:180], groups=song[:180])
        for factor in refused:
            rows = dataclasses.replace(
                exam_rows(), label_N2=label[180:], points={CANDIDATE: points[180:], CHAMPION: points[180:]},
                group_N=song[180:].astype(str), source_N=np.full(180, "deam"), trait_N=None,
            )  # fmt: skip
            own = {"music": {axis: factor * width for axis, width in calibrated.items()}}
            given = evidence(
                rows={"music": rows}, expected={"music": 180}, policy=GatePolicy(slices=NO_SLICES, resamples=200),
                models={v: dataclasses.replace(FACTS, modalities=("music",), intervals=own) for v in (1, 2)},
            )  # fmt: skip
            refused[factor] += any(rule == "coverage" for rule, _ in refusals(given))
    assert refused[1.0] <= 4
    assert refused[0.4] == 40


def test_worse_retrieval_refuses_alone() -> None:
    """Somewhat larger errors, on other rows, with every margin of the MSE wide open and none for retrieval."""
    rows = examined().rows["image"]
    far = rows.label_N2 - 1.15 * (rows.points[CANDIDATE] - rows.label_N2)[::-1]
    lax = GatePolicy(slices=NO_SLICES, margins=Margins(default=0.99), retrieval_margin=0.0)
    found = refusals(evidence(**rows_with("image", candidate=far), policy=lax))
    assert found
    assert {rule for rule, _ in found} == {"retrieval"}
    assert all("image" in subject for _, subject in found)


def test_retrieval_on_a_large_exam_is_of_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []

    def per_query(*points: np.ndarray) -> dict[str, np.ndarray]:
        asked.append(tuple(len(each) for each in points))
        return {"ndcg@10": np.ones(1)}

    monkeypatch.setattr("mmva_platform.tracking.gate.rules.retrieval_per_query", per_query)
    label = np.random.default_rng(0).uniform(0.1, 0.9, (6_000, 2))
    rows = dataclasses.replace(
        exam_rows(), label_N2=label, points={CANDIDATE: label, CHAMPION: label}, source_N=np.full(6_000, "a"),
        group_N=np.arange(6_000).astype(str), trait_N=None,
    )  # fmt: skip
    given = evidence(rows={"image": rows, "music": rows}, policy=GatePolicy(slices=NO_SLICES, resamples=100))
    judge(given)
    assert set(asked) == {(5_000,) * 4}


def test_figures_are_the_mean_errors_by_version_and_modality() -> None:
    given = evidence(**rows_with("image", candidate=scaled("image", 2.0)))
    found = given.figures()
    assert found["2"]["image"] == pytest.approx(4 * found["1"]["image"])
    assert set(found["1"]) == set(MODALITIES)
