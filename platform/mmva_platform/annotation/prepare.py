"""From a caller's words to a plan: names first, then the catalog, then what computes the embeddings.

Nothing of the run is done here; only the model's files and exported networks are put into its directory.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmva.inference.config import EngineInfo, Preprocessing
from mmva.modalities import towers_of
from mmva_platform.annotation.base import Base, find_base_beside, open_base
from mmva_platform.annotation.catalog import Catalog, open_catalog
from mmva_platform.annotation.options import AnnotateOptions
from mmva_platform.annotation.plan import PLAN_FILE, BaseInfo, ModelInfo, Plan, read_plan
from mmva_platform.annotation.planning import write_plan
from mmva_platform.annotation.roots import catalog_root, normalised_root
from mmva_platform.annotation.spool import Spool, spooled
from mmva_platform.annotation.stored_model import store_bundle
from mmva_platform.settings import Settings
from mmva_platform.storage import Storage, open_storage, probe_put_if_absent

if TYPE_CHECKING:
    from mmva_platform.annotation.on_workers import Workers
    from mmva_platform.tracking.registry import ResolvedModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """A call of annotate with every name looked up; nothing is listed yet.

    Attributes:
        catalog: What to annotate.
        resolved: With what, on this machine.
        storage: The run's output.
        preprocessing: How media are cut, and the model's backbones.
        roots: Where media may be read from, the catalog's own place first.
        options: As given.
        settled: The plan that the output has already; None for a new run.
    """

    catalog: Catalog
    resolved: ResolvedModel
    storage: Storage
    preprocessing: Preprocessing
    roots: tuple[str, ...]
    options: AnnotateOptions
    settled: Plan | None

    @property
    def model(self) -> ModelInfo:
        """The model as a plan names it."""
        version = None if self.resolved.version is None else str(self.resolved.version)
        return ModelInfo(name=self.resolved.name, version=version, digest=self.resolved.digest)

    def differences(self) -> list[str]:
        """Why this call cannot continue the run that is there, one line each."""
        return self.settled.differences(self._asked(self.settled)) if self.settled else []

    def continued(self) -> Plan | None:
        """The run's own plan, if there is one; the catalog is not read.

        Raises:
            CheckFailed: If the run was planned with other options; names every difference.
        """
        if self.settled is not None:
            self.settled.check_same(self._asked(self.settled), self.storage.uri)
        return self.settled

    def _asked(self, settled: Plan) -> Plan:
        """The settled plan, changed to what this call says."""
        options, base = self.options, settled.base
        if options.base is not None:  # only the URI is compared
            uri = open_storage(options.base).uri
            base = BaseInfo(uri=uri, run_id="", manifest_sha256="", same_model=False, items=0)
        elif not options.incremental:
            base = None
        engines = settled.engines
        if options.engine != "auto":
            engines = {tower: engine.model_copy(update={"name": options.engine}) for tower, engine in engines.items()}
        changes = {
            "catalog": settled.catalog.model_copy(update={"uri": self.catalog.uri}),
            "model": self.model,
            "preprocessing": self.preprocessing,
            "roots": self.roots,
            "keep_windows": options.keep_windows,
            "base": base,
            "engines": engines,
        }
        return settled.model_copy(update=changes)


def look_up(catalog: str, model: str, out: str, settings: Settings, options: AnnotateOptions) -> Request:
    """Find what a call names: the model, the output, the plan that is there. Lists and writes nothing.

    Args:
        catalog: A folder, an S3 prefix, a table or a folder of table files; see open_catalog.
        model: A bundle's folder, runs:/... or models:/mmva@champion.
        out: The run's output.
        settings: Storage and registry.
        options: See AnnotateOptions.

    Raises:
        UsageError: If there is no such model, a URI is malformed, or the output holds a plan of another version.
        CheckFailed: If the model is not the one that was registered.
    """
    from mmva_platform.tracking.registry import resolve_model

    resolved = resolve_model(model, settings)
    found = open_catalog(catalog, settings.storage)
    roots = [catalog_root(found.uri), *map(normalised_root, (*settings.annotation.roots, *options.roots))]
    storage = open_storage(out, settings.storage)
    return Request(
        catalog=found,
        resolved=resolved,
        storage=storage,
        preprocessing=_preprocessing(resolved, options),
        roots=tuple(dict.fromkeys(roots)),
        options=options,
        settled=read_plan(storage) if storage.exists(PLAN_FILE) else None,
    )


def make_plan(request: Request, settings: Settings, workers: Workers | None = None) -> Plan:
    """Read the catalog, choose the engines, and write the run's plan.

    Args:
        request: What to plan.
        settings: Storage, and where backbones come from.
        workers: Where engines are measured; this process if None.

    Raises:
        UsageError: If the catalog cannot be read or all of it is outside the roots, or an engine does not exist here.
        CheckFailed: If the output's store cannot hold a run, or another driver put a different plan meanwhile.
        OperationFailed: If the local temporary folder is full.
    """
    storage, options = request.storage, request.options
    base = find_base(request, settings)
    request.catalog.check()
    probe_put_if_absent(storage)
    with spooled(request.catalog, request.roots, base.lookup() if base else None) as spool:
        tell(spool)
        engines = _engines(request, spool, base, settings, workers)
        store_bundle(storage, request.resolved.bundle_dir, request.model)
        return write_plan(
            storage,
            spool,
            request.model,
            request.preprocessing,
            engines=engines,
            shard_items=options.shard_items,
            base=base.info(request.model) if base else None,
            reusable=base.reusable(request.preprocessing, engines) if base else (),
            roots=request.roots,
            command=options.command,
            keep_windows=options.keep_windows,
        )


def find_base(request: Request, settings: Settings) -> Base | None:
    """The earlier annotation that was named, or the newest one beside the output."""
    uri, out = request.options.base, request.storage.uri
    if uri is None and request.options.incremental:
        uri = find_base_beside(out, settings, request.preprocessing)
        if uri is None:
            logger.warning("%s: no published annotation of this kind is beside it; everything is annotated", out)
    return None if uri is None else open_base(uri, settings)


def towers_needed(modalities: Iterable[str], preprocessing: Preprocessing) -> list[str]:
    """The model's towers that items of these modalities go through."""
    towers = dict.fromkeys(tower for name in modalities for tower in towers_of(name))
    return [tower for tower in towers if tower in preprocessing.fingerprints]


