"""What a model is worth on a dataset's split: every row counted, every figure with its interval and its floor.

Figures of points are over all rows. Figures of pairs (matching, retrieval) cost the product of two modalities' rows:
with more than metrics.PAIRED_ROWS of a modality they are over a random sample of that many, and the report says so.

Shapes: N rows of a modality. Intervals are 95 % percentile bootstrap by group: a song's clips are not independent.
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
from mmva.modalities import AXES, MODALITIES, Modality
from mmva_platform.settings import Settings
from mmva_platform.training.predictions import PredictedRows, predict_rows

if TYPE_CHECKING:
    from mmva.model import MMVA
    from mmva_platform.datasets.dataset import Dataset
    from mmva_platform.datasets.features import Features

RESAMPLES = 1000
Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]


@dataclass(frozen=True)
class Figure:
    """A measured value with its 95 % interval; NaN where it is not defined."""

    value: Number
    low: Number
    high: Number

    def __str__(self) -> str:
        """For people: value [low, high]."""
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


@dataclass(frozen=True)
class Evaluation:
    """A model's figures on one split of one dataset; JSON-able.

    Attributes:
        dataset: URI of the dataset.
        dataset_digest: Its digest; figures compare only within one digest and split.
        split: "test" or another split.
        model_digest: The bundle's digest, None for a model not yet in a bundle.
        rows: Rows evaluated by modality: all there are.
        groups: Songs or images among them.
        metrics: [modality][axis]["mse" | "mae" | "r2" | "pearson" | "ccc"].
        matching: ["image-music" | ...]: MSE of the matching score over all pairs of the two.
        retrieval: ["image->music" | ...]["ndcg@10" | "recall@1" | ... | "random_ndcg@10" | ...].
        floors: [modality][axis]: MSE on these rows of the training split's mean, the best constant one could know (of
            the rows' own mean where a dataset has no training split).
        sigma: Scale of the matching scores.
        warnings: What a reader has to know first, such as leakage.
        clip_split: Plain values of the same recipe's evaluation on a split by clip, which leaks; see leakage.
        sampled: Rows by modality that matching and retrieval were computed on, where that is not all of them.
    """

    dataset: str
    dataset_digest: str
    split: str
    model_digest: str | None
    rows: dict[str, int]
    groups: dict[str, int]
    metrics: dict[str, dict[str, dict[str, Figure]]]
    matching: dict[str, Figure]
    retrieval: dict[str, dict[str, Figure]]
    floors: dict[str, dict[str, float]]
    sigma: float
    warnings: tuple[str, ...] = ()
    clip_split: dict[str, Any] | None = None
    sampled: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is not defined is null."""
        plain: dict[str, Any] = json.loads(TypeAdapter(Evaluation).dump_json(self))
        return plain

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Evaluation:
        """Inverse of to_json."""
        return TypeAdapter(cls).validate_python(plain)

    def to_markdown(self) -> str:
        """Tables for a person: VA metrics beside their floors, matching, retrieval, related systems."""
        from mmva_platform.training.card import evaluation_markdown
        from mmva_platform.training.leakage import clip_split_markdown

        beside = "" if self.clip_split is None else f"\n{clip_split_markdown(self)}"
        return evaluation_markdown(self) + beside


