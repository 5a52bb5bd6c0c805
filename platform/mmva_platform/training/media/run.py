"""Media mode around the loop: what the driver hands to the workers, and the tuned layers that are left at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mmva.backbones import BackboneSpec, Preset, preset
from mmva.modalities import MODALITIES, Modality
from mmva_platform.datasets.dataset import Dataset
from mmva_platform.datasets.embedder import EncoderLoader
from mmva_platform.datasets.schema import sha256_of
from mmva_platform.settings import Settings
from mmva_platform.training.media.cache import MediaCache
from mmva_platform.training.media.decoding import Decoder, Pipeline, ray_pipeline
from mmva_platform.training.media.items import MediaPairing, media_pairing
from mmva_platform.training.recipe import Recipe
from mmva_platform.training.rundir import RunDirectory, RunFacts

if TYPE_CHECKING:
    from mmva.model import MMVA
    from mmva_platform.datasets.features import Features
    from mmva_platform.training.loop import Source, TrainState, World
    from mmva_platform.training.media.build import Heads


@dataclass(frozen=True)
class MediaPlan:
    """What every worker needs to know; no media and no backbones are in it."""

    train: MediaPairing
    val: MediaPairing
    decoder: Decoder
    heads: Heads


def plan_media(recipe: Recipe, settings: Settings) -> tuple[MediaPlan, RunFacts]:
    """The splits' places, the towers' start, and what the run is started on.

    Raises:
        UsageError: If the dataset is not embedded with the preset (the towers start from its embeddings), or a split
            has nothing to train with.
    """
    from mmva_platform.datasets.features import FeatureSets
    from mmva_platform.training.media.build import start_heads

    dataset = Dataset.open(recipe.dataset, settings)
    train, val = media_pairing(dataset, "train"), media_pairing(dataset, "val")
    sets = FeatureSets.open(recipe.dataset, recipe.preset, settings, embeddings=recipe.embeddings)
    features = sets.describe({modality: sets.load(modality, recipe.media.probe_items) for modality in sets.infos})
    cache = MediaCache(settings.home.resolve() / "cache" / "media", dataset.storage, dataset.shards)
    specs = {str(modality): info.spec for modality, info in sets.infos.items()}
    decoder = Decoder(cache, EncoderLoader.of(settings), specs, recipe.media.augment)
    return MediaPlan(train, val, decoder, start_heads(features, recipe)), RunFacts.of(features)


def prepare_media(
    recipe: Recipe,
    plan: MediaPlan,
    last: Mapping[str, Any] | None,
    world: World,
    device: Any,
    *,
    pipeline: Pipeline = ray_pipeline,
) -> tuple[TrainState, Source]:
    """State and source of one rank, from the content of the last checkpoint if there is one."""
    from mmva_platform.training.checkpoint import restore
    from mmva_platform.training.media.build import media_state, tuned_model
    from mmva_platform.training.media.source import MediaSource

    model = tuned_model(plan.heads, recipe, plan.decoder.specs, plan.decoder.load, device)
    penalties = plan.heads.penalties if last is None else last["penalties"]
    state = media_state(model, recipe, plan.train, penalties, world)
    if last is not None:
        restore(state, last, world)
    return state, MediaSource(plan.train, plan.val, recipe, plan.decoder, pipeline)


class MediaWork:
    """Media mode, on the driver."""

    def __init__(self, recipe: Recipe, settings: Settings) -> None:
        import ray

        self._settings = settings
        self._plan, self.facts = plan_media(recipe, settings)
        self.config: dict[str, Any] = {"media": ray.put(self._plan)}

    def trained(self, run: RunDirectory, recipe: Recipe, best: Mapping[str, Any]) -> tuple[MMVA, Features]:
        """Publish the tuned layers, embed the dataset through them, and give the towers that go with them."""
        from mmva.model import MMVA, ModelConfig
        from mmva_platform.datasets.embedding import embed_dataset
        from mmva_platform.datasets.features import load_features
        from mmva_platform.training.features_run import averaged

        weights = averaged(best)
        tuned = self._publish(run, recipe, weights)
        embed_dataset(recipe.dataset, tuned, recipe.embeddings, self._settings)
        features = load_features(recipe.dataset, tuned.name, self._settings, embeddings=recipe.embeddings)
        config = ModelConfig(**recipe.model.model_dump(), sigma=recipe.loss.sigma)
        model = MMVA(self._plan.heads.dims, config)
        model.load_state_dict(_below(weights, "mmva."))
        return model, features

    def _publish(self, run: RunDirectory, recipe: Recipe, weights: Mapping[str, Any]) -> Preset:
        """Write each backbone's tuned layers; the preset that has them."""
        from mmva.backbones.sources import TUNED_FILE
        from mmva_platform.storage import open_storage

        place = open_storage(recipe.media.out or str(run.backbones), self._settings.storage)
        specs: dict[Modality, BackboneSpec] = preset("tiny").specs  # of a modality that the dataset does not have
        for modality in MODALITIES:
            if modality not in self._plan.decoder.specs:
                continue
            specs[modality] = BackboneSpec.from_json(self._plan.decoder.specs[modality])
            if recipe.media.layers[modality] == 0:
                continue
            data = _tuned_bytes(_below(weights, f"encoders.{modality}.network."))
            folder = f"{run.name}/{modality}" if recipe.media.out else str(modality)
            place.write(f"{folder}/{TUNED_FILE}", data)
            specs[modality] = replace(specs[modality], tuned=place.join(folder), tuned_sha256=sha256_of(data))
        return Preset(f"tuned-{run.name}", specs["image"], specs["music"], specs["caption"])


def _below(weights: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _tuned_bytes(weights: Mapping[str, Any]) -> bytes:
    from safetensors.torch import save

    return save({name: tensor.contiguous() for name, tensor in weights.items()})
