"""Predicted beside labelled VA points of a dataset's split: what the plots of a training run show."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmva.modalities import MODALITIES
from mmva_platform.settings import Settings

Points = NDArray[np.float64]


def predict_split(
    bundle_dir: Path, dataset: str, settings: Settings, split: str = "test"
) -> Mapping[str, tuple[Points, Points]]:
    """Predicted and labelled VA points, [N, 2] each, by modality, from the embeddings that stand beside the dataset.

    Raises:
        UsageError: If the bundle, the dataset or the embeddings of the bundle's backbones are not there.
    """
    from mmva.bundle import load_bundle
    from mmva_platform.datasets.features import load_features

    model = load_bundle(bundle_dir, load_encoders=False)
    fingerprints = {
        modality: str(model.backbones[modality]["fingerprint"]) for modality in MODALITIES if modality in model.dims
    }
    rows = load_features(dataset, fingerprints, settings).split(split)
    return {
        modality: (
            model.predict_embeddings(modality, rows[modality].emb_ND).astype(np.float64),
            np.asarray(rows[modality].va_N2, np.float64),
        )
        for modality in fingerprints
        if modality in rows and len(rows[modality].ids)
    }