def tell(spool: Spool) -> None:
    """Log what of a catalog is left out."""
    if spool.skipped:
        kinds = ", ".join(f"{count} {kind}" for kind, count in spool.skipped.items())
        logger.info("catalog %s: skipped: %s", spool.uri, kinds)
    if spool.duplicates:
        first = ", ".join(spool.duplicate_ids)
        logger.warning(
            "catalog %s: %d rows repeat an earlier id and are left out: %s", spool.uri, spool.duplicates, first
        )


def _engines(
    request: Request, spool: Spool, base: Base | None, settings: Settings, workers: Workers | None
) -> dict[str, EngineInfo]:
    """Engines of the towers that the catalog needs; those of a base's embeddings, so that they can be used."""
    from mmva.inference.engines import calibrate_bundle, choose_engines, pack_bundle
    from mmva_platform.datasets.embedder import EncoderLoader

    storage, wanted = request.storage, request.options.engine
    needed = towers_needed(spool.by_modality, request.preprocessing)
    adopted: dict[str, EngineInfo] = {}
    if base is not None and wanted == "auto":
        fingerprints = base.plan.preprocessing.fingerprints
        for tower in needed:
            if tower in base.engines and fingerprints.get(tower) == request.preprocessing.fingerprints[tower]:
                engine = adopted[tower] = base.engines[tower]
                if engine.file is not None:
                    storage.put_if_absent(engine.file, base.storage.read(engine.file))
    missing = [tower for tower in needed if tower not in adopted]
    if not missing:
        return adopted
    cache = settings.home / "cache" / "engines"
    bundle, load = pack_bundle(request.resolved.bundle_dir), EncoderLoader.of(settings)
    gpu = workers is not None and wanted == "auto" and workers.have_gpus()
    calibrate = calibrate_bundle if workers is None else workers.calibrate
    return adopted | choose_engines(
        bundle,
        wanted,
        missing,
        storage,
        cache=cache,
        load=load,
        gpu=gpu,
        measure=lambda modality: calibrate(bundle, modality, cache, load),
    )


def _preprocessing(resolved: ResolvedModel, options: AnnotateOptions) -> Preprocessing:
    """What the bundle records of its backbones, and how media are cut for them."""
    from mmva.bundle import read_bundle_info
    from mmva.media.images import SHORT_SIDE

    backbones = read_bundle_info(resolved.bundle_dir).backbones
    return Preprocessing(
        fingerprints={modality: record["fingerprint"] for modality, record in backbones.items()},
        window_s=options.window_s,
        hop_s=options.hop_s,
        short_side=SHORT_SIDE,
    )
