"""Features mode: stored embeddings in Ray's object store, one copy per node, and batches from them.

All workers of a node and the driver read the same memory without copying. A node's object store must hold all
embeddings of the dataset; while loading, the driver also needs memory for those of the largest modality. Datasets that
do not fit are refused before they are read. Shapes: B pairs of a share, K rows of a modality; D differs by modality.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from mmva.errors import UsageError
from mmva.matching import EpochPlan
from mmva.models.model import MMVA
from mmva_platform.settings import Settings
from mmva_platform.training.loop.data import Floats, Triplets, batch_labels, known_rows, triplets, validation_row
from mmva_platform.training.loop.loop import Batch
from mmva_platform.training.loop.probe import check_probes
from mmva_platform.training.loop.state import Row, TrainState, World, build_model, new_state, state_around
from mmva_platform.training.recipe import Recipe
from mmva_platform.training.rundir import RunDirectory, RunFacts

if TYPE_CHECKING:
    from mmva_platform.datasets.features import Features

_MIB: Final = 2**20
_SPARE: Final = 1.15  # labels, ids, checkpoints and Ray's own objects
_WAY_OUT: Final = "or train with mode=media, which reads media batch by batch"


def check_memory(needed: Mapping[str, int], store_bytes: float, free_bytes: float | None) -> None:
    """Raises UsageError if the bytes by modality do not fit; the message names the setting to change.

    `store_bytes` is the size of the smallest node's object store, `free_bytes` the free memory of the driver's machine,
    None if unknown.
    """
    total = round(sum(needed.values()) * _SPARE)
    what = f"features mode keeps {total / _MIB:,.0f} MiB of embeddings in shared memory"
    if total > store_bytes:
        raise UsageError(
            f"{what}, but the smallest node's object store has {store_bytes / _MIB:,.0f} MiB: set "
            f"cluster.object_store_mb to at least {-(-total // _MIB)} (on a cluster: the nodes' object-store-memory), "
            f"{_WAY_OUT}"
        )
    loading = total + max(needed.values())
    if free_bytes is not None and loading > free_bytes:
        raise UsageError(
            f"{what} and needs {loading / _MIB:,.0f} MiB to load them, but this machine has {free_bytes / _MIB:,.0f} "
            f"MiB free: use one with more memory, {_WAY_OUT}"
        )


def share_features(recipe: Recipe, settings: Settings) -> dict[str, Any]:
    """Load a dataset's embeddings into Ray's shared memory, one modality after another; see shared_features.

    Raises UsageError if there are no such embeddings or they do not fit, CheckFailed if a part was changed.
    """
    import ray

    from mmva_platform.datasets.features import FeatureSets

    sets = FeatureSets.open(recipe.dataset, recipe.preset, settings, embeddings=recipe.embeddings)
    stores = [node["Resources"].get("object_store_memory", 0.0) for node in ray.nodes() if node["Alive"]]
    needed = {str(modality): 4 * info.rows * info.dim for modality, info in sets.infos.items()}
    check_memory(needed, min(stores), free_memory())
    rows = {modality: ray.put(sets.load(modality)) for modality in sets.infos}
    return {"description": sets.describe({}), "rows": rows}


def shared_features(shared: Mapping[str, Any]) -> Features:
    """The features that share_features loaded, as read-only views of the node's shared memory."""
    import ray

    modalities = dict(zip(shared["rows"], ray.get(list(shared["rows"].values())), strict=True))
    return replace(shared["description"], modalities=modalities)


