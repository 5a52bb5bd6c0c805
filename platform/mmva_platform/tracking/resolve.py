"""Finds and verifies the bundle of a model that a user names: a folder, a run's model or a registered version."""

from __future__ import annotations

import re
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from mmva.errors import CheckFailed, UsageError
from mmva.modalities import AXES, MODALITIES
from mmva.models.bundle import read_bundle_info
from mmva.starter import BUNDLE
from mmva_platform.settings import Settings
from mmva_platform.tracking.model import BUNDLE_PATH, logged_model
from mmva_platform.tracking.registry import CHAMPION, aliases_of, find_version, show_version
from mmva_platform.tracking.store import TAG_MODEL_DIGEST, connected

_RUNS = re.compile(r"^runs:/(?P<run>[A-Za-z0-9]+)/(?P<model>[A-Za-z0-9_.-]+)$")
_MODELS = re.compile(r"^models:/(?P<name>[A-Za-z0-9_.-]+)[@/](?P<reference>[A-Za-z0-9_.-]+)$")
STARTER: Final = "starter"  # the name of the model that ships with the package
_FORMS: Final = "a bundle's folder, runs:/RUN/model, models:/NAME@ALIAS, models:/NAME/VERSION or starter"


@dataclass(frozen=True)
class ResolvedModel:
    """A verified bundle and where it came from."""

    bundle_dir: Path  # on this machine
    name: str  # the registered name, else that of the folder or run
    version: str | None  # the registered version; None if not registered
    digest: str  # of the bundle, checked against the registry if registered
    uri: str  # as the user wrote it


def resolve_model(uri: str, settings: Settings) -> ResolvedModel:
    """Find a model by URI (see _FORMS), fetch it if necessary, and verify it.

    Raises UsageError if there is no such model, CheckFailed if its files are not the registered ones.
    """
    if (run := _RUNS.match(uri)) is not None:
        return _from_run(uri, run["run"], run["model"], settings)
    if (model := _MODELS.match(uri)) is not None:
        return _from_registry(uri, model["name"], model["reference"], settings)
    if uri.startswith(("runs:", "models:")):
        raise UsageError(f"model {uri!r}: write it as {_FORMS}")
    if uri == STARTER:
        return ResolvedModel(BUNDLE, STARTER, None, read_bundle_info(BUNDLE).digest, uri)
    folder = Path(uri).expanduser()
    if not folder.is_dir():
        raise UsageError(f"model {uri!r}: no such folder; a model is {_FORMS}")
    return ResolvedModel(folder, folder.resolve().name, None, read_bundle_info(folder).digest, uri)


def default_model(settings: Settings) -> str:
    """The model of verbs without --model: the registry's champion, or the starter if there is none.

    Does not create MLflow's SQLite file if it does not exist yet.
    """
    uri = settings.tracking_uri
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        return STARTER
    name = settings.tracking.model_name
    with connected(settings) as client:
        return f"models:/{name}@{CHAMPION}" if CHAMPION in aliases_of(client, name) else STARTER


def quality_of(model: ResolvedModel, settings: Settings) -> str:
    """A model's correlation with labels, from its own evaluation, in one line; empty if not measured."""
    if model.version is not None:
        evaluation = show_version(model.version, settings).evaluation
    else:
        evaluation = read_bundle_info(model.bundle_dir).provenance.get("folds") or {}
    metrics = evaluation.get("metrics") or {}
    figures = [
        f"{modality} " + " / ".join(f"{metrics[modality][axis]['pearson']['value'] or 0:.2f}" for axis in AXES)
        for modality in MODALITIES
        if modality in metrics
    ]
    return f"r of valence / arousal on {evaluation['split']}: {', '.join(figures)}" if figures else ""


def _from_run(uri: str, run_id: str, name: str, settings: Settings) -> ResolvedModel:
    with connected(settings) as client:
        model = logged_model(client, run_id, name)
        bundle_dir = _fetch(model.artifact_location, model.tags.get(TAG_MODEL_DIGEST, ""), settings, uri)
        run_name = str(client.get_run(run_id).info.run_name)
    return ResolvedModel(bundle_dir, run_name, None, read_bundle_info(bundle_dir).digest, uri)


def _from_registry(uri: str, name: str, reference: str, settings: Settings) -> ResolvedModel:
    with connected(settings) as client:
        version = find_version(client, name, reference)
        location = client.get_model_version_download_uri(name, str(version.version))
        bundle_dir = _fetch(location, version.model_digest, settings, uri)
    return ResolvedModel(bundle_dir, name, str(version.version), version.model_digest, uri)


def _fetch(location: str, digest: str, settings: Settings, uri: str) -> Path:
    """The bundle of an MLflow model, fetched into the cache if necessary; its digest is always checked."""
    if re.fullmatch(r"[0-9a-f]{64}", digest) is None:
        raise CheckFailed(f"model {uri!r}: the registry has no digest of its bundle, so it cannot be verified")
    cache = settings.home.resolve() / "cache" / "models"
    target = cache / digest
    if not target.is_dir():
        _check_place(location, settings, uri)
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            fetched = _download(f"{location}/{BUNDLE_PATH}", temporary, settings, uri)
            _verify(fetched, digest, uri)
            with suppress(OSError):  # another process has just fetched the same bundle
                fetched.rename(target)
    _verify(target, digest, uri)
    return target


def _check_place(location: str, settings: Settings, uri: str) -> None:
    """Allow models below home, below the settings' roots, and on the tracking server; raise CheckFailed otherwise.

    Whoever can write to the registry can name any folder as a version's source, and the user's credentials would fetch
    it. So MLflow's answer does not decide what is allowed.
    """
    if location.startswith("mlflow-artifacts:"):
        return
    roots = (str(settings.home.resolve() / "artifacts"), *settings.tracking.artifact_roots)
    if not any(_inside(location, root) for root in roots):
        raise CheckFailed(
            f"model {uri!r}: its source {location} is outside the allowed roots ({', '.join(roots)}); "
            "if models belong there, add it to tracking.artifact_roots"
        )


def _inside(location: str, root: str) -> bool:
    """Whether a place is below a root; follows links and refuses ".." and "%2e"."""
    place, base = (unquote(each.removeprefix("file://")).rstrip("/") for each in (location, root))
    if ".." in unquote(place).split("/") or "\0" in place or "#" in location or "?" in location:
        return False
    if "://" in place or "://" in base:
        return place.startswith(f"{base}/")
    return Path(place).is_absolute() and Path(place).resolve().is_relative_to(Path(base).resolve())


def _download(location: str, folder: str, settings: Settings, uri: str) -> Path:
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    try:
        return Path(download_artifacts(artifact_uri=location, dst_path=folder, tracking_uri=settings.tracking_uri))
    except (MlflowException, OSError) as error:
        raise UsageError(f"model {uri!r}: cannot be fetched from {location} ({' '.join(str(error).split())})") from None


def _verify(bundle_dir: Path, digest: str, uri: str) -> None:
    found = read_bundle_info(bundle_dir).digest
    if found != digest:
        raise CheckFailed(f"model {uri!r}: its bundle's digest is {found[:16]}, the registry says {digest[:16]}")
