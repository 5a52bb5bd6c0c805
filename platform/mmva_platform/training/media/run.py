"""Media mode around the loop: the driver's plan for the workers, and the tuned layers at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mmva.backbones import BackboneSpec, Preset, preset
from mmva.files import sha256_hex
from mmva.modalities import MODALITIES, Modality
from mmva.models.model import MMVA
from mmva_platform.datasets.dataset import Dataset
from mmva_platform.datasets.embedding.worker import EncoderLoader
from mmva_platform.settings import Settings
from mmva_platform.training.loop.state import TrainState, World, model_config
from mmva_platform.training.media.cache import MediaCache
from mmva_platform.training.media.dataset import Decoder, MediaDataset, MediaSource, default_loaders
from mmva_platform.training.media.items import MediaPairing, media_pairing
from mmva_platform.training.media.model import Heads, media_state, start_heads, tuned_model
from mmva_platform.training.recipe import Recipe
from mmva_platform.training.rundir import RunDirectory, RunFacts

if TYPE_CHECKING:
    import torch

    from mmva_platform.datasets.features import Features


@dataclass(frozen=True)
class MediaPlan:
    """The input of every worker, without media and backbones."""

    train: MediaPairing
    val: MediaPairing
    cache: MediaCache
    load: EncoderLoader
    specs: dict[str, dict[str, Any]]
    heads: Heads


def plan_media(recipe: Recipe, settings: Settings) -> tuple[MediaPlan, RunFacts]:
    """The workers' plan, and the data that the run is started on.

    Raises UsageError if a split lacks images or partners, or the dataset is not embedded with the preset.
    """
    from mmva_platform.datasets.features import FeatureSets

    dataset = Dataset.open(recipe.dataset, settings)
    train, val = media_pairing(dataset, "train"), media_pairing(dataset, "val")
    sets = FeatureSets.open(recipe.dataset, recipe.preset, settings, embeddings=recipe.embeddings)
    features = sets.describe({modality: sets.load(modality, recipe.media.probe_items) for modality in sets.infos})
    cache = MediaCache(settings.scratch, dataset.storage, dataset.shards)
    specs = {str(modality): info.spec for modality, info in sets.infos.items()}
    plan = MediaPlan(train, val, cache, EncoderLoader.of(settings), specs, start_heads(features, recipe))
    return plan, RunFacts.of(features)


def prepare_media(
    recipe: Recipe, plan: MediaPlan, last: Mapping[str, Any] | None, world: World, device: torch.device, *,
    processes: int = 1,
) -> tuple[TrainState, MediaSource]:  # fmt: skip
    """State and source of one rank; see prepare_features. `processes` is the number of workers on its machine."""
    encoders = {m: plan.load(BackboneSpec.from_json(dict(plan.specs[m]))) for m in plan.heads.dims}
    decoder = Decoder(plan.cache, encoders, recipe.media.augment)
    model = tuned_model(plan.heads, recipe, encoders, device)
    state = media_state(model, recipe, plan.train, plan.heads.penalties if last is None else last["penalties"], world)
    if last is not None:
        state.load_state_dict(last, world)
    loaders = default_loaders(processes) if recipe.media.loaders is None else recipe.media.loaders
    dataset = MediaDataset(plan.train, plan.val, recipe, decoder, on_gpu=device.type == "cuda")
    return state, MediaSource(dataset, model, loaders=loaders)


class MediaMode:
    """The driver's part of media mode."""

    def __init__(self, recipe: Recipe, settings: Settings) -> None:
        import ray

        self._settings = settings
        self._plan, self.facts = plan_media(recipe, settings)
        self.data = ray.put(self._plan)

    def trained(self, run: RunDirectory, recipe: Recipe, last: Mapping[str, Any]) -> tuple[MMVA, Features]:
        """Publish the tuned layers and embed the dataset with them; see Mode."""
        from mmva_platform.datasets.embedding.run import embed_dataset
        from mmva_platform.datasets.features import load_features

        weights = last["best"]["weights"]
        # Without buffers, such as BatchNorm's statistics, which do not change.
        tuned = self._publish(run, recipe, {name: weights[name] for name in last["average"]["values"]})
        embed_dataset(recipe.dataset, tuned, recipe.embeddings, self._settings)
        features = load_features(recipe.dataset, tuned.name, self._settings, embeddings=recipe.embeddings)
        model = MMVA(self._plan.heads.dims, model_config(recipe))
        model.load_state_dict(_below(weights, "mmva."))
        return model, features

    def _publish(self, run: RunDirectory, recipe: Recipe, weights: Mapping[str, Any]) -> Preset:
        """Write each backbone's tuned layers; returns the preset with them."""
        from safetensors.torch import save

        from mmva.backbones.sources import TUNED_FILE
        from mmva_platform.storage import open_storage

        place = open_storage(recipe.media.out or f"{run.storage.uri}/backbones", self._settings.storage)
        specs: dict[Modality, BackboneSpec] = preset("tiny").specs  # placeholders for modalities that are missing
        for modality in MODALITIES:
            if modality not in self._plan.specs:
                continue
            specs[modality] = BackboneSpec.from_json(self._plan.specs[modality])
            if recipe.media.layers[modality] == 0:
                continue
            own = _below(weights, f"encoders.{modality}.network.")
            data = save({name: tensor.contiguous() for name, tensor in own.items()})
            folder = f"{run.name}/{modality}" if recipe.media.out else str(modality)
            place.write(f"{folder}/{TUNED_FILE}", data)
            specs[modality] = replace(specs[modality], tuned=place.join(folder), tuned_sha256=sha256_hex(data))
        return Preset(f"tuned-{run.name}", specs["image"], specs["music"], specs["caption"])


def _below(weights: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
