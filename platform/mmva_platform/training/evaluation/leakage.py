"""The same recipe and embeddings on a split by clip, where clips of one song are in training and in test.

Published figures of this task use such splits and look far better. To judge them one needs both, so the figures of a
split by clip are added to the song-disjoint evaluation, with a warning.
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
    """The evaluation with figures of a split by clip, or with a warning that says why there are none."""
    reason = "the dataset itself is split by clip" if LEAKAGE_WARNING in features.warnings else ""
    try:
        recipe = recipe_of(model.provenance)
    except UsageError as error:
        reason = str(error)
    if reason:
        return replace(evaluation, warnings=(*evaluation.warnings, f"No figures of a split by clip: {reason}."))
    log.info("evaluate: training the recipe again on a split by clip, for comparison")
    dealt = by_clip(features, recipe.seed)
    leaking = evaluate_model(train_here(recipe, dealt)[0], dealt, evaluation.split)
    return replace(evaluation, clip_split=leaking.to_json())


def by_clip(features: Features, seed: int) -> Features:
    """The features with clips dealt to the splits one by one, in the same numbers; captions follow their clips."""
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
