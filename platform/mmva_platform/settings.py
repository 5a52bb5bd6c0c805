"""The common settings of the platform, and the loader of all configuration files, whose errors name the field.

Other configurations (a recipe, an import, an annotation run) are a `Config` next to the code that they configure.
"""

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mmva.errors import UsageError
from mmva.media.limits import Limits

ConfigT = TypeVar("ConfigT", bound="Config")


class Config(BaseModel):
    """Base of every configuration: unknown keys are errors, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class StorageSettings(Config):
    """Object storage. Credentials come from boto3's own chain (environment, profile, role), never from here."""

    s3_endpoint: str | None = Field(None, description="URL of an S3 server other than AWS")
    s3_region: str | None = Field(None, description="region of the buckets; default: boto3's")
    max_attempts: int = Field(6, ge=1, le=20, description="attempts of a request that fails with transient errors")
    connect_timeout_s: float = Field(5.0, gt=0, description="longest wait for a connection")
    read_timeout_s: float = Field(20.0, gt=0, description="longest wait for an answer; six attempts take 2 minutes")
    patience_s: float = Field(120.0, ge=0, description="how long a run waits while storage is unavailable")


class ClusterSettings(Config):
    """The Ray cluster. Without an address, a private one is started on this machine and stopped at the end."""

    address: str | None = Field(None, description='"auto" or ray://host:port; null starts a local Ray')
    num_cpus: int | None = Field(None, ge=1, description="logical CPUs of a local Ray; default: the machine's")
    max_cpus: int | None = Field(None, ge=1, description="CPUs that an autoscaling cluster may grow to")
    max_gpus: int | None = Field(None, ge=1, description="GPUs that an autoscaling cluster may grow to, also from zero")
    object_store_mb: int = Field(1024, ge=80, description="MiB of a local Ray's object store")
    stall_timeout_s: float = Field(
        300.0, gt=0, description="a worker without a heartbeat for this long is replaced; a pass without workers ends"
    )
    start_timeout_s: float = Field(1800.0, gt=0, description="how long a pass waits for autoscaling to start nodes")
    max_attempts: int = Field(3, ge=1, le=20, description="attempts of a shard, on different nodes, before it fails")


class TrackingSettings(Config):
    """MLflow: runs and the registry."""

    uri: str | None = Field(None, description="URI of MLflow; default: MLFLOW_TRACKING_URI, else sqlite:/// under home")
    experiment: str = Field("mmva", description="MLflow experiment of the runs")
    model_name: str = Field("mmva", pattern=r"^[A-Za-z0-9_.-]+$", description="name in the registry")
    audit: str | None = Field(None, description="URI of the registry's audit log; default: under home")
    artifact_roots: tuple[str, ...] = Field((), description="folders and prefixes that models may be fetched from")


class LimitSettings(Config):
    """The largest items that are decoded; larger ones are quarantined. A file is held in memory while it is decoded."""

    max_mb: int = Field(256, ge=1, description="MiB of an encoded file; a feature film needs about 8000")
    max_pixels: int = Field(120_000_000, ge=1, le=178_956_970, description="of a picture; Pillow reads no larger ones")
    max_duration_s: float = Field(7200.0, gt=0, description="seconds of audio or video; a feature film needs 14400")
    max_caption_characters: int = Field(20_000, ge=1, description="characters of a caption")


class AnnotationSettings(Config):
    """Bulk annotation."""

    roots: tuple[str, ...] = Field((), description="folders and prefixes of media, besides the catalog's own")
    item_timeout_s: float = Field(120.0, gt=0, description="an item that takes longer is quarantined")
    limits: LimitSettings = LimitSettings()
    workers_per_gpu: int = Field(4, ge=1, description="with engine cuda: actors that share a GPU; each has a CPU")


Scope = Literal["read", "annotate", "admin"]


class KeySettings(Config):
    """An API key; only its digest is stored."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="the key's owner, as shown in logs and jobs")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of the key; mmva serve --new-key NAME makes both")
    scopes: tuple[Scope, ...] = Field(("read",), min_length=1, description="what the key may do")


class BulkSettings(Config):
    """The cluster that annotation jobs of the API are submitted to, and a job's resources there."""

    address: str | None = Field(None, description="its dashboard, http://host:8265; default: the serving cluster")
    token_file: Path | None = Field(None, description="file with its token, if not that of the serving cluster")
    home: Path | None = Field(None, description="home of the jobs, if they run on another cluster")
    workers: int | None = Field(None, ge=1, description="worker processes of a job; default: one for each CPU")
    max_cpus: int | None = Field(None, ge=1, description="CPUs that the cluster may grow to")
    max_gpus: int | None = Field(None, ge=1, description="GPUs that the cluster may grow to, also from zero")
    driver_cpus: float = Field(0.0, ge=0, description="logical CPUs that the driver of a job reserves")
    nice: int = Field(10, ge=0, le=19, description="niceness of its processes, which yield to interactive requests")
    secrets: tuple[str, ...] = Field((), description="names of environment variables that the cluster's nodes set")


