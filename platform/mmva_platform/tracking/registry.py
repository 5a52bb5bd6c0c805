"""Registered versions of the model, each tied to its bundle, dataset and evaluation by digests."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mmva.errors import CheckFailed, UsageError
from mmva.modalities import AXES
from mmva_platform.settings import Settings, without_password
from mmva_platform.tracking.model import MODEL_NAME, logged_model
from mmva_platform.tracking.store import (
    EVALUATION_FILE,
    HISTORY_FILE,
    TAG_DATASET_DIGEST,
    TAG_MODEL_DIGEST,
    TAG_PRESET,
    connected,
    global_tracking_uri,
    retry_while_busy,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION: Final = "champion"
PREVIOUS: Final = "previous"
CHALLENGER: Final = "challenger"
TAG_EVALUATION: Final = "mmva.evaluation"
TAG_EVALUATION_SHA256: Final = "mmva.evaluation_sha256"
TAG_VERDICT: Final = "mmva.verdict"
TAG_FORCED: Final = "mmva.forced"
_TEXTS: Final = {
    "model_digest": TAG_MODEL_DIGEST, "dataset_digest": TAG_DATASET_DIGEST, "preset": TAG_PRESET,
    "verdict": TAG_VERDICT, "evaluation_sha256": TAG_EVALUATION_SHA256, "forced": TAG_FORCED,
}  # fmt: skip
_FIGURES: Final = ("mse", "mae", "r2", "pearson", "ccc")


@dataclass(frozen=True)
class RegisteredVersion:
    """One version in the registry."""

    name: str  # the registered model's
    version: int  # from 1
    aliases: tuple[str, ...]
    run_id: str  # MLflow's id of the run that made it
    model_digest: str  # of the bundle, as registered, like all digests here
    dataset_digest: str  # of the dataset of training and evaluation
    preset: str  # its backbones
    mse: Mapping[str, float]  # test MSE, mean of the axes, by modality
    verdict: str  # "passed", "refused", "forced", or "" if the gate never judged it
    created_at: datetime
    evaluation_sha256: str  # of the evaluation's file
    forced: str = ""  # who promoted it against the gate, when and why; never removed

    @property
    def gate(self) -> str:
        """The gate's last verdict in words, and whether it was ever overruled."""
        said = f"gate {self.verdict}" if self.verdict else "never judged"
        return f"{said}; FORCED by {self.forced}" if self.forced else said

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"created_at": self.created_at.isoformat()}

    def to_text(self) -> str:
        """One line: number, aliases, age, backbones, mean test MSE by modality, digest, the gate's verdict."""
        mse = ", ".join(f"{modality} {_short(value)}" for modality, value in self.mse.items())
        aliases = f" ({', '.join(self.aliases)})" if self.aliases else ""
        return (
            f"{self.version}{aliases}  {self.created_at:%Y-%m-%d %H:%M}  {self.preset}  "
            f"test MSE {mse or 'unknown'}  {self.model_digest[:12]}  {self.gate}"
        )


@dataclass(frozen=True)
class VersionDetails:
    """A version with its evaluation, as `mmva models show` prints it."""

    version: RegisteredVersion
    evaluation: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return self.version.to_json() | {"evaluation": self.evaluation}

    def to_text(self) -> str:
        """Lineage, then one line per modality and axis."""
        known = self.version
        lines = [
            f"{known.name} version {known.version}" + (f", {', '.join(known.aliases)}" if known.aliases else ""),
            f"  registered  {known.created_at:%Y-%m-%d %H:%M:%S} UTC; {known.gate}",
            f"  model       {known.model_digest}",
            f"  dataset     {known.dataset_digest}",
            f"  run         {known.run_id}",
            f"  backbones   {known.preset}",
        ]
        for modality, axes in self.evaluation.get("metrics", {}).items():
            for axis, figures in axes.items():
                floor = self.evaluation.get("floors", {}).get(modality, {}).get(axis)
                numbers = "  ".join(f"{name} {_figure(figures[name])}" for name in _FIGURES if name in figures)
                lines.append(f"  {modality} {axis}: {numbers}  (best constant: MSE {_short(floor)})")
        return "\n".join(lines)


