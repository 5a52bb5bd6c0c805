"""The evidence of the gate: candidate, champion and the best champions so far, on the N rows of one exam."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmva.errors import CheckFailed, OperationFailed, UsageError
from mmva.modalities import MODALITIES, Modality
from mmva.models.bundle import load_bundle
from mmva_platform.datasets.identity import Seen, seen_rows, shared_groups
from mmva_platform.settings import Settings
from mmva_platform.tracking.audit import AuditLog, Record
from mmva_platform.tracking.gate.policy import Exam, GatePolicy
from mmva_platform.tracking.registry import RegisteredVersion, evaluation_of, versions_of
from mmva_platform.tracking.resolve import resolve_model

if TYPE_CHECKING:
    from mlflow import MlflowClient

Points = NDArray[np.float64]


@dataclass(frozen=True)
class ModelFacts:
    """The gate's facts from a version's bundle."""

    modalities: tuple[Modality, ...]  # its towers
    intervals: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # half widths by modality and axis
    shared_groups: int | None = None  # groups in more than one split of its training data; None if unknown
    seen: Mapping[Modality, Seen] | None = None  # exam rows that it was trained on; None if unknown


@dataclass(frozen=True)
class ExamRows:
    """One modality's rows of the exam."""

    label_N2: Points
    points: Mapping[int, Points]  # predicted points [N, 2] by version, for versions with this tower
    group_N: NDArray[np.str_]  # song, image or another group
    source_N: NDArray[np.str_]  # collection
    trait_N: NDArray[np.float64] | None = None  # loudness of music in dBFS, brightness of images in [0, 1], if measured

    def known(self, *versions: int) -> bool:
        """Whether there are rows and each of these versions has a finite point for all of them."""
        points = [self.label_N2, *(self.points.get(version) for version in versions)]
        return len(self.label_N2) > 0 and all(
            each is not None and each.shape == self.label_N2.shape and bool(np.isfinite(each).all()) for each in points
        )

    def where(self, mask_N: NDArray[np.bool_]) -> ExamRows:
        """The rows where the mask is True."""
        points = {version: each[mask_N] for version, each in self.points.items()}
        return ExamRows(self.label_N2[mask_N], points, self.group_N[mask_N], self.source_N[mask_N])


@dataclass(frozen=True)
class Examined:
    """The versions' results on the exam."""

    digest: str  # of the dataset at the exam's URI
    shared_groups: int  # groups in more than one of its splits
    expected: Mapping[str, int]  # rows of the split by modality, as dataset.json counts them
    rows: Mapping[Modality, ExamRows]  # by modality of the candidate
    models: Mapping[int, ModelFacts]  # by version


@dataclass(frozen=True)
class Evidence:
    """The basis of a verdict; without a champion only the absolute rules apply."""

    candidate: int
    champion: int | None
    policy: GatePolicy
    exam: Exam | None = None  # None if it could not be determined
    examined: Examined | None = None  # None if the exam was not possible
    best: Mapping[Modality, int] = field(default_factory=dict)  # best champion that passed the gate on this exam
    trouble: str = ""  # why the exam was not possible, in one line

    def figures(self) -> dict[str, dict[str, float]]:
        """Mean MSE of both axes by version and modality; recorded, so that best champions can be found later."""
        found: dict[str, dict[str, float]] = {}
        for modality, rows in self.examined.rows.items() if self.examined else ():
            for version in rows.points:
                if rows.known(version):
                    error = float(np.square(rows.points[version] - rows.label_N2).mean())
                    found.setdefault(str(version), {})[modality] = error
        return found


def gather(
    client: MlflowClient,
    settings: Settings,
    candidate: RegisteredVersion,
    champion: RegisteredVersion | None,
    policy: GatePolicy,
) -> Evidence:
    """The rules' input. If the exam is not possible, the evidence says why.

    Raises UsageError if the candidate's bundle does not exist, CheckFailed if its bundle or evaluation was changed.
    """
    records = AuditLog.of(settings).read()
    holder = None if champion is None else champion.version
    evaluation = evaluation_of(client, candidate)
    bundles = {candidate.version: _bundle(candidate.name, candidate.version, settings)}
    best: dict[Modality, int] = {}
    exam = None
    try:
        exam = policy.exam or _exam_of(evaluation if champion is None else _judged_on(client, champion, records))
        known = {each.version for each in versions_of(client, candidate.name)}
        best = best_champions(records, exam, known) if champion else {}
        others = {version for version in (holder, *best.values()) if version is not None} - bundles.keys()
        bundles |= {version: _bundle(candidate.name, version, settings) for version in sorted(others)}
        examined = examine(exam, bundles, settings, policy, candidate.version)
    except (UsageError, CheckFailed, OperationFailed) as error:
        return Evidence(candidate.version, holder, policy, exam, trouble=str(error))
    return Evidence(candidate.version, holder, policy, exam, examined, best)


