"""The gate's rules: each is a pure function of the evidence that yields findings.

A value that is missing, not finite or from too small a sample fails. Rules apply to the candidate's towers, comparisons
to towers that both versions have. If the exam was not possible, the only finding is "exam-taken".
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

from mmva.evaluation.bootstrap import PairedDifference, bootstrap_mean, bootstrap_paired_mse
from mmva.evaluation.metrics import sample_rows
from mmva.evaluation.retrieval import retrieval_per_query
from mmva.modalities import AXES, MODALITIES, Modality
from mmva_platform.datasets.traits import part_names
from mmva_platform.tracking.gate.evidence import Evidence, Examined, ExamRows
from mmva_platform.tracking.gate.verdict import RECORDED, Finding

Rule = Callable[[Evidence, Examined], Iterator[Finding]]
COVERAGE: Final = 0.9  # of a bundle's intervals
_CONFIDENCE: Final = 0.9  # two-sided, so that either end is a one-sided 95 % bound


def judge(evidence: Evidence) -> list[Finding]:
    """All findings of the rules that apply, in order; a version passes if there are findings and all passed."""
    if evidence.examined is None:
        return [Finding("exam-taken", "all versions", None, RECORDED, passed=False, note=evidence.trouble)]
    rules = ABSOLUTE if evidence.champion is None else (*ABSOLUTE, *COMPARING)
    return [finding for rule in rules for finding in rule(evidence, evidence.examined)]


def exam_digest(evidence: Evidence, examined: Examined) -> Iterator[Finding]:
    """The dataset at the exam's URI has the digest that the policy, or the champion's verdict, names."""
    if evidence.exam is not None:
        here, named = examined.digest, evidence.exam.digest
        yield Finding("exam-digest", "dataset", here[:16], named[:16], here == named)


def split_disjoint(evidence: Evidence, examined: Examined) -> Iterator[Finding]:
    """No group has rows in two splits, in the exam's dataset and in the candidate's training data."""
    own = examined.models[evidence.candidate].shared_groups
    for subject, shared in (("exam", examined.shared_groups), ("candidate", own)):
        if shared is not None:
            note = f"{shared} groups are in more than one split: the figures leak" if shared else ""
            yield Finding("split-disjoint", subject, shared, 0, shared == 0, note)


def exam_unseen(evidence: Evidence, examined: Examined) -> Iterator[Finding]:
    """Neither version was trained on rows or groups of the exam; a few equal sentences are allowed."""
    for subject, version in (("candidate", evidence.candidate), ("champion", evidence.champion)):
        if version is None:
            continue
        seen = examined.models[version].seen
        if seen is None:
            note = "its bundle does not record what it was trained on" + ("; train again" * (subject == "candidate"))
            yield Finding("exam-unseen", subject, None, 0, subject == "champion", note)
            continue
        for modality, each in seen.items():
            likely = each.by_text > evidence.policy.text_overlap * each.rows
            rows = each.certain + (each.by_text if likely else 0)
            note = f"of {each.rows} rows; {each.by_text} more have the same text only" if each.by_text else ""
            yield Finding("exam-unseen", f"{subject}/{modality}", rows, 0, rows == 0, note)


def rows_counted(evidence: Evidence, examined: Examined) -> Iterator[Finding]:
    """The exam has rows for each of the candidate's towers, and all rows that dataset.json counts were predicted."""
    for modality in examined.models[evidence.candidate].modalities:
        expected, rows = examined.expected.get(modality, 0), examined.rows.get(modality)
        found = 0 if rows is None else len(rows.label_N2)
        yield Finding("rows-counted", modality, found, expected or "at least 1", found == expected > 0)


def below_constant(evidence: Evidence, examined: Examined) -> Iterator[Finding]:
    """On each axis the MSE is below the policy's share of the best constant's MSE on the same rows."""
    for modality, rows in _rows(examined):
        for axis, mse, variance in zip(AXES, _mse(rows, evidence.candidate), rows.label_N2.var(axis=0), strict=True):
            limit = float(variance) * evidence.policy.constant_share
            passed = mse is not None and mse < limit
            yield Finding("below-constant", f"{modality}/{axis}", mse, limit, passed, needs="<")


