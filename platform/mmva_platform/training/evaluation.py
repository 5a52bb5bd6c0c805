"""What a model is worth on a dataset's split: every row counted, every figure with its interval and its floor.

Shapes: N rows of a modality. Intervals are 95 % percentile bootstrap by group: a song's clips are not independent.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmva.errors import UsageError
from mmva.modalities import AXES, MODALITIES, Modality
from mmva_platform.settings import Settings

if TYPE_CHECKING:
    from mmva.model import MMVA
    from mmva_platform.datasets.features import Features, ModalityFeatures

RESAMPLES = 1000


@dataclass(frozen=True)
class Figure:
    """A measured value with its 95 % interval; NaN where it is not defined."""

    value: float
    low: float
    high: float

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

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is not defined is null."""
        plain: dict[str, Any] = _without_nan(asdict(self))
        return plain

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Evaluation:
        """Inverse of to_json."""
        values = dict(plain)
        values["metrics"] = {
            modality: {axis: _figures(figures) for axis, figures in axes.items()}
            for modality, axes in plain["metrics"].items()
        }
        values["matching"] = _figures(plain["matching"])
        values["retrieval"] = {pair: _figures(figures) for pair, figures in plain["retrieval"].items()}
        values["warnings"] = tuple(plain["warnings"])
        return cls(**values)

    def scalars(self) -> dict[str, float]:
        """Every defined figure under one flat name, such as "music/arousal/r2": what a tracker logs."""
        flat = {f"matching_mse/{pair}": figure.value for pair, figure in self.matching.items()}
        for modality, axes in self.metrics.items():
            for axis, figures in axes.items():
                flat |= {f"{modality}/{axis}/{name}": figure.value for name, figure in figures.items()}
                flat[f"{modality}/{axis}/floor_mse"] = self.floors[modality][axis]
        for pair, figures in self.retrieval.items():
            flat |= {f"retrieval/{pair}/{name}": figure.value for name, figure in figures.items()}
        return {name: value for name, value in flat.items() if math.isfinite(value)}

    def to_markdown(self) -> str:
        """Tables for a person: VA metrics beside their floors, matching, retrieval, related systems."""
        from mmva_platform.training.card import evaluation_markdown
        from mmva_platform.training.leakage import clip_split_markdown

        beside = "" if self.clip_split is None else f"\n{clip_split_markdown(self)}"
        return evaluation_markdown(self) + beside


def evaluate(
    bundle_dir: str | Path, dataset_uri: str, settings: Settings, split: str = "test", *, clip_split: bool = False
) -> Evaluation:
    """Evaluate a bundle on a split of a dataset, from the embeddings that stand beside the dataset.

    Args:
        bundle_dir: The model.
        dataset_uri: The dataset.
        settings: Storage.
        split: Which rows.
        clip_split: Train the recipe once more on a split by clip and put its figures beside (leakage.py).

    Raises:
        UsageError: If the bundle, the dataset, the split or the embeddings of the bundle's backbones are not there.
        CheckFailed: If the bundle was altered.
    """
    from mmva.bundle import load_bundle
    from mmva_platform.datasets.features import load_features
    from mmva_platform.training.leakage import beside_clip_split

    model = load_bundle(bundle_dir, load_encoders=False)
    fingerprints = {
        modality: str(model.backbones[modality]["fingerprint"]) for modality in MODALITIES if modality in model.dims
    }
    features = load_features(dataset_uri, fingerprints, settings)
    evaluation = evaluate_model(model, features, split)
    return beside_clip_split(evaluation, model, features) if clip_split else evaluation


