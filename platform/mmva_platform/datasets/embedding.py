"""A dataset through frozen backbones, once: training and evaluation read embeddings, never pixels or samples.

Parts that are there already, made from the same shard by the same encoder, are not computed again: an interrupted run
is resumed by running it again, and a second preset that shares a backbone costs nothing for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmva.backbones import BackboneSpec, Preset, preset
from mmva.errors import UsageError
from mmva.modalities import MODALITIES, Modality
from mmva_platform.cluster import ray_session
from mmva_platform.datasets.dataset import Dataset
from mmva_platform.datasets.embedder import Embedder, EncoderLoader, Part
from mmva_platform.datasets.embedding_set import (
    EMBEDDINGS_FILE,
    EMBEDDINGS_FOLDER,
    EmbeddingsInfo,
    PartInfo,
    Pointer,
    folder_name,
    part_key,
    pointer_file,
    read_info,
)
from mmva_platform.datasets.schema import json_bytes, sha256_of
from mmva_platform.pool import run_shards
from mmva_platform.progress import progress
from mmva_platform.settings import Settings
from mmva_platform.storage import Storage, StorageNotFound, open_storage

_STAGE = "embed"


def embed_dataset(
    dataset_uri: str,
    backbones: str | Preset,
    out: str | None = None,
    settings: Settings | None = None,
    batch_size: int = 16,
) -> dict[Modality, str]:
    """Embed what is not embedded yet.

    Args:
        dataset_uri: Of an imported dataset.
        backbones: A preset of mmva.backbones, by name or a made one.
        out: URI for the embeddings; default "<dataset>/embeddings".
        settings: Storage, cluster, mirror, trusted repositories.
        batch_size: Items decoded and embedded at once.

    Returns:
        URI of the embedding set by modality, for the modalities that the dataset has.

    Raises:
        UsageError: For an unknown preset, a missing dataset or backbone, or an `out` that holds another dataset's.
        OperationFailed: If an item does not decode here, which the import had checked, or the job stalls.
    """
    settings = settings or Settings()
    chosen = preset(backbones) if isinstance(backbones, str) else backbones
    dataset = Dataset.open(dataset_uri, settings)
    target = open_storage(out or dataset.storage.join(EMBEDDINGS_FOLDER), settings.storage)
    load = EncoderLoader.of(settings)
    present = [modality for modality in MODALITIES if dataset.items(modality)]
    plans = [_plan(chosen.specs[modality], chosen.name, dataset, target, load) for modality in present]
    parts = [part for plan in plans if plan.finished is None for part in plan.parts]
    made = _existing(parts, target)
    missing = [part for part in parts if part.path not in made]
    if missing:
        worker = {"load": load, "dataset": dataset.storage, "out": target, "batch_size": batch_size}
        made |= _compute(missing, worker, settings)
    infos = [plan.finished or _finish(plan, made, target) for plan in plans]
    pointer = Pointer(dataset=dataset.digest, fingerprints={info.modality: info.fingerprint for info in infos})
    target.write(pointer_file(chosen.name), json_bytes(pointer.model_dump()))
    return {info.modality: target.join(folder_name(info.modality, info.fingerprint)) for info in infos}


@dataclass(frozen=True)
class _Plan:
    """One modality's set: its description (without parts), the parts it will have, or the set that is there already."""

    info: EmbeddingsInfo
    parts: list[Part]
    finished: EmbeddingsInfo | None


def _plan(spec: BackboneSpec, preset_name: str, dataset: Dataset, target: Storage, load: EncoderLoader) -> _Plan:
    encoder = load(spec)  # its fingerprint is a fact about the loaded weights, not about the spec
    finished = read_info(target, folder_name(spec.modality, encoder.fingerprint))
    if finished is not None and finished.dataset != dataset.digest:
        raise UsageError(f"{target.uri}: holds embeddings of another dataset; choose another --out")
    parts = [
        Part(spec, encoder.fingerprint, f"part-{number:05d}.parquet", items.shard, items.ids, items.texts)
        for number, items in enumerate(dataset.items(spec.modality))
    ]
    info = EmbeddingsInfo(
        modality=spec.modality,
        fingerprint=encoder.fingerprint,
        spec=spec.to_json(),
        dim=encoder.dim,
        preset=preset_name,
        dataset=dataset.digest,
        rows=sum(len(part.ids) for part in parts),
        parts=(),
    )
    return _Plan(info, parts, finished)


def _existing(parts: Sequence[Part], target: Storage) -> dict[str, PartInfo]:
    """Parts that an interrupted run has left, by path; those made from something else do not count."""
    found = {}
    for part in parts:
        try:
            data = target.read(part.path)
        except StorageNotFound:
            continue
        if part_key(data) == part.key:
            found[part.path] = PartInfo(name=part.name, rows=len(part.ids), sha256=sha256_of(data))
    return found


def _compute(parts: Sequence[Part], worker: dict[str, object], settings: Settings) -> dict[str, PartInfo]:
    """Compute parts on the cluster, all modalities in one pool of actors."""
    made: dict[str, PartInfo] = {}
    with ray_session(settings.cluster), progress(_STAGE, sum(len(part.ids) for part in parts)) as advance:

        def collect(result: tuple[str, PartInfo]) -> None:
            path, info = result
            made[path] = info
            advance(info.rows)

        run_shards(
            [{"part": part} for part in parts],
            Embedder,
            stage=_STAGE,
            on_result=collect,
            constructor_kwargs=worker,
            stall_timeout_s=settings.cluster.stall_timeout_s,
        )
    return made


def _finish(plan: _Plan, made: dict[str, PartInfo], target: Storage) -> EmbeddingsInfo:
    """Write embeddings.json: from here on the set is there."""
    info = plan.info.model_copy(update={"parts": tuple(made[part.path] for part in plan.parts)})
    target.put_if_absent(
        f"{folder_name(info.modality, info.fingerprint)}/{EMBEDDINGS_FILE}", json_bytes(info.model_dump())
    )
    return info