def below_ceiling(evidence: Evidence, examined: Examined) -> Iterator[Finding]:
    """The MSE is at most the policy's ceiling, if there is one."""
    for modality, rows in _rows(examined):
        for axis, mse in zip(AXES, _mse(rows, evidence.candidate), strict=True):
            if (limit := evidence.policy.ceilings.of(modality, axis)) is not None:
                passed = mse is not None and mse <= limit
                yield Finding("below-ceiling", f"{modality}/{axis}", mse, limit, passed, needs="<=")


def covers_champion(evidence: Evidence, examined: Examined) -> Iterator[Finding]:
    """The candidate has every tower that the champion has."""
    for modality in MODALITIES:
        if _has(examined, evidence.champion, modality):
            has = _has(examined, evidence.candidate, modality)
            yield Finding("covers-champion", modality, "has it" if has else None, "has it", has)


def enough_groups(evidence: Evidence, examined: Examined) -> Iterator[Finding]:
    """Each modality has enough songs, images or other groups."""
    for modality, rows in _rows(examined):
        groups, least = len(np.unique(rows.group_N)), evidence.policy.smallest_groups
        yield Finding("enough-groups", modality, groups, least, groups >= least, needs=">=")


def non_inferior(evidence: Evidence, examined: Examined) -> Iterator[Finding]:
    """Upper 95 % bound of MSE(candidate) - MSE(champion) is at most the margin, per modality and axis."""
    for modality, rows in _rows(examined):
        if _has(examined, evidence.champion, modality):
            yield from _compared("non-inferior", evidence, modality, rows, evidence.champion)


def best_so_far(evidence: Evidence, examined: Examined) -> Iterator[Finding]:
    """The same against the best champion that passed the gate on this exam, so that small losses do not add up."""
    for modality, rows in _rows(examined):
        best = evidence.best.get(modality)
        if best not in (None, evidence.champion):
            yield from _compared("best-so-far", evidence, modality, rows, best)


def slices(evidence: Evidence, examined: Examined) -> Iterator[Finding]:
    """Non-inferiority on each slice of the rows, on the mean of both axes."""
    for modality, rows in _rows(examined):
        if not (evidence.policy.slices.apply and _has(examined, evidence.champion, modality)):
            continue
        for kind in evidence.policy.slices.by:
            try:
                names_N = part_names(kind, modality, rows.label_N2, rows.source_N, rows.trait_N)
            except ValueError as error:
                yield Finding("slice", f"{modality}/{kind}", None, RECORDED, passed=False, note=str(error))
                continue
            for name in () if names_N is None else np.unique(names_N):
                yield _slice(evidence, f"{modality}/{kind}={name}", rows.where(names_N == name))


def intervals_cover(evidence: Evidence, examined: Examined) -> Iterator[Finding]:
    """The share of labels inside the candidate's 90 % intervals is at least 90 % less the shortfall.

    Clips of a song have similar errors, so a good model's share varies: the upper 95 % bound over groups is compared.
    """
    limit = COVERAGE - evidence.policy.largest_shortfall
    for modality, rows in _rows(examined):
        widths = examined.models[evidence.candidate].intervals.get(modality, {})
        for i, axis in enumerate(AXES):
            bound, note = None, ""
            if axis in widths and rows.known(evidence.candidate):
                inside_N = np.abs(rows.points[evidence.candidate][:, i] - rows.label_N2[:, i]) <= widths[axis]
                resamples = evidence.policy.resamples
                bound = bootstrap_mean(inside_N, rows.group_N, resamples=resamples, confidence=_CONFIDENCE)[1]
                note = f"{inside_N.mean():.3f} of the labels"
            passed = bound is not None and bound >= limit
            yield Finding("coverage", f"{modality}/{axis}", bound, limit, passed, note, needs=">=")


