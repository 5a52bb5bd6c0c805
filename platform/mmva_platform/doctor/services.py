"""Checks of the services that this machine is configured to use: storage, MLflow, the cluster."""

import json
import socket
import sqlite3
import time
import urllib.error
import urllib.request
from email.utils import parsedate_to_datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

from mmva.errors import CheckFailed, OperationFailed, UsageError
from mmva_platform.doctor.findings import Finding, broken, ok, warning
from mmva_platform.doctor.machine import ray_token
from mmva_platform.settings import Settings, StorageSettings, without_password
from mmva_platform.storage import StorageDenied, StorageNotFound, open_storage, probe_put_if_absent

_WAIT_S: Final = 5.0
_MOST_SKEW_S: Final = 300.0  # S3 refuses signatures that are off by fifteen minutes
_CHECK_ENDPOINT: Final = "check storage.s3_endpoint and the network"
_QUICK: Final = {"max_attempts": 1, "connect_timeout_s": _WAIT_S, "read_timeout_s": 10.0, "patience_s": 0.0}


def storage(uri: str, settings: StorageSettings) -> Finding:
    """Whether a run can write to a URI: access, permissions, put-if-absent. Writes a few objects and removes them."""
    try:
        place = open_storage(uri, settings.model_copy(update=_QUICK))
        probe_put_if_absent(place)
    except StorageDenied as error:
        todo = "check the credentials of boto3, and the permissions (deploy/iam/annotate.json)"
        return broken("storage", str(error), todo)
    except StorageNotFound as error:
        return broken("storage", str(error), "create the bucket, or choose another one")
    except CheckFailed as error:
        return broken("storage", str(error), "choose another store for outputs")
    except (UsageError, OperationFailed) as error:
        return broken("storage", str(error), _CHECK_ENDPOINT)
    return ok("storage", f"{place.described}: written and read, and of racing writers one wins")


def clock(endpoint: str) -> Finding:
    """This machine's clock, compared with the Date header of storage's answer."""
    try:
        with _open(endpoint) as answer:
            date = answer.headers.get("Date")
    except urllib.error.HTTPError as error:  # S3 refuses a request without credentials, but its answer has the time
        date = error.headers.get("Date")
    except OSError as error:
        return broken("clock", f"{endpoint} does not answer ({error})", _CHECK_ENDPOINT)
    if not date:
        return ok("clock", f"{endpoint} answers without a date")
    skew_s = time.time() - parsedate_to_datetime(date).timestamp()
    if abs(skew_s) > _MOST_SKEW_S:
        todo = "synchronize the clock: signatures will be refused"
        return broken("clock", f"{skew_s:+.0f} s against {endpoint}", todo)
    return ok("clock", f"{skew_s:+.0f} s against {endpoint}")


def tracking(settings: Settings) -> Finding:
    """MLflow: whether it opens and has a champion."""
    uri = settings.tracking_uri
    shown = without_password(uri)
    place = urlsplit(uri)
    if place.scheme in {"http", "https"}:
        try:
            port = place.port or (443 if place.scheme == "https" else 80)
            socket.create_connection((place.hostname or "", port), timeout=_WAIT_S).close()
        except OSError as error:
            return broken("tracking", f"{shown}: no server answers ({error})", "change tracking.uri, or start it")
    if fault := _database_fault(uri):
        todo = "end the process that holds it (fuser FILE), or change its permissions"
        return broken("tracking", f"{shown}: {fault}", todo)
    try:
        from mmva_platform.tracking.registry import list_versions

        # MLflow would create a missing database.
        versions = [] if _is_missing_file(uri) else list_versions(settings)
    except (UsageError, OperationFailed) as error:
        return broken("tracking", str(error), "change tracking.uri")
    champions = [version for version in versions if "champion" in version.aliases]
    if not champions:
        return warning("tracking", f"{shown}: {len(versions)} versions, no champion", "run: mmva models promote V")
    return ok("tracking", f"{shown}: {len(versions)} versions, champion {champions[0].version}")


def _is_missing_file(uri: str) -> bool:
    return uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists()


def _database_fault(uri: str) -> str | None:
    """Why an SQLite file cannot be written; None if it can, does not exist yet, or the URI is another database."""
    file = Path(uri.removeprefix("sqlite:///")).absolute()
    if not uri.startswith("sqlite:///") or not file.exists():
        return None
    try:
        database = sqlite3.connect(f"file:{quote(str(file))}?mode=rw", uri=True, timeout=_WAIT_S)
        try:
            database.execute("BEGIN IMMEDIATE")
            database.rollback()
        finally:
            database.close()
    except sqlite3.Error as error:
        return str(error)
    return None


def cluster(address: str) -> Finding:
    """The job server: whether it answers, has our version of Ray, and requires a token."""
    url = f"{address}/api/version"
    try:
        try:
            version, closed = _ray_version(url), False
        except urllib.error.HTTPError as error:
            if error.code not in {401, 403}:
                raise
            version, closed = _ray_version(url, ray_token()), True
    except urllib.error.HTTPError as error:
        if error.code in {401, 403}:
            todo = "set RAY_AUTH_TOKEN_PATH to the file of the cluster's token"
            return broken("cluster", f"{address} refuses this token", todo)
        return broken("cluster", f"{address} answers {error.code}", "give the address of Ray's dashboard")
    except (OSError, ValueError) as error:
        todo = "check --address, the tunnel to the head, and its dashboard"
        return broken("cluster", f"{address} does not answer ({error})", todo)
    if version != (ours := metadata.version("ray")):
        todo = "install the same version on both; see constraints.txt"
        return broken("cluster", f"{address} runs Ray {version}, this machine has {ours}", todo)
    if not closed:
        says = f"{address}: Ray {version} accepts jobs without a token"
        return warning("cluster", says, "set RAY_AUTH_MODE=token on its head and nodes")
    return ok("cluster", f"{address}: Ray {version}, with tokens")


def _ray_version(url: str, token: str | None = None) -> str:
    with _open(url, token) as answer:
        return str(json.load(answer).get("ray_version"))


def _open(url: str, token: str | None = None) -> Any:
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"{url}: write it as http://host:port")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_WAIT_S)  # noqa: S310 - see above
