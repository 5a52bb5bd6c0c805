"""Predicted beside labelled VA points of a dataset's split, from the embeddings that stand beside the dataset."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmva.modalities import MODALITIES, Modality
from mmva_platform.settings import Settings

Points = NDArray[np.float64]


class SplitPredictor:
    """A bundle's heads on the rows of a split.

    Attributes:
        rows: Features by modality that the bundle knows, where the split has rows.
    """

    def __init__(self, bundle_dir: Path, dataset_uri: str, settings: Settings, split: str) -> None:
        """Load heads and embeddings.

        Raises:
            UsageError: If the bundle, the dataset or the embeddings of the bundle's backbones are not there.
        """
        from mmva.bundle import load_bundle
        from mmva_platform.datasets.features import load_features

        self._model = load_bundle(bundle_dir, load_encoders=False)
        known: list[Modality] = [modality for modality in MODALITIES if modality in self._model.dims]
        fingerprints = {modality: str(self._model.backbones[modality]["fingerprint"]) for modality in known}
        features = load_features(dataset_uri, fingerprints, settings).split(split)
        self.rows = {modality: features[modality] for modality in known if len(features.get(modality, ()))}

    def points(self, modality: Modality) -> Points:
        """Predicted points [N, 2]."""
        return self._model.predict_embeddings(modality, self.rows[modality].emb_ND).astype(np.float64)

    def seconds(self, modality: Modality) -> float:
        """How long the heads take for these rows, this time."""
        started = time.perf_counter()
        self._model.predict_embeddings(modality, self.rows[modality].emb_ND)
        return time.perf_counter() - started


def predict_split(
    bundle_dir: Path, dataset: str, settings: Settings, split: str = "test"
) -> Mapping[str, tuple[Points, Points]]:
    """Predicted and labelled VA points, [N, 2] each, by modality; raises as SplitPredictor."""
    predictor = SplitPredictor(bundle_dir, dataset, settings, split)
    return {
        modality: (predictor.points(modality), np.asarray(features.va_N2, np.float64))
        for modality, features in predictor.rows.items()
    }
