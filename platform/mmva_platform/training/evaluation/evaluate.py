"""A model's errors on a split of a dataset: over all rows, with intervals and floors.

Figures of points use all rows. The cost of figures of pairs (matching, retrieval) is the product of two modalities'
rows: above metrics.PAIRED_ROWS of a modality they use a random sample of that size, and the report says so. Intervals
are 95 % percentile bootstrap by group, because a song's clips are not independent. Shapes: N rows of a modality.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, TypeAdapter
from pydantic.dataclasses import dataclass

from mmva.errors import UsageError
from mmva.evaluation.bootstrap import bootstrap, bootstrap_matching, bootstrap_means
from mmva.evaluation.drift import reference_quantiles
from mmva.evaluation.intervals import conformal_intervals
from mmva.evaluation.metrics import matching_mse, sample_rows, va_metrics
from mmva.evaluation.retrieval import retrieval_per_query
from mmva.modalities import AXES, MODALITIES, Modality
from mmva_platform.settings import Settings
from mmva_platform.training.evaluation.card import evaluation_markdown
from mmva_platform.training.evaluation.predictions import PredictedRows, predict_rows

if TYPE_CHECKING:
    from mmva.models.model import MMVA
    from mmva_platform.datasets.dataset import Dataset
    from mmva_platform.datasets.features import Features

RESAMPLES = 1000
Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]


@dataclass(frozen=True)
class Figure:
    """A measured value with its 95 % interval; NaN if undefined."""

    value: Number
    low: Number
    high: Number

    def __str__(self) -> str:
        """For example "0.0123 [0.0110, 0.0137]"."""
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


@dataclass(frozen=True)
class Evaluation:
    """A model's figures on one split of one dataset."""

    dataset: str  # URI
    dataset_digest: str  # figures are comparable only within one digest and split
    split: str
    model_digest: str | None  # the bundle's; None for a model that is not yet in a bundle
    rows: dict[str, int]  # all of the split, by modality
    groups: dict[str, int]  # songs or images among them
    metrics: dict[str, dict[str, dict[str, Figure]]]  # [modality][axis]["mse" | "mae" | "r2" | "pearson" | "ccc"]
    matching: dict[str, Figure]  # ["image-music" | ...]: MSE of the matching score over all pairs of the two
    retrieval: dict[str, dict[str, Figure]]  # ["image->music" | ...]["ndcg@10" | ... | "random_ndcg@10" | ...]
    # [modality][axis]: MSE of the training split's mean on these rows; of the rows' own mean without a training split.
    floors: dict[str, dict[str, float]]
    sigma: float  # scale of the matching scores
    warnings: tuple[str, ...] = ()  # shown first, such as leakage
    clip_split: dict[str, Any] | None = None  # to_json() of the recipe on a split by clip; see leakage
    sampled: dict[str, int] = field(default_factory=dict)  # rows used for pairs by modality, if not all

    def to_json(self) -> dict[str, Any]:
        """Plain values; undefined ones are null."""
        plain: dict[str, Any] = json.loads(TypeAdapter(Evaluation).dump_json(self))
        return plain

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Evaluation:
        """Inverse of to_json."""
        return TypeAdapter(cls).validate_python(plain)

    def to_markdown(self) -> str:
        """Tables of VA metrics with floors, matching, retrieval and related systems."""
        return evaluation_markdown(self, None if self.clip_split is None else Evaluation.from_json(self.clip_split))


def evaluate(
    bundle_dir: str | Path, dataset_uri: str, settings: Settings, split: str = "test", *, embeddings: str | None = None
) -> Evaluation:
    """Evaluate a bundle on a split of a dataset, from embeddings stored inside the dataset or in `embeddings`.

    Raises UsageError if the bundle, the dataset, the split or the embeddings of the bundle's backbones do not exist,
    CheckFailed if the bundle was changed.
    """
    from mmva.models.bundle import load_bundle
    from mmva_platform.datasets.dataset import Dataset

    model = load_bundle(bundle_dir, load_encoders=False)
    dataset = Dataset.open(dataset_uri, settings)
    rows = predict_rows(model, dataset_uri, settings, split, embeddings=embeddings)
    where = (dataset.uri, dataset.digest, split)
    warnings = (*dataset.warnings, *_seen(model, dataset, split))
    return _of_model(model, rows, where, means=_label_means(dataset), warnings=warnings)


