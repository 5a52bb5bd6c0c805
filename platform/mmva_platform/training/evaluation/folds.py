"""A recipe on folds by group, for collections that are too small for a test split.

Every row is predicted once, by the model of the fold in which its group is held out. So the figures describe the
recipe, not one model, and their intervals are over all groups.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from mmva.modalities import Modality
from mmva_platform.training.evaluation.evaluate import Evaluation, evaluate_rows, intervals_of
from mmva_platform.training.evaluation.predictions import Points, PredictedRows
from mmva_platform.training.loop.data import known_rows
from mmva_platform.training.loop.in_process import train_here
from mmva_platform.training.recipe import Recipe

if TYPE_CHECKING:
    from mmva.models.model import MMVA
    from mmva_platform.datasets.features import Features

log = logging.getLogger(__name__)
Fit = Callable[["Features"], "MMVA"]


def folds_of(
    recipe: Recipe, features: Features, k: int, seed: int = 0
) -> tuple[Evaluation, dict[Modality, PredictedRows]]:
    """Train the recipe on each of k folds by group, in this process; returns figures and points of all held-out rows.

    Raises UsageError if there are too few groups, or a fold has no rows for training or validation.
    """
    rows, constants = predict_folds(lambda fold: train_here(recipe, fold)[0], features, k, seed)
    where = (features.uri, features.digest, f"{k} folds by group")
    return evaluate_rows(rows, where, constants, recipe.loss.sigma, features.warnings), rows


def refit_intervals(recipe: Recipe, features: Features) -> dict[str, dict[str, float]]:
    """Half widths of the 90 % intervals of a refitted model, for which no row is left to calibrate on.

    Each training and validation row is predicted by a model of the recipe without the refit, which saw nothing of the
    row's group, neither for its weights nor for its penalty and epoch. These models are trained on two thirds of the
    refitted model's rows, so the intervals are more likely too wide than too narrow.
    """
    plain = recipe.model_copy(update={"refit_folds": 0})
    known = known_rows(features)
    rows, _ = predict_folds(lambda fold: train_here(plain, fold)[0], known, recipe.refit_folds, recipe.seed)
    return intervals_of(rows)


def predict_folds(
    fit: Fit, features: Features, k: int, seed: int = 0
) -> tuple[dict[Modality, PredictedRows], dict[Modality, Points]]:
    """Held-out points of every row, and the mean label of its fold's training rows, [N, 2] each.

    `fit` makes a model from features with splits and must not read "test". The features' own splits are not used.
    """
    found: dict[Modality, Points] = {}
    constants: dict[Modality, Points] = {}
    for number, fold in enumerate(features.folds(k, seed), 1):
        log.info("fold %d of %d", number, k)
        model = fit(fold)
        for modality, rows in fold.items():
            if modality not in model.dims:
                continue
            test_N = rows.split == "test"
            points_N2 = found.setdefault(modality, np.full((len(rows), 2), np.nan))
            points_N2[test_N] = model.predict_embeddings(modality, rows.emb_ND[test_N])
            mean_2 = rows.va_N2[rows.split == "train"].mean(axis=0)
            constants.setdefault(modality, np.empty((len(rows), 2)))[test_N] = mean_2
    assert all(np.isfinite(points_N2).all() for points_N2 in found.values()), "every row is held out once"
    predicted = {
        modality: PredictedRows(rows.ids, np.asarray(rows.va_N2, np.float64), found[modality], rows.group)
        for modality, rows in features.items()
        if modality in found
    }
    return predicted, constants