def evaluate(
    bundle_dir: str | Path,
    dataset_uri: str,
    settings: Settings,
    split: str = "test",
    *,
    clip_split: bool = False,
    embeddings: str | None = None,
) -> Evaluation:
    """Evaluate a bundle on a split of a dataset, from stored embeddings.

    Args:
        bundle_dir: The model.
        dataset_uri: The dataset.
        settings: Storage.
        split: Which rows.
        clip_split: Train the recipe once more on a split by clip and put its figures beside (leakage.py); this reads
            the embeddings of all splits.
        embeddings: Where they are, if not inside the dataset or where the model's training read them.

    Raises:
        UsageError: If the bundle, the dataset, the split or the embeddings of the bundle's backbones are not there.
        CheckFailed: If the bundle was altered.
    """
    from mmva.bundle import load_bundle
    from mmva_platform.datasets.dataset import Dataset
    from mmva_platform.datasets.features import load_features
    from mmva_platform.training.leakage import beside_clip_split
    from mmva_platform.training.predictions import embedding_places

    model = load_bundle(bundle_dir, load_encoders=False)
    dataset = Dataset.open(dataset_uri, settings)
    rows = predict_rows(model, dataset_uri, settings, split, embeddings=embeddings)
    evaluation = _evaluation(
        model, rows, uri=dataset.uri, digest=dataset.digest, split=split, means=_label_means(dataset)
    )
    warnings = (*dataset.warnings, *_seen(model, dataset, split), *evaluation.warnings)
    evaluation = replace(evaluation, warnings=warnings)
    if not clip_split:
        return evaluation
    fingerprints = {modality: str(model.backbones[modality]["fingerprint"]) for modality in rows}
    places = embedding_places(model.provenance, dataset_uri, embeddings)
    return beside_clip_split(evaluation, model, load_features(dataset_uri, fingerprints, settings, embeddings=places))


def evaluate_model(model: MMVA, features: Features, split: str = "test") -> Evaluation:
    """Evaluate a model in memory on a split; see evaluate. A modality without rows is named in the warnings."""
    found = {m: f for m, f in features.split(split).items() if m in model.dims and len(f)}
    rows = {m: PredictedRows.of(model, m, f) for m, f in found.items()}
    assert all(len(rows[m].ids) == int((features[m].split == split).sum()) for m in rows), "every row counts"
    means = {m: f.va_N2.mean(axis=0) for m, f in features.split("train").items() if len(f)}
    evaluation = _evaluation(model, rows, uri=features.uri, digest=features.digest, split=split, means=means)
    return replace(evaluation, warnings=(*features.warnings, *evaluation.warnings))


def evaluate_rows(
    features: Features,
    rows: Mapping[Modality, PredictedRows],
    *,
    split: str,
    sigma: float,
    floors: dict[str, dict[str, float]],
) -> Evaluation:
    """Figures of points that are predicted already, such as those of several models on their own folds."""
    where = (features.uri, features.digest, split)
    return replace(_figures_of(rows, where, sigma=sigma, floors=floors), warnings=features.warnings)


def _evaluation(
    model: MMVA,
    rows: Mapping[Modality, PredictedRows],
    *,
    uri: str,
    digest: str,
    split: str,
    means: Mapping[Modality, NDArray[np.float64]],
) -> Evaluation:
    """Figures of a model's rows; `means` are the training split's mean labels [2]."""
    if not rows:
        raise UsageError(f"dataset {uri}: split {split!r} has nothing to evaluate on; splits: train, val, test")
    floors: dict[str, dict[str, float]] = {
        modality: _floor(each, means.get(modality)) for modality, each in rows.items()
    }
    found = _figures_of(rows, (uri, digest, split), sigma=model.config.sigma, floors=floors)
    warnings = tuple(f"split {split!r} has no {m}: not evaluated" for m in model.dims if m not in rows)
    return replace(found, model_digest=model.digest, warnings=warnings)


def _figures_of(
    rows: Mapping[Modality, PredictedRows],
    where: tuple[str, str, str],
    *,
    sigma: float,
    floors: dict[str, dict[str, float]],
) -> Evaluation:
    pairs = {modality: _sample(each) for modality, each in rows.items()}
    uri, digest, split = where
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
        floors=floors,
        sigma=sigma,
        sampled={m: len(each.ids) for m, each in pairs.items() if len(each.ids) < len(rows[m].ids)},
    )


def _sample(rows: PredictedRows) -> PredictedRows:
    from mmva.metrics import sample_rows

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
    """A warning for each modality whose rows the model knows from its training."""
    from mmva_platform.datasets.identity import seen_rows

    record = model.provenance.get("training_data") or {}
    found = {m: seen_rows(record, dataset, m, split) for m in MODALITIES if m in model.dims}
    return [
        f"{each.certain} of {each.rows} {m} rows, or others of their groups, were in the model's training data."
        for m, each in found.items()
        if each.certain
    ]