def evaluate_model(model: MMVA, features: Features, split: str = "test") -> Evaluation:
    """Evaluate a model in memory on a split; see evaluate. Modalities without rows are named in the warnings."""
    found = {m: f for m, f in features.split(split).items() if m in model.dims and len(f)}
    rows = {m: PredictedRows.of(model, m, f) for m, f in found.items()}
    assert all(len(rows[m].ids) == int((features[m].split == split).sum()) for m in rows), "every row is evaluated"
    means = {m: f.va_N2.mean(axis=0) for m, f in features.split("train").items() if len(f)}
    where = (features.uri, features.digest, split)
    return _of_model(model, rows, where, means=means, warnings=features.warnings)


def _of_model(
    model: MMVA,
    rows: Mapping[Modality, PredictedRows],
    where: tuple[str, str, str],
    *,
    means: Mapping[Modality, NDArray[np.float64]],
    warnings: tuple[str, ...],
) -> Evaluation:
    """Figures of a model's rows; `means` are mean labels [2] of the training split, by default of the rows."""
    uri, _, split = where
    if not rows:
        raise UsageError(f"dataset {uri}: split {split!r} has no rows to evaluate; splits: train, val, test")
    constants = {m: means.get(m, each.label_N2.mean(axis=0)) for m, each in rows.items()}
    absent = tuple(f"split {split!r} has no {m} rows: not evaluated" for m in model.dims if m not in rows)
    found = evaluate_rows(rows, where, constants, model.config.sigma, (*warnings, *absent))
    return replace(found, model_digest=model.digest)


def evaluate_rows(
    rows: Mapping[Modality, PredictedRows],
    where: tuple[str, str, str],
    constants: Mapping[Modality, NDArray[np.float64]],
    sigma: float,
    warnings: tuple[str, ...] = (),
) -> Evaluation:
    """Figures of predicted points, also of several models on their own folds.

    `where` is the dataset's URI, its digest and the split. `constants` are the constant predictions by modality, [2] or
    one per row [N, 2], whose MSE is the floor. `warnings` are shown above the figures.
    """
    pairs = {modality: _sample(each) for modality, each in rows.items()}
    uri, digest, split = where
    floors = {m: np.square(each.label_N2 - constants[m]).mean(axis=0).tolist() for m, each in rows.items()}
    return Evaluation(
        dataset=uri,
        dataset_digest=digest,
        split=split,
        model_digest=None,
        rows={modality: len(each.ids) for modality, each in rows.items()},
        groups={modality: len(np.unique(each.group_N)) for modality, each in rows.items()},
        metrics={modality: _va_figures(each) for modality, each in rows.items()},
        matching=_matching(pairs, sigma),
        retrieval=_retrieval(pairs, sigma),
        floors={modality: dict(zip(AXES, errors, strict=True)) for modality, errors in floors.items()},
        sigma=sigma,
        warnings=warnings,
        sampled={m: len(each.ids) for m, each in pairs.items() if len(each.ids) < len(rows[m].ids)},
    )


def _sample(rows: PredictedRows) -> PredictedRows:
    drawn = sample_rows(len(rows.ids))
    return PredictedRows(rows.ids[drawn], rows.label_N2[drawn], rows.predicted_N2[drawn], rows.group_N[drawn])


