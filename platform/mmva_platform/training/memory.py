"""Embeddings in Ray's shared memory: one copy a node, read by all its workers and the driver without copying.

What it takes: the node's object store must hold every embedding of the dataset, and the driver besides, while it loads,
those of the largest modality. What does not fit is refused before anything is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mmva.errors import UsageError
from mmva.modalities import Modality
from mmva_platform.settings import Settings

if TYPE_CHECKING:
    from mmva_platform.datasets.embedding_set import EmbeddingsInfo
    from mmva_platform.datasets.features import Features

_MIB: Final = 2**20
_SPARE: Final = 1.15  # labels, ids, checkpoints and Ray's own objects
_WAY_OUT: Final = "or train with mode=media, which reads media batch by batch"


def needed_bytes(sets: Mapping[Modality, EmbeddingsInfo]) -> dict[str, int]:
    """Bytes of the embeddings in memory, by modality."""
    return {str(modality): 4 * info.rows * info.dim for modality, info in sets.items()}


def check_memory(needed: Mapping[str, int], store_bytes: float, free_bytes: float | None) -> None:
    """Refuse what does not fit.

    Args:
        needed: Bytes by modality.
        store_bytes: Size of the smallest node's object store.
        free_bytes: Memory that the driver's machine can still give; None where that is not known.

    Raises:
        UsageError: Naming the setting that would make room, and media mode.
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


def share_features(recipe_dataset: str, preset: str, settings: Settings, embeddings: str | None) -> dict[str, Any]:
    """Load a dataset's embeddings into shared memory, one modality after another. Needs a Ray session.

    Returns:
        What shared_features takes.

    Raises:
        UsageError: If there are no such embeddings, or they do not fit.
        CheckFailed: If a part is not the one that was published.
    """
    import ray

    from mmva_platform.datasets.features import FeatureSets

    sets = FeatureSets.open(recipe_dataset, preset, settings, embeddings=embeddings)
    stores = [node["Resources"].get("object_store_memory", 0.0) for node in ray.nodes() if node["Alive"]]
    check_memory(needed_bytes(sets.infos), min(stores), free_memory())
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