def intervals_from(model: MMVA, features: Features, split: str = "val") -> dict[str, dict[str, float]]:
    """Half widths of the 90 % intervals per modality and axis, by song or image.

    From validation, which no weight was fitted to. It did choose penalties and the best epoch, so with few groups the
    intervals hold a little less often than nine times in ten (.92 against .94 measured with twelve songs).
    """
    rows = features.split(split)
    return intervals_of({m: PredictedRows.of(model, m, rows[m]) for m in model.dims})


def intervals_of(rows: Mapping[Any, PredictedRows]) -> dict[str, dict[str, float]]:
    """The same from rows that are predicted already."""
    from mmva.intervals import conformal_intervals

    return {m: conformal_intervals(of.predicted_N2, of.label_N2, groups=of.group_N) for m, of in rows.items()}


def reference_of(model: MMVA, features: Features, split: str = "train") -> dict[str, Any]:
    """Quantiles of the model's own points on a split, to measure a catalog's drift by: see mmva.drift.

    Returns:
        {modality: {axis: quantiles}, "items": {modality: N}}; a modality without rows is left out.
    """
    from mmva.drift import reference_quantiles

    rows = {m: f for m, f in features.split(split).items() if m in model.dims and len(f)}
    reference: dict[str, Any] = {"items": {m: len(f) for m, f in rows.items()}}
    for modality, found in rows.items():
        reference[modality] = reference_quantiles(model.predict_embeddings(modality, found.emb_ND))
    return reference


def _va_figures(rows: PredictedRows) -> dict[str, dict[str, Figure]]:
    from mmva.bootstrap import bootstrap
    from mmva.metrics import va_metrics

    values = va_metrics(rows.predicted_N2, rows.label_N2)
    intervals = bootstrap(rows.predicted_N2, rows.label_N2, rows.group_N, resamples=RESAMPLES)
    return {
        axis: {name: Figure(value, *intervals[axis][name]) for name, value in values[axis].items()} for axis in AXES
    }


def _matching(rows: Mapping[Modality, PredictedRows], sigma: float) -> dict[str, Figure]:
    from mmva.bootstrap import bootstrap_matching
    from mmva.metrics import matching_mse

    figures = {}
    for a, b in itertools.combinations([m for m in MODALITIES if m in rows], 2):
        points = (rows[a].predicted_N2, rows[b].predicted_N2, rows[a].label_N2, rows[b].label_N2)
        interval = bootstrap_matching(
            *points, groups_a=rows[a].group_N, groups_b=rows[b].group_N, sigma=sigma, resamples=RESAMPLES
        )
        figures[f"{a}-{b}"] = Figure(matching_mse(*points, sigma=sigma), *interval)
    return figures


def _retrieval(rows: Mapping[Modality, PredictedRows], sigma: float) -> dict[str, dict[str, Figure]]:
    from mmva.bootstrap import bootstrap_mean
    from mmva.retrieval import retrieval_per_query

    figures = {}
    for a, b in itertools.permutations([m for m in MODALITIES if m in rows], 2):
        query, gallery = rows[a], rows[b]
        values = retrieval_per_query(
            query.predicted_N2, gallery.predicted_N2, query.label_N2, gallery.label_N2, sigma=sigma
        )
        figures[f"{a}->{b}"] = {
            name: Figure(float(value_Q.mean()), *bootstrap_mean(value_Q, query.group_N, resamples=RESAMPLES))
            for name, value_Q in values.items()
        }
    return figures


def _floor(rows: PredictedRows, mean_2: NDArray[np.float64] | None) -> dict[str, float]:
    """MSE of the training split's mean on these rows, of their own mean where there is no training split."""
    constant_2 = rows.label_N2.mean(axis=0) if mean_2 is None else mean_2
    errors_2 = np.square(rows.label_N2 - constant_2).mean(axis=0)
    return {axis: float(error) for axis, error in zip(AXES, errors_2, strict=True)}
