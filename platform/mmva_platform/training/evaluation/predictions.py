"""A model's points on one split of a dataset, from stored embeddings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mmva.modalities import MODALITIES, Modality
from mmva_platform.settings import Settings

if TYPE_CHECKING:
    from mmva.models.model import MMVA
    from mmva_platform.datasets.features import Features, FeatureSets, ModalityFeatures

Points = NDArray[np.float64]


@dataclass(frozen=True)
class PredictedRows:
    """One modality's rows of a split: ids [N], labels and predicted points [N, 2], groups [N]."""

    ids: NDArray[np.str_]
    label_N2: Points
    predicted_N2: Points
    group_N: NDArray[np.str_]

    @classmethod
    def of(cls, model: MMVA, modality: str, rows: ModalityFeatures) -> PredictedRows:
        """The model's points for these rows."""
        predicted_N2 = model.predict_embeddings(modality, rows.emb_ND).astype(np.float64)
        return cls(rows.ids, np.asarray(rows.va_N2, np.float64), predicted_N2, rows.group)


def open_model_sets(
    model: MMVA, dataset_uri: str, settings: Settings, modalities: Iterable[str], embeddings: str | None = None
) -> FeatureSets:
    """A dataset's stored embeddings, by a model's backbones.

    Searched in `embeddings`, in the dataset, and where the model's training read them. Raises UsageError if the dataset
    or such embeddings do not exist.
    """
    from mmva_platform.datasets.features import FeatureSets

    recorded = (model.provenance.get("recipe") or {}).get("embeddings")
    places = [each for each in (embeddings, f"{dataset_uri.rstrip('/')}/embeddings", recorded) if each]
    known = {m: str(model.backbones[m]["fingerprint"]) for m in MODALITIES if m in modalities}
    return FeatureSets.open(dataset_uri, known, settings, embeddings=places)


def model_features(
    model: MMVA, dataset_uri: str, settings: Settings, modalities: Iterable[str], embeddings: str | None = None
) -> Features:
    """All rows of open_model_sets in memory. Raises CheckFailed if files are not the published ones."""
    sets = open_model_sets(model, dataset_uri, settings, modalities, embeddings)
    return sets.describe({modality: sets.load(modality) for modality in sets.infos})


def predict_rows(
    model: MMVA, dataset_uri: str, settings: Settings, split: str = "test", *, embeddings: str | None = None
) -> dict[Modality, PredictedRows]:
    """Predict a split; modalities without rows are left out. Raises as open_model_sets.

    Only one modality's rows of the split are in memory at a time.
    """
    from mmva_platform.datasets.dataset import Dataset

    has_rows = {m for m, counts in Dataset.open(dataset_uri, settings).info.counts.items() if counts.get(split)}
    sets = open_model_sets(model, dataset_uri, settings, has_rows & model.dims.keys(), embeddings)
    return {m: PredictedRows.of(model, m, sets.load(m, split=split)) for m in MODALITIES if m in sets.infos}
