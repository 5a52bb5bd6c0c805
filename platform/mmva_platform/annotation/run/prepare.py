"""Makes a plan from a call of annotate: resolves names, then reads the catalog, then chooses engines.

It annotates nothing, and only puts the model's files and exported networks into the run's directory.
"""

import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from mmva.engines.calibration import Calibration
from mmva.engines.choice import LoadEncoder, calibrate_bundle, choose_engines, pack_bundle
from mmva.errors import CheckFailed, UsageError
from mmva.inference.config import ON_GPU, EngineInfo, Preprocessing, default_preprocessing
from mmva.modalities import towers_of
from mmva.models.bundle import read_bundle_info
from mmva_platform.annotation.catalog.catalog import Catalog, open_catalog
from mmva_platform.annotation.catalog.roots import catalog_root, normalised_root
from mmva_platform.annotation.options import AnnotateOptions
from mmva_platform.annotation.plan.plan import INTERNAL, CatalogInfo, ModelInfo, Plan, plan_file, read_plan
from mmva_platform.annotation.plan.planning import write_plan
from mmva_platform.annotation.plan.spool import spooled
from mmva_platform.cluster import ray_session
from mmva_platform.datasets.embedding.worker import EncoderLoader
from mmva_platform.settings import ClusterSettings, Settings
from mmva_platform.storage import Storage, open_storage, probe_put_if_absent
from mmva_platform.tracking.resolve import ResolvedModel, resolve_model

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """A call of annotate after all names are resolved; nothing is listed yet."""

    catalog: Catalog
    resolved: ResolvedModel  # the model on this machine
    storage: Storage
    preprocessing: Preprocessing  # how media are cut, and the model's backbones
    roots: tuple[str, ...]  # that media may be read from, the catalog's own first
    options: AnnotateOptions
    settled: Plan | None  # the output's existing plan; None for a new run

    @property
    def model(self) -> ModelInfo:
        """The model as a plan names it."""
        return model_info(self.resolved)

    def differences(self) -> list[str]:
        """The reasons why this call cannot continue the existing run, one line each."""
        return self.settled.differences(self._asked(self.settled)) if self.settled else []

    def continued(self) -> Plan | None:
        """The plan of the existing run, or None. Raises CheckFailed, with every difference, if its options differ."""
        if self.settled is not None:
            self.settled.check_same(self._asked(self.settled), self.storage.uri)
        return self.settled

    def _asked(self, settled: Plan) -> Plan:
        """The existing plan with this call's options."""
        options = self.options
        engines = settled.engines
        if options.engine != "auto":
            engines = {tower: engine.model_copy(update={"name": options.engine}) for tower, engine in engines.items()}
        changes = {
            "catalog": settled.catalog.model_copy(update={"uri": self.catalog.uri, "tables": self.catalog.tables}),
            "model": self.model,
            "preprocessing": self.preprocessing,
            "roots": self.roots,
            "keep_windows": options.keep_windows,
            "engines": engines,
        }
        return settled.model_copy(update=changes)


def look_up(catalog: str, model: str, out: str, settings: Settings, options: AnnotateOptions) -> Request:
    """Find the model, the output and its existing plan; arguments as for annotate. Lists and writes nothing.

    Raises UsageError if there is no such model, a URI is malformed, or the output has a plan of another format,
    CheckFailed if the model is not the registered one.
    """
    resolved = resolve_model(model, settings)
    found = open_catalog(catalog, settings.storage, options.tables)
    storage = open_storage(out, settings.storage)
    return Request(
        catalog=found,
        resolved=resolved,
        storage=storage,
        preprocessing=default_preprocessing(
            read_bundle_info(resolved.bundle_dir).backbones, options.window_s, options.hop_s
        ),
        roots=roots_for([catalog_root(found.uri)], settings, options.roots),
        options=options,
        # For an annotation of the earlier format, read_plan raises the error.
        settled=read_plan(storage) if storage.exists(plan_file(0)) or storage.exists("plan.json") else None,
    )


class Workers:
    """The cluster that measures engines. Its session begins on first use and lasts until the block ends."""

    def __init__(self, settings: ClusterSettings) -> None:
        self._settings, self._stack, self._connected = settings, ExitStack(), False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stack.close()

    def have_gpus(self) -> bool:
        """Whether the cluster has GPUs or may start nodes with some."""
        self._connect()
        import ray  # after the session has set Ray's environment

        return bool(self._settings.max_gpus or ray.cluster_resources().get("GPU"))

    def calibrate(
        self, bundle: Mapping[str, bytes], modality: str, cache: Path, load: LoadEncoder
    ) -> tuple[Calibration, bytes | None]:
        """Run calibrate_bundle in a task with one CPU, because the driver's processor may be of another kind."""
        self._connect()
        import ray

        task = ray.remote(num_cpus=1)(calibrate_bundle)
        found: tuple[Calibration, bytes | None] = ray.get(task.remote(bundle, modality, cache, load))
        return found

    def _connect(self) -> None:
        if not self._connected:
            self._stack.enter_context(ray_session(self._settings))
            self._connected = True


