"""A model's error on parts of a split: by source, mood quadrant, loudness and brightness; see datasets.traits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from mmva.evaluation.bootstrap import bootstrap_mean
from mmva.modalities import Modality
from mmva_platform.settings import Settings
from mmva_platform.training.evaluation.evaluate import RESAMPLES, Figure

if TYPE_CHECKING:
    from mmva.models.model import MMVA
    from mmva_platform.datasets.features import Features

KINDS: Final = ("source", "quadrant", "loudness", "brightness")


class SliceFigure(NamedTuple):
    """One part of a modality's rows: its numbers of rows and of groups, and the mean MSE of both axes."""

    modality: Modality
    kind: str
    name: str
    rows: int
    groups: int
    mse: Figure


def slice_figures(model: MMVA, features: Features, settings: Settings) -> list[SliceFigure]:
    """Figures of every part of the test split; reads its media once, for loudness and brightness.

    Raises CheckFailed if a shard of the dataset is not the published one, OperationFailed if media cannot be decoded.
    """
    from mmva_platform.datasets.dataset import Dataset
    from mmva_platform.datasets.traits import TRAITS, measure, part_names, sources_of

    dataset = Dataset.open(features.uri, settings)
    found = []
    for modality, rows in features.split("test").items():
        if modality not in model.dims or not len(rows):
            continue
        points_N2 = model.predict_embeddings(modality, rows.emb_ND).astype(np.float64)
        error_N = np.square(points_N2 - rows.va_N2).mean(axis=1)
        source_N = sources_of(dataset, modality, rows.ids)
        trait_N = measure(dataset, modality, rows.ids.tolist(), settings) if modality in TRAITS else None
        for kind in KINDS:
            names_N = part_names(kind, modality, rows.va_N2, source_N, trait_N)
            for name in () if names_N is None else np.unique(names_N):
                part_N = names_N == name
                interval = bootstrap_mean(error_N[part_N], rows.group[part_N], resamples=RESAMPLES)
                figure = Figure(float(error_N[part_N].mean()), *interval)
                groups = len(np.unique(rows.group[part_N]))
                found.append(SliceFigure(modality, kind, str(name), int(part_N.sum()), groups, figure))
    return found