def register(run_id: str, settings: Settings) -> int:
    """Register a logged run's model as a new version without alias; returns its number. Raises as logged_model."""
    with connected(settings) as client:
        from mlflow.exceptions import MlflowException

        model = logged_model(client, run_id, MODEL_NAME)
        tags = client.get_run(run_id).data.tags
        data = read_artifact(client, run_id, EVALUATION_FILE)
        version_tags = {key: tags.get(key, "") for key in (TAG_MODEL_DIGEST, TAG_DATASET_DIGEST, TAG_PRESET)}
        version_tags[TAG_EVALUATION] = json.dumps(_mean_mse(json.loads(data or b"{}")))
        version_tags[TAG_EVALUATION_SHA256] = hashlib.sha256(data).hexdigest()
        try:
            client.create_registered_model(settings.tracking.model_name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        source, name = f"models:/{model.model_id}", settings.tracking.model_name
        with global_tracking_uri(settings.tracking_uri):
            create, model_id = client.create_model_version, str(model.model_id)
            return int(retry_while_busy(create, name, source, run_id, version_tags, model_id=model_id).version)


def training_history(version: int | str, settings: Settings) -> list[dict[str, Any]]:
    """The history of the run that made a version, one row per epoch; empty if not recorded. Raises as show_version."""
    with connected(settings) as client:
        found = find_version(client, settings.tracking.model_name, version)
        data = read_artifact(client, found.run_id, HISTORY_FILE)
    return list(json.loads(data or b"[]"))


def list_versions(settings: Settings) -> list[RegisteredVersion]:
    """All versions of the registered model, oldest first."""
    with connected(settings) as client:
        return versions_of(client, settings.tracking.model_name)


def show_version(version: int | str, settings: Settings) -> VersionDetails:
    """A version with its evaluation. Raises UsageError if it is missing, CheckFailed if the evaluation was changed."""
    with connected(settings) as client:
        found = find_version(client, settings.tracking.model_name, version)
        return VersionDetails(found, evaluation_of(client, found))


def versions_of(client: MlflowClient, name: str) -> list[RegisteredVersion]:
    """All versions of a registered model, oldest first; empty if there is no such model."""
    aliases = aliases_of(client, name)
    found, token = [], None
    while True:
        page = client.search_model_versions(f"name='{name}'", page_token=token)
        found += [_version(each, aliases) for each in page]
        token = page.token
        if not token:
            return sorted(found, key=lambda each: each.version)


def aliases_of(client: MlflowClient, name: str) -> dict[str, int]:
    """Version by alias; empty if there is no such model."""
    from mlflow.exceptions import MlflowException

    try:
        return {alias: int(version) for alias, version in client.get_registered_model(name).aliases.items()}
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return {}
        raise


def find_version(client: MlflowClient, name: str, reference: str | int) -> RegisteredVersion:
    """A version by number or alias. Raises UsageError, naming the existing ones, if there is no such version."""
    known = versions_of(client, name)
    for each in known:
        if str(each.version) == str(reference) or reference in each.aliases:
            return each
    have = ", ".join(str(each.version) + "".join(f" ({alias})" for alias in each.aliases) for each in known)
    have = have or f"no versions at all in {without_password(client.tracking_uri)}"  # perhaps --home is wrong
    raise UsageError(f"model {name!r} has no version or alias {str(reference)!r}; it has {have}")


def evaluation_of(client: MlflowClient, version: RegisteredVersion) -> dict[str, Any]:
    """A version's evaluation, empty if its run has none. Raises CheckFailed if the file was changed."""
    data = read_artifact(client, version.run_id, EVALUATION_FILE)
    if version.evaluation_sha256 and hashlib.sha256(data).hexdigest() != version.evaluation_sha256:
        raise CheckFailed(f"version {version.version}: {EVALUATION_FILE} of its run was changed after registration")
    return dict(json.loads(data or b"{}"))


def read_artifact(client: MlflowClient, run_id: str, name: str) -> bytes:
    """The bytes of a run's artifact; empty if it does not exist."""
    if not any(entry.path == name for entry in client.list_artifacts(run_id, name.rpartition("/")[0] or None)):
        return b""
    with tempfile.TemporaryDirectory() as temporary:
        return Path(client.download_artifacts(run_id, name, temporary)).read_bytes()


def _mean_mse(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """Test MSE, mean of the axes, by modality."""
    metrics = evaluation.get("metrics", {})
    return {m: sum(float(axes[axis]["mse"]["value"]) for axis in AXES) / len(AXES) for m, axes in metrics.items()}


def _version(found: Any, aliases: Mapping[str, int]) -> RegisteredVersion:
    tags = dict(found.tags)
    number = int(found.version)
    return RegisteredVersion(
        name=str(found.name),
        version=number,
        aliases=tuple(sorted(alias for alias, target in aliases.items() if target == number)),
        run_id=str(found.run_id or ""),
        mse=json.loads(tags.get(TAG_EVALUATION, "{}")),
        created_at=datetime.fromtimestamp(found.creation_timestamp / 1000, tz=UTC),
        **{field: tags.get(tag, "") for field, tag in _TEXTS.items()},
    )


def _figure(figure: Mapping[str, float | None]) -> str:
    return f"{_short(figure.get('value'))} [{_short(figure.get('low'))}, {_short(figure.get('high'))}]"


def _short(value: float | None) -> str:
    return "?" if value is None else f"{value:.4f}"
