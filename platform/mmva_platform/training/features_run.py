"""Features mode around the loop: embeddings into shared memory, and the towers of the best checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mmva_platform.settings import Settings
from mmva_platform.training.recipe import Recipe
from mmva_platform.training.rundir import RunDirectory, RunFacts

if TYPE_CHECKING:
    from mmva.model import MMVA
    from mmva_platform.datasets.features import Features


class FeaturesWork:
    """Features mode, on the driver."""

    def __init__(self, recipe: Recipe, settings: Settings) -> None:
        from mmva_platform.training.data import triplets
        from mmva_platform.training.memory import share_features, shared_features
        from mmva_platform.training.probe import check_probes

        shared = share_features(recipe.dataset, recipe.preset, settings, recipe.embeddings)
        self._features = shared_features(shared)
        train, val = (triplets(self._features, name) for name in ("train", "val"))
        if recipe.optimizer.ridge == "auto":
            check_probes(train, val)
        self.facts = RunFacts.of(self._features)
        self.config: dict[str, Any] = {"features": shared}

    def trained(self, run: RunDirectory, recipe: Recipe, best: Mapping[str, Any]) -> tuple[MMVA, Features]:
        """The best checkpoint's towers, and the features that the run was trained on."""
        from mmva_platform.training.build import build_model
        from mmva_platform.training.data import triplets

        del run
        model = build_model(recipe, triplets(self._features, "train"))
        model.load_state_dict(averaged(best))
        return model, self._features


def averaged(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The averaged weights of a checkpoint, under the model's own names."""
    average = checkpoint["average"]
    return {name.removeprefix("module."): value for name, value in average.items() if name != "n_averaged"}
