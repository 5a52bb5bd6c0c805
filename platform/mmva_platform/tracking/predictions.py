"""Predicted beside labelled VA points of a dataset's split, from the embeddings that stand beside the dataset."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mmva.modalities import MODALITIES, Modality
from mmva_platform.settings import Settings

if TYPE_CHECKING:
    from mmva_platform.datasets.features import ModalityFeatures

Points = NDArray[np.float64]


def predict_split(
    bundle_dir: Path, dataset: str, settings: Settings, split: str = "test"
) -> Mapping[str, tuple[Points, Points]]:
    """Predicted and labelled VA points, [N, 2] each, by modality; raises as predicted_rows."""
    return {
        modality: (points_N2, np.asarray(features.va_N2, np.float64))
        for modality, (features, points_N2, _) in predicted_rows(bundle_dir, dataset, settings, split).items()
    }


def predicted_rows(
    bundle_dir: Path, dataset_uri: str, settings: Settings, split: str
) -> dict[Modality, tuple[ModalityFeatures, NDArray[np.float64], float]]:
    """Rows, points [N, 2] and the head's seconds by modality, where the split has rows.

    Raises:
        UsageError: If the bundle, the dataset or the embeddings of the bundle's backbones are not there.
    """
    from mmva.bundle import load_bundle
    from mmva_platform.datasets.features import load_features

    model = load_bundle(bundle_dir, load_encoders=False)
    known = [modality for modality in MODALITIES if modality in model.dims]
    fingerprints = {modality: str(model.backbones[modality]["fingerprint"]) for modality in known}
    features = load_features(dataset_uri, fingerprints, settings).split(split)
    found: dict[Modality, tuple[ModalityFeatures, NDArray[np.float64], float]] = {}
    for modality in known:
        if modality in features and len(features[modality]):
            started = time.perf_counter()
            points_N2 = model.predict_embeddings(modality, features[modality].emb_ND)
            found[modality] = (features[modality], points_N2.astype(np.float64), time.perf_counter() - started)
    return found
