"""Embeds a dataset once with frozen backbones; training and evaluation then read no media.

An interrupted run is resumed by running it again: parts made from the same shard by the same encoder are kept. A second
preset that shares a backbone reuses its embeddings.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mmva.backbones import BackboneSpec, Preset, preset
from mmva.errors import UsageError
from mmva.modalities import Modality
from mmva_platform import bulk
from mmva_platform.cluster import ray_session
from mmva_platform.datasets.dataset import Dataset
from mmva_platform.datasets.embedding import files as embedding_set
from mmva_platform.datasets.embedding.worker import ENGINES, Embedder, EncoderLoader, Engine, Part
from mmva_platform.datasets.schema import json_bytes, require_files
from mmva_platform.progress import progress
from mmva_platform.settings import Settings
from mmva_platform.storage import Storage, open_storage


def embed_dataset(
    dataset_uri: str,
    backbones: str | Preset,
    out: str | None = None,
    settings: Settings | None = None,
    *,
    batch_size: int = 16,
    engine: Engine = "auto",
) -> dict[Modality, str]:
    """Compute the missing embeddings; returns the URI of the embedding set of each modality that the dataset has.

    `backbones` is a preset of mmva.backbones, by name or as an object; modalities without an encoder are left out.
    `out` is a URI, by default "<dataset>/embeddings". `batch_size` counts images, windows or captions. `engine` is
    "torch" (CPU), "cuda", or "auto" for CUDA if the cluster has a GPU.

    Raises UsageError for an unknown preset or engine, a missing dataset or backbone, or an `out` with the embeddings of
    another dataset, OperationFailed if an item does not decode on a worker although the import checked it.
    """
    if engine not in ENGINES:
        raise UsageError(f"embed: engine {engine!r} is unknown; choose one of {', '.join(ENGINES)}")
    if batch_size < 1:
        raise UsageError(f"embed: batch size {batch_size}; it must be at least 1")
    settings = settings or Settings()
    chosen = preset(backbones) if isinstance(backbones, str) else backbones
    dataset = Dataset.open(dataset_uri, settings)
    target = open_storage(out or dataset.storage.join(embedding_set.EMBEDDINGS_FOLDER), settings.storage)
    load = EncoderLoader.of(settings)
    specs = [spec for modality, spec in chosen.specs.items() if dataset.items(modality)]
    plans = [_plan(spec, chosen.name, dataset, target, load) for spec in specs]
    missing = [part for plan in plans if plan.finished is None for part in plan.parts]
    made: dict[str, embedding_set.PartInfo] = {}
    if missing:
        worker = {"load": load, "dataset": dataset.storage, "out": target, "batch_size": batch_size}
        made = _compute(missing, worker, engine, settings)
    infos = [plan.finished or _finish(plan, made, target) for plan in plans]
    pointer = embedding_set.Pointer(
        dataset=dataset.digest, fingerprints={info.modality: info.fingerprint for info in infos}
    )
    target.write(embedding_set.pointer_file(chosen.name), json_bytes(pointer.model_dump()))
    return {info.modality: target.join(embedding_set.folder_name(info.modality, info.fingerprint)) for info in infos}


@dataclass(frozen=True)
class _Plan:
    """One modality's set: its description without parts, its planned parts, and the published set if there is one."""

    info: embedding_set.EmbeddingsInfo
    parts: list[Part]
    finished: embedding_set.EmbeddingsInfo | None


def _plan(spec: BackboneSpec, preset_name: str, dataset: Dataset, target: Storage, load: EncoderLoader) -> _Plan:
    encoder = load(spec)  # its fingerprint depends on the loaded weights, not only on the spec
    parts = [
        Part(spec, encoder.fingerprint, number, items.shard, items.ids, items.texts)
        for number, items in enumerate(dataset.items(spec.modality))
    ]
    info = embedding_set.EmbeddingsInfo(
        modality=spec.modality,
        fingerprint=encoder.fingerprint,
        spec=spec.to_json(),
        dim=encoder.dim,
        preset=preset_name,
        dataset=dataset.digest,
        rows=sum(len(part.ids) for part in parts),
        parts=(),
    )
    return _Plan(info, parts, _finished(info, target))


def _finished(info: embedding_set.EmbeddingsInfo, target: Storage) -> embedding_set.EmbeddingsInfo | None:
    """The published set with this encoder, or None. Raises UsageError if it is of another dataset."""
    finished = embedding_set.read_info(target, embedding_set.folder_name(info.modality, info.fingerprint))
    if finished is not None and finished.dataset != info.dataset:
        raise UsageError(f"{target.uri}: holds embeddings of another dataset; choose another --out")
    return finished


def _compute(
    parts: Sequence[Part], worker: dict[str, object], engine: Engine, settings: Settings
) -> dict[str, embedding_set.PartInfo]:
    """Compute parts on the cluster, all modalities in one pass; returns their descriptions by stem."""
    made: dict[str, embedding_set.PartInfo] = {}
    with ray_session(settings.cluster) as cluster, progress("embed", sum(len(part.ids) for part in parts)) as advance:

        def collect(result: tuple[str, embedding_set.PartInfo]) -> None:
            stem, info = result
            made[stem] = info
            advance(info.rows)

        on_gpu = engine == "cuda" or (engine == "auto" and (cluster.gpus > 0 or settings.cluster.max_gpus is not None))
        resources = bulk.Resources(gpus=1 / settings.annotation.workers_per_gpu if on_gpu else 0.0)
        kwargs = {**worker, "settings": settings, "engine": engine if resources.gpus else "torch"}
        bulk.run_pass(
            [{"shard": part.stem, "part": part} for part in parts],
            Embedder,
            stage="embed",
            settings=settings,
            on_result=collect,
            kwargs=kwargs,
            resources=resources,
            step_limit_s=settings.annotation.item_timeout_s,
        )
    return made


def _finish(plan: _Plan, made: dict[str, embedding_set.PartInfo], target: Storage) -> embedding_set.EmbeddingsInfo:
    """Publish a set; returns the published one, which may be that of another run."""
    folder = embedding_set.folder_name(plan.info.modality, plan.info.fingerprint)
    info = plan.info.model_copy(update={"parts": tuple(made[part.stem] for part in plan.parts)})
    require_files(target, folder, (f"{folder}/{part.name}" for part in info.parts))
    if target.put_if_absent(f"{folder}/{embedding_set.EMBEDDINGS_FILE}", json_bytes(info.model_dump())):
        return info
    published = _finished(plan.info, target)
    assert published is not None  # put_if_absent found it, and nothing deletes it
    for name in {part.name for part in info.parts} - {part.name for part in published.parts}:
        target.delete(f"{folder}/{name}")
    return published
