"""What a split by clip would have shown: the same recipe on the same embeddings, clips of one song on both sides.

Figures of a split by clip are published for this task and look far better; nobody can judge them without the honest
ones beside them. So the song-disjoint evaluation stays what it is, and the leaking one is added to it, named as such.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from mmva.errors import UsageError
from mmva.imemnet.splits import LEAKAGE_WARNING
from mmva_platform.training.evaluation.evaluate import Evaluation, evaluate_model
from mmva_platform.training.loop.in_process import train_here
from mmva_platform.training.recipe import recipe_of

if TYPE_CHECKING:
    from mmva.models.model import MMVA
    from mmva_platform.datasets.features import Features

log = logging.getLogger(__name__)


def beside_clip_split(evaluation: Evaluation, model: MMVA, features: Features) -> Evaluation:
    """The evaluation with the split by clip beside it; where the recipe cannot be trained again, a warning says why."""
    reason = "the dataset itself is split by clip" if LEAKAGE_WARNING in features.warnings else ""
    try:
        recipe = recipe_of(model.provenance)
    except UsageError as error:
        reason = str(error)
    if reason:
        return replace(evaluation, warnings=(*evaluation.warnings, f"No split by clip stands beside this: {reason}."))
    log.info("evaluate: training the recipe once more on a split by clip, to show what that leaks")
    dealt = by_clip(features, recipe.seed)
    leaking = evaluate_model(train_here(recipe, dealt)[0], dealt, evaluation.split)
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