def _label_means(dataset: Dataset) -> dict[Modality, NDArray[np.float64]]:
    """Mean labels [2] of the training split by modality."""
    labels = dataset.labels().select(["modality", "split", "caption", *AXES]).to_pandas()
    train = labels[labels["split"] == "train"]
    means = {m: train[train["modality"] == m] for m in MODALITIES}
    means["caption"] = train[train["caption"] != ""]
    return {m: own[list(AXES)].to_numpy(np.float64).mean(axis=0) for m, own in means.items() if len(own)}


def _seen(model: MMVA, dataset: Dataset, split: str) -> list[str]:
    """A warning for each modality of which the model was trained on rows."""
    from mmva_platform.datasets.identity import seen_rows

    record = model.provenance.get("training_data") or {}
    found = {m: seen_rows(record, dataset, m, split) for m in MODALITIES if m in model.dims}
    text = "{} of {} {} rows, or others of their groups, were in the model's training data."
    return [text.format(each.certain, each.rows, m) for m, each in found.items() if each.certain]


def intervals_from(model: MMVA, features: Features, split: str = "val") -> dict[str, dict[str, float]]:
    """Half widths of the 90 % intervals per modality and axis, calibrated by group on validation.

    Validation also chose penalties and the best epoch, so with few groups they hold slightly fewer than 90 %
    (docs/method.md).
    """
    rows = features.split(split)
    return intervals_of({m: PredictedRows.of(model, m, rows[m]) for m in model.dims})


def intervals_of(rows: Mapping[Any, PredictedRows]) -> dict[str, dict[str, float]]:
    """Half widths of the 90 % intervals per modality and axis, from predicted rows."""
    return {m: conformal_intervals(of.predicted_N2, of.label_N2, groups=of.group_N) for m, of in rows.items()}


def reference_of(model: MMVA, features: Features) -> dict[str, Any]:
    """Quantiles of the model's points on the training split, the reference for a catalog's drift (evaluation.drift).

    {modality: {axis: quantiles}, "items": {modality: N}}; modalities without rows are left out.
    """
    rows = {m: f for m, f in features.split("train").items() if m in model.dims and len(f)}
    reference: dict[str, Any] = {"items": {m: len(f) for m, f in rows.items()}}
    for modality, found in rows.items():
        reference[modality] = reference_quantiles(model.predict_embeddings(modality, found.emb_ND))
    return reference


def _va_figures(rows: PredictedRows) -> dict[str, dict[str, Figure]]:
    values = va_metrics(rows.predicted_N2, rows.label_N2)
    intervals = bootstrap(rows.predicted_N2, rows.label_N2, rows.group_N, resamples=RESAMPLES)
    return {axis: {name: Figure(of, *intervals[axis][name]) for name, of in values[axis].items()} for axis in AXES}


def _matching(rows: Mapping[Modality, PredictedRows], sigma: float) -> dict[str, Figure]:
    figures = {}
    for a, b in itertools.combinations([m for m in MODALITIES if m in rows], 2):
        points = (rows[a].predicted_N2, rows[b].predicted_N2, rows[a].label_N2, rows[b].label_N2)
        interval = bootstrap_matching(
            *points, groups_a=rows[a].group_N, groups_b=rows[b].group_N, sigma=sigma, resamples=RESAMPLES
        )
        figures[f"{a}-{b}"] = Figure(matching_mse(*points, sigma=sigma), *interval)
    return figures


def _retrieval(rows: Mapping[Modality, PredictedRows], sigma: float) -> dict[str, dict[str, Figure]]:
    figures = {}
    for a, b in itertools.permutations([m for m in MODALITIES if m in rows], 2):
        points = (rows[a].predicted_N2, rows[b].predicted_N2, rows[a].label_N2, rows[b].label_N2)
        values = retrieval_per_query(*points, sigma=sigma)
        intervals = bootstrap_means(values, rows[a].group_N, resamples=RESAMPLES)
        figures[f"{a}->{b}"] = {name: Figure(float(of.mean()), *intervals[name]) for name, of in values.items()}
    return figures
