"""The gate's rules: each a pure function of the evidence that yields findings.

Whatever is missing, not finite or too small a sample fails: silence is never consent. Rules on rows say nothing when
there are no rows at all; `rows_predicted` then fails in their place.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mmva.bootstrap import PairedDifference, bootstrap_paired_mse
from mmva.modalities import AXES, MODALITIES, Modality
from mmva.retrieval import retrieval_per_query
from mmva_platform.datasets.traits import part_names
from mmva_platform.tracking.evidence import Evidence, Finding, PairedRows, mse_of, number

Rule = Callable[[Evidence], Iterator[Finding]]
COVERAGE: Final = 0.9  # of a bundle's intervals
RECORDED: Final = "-"


def beats_constant(evidence: Evidence) -> Iterator[Finding]:
    """On every modality and axis the recorded MSE is below the policy's share of the best constant prediction's."""
    for modality in MODALITIES:
        for axis in AXES:
            mse = mse_of(evidence.candidate.evaluation, modality, axis)
            floor = number(evidence.candidate.evaluation, "floors", modality, axis)
            limit = None if floor is None else floor * evidence.policy.constant_share
            passed = mse is not None and limit is not None and mse < limit
            yield Finding("below-constant", f"{modality}/{axis}", mse, limit, passed, needs="<")


def below_ceiling(evidence: Evidence) -> Iterator[Finding]:
    """The recorded MSE is at most the policy's absolute ceiling, where it has one."""
    for modality in MODALITIES:
        for axis in AXES:
            limit = evidence.policy.ceilings.of(modality, axis)
            if limit is not None:
                mse = mse_of(evidence.candidate.evaluation, modality, axis)
                passed = mse is not None and mse <= limit
                yield Finding("below-ceiling", f"{modality}/{axis}", mse, limit, passed, needs="<=")


def rows_predicted(evidence: Evidence) -> Iterator[Finding]:
    """Both versions could be predicted on the candidate's rows."""
    if evidence.pairing is None:
        yield Finding("rows-predicted", "both versions", None, RECORDED, passed=False, note=evidence.trouble)


def dataset_as_registered(evidence: Evidence) -> Iterator[Finding]:
    """The rows are of the dataset that the candidate was registered and evaluated with."""
    if evidence.pairing is not None:
        here, registered = evidence.pairing.dataset_digest, evidence.candidate.dataset_digest
        evaluated = evidence.candidate.evaluation.get("dataset_digest")
        passed = bool(here) and here == registered == evaluated
        yield Finding("dataset-as-registered", "digest", here[:16] or None, registered[:16] or None, passed)


def rows_counted(evidence: Evidence) -> Iterator[Finding]:
    """Rows evaluated and rows compared are as many as dataset.json counts, for each modality."""
    if evidence.pairing is None:
        return
    for modality in MODALITIES:
        expected = evidence.pairing.expected.get(modality)
        recorded = number(evidence.candidate.evaluation, "rows", modality)
        rows = evidence.pairing.rows.get(modality)
        compared = 0 if rows is None else len(rows.label_N2)
        passed = bool(expected) and recorded == compared == expected
        note = f"evaluated {'missing' if recorded is None else int(recorded)}, compared {compared}"
        yield Finding("rows-counted", modality, compared, expected, passed, note)


def enough_groups(evidence: Evidence) -> Iterator[Finding]:
    """A modality's comparison rests on enough songs or images."""
    for modality, rows in _rows(evidence):
        groups, least = len(np.unique(rows.group_N)), evidence.policy.smallest_groups
        yield Finding("enough-groups", modality, groups, least, groups >= least, needs=">=")


def non_inferior(evidence: Evidence) -> Iterator[Finding]:
    """Upper 95 % bound of MSE(candidate) - MSE(champion) is at most the margin, per modality and axis."""
    if evidence.pairing is None:
        return
    for modality in MODALITIES:
        rows = evidence.pairing.rows.get(modality)
        found = _difference(rows, evidence) if rows is not None else {}
        for axis in AXES:
            share = evidence.policy.margins.share(modality, axis)
            yield _held_against("non-inferior", f"{modality}/{axis}", found.get(axis), share)


def slices(evidence: Evidence) -> Iterator[Finding]:
    """The same on each part of the rows by what the policy cuts them by, on the mean of both axes."""
    policy = evidence.policy.slices
    if not policy.apply:
        return
    for modality, rows in _rows(evidence):
        for kind in policy.by:
            try:
                names_N = part_names(kind, modality, rows.label_N2, rows.source_N, rows.trait_N)
            except ValueError as error:
                yield Finding("slice", f"{modality}/{kind}", None, RECORDED, passed=False, note=str(error))
                continue
            for name in () if names_N is None else np.unique(names_N):
                yield _slice(evidence, f"{modality}/{kind}={name}", rows.where(names_N == name))


def _slice(evidence: Evidence, subject: str, part: PairedRows) -> Finding:
    policy = evidence.policy.slices
    groups = len(np.unique(part.group_N))
    if groups < policy.smallest_groups:
        note = f"{groups} groups, {policy.smallest_groups} needed"
        return Finding("slice", subject, "too few", RECORDED, not policy.too_few_fails, note)
    return _held_against("slice", subject, _difference(part, evidence).get("mean"), policy.margin)


