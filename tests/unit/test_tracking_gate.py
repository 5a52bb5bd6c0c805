"""The gate's rules, each failing alone, and the verdict."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest

from mmva.affect import quadrant
from mmva.modalities import AXES, MODALITIES
from mmva_platform.tracking.evidence import BundleFacts, PairedRows, Pairing
from mmva_platform.tracking.gate import Contender, Evidence, Finding, GateRefused, Verdict, judge, mean_mse
from mmva_platform.tracking.policy import GatePolicy, Margins, PerAxis, PerModality, Slices

ROWS, GROUPS = 240, 60


def evaluation(mse: float = 0.02, floor: float = 0.03, digest: str = "d" * 64) -> dict[str, Any]:
    figures = {"mse": {"value": mse, "low": mse - 0.01, "high": mse + 0.01}}
    return {
        "split": "test",
        "dataset_digest": digest,
        "rows": dict.fromkeys(MODALITIES, ROWS),
        "metrics": {modality: {axis: copy.deepcopy(figures) for axis in AXES} for modality in MODALITIES},
        "floors": {modality: dict.fromkeys(AXES, floor) for modality in MODALITIES},
    }


def card(sections: tuple[str, ...] = GatePolicy().card_sections) -> str:
    return "# Model\n\nlead\n\n" + "\n\n".join(f"## {name}\n\ntext" for name in sections) + "\n"


FACTS = BundleFacts(size_bytes=1_000_000, card=card(), intervals={m: dict.fromkeys(AXES, 0.5) for m in MODALITIES})


def paired_rows(seed: int = 0) -> PairedRows:
    """240 rows of 60 groups, four a group, in all four quadrants and two sources; both versions predict the same."""
    rng = np.random.default_rng(seed)
    label = rng.uniform(0.1, 0.9, (ROWS, 2))
    points = label + rng.normal(0, 0.1, label.shape)
    group = np.repeat(np.arange(GROUPS), ROWS // GROUPS)
    source = np.where(group % 2, "deam", "pmemo")
    trait = rng.permutation(GROUPS)[group] / GROUPS  # one value a group
    return PairedRows(label, points, points.copy(), group.astype(str), source, trait, 5.0, 5.0)


def pairing() -> Pairing:
    rows = {modality: paired_rows(i) for i, modality in enumerate(MODALITIES)}
    return Pairing("d" * 64, "test", dict.fromkeys(MODALITIES, ROWS), rows)


def evidence(**replaced: Any) -> Evidence:
    """A challenger that every rule lets through, but for what is replaced."""
    candidate = Contender(2, "run2", "a" * 64, evaluation(), "d" * 64, FACTS)
    champion = Contender(1, "run1", "b" * 64, evaluation(), "d" * 64)
    return dataclasses.replace(Evidence(candidate, champion, GatePolicy(), pairing()), **replaced)


def with_rows(modality: Any, **changed: Any) -> Pairing:
    whole = pairing()
    rows = dict(whole.rows) | {modality: dataclasses.replace(whole.rows[modality], **changed)}
    return dataclasses.replace(whole, rows=rows)


def with_candidate(**changed: Any) -> Contender:
    return dataclasses.replace(evidence().candidate, **changed)


def said_no(given: Evidence) -> list[tuple[str, str]]:
    findings = judge(given)
    assert findings
    json.dumps([dataclasses.asdict(finding) for finding in findings], allow_nan=False)
    return [(finding.rule, finding.subject) for finding in findings if not finding.passed]


def first(values: dict[str, Any], policy: GatePolicy | None = None) -> list[tuple[str, str]]:
    """What says no to a first champion: nothing but the recorded evaluation is looked at."""
    return said_no(Evidence(Contender(2, "run2", "a" * 64, values), None, policy or GatePolicy()))


def test_a_first_champion_passes_when_it_beats_every_constant() -> None:
    assert first(evaluation(mse=0.02, floor=0.03)) == []


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("bad", [0.03, 0.031, math.nan, math.inf, None, "0.01", True])
def test_one_axis_that_does_not_beat_its_constant_fails_alone(modality: str, axis: str, bad: object) -> None:
    values = evaluation(mse=0.02, floor=0.03)
    values["metrics"][modality][axis]["mse"]["value"] = bad
    assert first(values) == [("below-constant", f"{modality}/{axis}")]
    assert said_no(evidence(candidate=with_candidate(evaluation=values))) == first(values)


@pytest.mark.parametrize("path", [("metrics",), ("floors",), ("metrics", "music"), ("floors", "caption", "arousal")])
def test_what_is_missing_fails(path: tuple[str, ...]) -> None:
    values = evaluation()
    node = values
    for key in path[:-1]:
        node = node[key]
    del node[path[-1]]
    assert {rule for rule, _ in first(values)} == {"below-constant"}


def test_an_empty_evaluation_fails_on_everything() -> None:
    assert len(first({})) == len(MODALITIES) * len(AXES)


def test_a_ceiling_and_a_share_of_the_constant_hold_for_a_first_champion_too() -> None:
    ceilings = PerModality(music=PerAxis(arousal=0.019))
    assert first(evaluation(mse=0.02), GatePolicy(ceilings=ceilings)) == [("below-ceiling", "music/arousal")]
    assert len(first(evaluation(mse=0.02, floor=0.03), GatePolicy(constant_share=0.6))) == 6


def test_a_challenger_that_predicts_the_same_passes_every_rule() -> None:
    assert said_no(evidence()) == []
    rules = {finding.rule for finding in judge(evidence())}
    kinds = {f.subject.partition("/")[2].partition("=")[0] for f in judge(evidence()) if f.rule == "slice"}
    assert kinds == {"source", "quadrant", "loudness", "brightness"}
    assert rules == {
        "below-constant", "dataset-as-registered", "rows-counted", "enough-groups", "non-inferior", "slice",
        "coverage", "retrieval", "bundle-size", "latency", "card-complete",
    }  # fmt: skip


def test_no_rows_at_all_fail_alone_and_say_why() -> None:
    given = evidence(pairing=None, trouble="no dataset there")
    assert said_no(given) == [("rows-predicted", "both versions")]
    assert "no dataset there" in str(next(finding for finding in judge(given) if not finding.passed))


def test_another_dataset_than_the_registered_one_fails_alone() -> None:
    other = dataclasses.replace(pairing(), dataset_digest="e" * 64)
    assert said_no(evidence(pairing=other)) == [("dataset-as-registered", "digest")]
    assert said_no(evidence(candidate=with_candidate(dataset_digest=""))) == [("dataset-as-registered", "digest")]
    elsewhere = with_candidate(evaluation=evaluation(digest="e" * 64))
    assert said_no(evidence(candidate=elsewhere)) == [("dataset-as-registered", "digest")]


@pytest.mark.parametrize("expected", [ROWS + 1, ROWS - 1, 0])
def test_a_row_that_was_not_counted_fails_alone(expected: int) -> None:
    counts = dict(pairing().expected) | {"music": expected}
    given = evidence(pairing=dataclasses.replace(pairing(), expected=counts))
    assert said_no(given) == [("rows-counted", "music")]


def test_rows_that_the_evaluation_left_out_fail_alone() -> None:
    values = evaluation()
    values["rows"]["image"] = ROWS - 1
    assert said_no(evidence(candidate=with_candidate(evaluation=values))) == [("rows-counted", "image")]


def test_many_rows_of_few_groups_are_too_small_a_sample() -> None:
    few = np.repeat(np.arange(29), 9)[:ROWS].astype(str)
    policy = GatePolicy(slices=Slices(apply=False))
    given = evidence(pairing=with_rows("caption", group_N=few), policy=policy)
    assert said_no(given) == [("enough-groups", "caption")]


@pytest.mark.parametrize("axis", [0, 1])
def test_one_axis_worse_than_the_margin_fails_alone(axis: int) -> None:
    rows = pairing().rows["image"]
    worse = rows.candidate_N2.copy()
    worse[:, axis] = rows.label_N2[:, axis] + 1.06**0.5 * (worse[:, axis] - rows.label_N2[:, axis])  # MSE + 6 %
    given = evidence(pairing=with_rows("image", candidate_N2=worse))
    assert said_no(given) == [("non-inferior", f"image/{AXES[axis]}")]
    margins = Margins(image=PerAxis.model_validate({AXES[axis]: 0.08}))
    assert said_no(dataclasses.replace(given, policy=GatePolicy(margins=margins))) == []


def test_equal_on_average_but_unsure_is_not_enough() -> None:
    rows = pairing().rows["music"]
    swapped = rows.label_N2 - (rows.candidate_N2 - rows.label_N2)[::-1]  # the same errors on other rows
    lax = GatePolicy(slices=Slices(apply=False), retrieval_margin=0.9)
    given = evidence(pairing=with_rows("music", candidate_N2=swapped), policy=lax)
    assert said_no(given) == [("non-inferior", "music/valence"), ("non-inferior", "music/arousal")]


@pytest.mark.parametrize("side", ["candidate_N2", "champion_N2"])
def test_one_point_that_is_not_a_number_fails(side: str) -> None:
    points = pairing().rows["image"].candidate_N2.copy()
    points[17, 1] = math.nan
    no = said_no(evidence(pairing=with_rows("image", **{side: points})))
    assert {("non-inferior", "image/valence"), ("non-inferior", "image/arousal")} <= set(no)


def test_a_champion_that_does_not_know_a_modality_cannot_be_compared_with() -> None:
    no = said_no(evidence(pairing=with_rows("music", champion_N2=None)))
    assert {rule for rule, _ in no} == {"non-inferior", "slice", "retrieval"}


def test_one_worse_source_fails_alone_however_good_the_rest_is() -> None:
    rows = pairing().rows["music"]
    error = rows.candidate_N2 - rows.label_N2
    factor = np.where(rows.source_N == "deam", 1.2, 0.5)[:, None]
    given = evidence(
        pairing=with_rows("music", candidate_N2=rows.label_N2 + factor * error),
        policy=GatePolicy(slices=Slices(by=("source",))),
    )
    assert said_no(given) == [("slice", "music/source=deam")]


def test_one_worse_quadrant_fails_alone() -> None:
    rows = pairing().rows["image"]
    error = rows.candidate_N2 - rows.label_N2
    factor = np.where(quadrant(rows.label_N2) == "calm", 1.15, 0.9)[:, None]
    given = evidence(
        pairing=with_rows("image", candidate_N2=rows.label_N2 + factor * error),
        policy=GatePolicy(slices=Slices(by=("quadrant",))),
    )
    assert said_no(given) == [("slice", "image/quadrant=calm")]


@pytest.mark.parametrize(
    ("modality", "kind", "name"),
    [("music", "loudness", "quiet"), ("music", "loudness", "loud"), ("image", "brightness", "dark")],
)
def test_one_worse_third_of_loudness_or_brightness_fails_alone(modality: str, kind: str, name: str) -> None:
    rows = pairing().rows[modality]  # type: ignore[index]
    assert rows.trait_N is not None
    worst_N = rows.trait_N < np.quantile(rows.trait_N, 1 / 3)
    if name == "loud":
        worst_N = rows.trait_N > np.quantile(rows.trait_N, 2 / 3)
    factor = np.where(worst_N, 1.15, 0.8)[:, None]
    given = evidence(
        pairing=with_rows(modality, candidate_N2=rows.label_N2 + factor * (rows.candidate_N2 - rows.label_N2)),
        policy=GatePolicy.model_validate({"slices": {"by": [kind]}}),
    )
    assert said_no(given) == [("slice", f"{modality}/{kind}={name}")]


@pytest.mark.parametrize("unknown", [None, np.where(np.arange(ROWS) == 7, np.nan, 0.5)])
def test_a_trait_that_is_not_known_of_every_row_fails_alone(unknown: Any) -> None:
    given = evidence(pairing=with_rows("music", trait_N=unknown))
    assert said_no(given) == [("slice", "music/loudness")]
    policy = GatePolicy(slices=Slices(by=("source", "brightness")))
    assert said_no(dataclasses.replace(given, policy=policy)) == []


def test_a_slice_with_too_few_groups_is_said_and_fails_where_the_policy_wants_it() -> None:
    source = np.where(np.arange(ROWS) < 8, "rare", "deam")
    given = evidence(pairing=with_rows("music", source_N=source))
    (found,) = [finding for finding in judge(given) if finding.subject == "music/source=rare"]
    assert (found.value, found.passed, found.note) == ("too few", True, "2 groups, 20 needed")
    strict = GatePolicy(slices=Slices(too_few_fails=True))
    assert said_no(dataclasses.replace(given, policy=strict)) == [("slice", "music/source=rare")]


def test_intervals_that_hold_too_few_labels_fail_alone() -> None:
    rows = pairing().rows["caption"]
    width = float(np.quantile(np.abs(rows.candidate_N2 - rows.label_N2)[:, 0], 0.84))
    widths: dict[str, dict[str, float]] = {m: dict.fromkeys(AXES, 0.5) for m in MODALITIES}
    widths["caption"]["valence"] = width
    narrow = with_candidate(bundle=dataclasses.replace(FACTS, intervals=widths))
    assert said_no(evidence(candidate=narrow)) == [("coverage", "caption/valence")]
    assert said_no(evidence(candidate=narrow, policy=GatePolicy(largest_shortfall=0.07))) == []
    del widths["caption"]["valence"]
    assert said_no(evidence(candidate=narrow)) == [("coverage", "caption/valence")]


def test_worse_retrieval_fails_alone() -> None:
    """Somewhat larger errors, on other rows, with every margin of the MSE wide open and none for retrieval."""
    rows = pairing().rows["image"]
    far = rows.label_N2 - 1.15 * (rows.candidate_N2 - rows.label_N2)[::-1]
    lax = GatePolicy(slices=Slices(apply=False), margins=Margins(default=0.99), retrieval_margin=0.0)
    no = said_no(evidence(pairing=with_rows("image", candidate_N2=far), policy=lax))
    assert no
    assert {rule for rule, _ in no} == {"retrieval"}
    assert all("image" in subject for _, subject in no)


def test_too_large_a_bundle_fails_alone() -> None:
    heavy = with_candidate(bundle=dataclasses.replace(FACTS, size_bytes=300_000_000))
    assert said_no(evidence(candidate=heavy)) == [("bundle-size", "MB")]


@pytest.mark.parametrize("times", [(15.1, 5.0), (math.nan, 5.0), (5.0, math.nan)])
def test_too_slow_heads_fail_alone(times: tuple[float, float]) -> None:
    given = evidence(pairing=with_rows("image", candidate_us=times[0], champion_us=times[1]))
    assert said_no(given) == [("latency", "image us/item")]
    assert said_no(evidence(pairing=with_rows("image", candidate_us=14.9))) == []


@pytest.mark.parametrize("text", [card(GatePolicy().card_sections[:-1]), card().removesuffix("text\n")])
def test_a_card_without_a_section_or_with_an_empty_one_fails_alone(text: str) -> None:
    bare = with_candidate(bundle=dataclasses.replace(FACTS, card=text))
    assert said_no(evidence(candidate=bare)) == [("card-complete", "Environment")]


def test_mean_mse_needs_both_axes() -> None:
    values = evaluation(mse=0.02)
    values["metrics"]["image"]["arousal"]["mse"]["value"] = 0.04
    assert mean_mse(values, "image") == pytest.approx(0.03)
    del values["metrics"]["image"]["valence"]
    assert mean_mse(values, "image") is None


def test_a_verdict_is_json_and_readable() -> None:
    findings = (Finding("below-constant", "image/valence", None, 0.024, passed=False, needs="<"),)
    verdict = Verdict("promote", 2, 1, "a", "d", findings, False, "ann", "2025-01-01T00:00:00+00:00", "better")
    assert json.loads(json.dumps(verdict.to_json(), allow_nan=False))["findings"][0]["value"] is None
    assert verdict.failures == list(findings)
    text = verdict.to_text()
    assert "refused" in text
    assert text.splitlines()[2].split() == ["NO", "below-constant", "image/valence", "missing", "<", "0.0240"]
    assert "0 of 1 findings passed" in text


def test_a_refusal_is_one_line_and_carries_the_verdict() -> None:
    findings = tuple(Finding("coverage", name, 0.1, 0.85, passed=False, needs=">=") for name in "abcde")
    verdict = Verdict("promote", 2, 1, "a", "d", findings, False, "ann", "2025-01-01T00:00:00+00:00", "better")
    refusal = GateRefused("mmva", verdict)
    assert refusal.verdict is verdict
    assert str(refusal) == (
        "the gate refused version 2 of 'mmva': coverage a: 0.1000, needs >= 0.8500; coverage b: 0.1000, "
        "needs >= 0.8500; coverage c: 0.1000, needs >= 0.8500; and 2 more"
    )


def test_a_verdict_does_not_change() -> None:
    verdict = Verdict("promote", 2, 1, "a", "d", (), True, "ann", "2025-01-01T00:00:00+00:00", "better")
    with pytest.raises(dataclasses.FrozenInstanceError):
        verdict.passed = False  # type: ignore[misc]
