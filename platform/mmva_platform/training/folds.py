"""A recipe on group-wise folds: for collections that are too small for one test split to say much.

Every row is predicted once, by the model of the fold in which its group is held out. So the figures are of the recipe,
not of one model, and their intervals are over all groups.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mmva.errors import UsageError
from mmva.modalities import AXES, Modality
from mmva_platform.training.predictions import Points, PredictedRows
from mmva_platform.training.recipe import Recipe

if TYPE_CHECKING:
    from mmva.model import MMVA
    from mmva_platform.datasets.features import Features
    from mmva_platform.training.evaluation import Evaluation

log = logging.getLogger(__name__)
Fit = Callable[["Features"], "MMVA"]


def evaluate_folds(recipe: Recipe, features: Features, k: int, seed: int = 0) -> Evaluation:
    """Train the recipe on each of k folds by group, in this process, and measure the held-out rows of all together.

    Raises:
        UsageError: If there are too few groups, or a fold has nothing to train or validate with.
    """
    return folds_of(recipe, features, k, seed)[0]


def folds_of(
    recipe: Recipe, features: Features, k: int, seed: int = 0
) -> tuple[Evaluation, dict[Modality, PredictedRows]]:
    """What evaluate_folds returns, and the held-out points that it was measured on."""
    from mmva_platform.training.evaluation import evaluate_rows
    from mmva_platform.training.in_process import train_here

    rows, constants = predict_folds(lambda fold: train_here(recipe, fold)[0], features, k, seed)
    floors: dict[str, dict[str, float]] = {
        modality: dict(zip(AXES, np.square(constants[modality] - of.label_N2).mean(axis=0).tolist(), strict=True))
        for modality, of in rows.items()
    }
    name = f"{k} folds by group"
    return evaluate_rows(features, rows, split=name, sigma=recipe.loss.sigma, floors=floors), rows


def refit_intervals(recipe: Recipe, features: Features) -> dict[str, dict[str, float]]:
    """Half widths of the 90 % intervals of a model that was refitted, which leaves no row to calibrate on.

    Each training and validation row is predicted by a model of the recipe without the refit, which saw nothing of the
    row's group, neither for its weights nor for its penalty and epoch. These models have two thirds of the rows that
    the refitted one has, so its intervals are rather too wide than too narrow.
    """
    from mmva_platform.training.data import known_rows
    from mmva_platform.training.evaluation import intervals_of
    from mmva_platform.training.in_process import train_here

    plain = recipe.model_copy(update={"refit_folds": 0})
    known = known_rows(features)
    rows, _ = predict_folds(lambda fold: train_here(plain, fold)[0], known, recipe.refit_folds, recipe.seed)
    return intervals_of(rows)


def predict_folds(
    fit: Fit, features: Features, k: int, seed: int = 0
) -> tuple[dict[Modality, PredictedRows], dict[Modality, Points]]:
    """Held-out points of every row, and the mean label [N, 2] of what its fold's model was trained on.

    Args:
        fit: From features with splits to a model, which must not look at "test".
        features: Embedded rows; their own splits are not used.
        k: Number of folds.
        seed: Another seed gives other folds.
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


def recipe_of(provenance: Mapping[str, Any]) -> Recipe:
    """The recipe in a bundle's provenance.

    Raises:
        UsageError: If there is none, or it tunes backbones: then every fold would need embeddings of its own.
    """
    from mmva_platform.settings import validate

    values: dict[str, Any] = provenance.get("recipe") or {}
    if not values:
        raise UsageError("--folds: the model does not say by which recipe it was trained")
    if values.get("mode", "features") != "features":
        raise UsageError("--folds: the model's backbones were tuned on its own split; folds need frozen ones")
    known = {name: value for name, value in values.items() if name in Recipe.model_fields}
    return validate(Recipe, known, "the model's recipe")
