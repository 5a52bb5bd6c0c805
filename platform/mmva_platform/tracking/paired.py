"""Both versions of a comparison, predicted on the same rows of a dataset from its stored embeddings."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mmva.errors import CheckFailed
from mmva.modalities import Modality
from mmva_platform.settings import Settings
from mmva_platform.tracking.evidence import BundleFacts, PairedRows, Pairing
from mmva_platform.tracking.policy import GatePolicy
from mmva_platform.tracking.predictions import SplitPredictor

_ROUNDS = 15


def predict_pair(
    candidate: Path,
    champion: Path,
    dataset_uri: str,
    settings: Settings,
    *,
    split: str = "test",
    policy: GatePolicy | None = None,
) -> Pairing:
    """Predict two bundles on the same rows; their backbones may differ, the dataset then holds embeddings of both.

    Args:
        candidate: The candidate's bundle.
        champion: The champion's.
        dataset_uri: The candidate's dataset.
        settings: Storage, and home for what is measured of media.
        split: Whose rows.
        policy: By what rows are cut into slices; loudness and brightness are measured only if it asks for them.

    Raises:
        UsageError: If a bundle, the dataset or embeddings of a bundle's backbones are not there.
        CheckFailed: If files are not the published ones, or the embeddings of the two are of different rows.
        OperationFailed: If media of the dataset do not decode here.
    """
    from mmva_platform.datasets.dataset import Dataset
    from mmva_platform.datasets.traits import TRAITS, measure, sources_of

    slices = (policy or GatePolicy()).slices
    dataset = Dataset.open(dataset_uri, settings)
    mine = SplitPredictor(candidate, dataset_uri, settings, split)
    theirs = SplitPredictor(champion, dataset_uri, settings, split)
    rows: dict[Modality, PairedRows] = {}
    for modality, features in mine.rows.items():
        other = theirs.rows.get(modality)
        if other is not None and not np.array_equal(other.ids, features.ids):
            raise CheckFailed(f"{dataset_uri}: {modality} embeddings of the two versions are of different rows")
        # In turn, and the fastest of some rounds: what else the machine does then disturbs both alike.
        seconds = [
            (mine.seconds(modality), theirs.seconds(modality) if other is not None else np.nan) for _ in range(_ROUNDS)
        ]
        fastest_us = 1e6 * np.min(seconds, axis=0) / len(features)
        measured = slices.apply and TRAITS.get(modality) in slices.by
        rows[modality] = PairedRows(
            label_N2=np.asarray(features.va_N2, np.float64),
            candidate_N2=mine.points(modality),
            champion_N2=theirs.points(modality) if other is not None else None,
            group_N=features.group,
            source_N=sources_of(dataset, modality, features.ids),
            trait_N=measure(dataset, modality, features.ids.tolist(), settings) if measured else None,
            candidate_us=float(fastest_us[0]),
            champion_us=float(fastest_us[1]),
        )
    expected = {modality: counts.get(split, 0) for modality, counts in dataset.info.counts.items()}
    return Pairing(dataset.digest, split, expected, rows)


def facts_of(bundle_dir: Path) -> BundleFacts:
    """What the gate reads from a bundle, verified; raises as load_bundle."""
    from mmva.bundle import read_bundle

    info, files = read_bundle(bundle_dir)
    return BundleFacts(sum(len(data) for data in files.values()), info.card, info.intervals)
