"""A bundle's points on one split of a dataset, from stored embeddings and one modality at a time.

Memory is that of the split's rows of one modality, whatever the size of the dataset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmva.modalities import MODALITIES, Modality
from mmva_platform.settings import Settings

if TYPE_CHECKING:
    from mmva.model import MMVA
    from mmva_platform.datasets.features import ModalityFeatures

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


def embedding_places(provenance: Mapping[str, Any], dataset_uri: str, given: str | None = None) -> Sequence[str]:
    """Where embeddings of a dataset may be: where the caller says, inside the dataset, and where training read them."""
    recorded = (provenance.get("recipe") or {}).get("embeddings")
    inside = f"{dataset_uri.rstrip('/')}/embeddings"
    return [place for place in (given, inside, recorded) if place]


def predict_rows(
    model: MMVA, dataset_uri: str, settings: Settings, split: str = "test", *, embeddings: str | None = None
) -> dict[Modality, PredictedRows]:
    """Predict a split; modalities that the split has no rows of are left out.

    Args:
        model: Loaded, with or without its encoders.
        dataset_uri: The dataset.
        settings: Storage.
        split: Which rows.
        embeddings: Where the embeddings are; see embedding_places for where else they are looked for.

    Raises:
        UsageError: If the dataset, or embeddings of the model's backbones, are not there.
        CheckFailed: If files are not the published ones.
    """
    from mmva_platform.datasets.dataset import Dataset
    from mmva_platform.datasets.features import FeatureSets

    has_rows = {m for m, counts in Dataset.open(dataset_uri, settings).info.counts.items() if counts.get(split)}
    known: list[Modality] = [modality for modality in MODALITIES if modality in model.dims and modality in has_rows]
    fingerprints = {modality: str(model.backbones[modality]["fingerprint"]) for modality in known}
    places = embedding_places(model.provenance, dataset_uri, embeddings)
    sets = FeatureSets.open(dataset_uri, fingerprints, settings, embeddings=places)
    return {modality: PredictedRows.of(model, modality, sets.load(modality, split=split)) for modality in known}


def predict_split(
    bundle_dir: Path, dataset: str, settings: Settings, split: str = "test"
) -> Mapping[str, tuple[Points, Points]]:
    """Predicted and labelled VA points, [N, 2] each, by modality; raises as load_bundle and predict_rows."""
    from mmva.bundle import load_bundle

    found = predict_rows(load_bundle(bundle_dir, load_encoders=False), dataset, settings, split)
    return {modality: (rows.predicted_N2, rows.label_N2) for modality, rows in found.items()}
