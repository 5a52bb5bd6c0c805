"""Features mode: stored embeddings in Ray's object store, one copy a node, and batches from them.

All workers of a node and the driver read the same memory without copying. The node's object store must hold every
embedding of the dataset, and the driver besides, while it loads, those of the largest modality. What does not fit is
refused before anything is read. Shapes: B pairs of a share, K rows of a modality; D differs by modality.
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
    """UsageError, naming the setting that would make room and media mode, if the bytes by modality do not fit.

    `store_bytes` is the size of the smallest node's object store, `free_bytes` what the driver's machine can still
    give, None where that is not known.
    """
    total = round(sum(needed.values()) * _SPARE)
    what = f"features mode keeps {total / _MIB:,.0f} MiB of embeddings in shared memory"
    if total > store_bytes:
        raise UsageError(
            f"{what}, the smallest node's object store has {store_bytes / _MIB:,.0f} MiB: set cluster.object_store_mb "
            f"to at least {-(-total // _MIB)} (on a cluster: the nodes' object-store-memory), {_WAY_OUT}"
        )
    loading = total + max(needed.values())
    if free_bytes is not None and loading > free_bytes:
        raise UsageError(
            f"{what} and needs {loading / _MIB:,.0f} MiB while it loads, this machine has {free_bytes / _MIB:,.0f} MiB "
            f"free: use one with more memory, {_WAY_OUT}"
        )


def share_features(recipe: Recipe, settings: Settings) -> dict[str, Any]:
    """Load a dataset's embeddings into shared memory, one modality after another; see shared_features. Needs Ray.

    Raises UsageError if there are no such embeddings, or they do not fit, CheckFailed if a part was changed.
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
    """The features behind share_features, as read-only views of the node's shared memory."""
    import ray

    modalities = dict(zip(shared["rows"], ray.get(list(shared["rows"].values())), strict=True))
    return replace(shared["description"], modalities=modalities)


def free_memory(root: Path = Path("/")) -> float | None:
    """Bytes that this machine, or the control group this process is in, can still give; None if it does not say."""
    limits = []
    try:
        lines = (root / "proc/meminfo").read_text(encoding="utf-8").splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        limits.append(1024.0 * float(fields["MemAvailable"].split()[0]))
    except (OSError, KeyError, ValueError):
        return None
    group = root / "sys/fs/cgroup"
    try:
        most, used = (float((group / name).read_text(encoding="utf-8")) for name in ("memory.max", "memory.current"))
        limits.append(most - used)
    except (OSError, ValueError):  # no limit reads "max"
        pass
    return min(limits)


class FeatureSource:
    """Both splits' embeddings; gathers a batch's rows and nothing else, so that shared memory stays shared."""

    def __init__(self, train: Triplets, val: Triplets, sigma: float, like: torch.Tensor | None = None) -> None:
        """Batches of the device and precision of `like`, a weight of the model."""
        self._train, self._val, self._sigma = train, val, sigma
        self._like = torch.zeros(()) if like is None else like
        self._emb = {modality: _view(emb_KD) for modality, emb_KD in train.emb.items()}

    @property
    def pairing(self) -> Triplets:
        """The training split."""
        return self._train

    def batches(self, plan: EpochPlan, epoch: int, shares: Sequence[slice]) -> Iterator[list[Batch]]:
        """The shares' embeddings as tensors, one piece each; the next is gathered while the model is at one."""
        del epoch
        coming = (self._batch(plan, share) for share in shares)
        with ThreadPoolExecutor(1, thread_name_prefix="training-batches") as pool:
            ahead = pool.submit(next, coming, None)
            while (batch := ahead.result()) is not None:
                ahead = pool.submit(next, coming, None)
                yield [batch]

    def validate(self, model: torch.nn.Module, world: World) -> Row:
        """On rank 0; the others have nothing to add."""
        assert isinstance(model, MMVA)
        if world.rank > 0:
            return {}
        known = {modality: emb_ND for modality, emb_ND in self._val.emb.items() if modality in model.dims}
        points: dict[str, Floats] = {m: model.predict_embeddings(m, emb_ND) for m, emb_ND in known.items()}
        return validation_row(points, self._val.labels(), self._sigma)

    def _batch(self, plan: EpochPlan, share: slice) -> Batch:
        """The share's rows; a row without such an item holds the last item's embedding, under a mask."""
        image_B, partner_B = plan.image_index_P[share], plan.music_index_P[share]
        rows = {modality: self._train.rows(modality, image_B, partner_B) for modality in self._emb}
        labels, present = batch_labels(self._train, rows, image_B, partner_B, self._like)
        inputs = {}
        for modality, emb_KD in self._emb.items():
            index_B = torch.from_numpy(rows[modality] % len(emb_KD))
            inputs[modality] = emb_KD.index_select(0, index_B).to(self._like)  # a third quicker than numpy's gather
        return Batch(inputs, labels, present)


def _view(array: Floats) -> torch.Tensor:
    """An array's memory as a read-only tensor."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(array)


def prepare_features(
    recipe: Recipe, shared: Mapping[str, Any], last: Mapping[str, Any] | None, world: World, device: torch.device
) -> tuple[TrainState, FeatureSource]:
    """State and source of one rank, from the content of a checkpoint if there is one."""
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
    """What the driver does in features mode."""

    def __init__(self, recipe: Recipe, settings: Settings) -> None:
        self.data = share_features(recipe, settings)
        self._features = shared_features(self.data)
        train, val = (triplets(self._features, name) for name in ("train", "val"))
        if recipe.optimizer.ridge == "auto":
            check_probes(train, val)  # before workers start
        if recipe.refit_folds:
            next(known_rows(self._features).folds(recipe.refit_folds))  # too few groups are said before the training
        self.facts = RunFacts.of(self._features)

    def trained(self, run: RunDirectory, recipe: Recipe, last: Mapping[str, Any]) -> tuple[MMVA, Features]:
        """See Mode."""
        del run
        model = build_model(recipe, triplets(self._features, "train"))
        model.load_state_dict(last["best"]["weights"])
        return model, self._features
