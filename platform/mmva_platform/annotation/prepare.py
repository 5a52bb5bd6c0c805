"""From a caller's words to a plan: the catalog, the model, what computes the embeddings, and what need not be computed.

Nothing of the run is done here; only exported networks are put into its directory.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from mmva.errors import UsageError
from mmva.inference.config import ON_GPU, EngineInfo, Preprocessing
from mmva.modalities import towers_of
from mmva_platform.annotation.catalog import Catalog, read_catalog
from mmva_platform.annotation.options import AnnotateOptions
from mmva_platform.annotation.plan import PLAN_FILE, ModelInfo, Plan, make_plan, read_plan
from mmva_platform.annotation.roots import AllowedRoots, catalog_root
from mmva_platform.settings import Settings
from mmva_platform.storage import Storage, open_storage

if TYPE_CHECKING:
    from mmva_platform.annotation.base import Base

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """What a run would be.

    Attributes:
        storage: Its output.
        catalog: As read.
        bundle_dir: The model's files.
        plan: What this caller wants.
        contents: The plan's chapters by path.
        settled: The plan that the output has already; None for a new run.
        base_files: For each of the catalog's items its file in the base, or null; None without a base.
    """

    storage: Storage
    catalog: Catalog
    bundle_dir: Path
    plan: Plan
    contents: dict[str, bytes]
    settled: Plan | None
    base_files: pa.Array | None


def prepare(
    catalog: str, model: str, out: str, settings: Settings, options: AnnotateOptions, *, calibrate: bool = True
) -> Prepared:
    """Read the catalog, find the model, choose engines and base, and cut the work.

    Args:
        catalog: A folder, an S3 prefix or a table.
        model: A bundle's folder, runs:/... or models:/mmva@champion.
        out: The run's output.
        settings: Storage and registry.
        options: See AnnotateOptions.
        calibrate: Choose engines and export networks now; without it the plan names none but those on GPUs, and nothing
            is written.

    Raises:
        UsageError: For what cannot be read, options that contradict each other, or a catalog outside the roots.
        CheckFailed: If the output's store cannot hold a run.
    """
    from mmva_platform.storage import probe_put_if_absent
    from mmva_platform.tracking.registry import resolve_model

    found = read_catalog(catalog, settings.storage)
    roots = (*settings.annotation.roots, *options.roots)
    _refuse_if_all_outside(found, roots)
    resolved = resolve_model(model, settings)
    storage = open_storage(out, settings.storage)
    _tell(found)
    settled = read_plan(storage) if storage.exists(PLAN_FILE) else None
    if settled is None and calibrate:
        probe_put_if_absent(storage)
    version = None if resolved.version is None else str(resolved.version)
    identity = ModelInfo(name=resolved.name, version=version, digest=resolved.digest)
    preprocessing = _preprocessing(resolved.bundle_dir, options)
    base = _base(out, settings, options, preprocessing, settled)
    engines = settled.engines if settled and options.engine == "auto" else {}
    if not engines and (calibrate or options.engine in ON_GPU):
        engines = _engines(
            found,
            resolved.bundle_dir,
            preprocessing=preprocessing,
            base=base,
            storage=storage,
            settings=settings,
            wanted=options.engine,
        )
    info, files = base.plan_for(found.items, identity, preprocessing, engines) if base else (None, None)
    if info and settled and settled.base and settled.base.uri == info.uri:
        info = settled.base  # a retry published there meanwhile changes its digest, not what this run took from it
    plan, contents = make_plan(
        found,
        identity,
        preprocessing,
        options.shard_items,
        engines=engines,
        base=info,
        base_files=files,
        roots=roots,
        command=options.command,
        keep_windows=options.keep_windows,
    )
    return Prepared(storage, found, resolved.bundle_dir, plan, contents, settled, files)


def _engines(
    catalog: Catalog,
    bundle_dir: Path,
    *,
    preprocessing: Preprocessing,
    base: Base | None,
    storage: Storage,
    settings: Settings,
    wanted: str,
) -> dict[str, EngineInfo]:
    """Engines of the towers that the catalog needs; those of a base's embeddings, so that they can be used."""
    from mmva.inference.engines import choose_engines, pack_bundle
    from mmva_platform.datasets.embedder import EncoderLoader

    wanted_towers = dict.fromkeys(tower for name in catalog.modalities if name for tower in towers_of(name))
    needed = [tower for tower in wanted_towers if tower in preprocessing.fingerprints]
    adopted: dict[str, EngineInfo] = {}
    if base is not None and wanted == "auto":
        theirs = base.plan.preprocessing.fingerprints
        for tower in needed:
            if tower in base.engines and theirs.get(tower) == preprocessing.fingerprints[tower]:
                engine = adopted[tower] = base.engines[tower]
                if engine.file is not None:
                    storage.put_if_absent(engine.file, base.storage.read(engine.file))
    missing = [tower for tower in needed if tower not in adopted]
    if not missing:
        return adopted
    cache = settings.home / "cache" / "engines"
    bundle, load = pack_bundle(bundle_dir), EncoderLoader.of(settings)
    return adopted | choose_engines(bundle, wanted, missing, storage, cache=cache, load=load)


def _base(
    out: str, settings: Settings, options: AnnotateOptions, preprocessing: Preprocessing, settled: Plan | None
) -> Base | None:
    """The base named, or found; a resume of an incremental run keeps its own, whatever was published meanwhile."""
    from mmva_platform.annotation.base import find_base_beside, open_base

    uri = options.base
    if uri is None and options.incremental and settled is not None:
        uri = settled.base.uri if settled.base else None
    elif uri is None and options.incremental:
        uri = find_base_beside(out, settings, preprocessing)
        if uri is None:
            logger.warning("%s: no published annotation of this kind stands beside it; everything is annotated", out)
    return None if uri is None else open_base(uri, settings)


def _preprocessing(bundle_dir: Path, options: AnnotateOptions) -> Preprocessing:
    """What the bundle records of its backbones, and how media are cut for them."""
    from mmva.bundle import read_bundle_info
    from mmva.media.images import SHORT_SIDE

    if options.hop_s > options.window_s:
        raise UsageError(f"hop_s must be at most window_s, got {options.hop_s:g} and {options.window_s:g}")
    backbones = read_bundle_info(bundle_dir).backbones
    return Preprocessing(
        fingerprints={modality: record["fingerprint"] for modality, record in backbones.items()},
        window_s=options.window_s,
        hop_s=options.hop_s,
        short_side=SHORT_SIDE,
    )


def _refuse_if_all_outside(catalog: Catalog, roots: Iterable[str]) -> None:
    allowed = AllowedRoots([catalog_root(catalog.uri), *roots])
    first: str | None = None
    for batch in catalog.items.select(["uri"]).to_batches():
        for uri in batch.column(0):
            if not uri.is_valid or allowed.allow(uri.as_py()):
                return
            first = first or uri.as_py()
    raise UsageError(
        f"catalog {catalog.uri}: all {catalog.items.num_rows} items lie outside its own folder, the first is {first}; "
        "name where media may be read from with --root"
    )


def _tell(catalog: Catalog) -> None:
    if catalog.skipped:
        kinds = ", ".join(f"{count} {kind}" for kind, count in catalog.skipped.items())
        logger.info("catalog %s: skipped what is no media: %s", catalog.uri, kinds)
    if catalog.duplicates:
        first = ", ".join(catalog.duplicate_ids)
        logger.warning(
            "catalog %s: %d rows repeat an earlier id and are left out: %s", catalog.uri, catalog.duplicates, first
        )