def intervals_cover(evidence: Evidence) -> Iterator[Finding]:
    """The candidate's 90 % intervals hold at least 90 % of the labels, less the policy's shortfall."""
    limit = COVERAGE - evidence.policy.largest_shortfall
    bundle = evidence.candidate.bundle
    for modality, rows in _rows(evidence):
        for i, axis in enumerate(AXES):
            width = number(bundle.intervals, modality, axis) if bundle else None
            error_N = np.abs(rows.candidate_N2[:, i] - rows.label_N2[:, i])
            known = width is not None and len(error_N) > 0 and bool(np.isfinite(error_N).all())
            share = float((error_N <= width).mean()) if known else None
            passed = share is not None and share >= limit
            yield Finding("coverage", f"{modality}/{axis}", share, limit, passed, needs=">=")


def retrieves_as_well(evidence: Evidence) -> Iterator[Finding]:
    """Mean nDCG@10 between any two modalities is at most the margin below the champion's."""
    rows = dict(_rows(evidence))
    for query, gallery in itertools.permutations(rows, 2):
        subject = f"{query}->{gallery}"
        if not (rows[query].complete and rows[gallery].complete):
            yield Finding("retrieval", subject, None, None, passed=False, needs=">=")
            continue
        labels = (rows[query].label_N2, rows[gallery].label_N2)
        mine = _ndcg(rows[query].candidate_N2, rows[gallery].candidate_N2, *labels)
        theirs = _ndcg(_known(rows[query].champion_N2), _known(rows[gallery].champion_N2), *labels)
        limit = theirs - evidence.policy.retrieval_margin
        yield Finding("retrieval", subject, mine, limit, mine >= limit, f"champion {theirs:.4f}", needs=">=")


def small_enough(evidence: Evidence) -> Iterator[Finding]:
    """The bundle's files are small enough."""
    bundle, limit = evidence.candidate.bundle, evidence.policy.largest_bundle_mb
    size = None if bundle is None else bundle.size_bytes / 1e6
    yield Finding("bundle-size", "MB", size, limit, size is not None and size <= limit, needs="<=")


def fast_enough(evidence: Evidence) -> Iterator[Finding]:
    """The candidate's heads take at most so many times as long as the champion's, on the same rows and machine."""
    for modality, rows in _rows(evidence):
        limit = evidence.policy.largest_slowdown * rows.champion_us
        known = bool(np.isfinite([rows.candidate_us, limit]).all())
        value, most = (rows.candidate_us, limit) if known else (None, None)
        passed = known and rows.candidate_us <= limit
        note = f"champion {rows.champion_us:.1f}"
        yield Finding("latency", f"{modality} us/item", value, most, passed, note, needs="<=")


def card_complete(evidence: Evidence) -> Iterator[Finding]:
    """The model card has every section that the policy asks for, and something in it."""
    card = evidence.candidate.bundle.card if evidence.candidate.bundle else ""
    for section in evidence.policy.card_sections:
        there = _has_section(card, section)
        yield Finding("card-complete", section, "there" if there else None, "there", there)


ABSOLUTE: Final[tuple[Rule, ...]] = (beats_constant, below_ceiling)
COMPARING: Final[tuple[Rule, ...]] = (
    rows_predicted, dataset_as_registered, rows_counted, enough_groups, non_inferior, slices, intervals_cover,
    retrieves_as_well, small_enough, fast_enough, card_complete,
)  # fmt: skip


def _rows(evidence: Evidence) -> Iterator[tuple[Modality, PairedRows]]:
    if evidence.pairing is not None:
        yield from ((m, evidence.pairing.rows[m]) for m in MODALITIES if m in evidence.pairing.rows)


def _difference(rows: PairedRows, evidence: Evidence) -> dict[str, PairedDifference]:
    """By axis and "mean"; empty where there is anything that cannot be compared."""
    if not rows.complete:
        return {}
    return bootstrap_paired_mse(
        rows.candidate_N2,
        _known(rows.champion_N2),
        rows.label_N2,
        rows.group_N,
        resamples=evidence.policy.resamples,
        confidence=0.9,  # two-sided, so that its upper end is the one-sided 95 % bound
    )


def _held_against(rule: str, subject: str, found: PairedDifference | None, share: float) -> Finding:
    if found is None:
        return Finding(rule, subject, None, None, passed=False, needs="<=")
    limit = share * found.second
    note = f"MSE {found.first:.4f}, champion {found.second:.4f}, {found.groups} groups"
    passed = found.high <= limit
    return Finding(rule, subject, found.high, limit, passed, note, needs="<=", detail=dataclasses.asdict(found))


def _known(points: NDArray[np.float64] | None) -> NDArray[np.float64]:
    assert points is not None, "PairedRows.complete was asked first"
    return points


def _ndcg(
    query_Q2: NDArray[np.float64],
    gallery_M2: NDArray[np.float64],
    query_label_Q2: NDArray[np.float64],
    gallery_label_M2: NDArray[np.float64],
) -> float:
    return float(retrieval_per_query(query_Q2, gallery_M2, query_label_Q2, gallery_label_M2)["ndcg@10"].mean())


def _has_section(card: str, section: str) -> bool:
    _, heading, rest = f"\n{card}\n".partition(f"\n## {section}\n")
    return bool(heading) and bool(rest.partition("\n## ")[0].strip())
