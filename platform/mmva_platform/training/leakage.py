"""What a split by clip would have shown: the same recipe on the same embeddings, clips of one song on both sides.

Figures of a split by clip are published for this task and look far better; nobody can judge them without the honest
ones beside them. So the song-disjoint evaluation stays what it is, and the leaking one is added to it, named as such.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mmva.imemnet.splits import LEAKAGE_WARNING
from mmva_platform.training.recipe import Recipe

if TYPE_CHECKING:
    from mmva.model import MMVA
    from mmva_platform.datasets.features import Features
    from mmva_platform.training.evaluation import Evaluation

log = logging.getLogger(__name__)


def beside_clip_split(evaluation: Evaluation, model: MMVA, features: Features) -> Evaluation:
    """The evaluation with the split by clip beside it, where the model's recipe can be trained again in this process.

    A model whose backbones were tuned, or that does not say how it was trained, keeps its evaluation and gets a warning
    that says why nothing stands beside it.
    """
    from mmva_platform.settings import validate

    values: dict[str, Any] = model.provenance.get("recipe") or {}
    reason = None
    if not values:
        reason = "the model does not say by which recipe it was trained"
    elif values.get("mode", "features") != "features":
        reason = "its backbones were tuned on the split by song"
    elif LEAKAGE_WARNING in features.warnings:
        reason = "the dataset itself is split by clip"
    if reason:
        return replace(evaluation, warnings=(*evaluation.warnings, f"No split by clip stands beside this: {reason}."))
    log.info("evaluate: training the recipe once more on a split by clip, to show what that leaks")
    known = {name: value for name, value in values.items() if name in Recipe.model_fields}
    recipe = validate(Recipe, known, "the model's recipe")
    leaking = train_and_evaluate(recipe, by_clip(features, recipe.seed), evaluation.split)
    return replace(evaluation, clip_split=leaking.to_json())


def by_clip(features: Features, seed: int) -> Features:
    """The features with clips dealt to the splits one by one, as many to each as before; captions follow them."""
    music = features.modalities.get("music")
    if music is None:
        return features
    dealt = np.random.default_rng([seed, 2]).permutation(music.split)
    split_of = dict(zip(music.ids.tolist(), dealt.tolist(), strict=True))
    modalities = dict(features.modalities)
    modalities["music"] = replace(music, split=dealt)
    if "caption" in modalities:
        caption = modalities["caption"]
        split = [split_of.get(id_, own) for id_, own in zip(caption.ids.tolist(), caption.split.tolist(), strict=True)]
        modalities["caption"] = replace(caption, split=np.array(split, dtype=np.str_))
    return replace(features, modalities=modalities, warnings=(LEAKAGE_WARNING,))


def train_and_evaluate(recipe: Recipe, features: Features, split: str = "test") -> Evaluation:
    """A features-mode run in this process, without Ray and without a bundle, measured on a split."""
    from mmva_platform.training.evaluation import evaluate_model
    from mmva_platform.training.in_process import train_here

    model, _ = train_here(recipe, features)
    return evaluate_model(model, features, split)


def clip_split_markdown(evaluation: Evaluation) -> str:
    """The two splits side by side, the honest one first."""
    from mmva_platform.training.card import table
    from mmva_platform.training.evaluation import Evaluation as Parsed

    assert evaluation.clip_split is not None
    leaking = Parsed.from_json(evaluation.clip_split)
    rows = [
        [modality, axis, *(f"{of.metrics[modality][axis][name].value:.4f}" for name in ("mse", "r2") for of in both)]
        for both in [(evaluation, leaking)]
        for modality in ("music", "caption")
        if all(modality in of.metrics for of in both)
        for axis in evaluation.metrics[modality]
    ]
    header = ["modality", "axis", "MSE, song-disjoint", "MSE, by clip", "R2, song-disjoint", "R2, by clip"]
    title = "## Beside it: the same recipe on a split by clip"
    return f"{title}\n\n> **Warning.** {LEAKAGE_WARNING}\n\n{table(header, rows)}\n"