def free_memory(root: Path = Path("/")) -> float | None:
    """Free bytes of this machine, or of this process's control group if that has less; None if unknown."""
    try:
        lines = (root / "proc/meminfo").read_text(encoding="utf-8").splitlines()
        free = 1024.0 * float(dict(line.split(":", 1) for line in lines)["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return None
    group = root / "sys/fs/cgroup"
    try:
        most, used = (float((group / name).read_text(encoding="utf-8")) for name in ("memory.max", "memory.current"))
        return min(free, most - used)
    except (OSError, ValueError):  # the file says "max" if there is no limit
        return free


class FeatureSource:
    """Batches from both splits' embeddings. Copies only a batch's rows, so that shared memory stays shared."""

    def __init__(self, train: Triplets, val: Triplets, sigma: float, like: torch.Tensor | None = None) -> None:
        """Batches have the device and precision of `like`, a weight of the model."""
        self.pairing, self._val, self._sigma = train, val, sigma
        self._like = torch.zeros(()) if like is None else like
        self._emb = {modality: _view(emb_KD) for modality, emb_KD in train.emb.items()}

    def batches(self, plan: EpochPlan, epoch: int, shares: Sequence[slice]) -> Iterator[list[Batch]]:
        """The shares' embeddings as tensors, one piece each; the next is gathered while the model computes."""
        del epoch
        coming = (self._batch(plan, share) for share in shares)
        with ThreadPoolExecutor(1, thread_name_prefix="training-batches") as pool:
            ahead = pool.submit(next, coming, None)
            while (batch := ahead.result()) is not None:
                ahead = pool.submit(next, coming, None)
                yield [batch]

    def validate(self, model: torch.nn.Module, world: World) -> Row:
        """Validation metrics on rank 0, nothing on other ranks."""
        assert isinstance(model, MMVA)
        if world.rank > 0:
            return {}
        known = {modality: emb_ND for modality, emb_ND in self._val.emb.items() if modality in model.dims}
        points: dict[str, Floats] = {m: model.predict_embeddings(m, emb_ND) for m, emb_ND in known.items()}
        return validation_row(points, self._val.labels(), self._sigma)

    def _batch(self, plan: EpochPlan, share: slice) -> Batch:
        """The share's rows; a row without such an item has the last item's embedding, and is masked."""
        image_B, partner_B = plan.image_index_P[share], plan.music_index_P[share]
        rows = {modality: self.pairing.rows(modality, image_B, partner_B) for modality in self._emb}
        labels, present = batch_labels(self.pairing, rows, image_B, partner_B, self._like)
        inputs = {}
        for modality, emb_KD in self._emb.items():
            index_B = torch.from_numpy(rows[modality] % len(emb_KD))
            inputs[modality] = emb_KD.index_select(0, index_B).to(self._like)  # a third faster than numpy's take
        return Batch(inputs, labels, present)


def _view(array: Floats) -> torch.Tensor:
    """A tensor that shares an array's memory, which must not be written."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(array)


def prepare_features(
    recipe: Recipe, shared: Mapping[str, Any], last: Mapping[str, Any] | None, world: World, device: torch.device
) -> tuple[TrainState, FeatureSource]:
    """State and source of one rank; `last` is the content of the checkpoint to continue from, if any."""
    features = shared_features(shared)
    train, val = triplets(features, "train"), triplets(features, "val")
    model = build_model(recipe, train).to(device)
    if last is None:
        state = new_state(model, recipe, train, val, world)
    else:
        state = state_around(model, recipe, train, last["penalties"], world)
        state.load_state_dict(last, world)
    return state, FeatureSource(train, val, recipe.loss.sigma, next(model.parameters()))


class FeaturesMode:
    """The driver's part of features mode."""

    def __init__(self, recipe: Recipe, settings: Settings) -> None:
        self.data = share_features(recipe, settings)
        self._features = shared_features(self.data)
        train, val = (triplets(self._features, name) for name in ("train", "val"))
        if recipe.optimizer.ridge == "auto":
            check_probes(train, val)  # before workers start
        if recipe.refit_folds:
            next(known_rows(self._features).folds(recipe.refit_folds))  # raises if there are too few groups
        self.facts = RunFacts.of(self._features)

    def trained(self, run: RunDirectory, recipe: Recipe, last: Mapping[str, Any]) -> tuple[MMVA, Features]:
        """See Mode."""
        del run
        model = build_model(recipe, triplets(self._features, "train"))
        model.load_state_dict(last["best"]["weights"])
        return model, self._features