class ServingSettings(Config):
    """The HTTP API. Without roots, nothing can be read or written by URI."""

    host: str = Field("127.0.0.1", description="address to listen on; keep loopback unless a proxy terminates TLS")
    port: int = Field(8000, ge=1, le=65535, description="port of the API and the page")
    keys: tuple[KeySettings, ...] = Field((), description="API keys")
    keys_file: Path | None = Field(None, description="more keys, read on every change; default: home/serving/keys.yaml")
    model: str = Field("models:/mmva@champion", description="the model that answers; an alias is followed")
    wait_for_model: bool = Field(default=False, description="start without a model, and answer 503 until there is one")
    follow_s: float = Field(15.0, gt=0, le=30, description="seconds between two look-ups of the model's alias")
    engine: str = Field("auto", description="auto, torch, torch-bf16, onnx, cuda or cuda-bf16")
    route_prefix: str = Field("/", pattern=r"^/([A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*)?$", description="of all paths")
    replicas: int = Field(1, ge=1, description="smallest number of processes that hold the model")
    max_replicas: int | None = Field(None, ge=1, description="largest number of them, under load; default: `replicas`")
    target_ongoing_requests: float = Field(8.0, gt=0, description="requests per replica above which more are started")
    max_queued_requests: int = Field(64, ge=1, description="requests that may wait for a replica; more get 503")
    replica_cpus: float = Field(0.5, ge=0, description="logical CPUs that each replica reserves")
    replica_gpus: float = Field(0.0, ge=0, description="GPUs that each replica reserves; 0.5 lets two share one")
    decoders: int = Field(2, ge=1, description="processes of each replica that decode pictures and music")
    api_replicas: int = Field(1, ge=1, description="smallest number of processes that run the routes")
    max_api_replicas: int | None = Field(None, ge=1, description="largest number of them, under load")
    api_cpus: float = Field(0.0, ge=0, description="logical CPUs that each of these processes reserves")
    bulk: BulkSettings = BulkSettings()
    roots: tuple[str, ...] = Field((), description="folders and prefixes that items and catalogs are read from")
    out_roots: tuple[str, ...] = Field((), description="folders and prefixes that jobs write below")
    annotations: dict[str, str] = Field({}, description="name -> URI of published annotations that can be searched")
    jobs: str | None = Field(None, description="URI of the queue of jobs; default home/serving/jobs")
    max_items: int = Field(64, ge=1, description="largest number of items in a request")
    max_body_mb: int = Field(64, ge=1, description="MiB of the largest request body")
    max_in_flight: int = Field(128, ge=1, description="items, and requests, that may be in flight; more get 503")
    max_in_flight_mb: int = Field(512, ge=1, description="MiB of bodies that may be in flight; more get 503")
    max_in_flight_per_key: int = Field(96, ge=1, description="items of one key that may be in flight; more get 429")
    batch_size: int = Field(16, ge=1, description="images, windows or captions embedded at once")
    request_timeout_s: float = Field(60.0, gt=0, description="longest time of a request; then 503")
    body_timeout_s: float = Field(20.0, gt=0, description="longest wait for the next piece of a body; then 408")
    item_timeout_s: float = Field(20.0, gt=0, description="longest step of an item; then its decoder is killed")
    max_running_jobs: int = Field(1, ge=1, description="jobs that run at once")
    max_queued_jobs: int = Field(100, ge=1, description="jobs that may wait")
    max_queued_jobs_per_key: int = Field(20, ge=1, description="jobs of one key that may wait")


class LogSettings(Config):
    """Logs of commands, jobs and their workers."""

    format: Literal["text", "json"] = Field("text", description="json: an object per line, with run, shard, attempt")


