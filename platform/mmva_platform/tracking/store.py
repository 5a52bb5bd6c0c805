"""Access to MLflow: a client for the settings, without log noise, telemetry and global state."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

from mmva.errors import OperationFailed, UsageError
from mmva_platform.settings import without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from mmva_platform.settings import Settings

# Files and tags of our runs and versions.
EVALUATION_FILE: Final = "evaluation.json"
HISTORY_FILE: Final = "history.json"
TAG_MODEL_DIGEST: Final = "mmva.model_digest"
TAG_DATASET_DIGEST: Final = "mmva.dataset_digest"
TAG_DATASET_URI: Final = "mmva.dataset_uri"
TAG_PRESET: Final = "mmva.preset"
TAG_CAUSE: Final = "mmva.cause"  # why a run did not finish

# MLflow reads these when it is imported; values of the user take precedence.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_ENDPOINT: Final = "MLFLOW_S3_ENDPOINT_URL"
_pointed_at: set[str] = set()
# MLflow's texts for a wrong or missing password, a missing permission, or no answer: the user must act.
_REFUSALS = ("error code 401", "error code 403", "Permission denied", "PERMISSION_DENIED", "Max retries exceeded")
# The last two: MLflow checks for a tag and then inserts it, so two processes that apply one record may collide.
_BUSY: Final = (
    "database is locked", "deadlock detected", "could not serialize access",
    "UNIQUE constraint failed", "duplicate key value violates unique constraint",
)  # fmt: skip
_TRIES, _FIRST_WAIT_S = 7, 0.1
_LOCKED_S: Final = 10.0
Result = TypeVar("Result")
Parameters = ParamSpec("Parameters")


def open_client(settings: Settings) -> MlflowClient:
    """A client of the configured MLflow; the first call creates its SQLite file and schema (about 5 s).

    Raises UsageError if the tracking URI is a file store, which MLflow 3 does not support, or cannot be opened.
    """
    uri = settings.tracking_uri
    if "://" not in uri or uri.startswith("file:"):
        said = "MLflow 3 needs sqlite:///FILE, a database or a server's http(s) address"
        raise UsageError(f"tracking.uri {without_password(uri)!r}: {said}")
    if settings.storage.s3_endpoint:
        _point_artifacts_at(settings.storage.s3_endpoint)
    if uri.startswith("sqlite:///"):
        _check_file(Path(uri.removeprefix("sqlite:///").partition("?")[0]), uri)
    with quiet():
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            return MlflowClient(tracking_uri=uri, registry_uri=uri)
        except (MlflowException, SQLAlchemyError) as error:
            reason = without_password(str(error).splitlines()[0])
            raise UsageError(f"tracking.uri {without_password(uri)!r}: cannot be opened ({reason})") from None


def _check_file(database: Path, uri: str) -> None:
    """Read an SQLite file once: MLflow retries for minutes, with a warning each time, if it is locked or damaged."""
    database.parent.mkdir(parents=True, exist_ok=True)
    if not database.exists():
        return
    try:
        with contextlib.closing(sqlite3.connect(database, timeout=_LOCKED_S)) as connection:
            connection.execute("SELECT name FROM sqlite_master LIMIT 1").fetchall()
    except sqlite3.Error as error:
        raise UsageError(f"tracking.uri {uri!r}: cannot be opened ({error})") from None


def _point_artifacts_at(endpoint: str) -> None:
    """Set the S3 endpoint of MLflow's artifacts, unless the user has set one in the environment."""
    if os.environ.get(_ENDPOINT) in {None, *_pointed_at}:
        os.environ[_ENDPOINT] = endpoint
        _pointed_at.add(endpoint)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Import and call MLflow without telemetry, informational log lines and three of its warnings."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        # Caused by MLflow 3.17 itself: with SQLAlchemy 2.1 and its own type hints (both at import), and with pandas 3.
        warnings.filterwarnings("ignore", message=r"The ``noload`` loader strategy", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=r".*Any type hint is inferred as AnyType", category=UserWarning)
        warnings.filterwarnings("ignore", message=r"Operation with range is deprecated")
        import mlflow  # noqa: F401 - its import configures the logger whose level is set next

        logging.getLogger("mlflow").setLevel(os.environ["MLFLOW_LOGGING_LEVEL"].upper())
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            if any(words in str(error) for words in _REFUSALS):
                reason = " ".join(str(error).split())[:300]
                raise OperationFailed(f"MLflow's server refused or did not answer: {reason}") from error
            raise


@contextlib.contextmanager
def connected(settings: Settings) -> Iterator[MlflowClient]:
    """A client for the block; see open_client and quiet."""
    client = open_client(settings)
    with quiet():
        yield client


@contextlib.contextmanager
def global_tracking_uri(uri: str) -> Iterator[None]:
    """Set the process-wide tracking URI, for the few MLflow calls that ignore their client's."""
    import mlflow

    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)


def experiment_id(client: MlflowClient, settings: Settings) -> str:
    """Id of the configured experiment, created if missing. Without a server, its artifacts are under home."""
    from mlflow.exceptions import MlflowException

    name = settings.tracking.experiment
    found = client.get_experiment_by_name(name)
    if found is None:
        served = settings.tracking_uri.startswith(("http://", "https://"))
        location = None if served else (settings.home.resolve() / "artifacts" / name).as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException:  # another process was first
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        todo = "restore it or set tracking.experiment to another name"
        raise UsageError(f"MLflow experiment {name!r} was deleted; {todo}")
    return str(found.experiment_id)


def retry_while_busy(
    call: Callable[Parameters, Result], *arguments: Parameters.args, **options: Parameters.kwargs
) -> Result:
    """Call, and retry while the database is locked by another process or transaction, for about 10 s."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import OperationalError

    for tries in range(1, _TRIES + 1):
        try:
            return call(*arguments, **options)
        except (MlflowException, OperationalError) as error:
            if not any(busy in str(error) for busy in _BUSY) or tries == _TRIES:
                raise
            time.sleep(_FIRST_WAIT_S * 2 ** (tries - 1) * random.uniform(0.5, 1.5))
    raise AssertionError("the last try returns or raises")