def best_champions(records: Iterable[Record], exam: Exam, known: set[int]) -> dict[Modality, int]:
    """By modality, the version with the lowest recorded MSE on the exam of the known ones that passed the gate."""
    found: dict[Modality, dict[int, float]] = {}
    passed = known & {r["candidate"] for r in records if r["action"] == "promote" and r["outcome"] == "passed"}
    for record in records:
        judged_on = record.get("exam") or {}
        if (judged_on.get("digest"), judged_on.get("split")) == (exam.digest, exam.split):
            for version, figures in record["figures"].items():
                for modality in MODALITIES:
                    if int(version) in passed and modality in figures:
                        found.setdefault(modality, {})[int(version)] = figures[modality]
    return {modality: min(errors, key=errors.__getitem__) for modality, errors in found.items()}


def examine(
    exam: Exam, bundles: Mapping[int, Path], settings: Settings, policy: GatePolicy, candidate: int
) -> Examined:
    """Predict the exam with each bundle, by version; their backbones may differ, but all embeddings must exist.

    Measures loudness and brightness only if the policy's slices need them. Raises UsageError if the dataset or
    embeddings of a bundle's backbones do not exist, CheckFailed if files are not the published ones, OperationFailed if
    media of the dataset cannot be decoded here.
    """
    from mmva_platform.datasets.dataset import Dataset
    from mmva_platform.datasets.traits import TRAITS, measure, sources_of
    from mmva_platform.training.evaluation.predictions import predict_rows

    dataset = Dataset.open(exam.dataset, settings)
    models, predicted = {}, {}
    for version, bundle in bundles.items():
        model = load_bundle(bundle, load_encoders=False)
        predicted[version] = predict_rows(model, exam.dataset, settings, exam.split, embeddings=exam.embeddings)
        towers: tuple[Modality, ...] = tuple(modality for modality in MODALITIES if modality in model.dims)
        models[version] = ModelFacts(towers, model.intervals)
        if (record := model.provenance.get("training_data")) is not None:
            seen = {m: seen_rows(record, dataset, m, exam.split) for m in towers}
            models[version] = ModelFacts(towers, model.intervals, record["shared_groups"], seen)
    rows: dict[Modality, ExamRows] = {}
    for modality, own in predicted[candidate].items():
        measured = policy.slices.apply and TRAITS.get(modality) in policy.slices.by
        rows[modality] = ExamRows(
            own.label_N2,
            {version: found[modality].predicted_N2 for version, found in predicted.items() if modality in found},
            own.group_N,
            sources_of(dataset, modality, own.ids),
            measure(dataset, modality, own.ids.tolist(), settings) if measured else None,
        )
    expected = {modality: counts.get(exam.split, 0) for modality, counts in dataset.info.counts.items()}
    return Examined(dataset.digest, shared_groups(dataset), expected, rows, models)


def _bundle(name: str, version: int, settings: Settings) -> Path:
    return resolve_model(f"models:/{name}/{version}", settings).bundle_dir


def _judged_on(client: MlflowClient, champion: RegisteredVersion, records: Sequence[Record]) -> Mapping[str, Any]:
    """The exam of a version's promotion; without a record, the dataset of its evaluation."""
    for record in reversed(records):
        if record["action"] == "promote" and record["candidate"] == champion.version and record.get("exam"):
            return dict(record["exam"])
    return evaluation_of(client, champion)


def _exam_of(facts: Mapping[str, Any]) -> Exam:
    """The exam in a record's or an evaluation's fields."""
    try:
        digest, embeddings = facts.get("digest") or facts["dataset_digest"], facts.get("embeddings")
        return Exam(dataset=facts["dataset"], digest=digest, split=facts["split"], embeddings=embeddings)
    except (KeyError, ValueError):
        raise UsageError(
            "no exam: the policy names none, and the evaluation has no dataset with a digest and a split"
        ) from None
