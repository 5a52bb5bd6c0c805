"""Both versions of a comparison, predicted on the same rows of a dataset from its stored embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mmva.errors import CheckFailed
from mmva.modalities import Modality
from mmva_platform.settings import Settings
from mmva_platform.tracking.evidence import BundleFacts, PairedRows, Pairing
from mmva_platform.tracking.predictions import predicted_rows

if TYPE_CHECKING:
    from mmva_platform.datasets.dataset import Dataset
    from mmva_platform.datasets.features import ModalityFeatures


def predict_pair(candidate: Path, champion: Path, dataset_uri: str, settings: Settings, split: str = "test") -> Pairing:
    """Predict two bundles on the same rows; their backbones may differ, the dataset then holds embeddings of both.

    Args:
        candidate: The candidate's bundle.
        champion: The champion's.
        dataset_uri: The candidate's dataset.
        settings: Storage.
        split: Whose rows.

    Raises:
        UsageError: If a bundle, the dataset or embeddings of a bundle's backbones are not there.
        CheckFailed: If files are not the published ones, or the embeddings of the two are of different rows.
    """
    from mmva_platform.datasets.dataset import Dataset

    dataset = Dataset.open(dataset_uri, settings)
    theirs = predicted_rows(champion, dataset_uri, settings, split)
    rows: dict[Modality, PairedRows] = {}
    for modality, (features, points_N2, seconds) in predicted_rows(candidate, dataset_uri, settings, split).items():
        other = theirs.get(modality)
        if other is not None and not np.array_equal(other[0].ids, features.ids):
            raise CheckFailed(f"{dataset_uri}: {modality} embeddings of the two versions are of different rows")
        rows[modality] = PairedRows(
            label_N2=np.asarray(features.va_N2, np.float64),
            candidate_N2=points_N2,
            champion_N2=other[1] if other else None,
            group_N=features.group,
            source_N=_sources(dataset, modality, features),
            candidate_us=1e6 * seconds / len(features),
        )
    expected = {modality: counts.get(split, 0) for modality, counts in dataset.info.counts.items()}
    return Pairing(dataset.digest, split, expected, rows)


def facts_of(bundle_dir: Path) -> BundleFacts:
    """What the gate reads from a bundle, verified; raises as load_bundle."""
    from mmva.bundle import read_bundle

    info, files = read_bundle(bundle_dir)
    return BundleFacts(sum(len(data) for data in files.values()), info.card, info.intervals)


def _sources(dataset: Dataset, modality: Modality, features: ModalityFeatures) -> NDArray[np.str_]:
    """Where each row came from; a caption without a row of its own has its clip's."""
    labels = dataset.labels().select(["id", "source", "modality"]).to_pydict()
    kinds = {"caption": ("music", "caption")}.get(modality, (modality,))
    source_of = {
        item: source
        for item, source, kind in zip(labels["id"], labels["source"], labels["modality"], strict=True)
        if kind in kinds
    }
    return np.array([source_of[item] for item in features.ids], dtype=np.str_)