class Settings(Config):
    """The settings of all verbs: one home directory, storage, cluster, tracking, annotation, serving and logs."""

    home: Path = Field(Path("mmva-home"), description="folder of runs, the registry and caches by default")
    runs: str | None = Field(
        None, description="URI of training runs' checkpoints and bundles; every node must reach it; default: home/runs"
    )
    scratch: Path | None = Field(
        None, description="folder on each node's own disk for unpacked training media; default: Ray's session folder"
    )
    storage: StorageSettings = StorageSettings()
    cluster: ClusterSettings = ClusterSettings()
    tracking: TrackingSettings = TrackingSettings()
    annotation: AnnotationSettings = AnnotationSettings()
    serving: ServingSettings = ServingSettings()
    logs: LogSettings = LogSettings()
    backbone_mirror: str | None = Field(None, description="URI that holds backbones in save_pretrained layout")
    trust_remote_code: tuple[str, ...] = Field((), description="hub repositories whose code may run, by name")

    @property
    def tracking_uri(self) -> str:
        """MLflow's tracking URI: the configured one, else the environment's, else a SQLite file under home."""
        given = self.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
        return given or f"sqlite:///{self.home.resolve() / 'mlflow.db'}"

    @property
    def runs_uri(self) -> str:
        """URI where training runs keep checkpoints and bundles."""
        return (self.runs or str(self.home.resolve() / "runs")).rstrip("/")


def limits_of(settings: Settings) -> Limits:
    """The limits of an item, for the decoders."""
    chosen = settings.annotation.limits
    return Limits(
        max_bytes=chosen.max_mb * 2**20,
        max_pixels=chosen.max_pixels,
        max_duration_s=chosen.max_duration_s,
        max_caption_characters=chosen.max_caption_characters,
    )


def load_config(
    kind: type[ConfigT],
    path: str | Path | None = None,
    overrides: Sequence[str] = (),
    base: Mapping[str, Any] | None = None,
) -> ConfigT:
    """Read a YAML file (if there is one) over the values of `base`, then apply `key=value` overrides with dotted keys.

    Values of overrides are YAML, for example "optimizer.lr=3e-4". Raises UsageError, one line with the file and the
    field, for an unreadable file, a line that is not key=value, an unknown key or a value out of range.
    """
    values: dict[str, Any] = dict(base or {})
    where = str(path) if path is not None else kind.__name__
    if path is not None:
        values |= read_yaml(Path(path))
    for override in overrides:
        _apply_override(values, override)
    return validate(kind, values, where)


def validate(kind: type[ConfigT], values: Mapping[str, Any], where: str) -> ConfigT:
    """Validate plain values into a configuration; UsageError with the field's name on the first problem."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"{where}: {_explain(kind, error)}") from None


def without_password(uri: str) -> str:
    """A URI for messages, without the password between its user and its host."""
    return re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:...@", uri)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file, {} for an empty file. Raises UsageError if there is no readable mapping."""
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise UsageError(f"{path}: must be a mapping of keys to values, found {type(loaded).__name__}")
    return loaded


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UsageError(f"--set {override!r}: write it as key=value, for example --set optimizer.lr=1e-3")
    try:
        set_dotted(values, key.strip(), yaml.safe_load(text))
    except yaml.YAMLError:
        raise UsageError(f"--set {key}: {text!r} is not a YAML value") from None


def set_dotted(values: dict[str, Any], key: str, value: object) -> None:
    """Set the value of a dotted key in nested mappings; intermediate mappings are copied or created."""
    *parents, leaf = key.split(".")
    for parent in parents:
        child = values.get(parent)
        values[parent] = child = dict(child) if isinstance(child, Mapping) else {}
        values = child
    values[leaf] = value


def _explain(kind: type[BaseModel], error: ValidationError) -> str:
    """Describe the first problem of a validation error, with the nearest known key for a typo.

    An unknown key comes before a missing one, because it may be the missing key with a typo.
    """
    problems = error.errors()
    problem = next((one for one in problems if one["type"] == "extra_forbidden"), problems[0])
    location = [str(part) for part in problem["loc"]]
    field = ".".join(location)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if problem["type"] == "extra_forbidden":
        known = _known_keys(kind, location[:-1])
        hint = f"; {did_you_mean(location[-1], known)}" if known else ""  # lists of several kinds have no known keys
        return f"unknown key {field!r}{hint}{more}"
    got = "" if problem["type"] == "missing" else f", got {problem['input']!r}"
    return f"{field}: {problem['msg']}{got}{more}"


def did_you_mean(name: str, known: Iterable[str], kind: str = "keys") -> str:
    """Part of an error message: the nearest known name, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known {kind}: {', '.join(names)}"


def _known_keys(kind: type[BaseModel], parents: Sequence[str]) -> list[str]:
    for parent in parents:
        annotation = kind.model_fields[parent].annotation if parent in kind.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        kind = annotation
    return sorted(kind.model_fields)