def evaluate_model(model: MMVA, features: Features, split: str = "test") -> Evaluation:
    """Evaluate a model in memory on a split; see evaluate. A modality without rows is named in the warnings."""
    rows = {m: f for m, f in features.split(split).items() if m in model.dims and len(f)}
    if not rows:
        raise UsageError(
            f"dataset {features.uri}: split {split!r} has nothing to evaluate on; splits: train, val, test"
        )
    missing = [f"split {split!r} has no {m}: not evaluated" for m in model.dims if m not in rows]
    predicted = {m: model.predict_embeddings(m, f.emb_ND).astype(np.float64) for m, f in rows.items()}
    assert all(len(predicted[m]) == int((features[m].split == split).sum()) for m in rows), "every row counts"
    sigma = model.config.sigma
    return Evaluation(
        dataset=features.uri,
        dataset_digest=features.digest,
        split=split,
        model_digest=model.digest,
        rows={modality: len(predicted[modality]) for modality in rows},
        groups={modality: len(np.unique(f.group)) for modality, f in rows.items()},
        metrics={modality: _va_figures(predicted[modality], f) for modality, f in rows.items()},
        matching=_matching(predicted, rows, sigma),
        retrieval=_retrieval(predicted, rows, sigma),
        floors=_floors(rows, features.split("train")),
        sigma=sigma,
        warnings=(*features.warnings, *missing),
    )


def intervals_from(model: MMVA, features: Features, split: str = "val") -> dict[str, dict[str, float]]:
    """Half widths of the 90 % intervals per modality and axis, by song or image, from a split unseen by training."""
    from mmva.intervals import conformal_intervals

    rows = features.split(split)
    return {
        m: conformal_intervals(model.predict_embeddings(m, rows[m].emb_ND), rows[m].va_N2, groups=rows[m].group)
        for m in model.dims
    }


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


def _va_figures(predicted_N2: NDArray[np.float64], rows: ModalityFeatures) -> dict[str, dict[str, Figure]]:
    from mmva.bootstrap import bootstrap
    from mmva.metrics import va_metrics

    values = va_metrics(predicted_N2, rows.va_N2)
    intervals = bootstrap(predicted_N2, rows.va_N2, rows.group, resamples=RESAMPLES)
    return {
        axis: {name: Figure(value, *intervals[axis][name]) for name, value in values[axis].items()} for axis in AXES
    }


def _matching(
    predicted: Mapping[Modality, NDArray[np.float64]], rows: Mapping[Modality, ModalityFeatures], sigma: float
) -> dict[str, Figure]:
    from mmva.bootstrap import bootstrap_matching
    from mmva.metrics import matching_mse

    figures = {}
    for a, b in itertools.combinations([m for m in MODALITIES if m in rows], 2):
        points = (predicted[a], predicted[b], rows[a].va_N2, rows[b].va_N2)
        interval = bootstrap_matching(
            *points, groups_a=rows[a].group, groups_b=rows[b].group, sigma=sigma, resamples=RESAMPLES
        )
        figures[f"{a}-{b}"] = Figure(matching_mse(*points, sigma=sigma), *interval)
    return figures


def _retrieval(
    predicted: Mapping[Modality, NDArray[np.float64]], rows: Mapping[Modality, ModalityFeatures], sigma: float
) -> dict[str, dict[str, Figure]]:
    from mmva.bootstrap import bootstrap_mean
    from mmva.retrieval import retrieval_per_query

    figures = {}
    for query, gallery in itertools.permutations([m for m in MODALITIES if m in rows], 2):
        values = retrieval_per_query(
            predicted[query], predicted[gallery], rows[query].va_N2, rows[gallery].va_N2, sigma=sigma
        )
        figures[f"{query}->{gallery}"] = {
            name: Figure(float(value_Q.mean()), *bootstrap_mean(value_Q, rows[query].group, resamples=RESAMPLES))
            for name, value_Q in values.items()
        }
    return figures


def _floors(
    rows: Mapping[Modality, ModalityFeatures], train: Mapping[Modality, ModalityFeatures]
) -> dict[str, dict[str, float]]:
    floors: dict[str, dict[str, float]] = {}
    for modality, test in rows.items():
        source = train[modality] if modality in train and len(train[modality].ids) else test
        errors_2 = np.square(test.va_N2 - source.va_N2.mean(axis=0)).mean(axis=0)
        floors[modality] = {axis: float(error) for axis, error in zip(AXES, errors_2, strict=True)}
    return floors


def _figures(plain: Mapping[str, Mapping[str, float | None]]) -> dict[str, Figure]:
    return {
        name: Figure(**{key: math.nan if value is None else value for key, value in figure.items()})
        for name, figure in plain.items()
    }


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