def make_plan(request: Request, settings: Settings, workers: Workers | None = None) -> Plan:
    """Read the catalog, choose the engines (measured on `workers`, or in this process) and write the run's plan.

    Raises UsageError if the catalog cannot be read, all of it is outside the roots, or an engine is not available,
    CheckFailed if the output's store cannot hold a run or another driver wrote a different plan, OperationFailed if the
    local temporary folder is full.
    """
    storage, options = request.storage, request.options
    request.catalog.check()
    probe_put_if_absent(storage)
    with spooled(request.catalog, request.roots) as spool:
        tell(spool.catalog)
        needed = towers_needed(spool.catalog.by_modality, request.preprocessing)
        bundle_dir = request.resolved.bundle_dir
        engines = choose_towers(bundle_dir, needed, storage, settings, wanted=options.engine, workers=workers)
        store_bundle(storage, bundle_dir, request.model)
        return write_plan(
            storage,
            spool,
            request.model,
            request.preprocessing,
            engines=engines,
            shard_items=options.shard_items,
            roots=request.roots,
            command=options.command,
            keep_windows=options.keep_windows,
        )


def model_info(resolved: ResolvedModel) -> ModelInfo:
    """A model as a plan names it."""
    version = None if resolved.version is None else str(resolved.version)
    return ModelInfo(name=resolved.name, version=version, digest=resolved.digest)


def roots_for(places: Iterable[str], settings: Settings, named: Iterable[str]) -> tuple[str, ...]:
    """All roots that media may be read from: these places first, then those of settings and options."""
    return tuple(dict.fromkeys([*places, *map(normalised_root, (*settings.annotation.roots, *named))]))


def towers_needed(modalities: Iterable[str], preprocessing: Preprocessing) -> list[str]:
    """The model's towers that items of these modalities need."""
    towers = dict.fromkeys(tower for name in modalities for tower in towers_of(name))
    return [tower for tower in towers if tower in preprocessing.fingerprints]


def tell(catalog: CatalogInfo) -> None:
    """Log the files and rows of a catalog that are left out."""
    if catalog.skipped:
        kinds = ", ".join(f"{count} {kind}" for kind, count in catalog.skipped.items())
        logger.info("catalog %s: skipped: %s", catalog.uri, kinds)
    if catalog.duplicates:
        first = ", ".join(catalog.duplicate_ids)
        message = "catalog %s: %d rows repeat an earlier id and are left out: %s"
        logger.warning(message, catalog.uri, catalog.duplicates, first)


def choose_towers(
    bundle_dir: Path,
    needed: Iterable[str],
    storage: Storage,
    settings: Settings,
    *,
    wanted: str = "auto",
    workers: Workers | None = None,
    adopted: Mapping[str, EngineInfo] | None = None,
) -> dict[str, EngineInfo]:
    """Choose the engine of each tower in `needed`; exported networks are put into the annotation.

    `wanted` is an engine's name or "auto" for the fastest. `adopted` has engines that were chosen earlier. `workers`
    measure engines; without them, this process does. Raises UsageError, before anything is written, if a GPU engine is
    wanted and the cluster has no GPU.
    """
    found = {tower: adopted[tower] for tower in needed if adopted and tower in adopted}
    missing = [tower for tower in needed if tower not in found]
    if not missing:
        return found
    cache = settings.home / "cache" / "engines"
    bundle, load = pack_bundle(bundle_dir), EncoderLoader.of(settings)
    gpu = workers is not None and wanted in {"auto", *ON_GPU} and workers.have_gpus()
    if wanted in ON_GPU and workers is not None and not gpu:
        raise UsageError(f"engine {wanted}: the cluster has no GPU; choose another engine, or set cluster.max_gpus")
    calibrate = calibrate_bundle if workers is None else workers.calibrate
    return found | choose_engines(
        bundle,
        wanted,
        missing,
        open_storage(storage.join(INTERNAL), settings.storage),
        cache=cache,
        load=load,
        gpu=gpu,
        measure=lambda modality: calibrate(bundle, modality, cache, load),
    )


def store_bundle(storage: Storage, bundle_dir: Path, model: ModelInfo) -> None:
    """Put a bundle's files into the annotation, in a folder named by its digest, so that models do not mix."""
    for file in sorted(bundle_dir.iterdir()):
        storage.put_if_absent(f"{_folder(model)}{file.name}", file.read_bytes())


@contextmanager
def stored_bundle(storage: Storage, model: ModelInfo) -> Iterator[Path]:
    """A run's bundle as a temporary local folder. Raises CheckFailed if its files are missing or not as planned."""
    with tempfile.TemporaryDirectory(prefix="mmva-bundle-") as name:
        for entry in storage.list(_folder(model)):
            (Path(name) / entry.path.rpartition("/")[2]).write_bytes(storage.read(entry.path))
        try:
            found = read_bundle_info(name).digest
        except (UsageError, CheckFailed) as error:
            raise CheckFailed(f"{storage.join(_folder(model).rstrip('/'))}: not the run's model ({error})") from None
        if found != model.digest:
            raise CheckFailed(
                f"{storage.join(_folder(model).rstrip('/'))}: its digest is {found[:12]}, planned was "
                f"{model.digest[:12]}"
            )
        yield Path(name)


def _folder(model: ModelInfo) -> str:
    return f"{INTERNAL}/model/{model.digest[:16]}/"