def retrieves_as_well(evidence: Evidence, examined: Examined) -> Iterator[Finding]:
    """Mean nDCG@10 between any two modalities is at most the margin below the champion's; large exams are sampled."""
    versions = [version for version in (evidence.candidate, evidence.champion) if version is not None]
    rows = {m: _sampled(each) for m, each in _rows(examined) if _has(examined, evidence.champion, m)}
    for query, gallery in itertools.permutations(rows, 2):
        value, limit, note = None, None, ""
        if rows[query].known(*versions) and rows[gallery].known(*versions):
            value, other = (_ndcg(rows[query], rows[gallery], version) for version in versions)
            limit, note = other - evidence.policy.retrieval_margin, f"champion {other:.4f}"
        passed = value is not None and limit is not None and value >= limit
        yield Finding("retrieval", f"{query}->{gallery}", value, limit, passed, note, needs=">=")


ABSOLUTE: Final[tuple[Rule, ...]] = (
    exam_digest, split_disjoint, exam_unseen, rows_counted, below_constant, below_ceiling,
)  # fmt: skip
COMPARING: Final[tuple[Rule, ...]] = (
    covers_champion, enough_groups, non_inferior, best_so_far, slices, intervals_cover, retrieves_as_well,
)  # fmt: skip


def _rows(examined: Examined) -> Iterator[tuple[Modality, ExamRows]]:
    yield from ((m, examined.rows[m]) for m in MODALITIES if m in examined.rows)


def _has(examined: Examined, version: int | None, modality: Modality) -> bool:
    return version is not None and modality in examined.models[version].modalities


def _mse(rows: ExamRows, version: int) -> tuple[float | None, float | None]:
    """MSE by axis; None if a point is missing or not finite."""
    if not rows.known(version):
        return None, None
    valence, arousal = np.square(rows.points[version] - rows.label_N2).mean(axis=0)
    return float(valence), float(arousal)


def _compared(
    rule: str, evidence: Evidence, modality: Modality, rows: ExamRows, other: int | None
) -> Iterator[Finding]:
    found = _difference(rows, evidence, other)
    for axis in AXES:
        share = evidence.policy.margins.share(modality, axis)
        yield _within(rule, f"{modality}/{axis}", found.get(axis), share, other)


def _slice(evidence: Evidence, subject: str, part: ExamRows) -> Finding:
    policy = evidence.policy.slices
    groups = len(np.unique(part.group_N))
    if groups < policy.smallest_groups:
        note = f"{groups} groups, {policy.smallest_groups} needed"
        return Finding("slice", subject, "too few", RECORDED, not policy.too_few_fails, note)
    found = _difference(part, evidence, evidence.champion)
    return _within("slice", subject, found.get("mean"), policy.margin, evidence.champion)


def _difference(rows: ExamRows, evidence: Evidence, other: int | None) -> dict[str, PairedDifference]:
    """Differences by axis and "mean"; empty if any point is missing or not finite."""
    if other is None or not rows.known(evidence.candidate, other):
        return {}
    points = rows.points[evidence.candidate], rows.points[other], rows.label_N2
    return bootstrap_paired_mse(*points, rows.group_N, resamples=evidence.policy.resamples, confidence=_CONFIDENCE)


def _within(rule: str, subject: str, found: PairedDifference | None, share: float, other: int | None) -> Finding:
    if found is None:
        return Finding(rule, subject, None, None, passed=False, needs="<=")
    limit = share * found.second
    note = f"MSE {found.first:.4f}, version {other} {found.second:.4f}, {found.groups} groups"
    passed = found.high <= limit
    return Finding(rule, subject, found.high, limit, passed, note, needs="<=", detail=dataclasses.asdict(found))


def _sampled(rows: ExamRows) -> ExamRows:
    return rows.where(np.isin(np.arange(len(rows.label_N2)), sample_rows(len(rows.label_N2))))


def _ndcg(query: ExamRows, gallery: ExamRows, version: int) -> float:
    points_Q2, points_M2 = query.points[version], gallery.points[version]
    return float(retrieval_per_query(points_Q2, points_M2, query.label_N2, gallery.label_N2)["ndcg@10"].mean())
