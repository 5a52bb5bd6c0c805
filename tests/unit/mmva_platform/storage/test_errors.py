"""Which failures concern one object, and which the environment: credentials, keys, bucket and endpoint."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from mmva_platform.settings import StorageSettings
from mmva_platform.storage import (
    StorageDenied,
    StorageError,
    StorageNotFound,
    StorageUnavailable,
    StorageUnsupported,
    open_storage,
)

SETTINGS = StorageSettings(s3_endpoint="http://127.0.0.1:9", max_attempts=2, connect_timeout_s=2, read_timeout_s=5)


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    monkeypatch.setattr("time.sleep", lambda _seconds: None)


def failure_of(storage: Any) -> StorageError:
    with pytest.raises(StorageError, match="s3://bucket/root/a") as caught:
        storage.read("a")
    assert "very-secret" not in str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).environment is caught.value.environment  # as from a worker
    return caught.value


@pytest.mark.parametrize(
    ("status", "code", "message", "kind", "environment"),
    [
        (403, "AccessDenied", "", StorageDenied, False),
        (404, "NoSuchKey", "", StorageNotFound, False),
        (503, "SlowDown", "", StorageUnavailable, False),
        (500, "InternalError", "", StorageUnavailable, False),
        (400, "InvalidRequest", "", StorageError, False),
        (501, "NotImplemented", "", StorageUnsupported, False),
        (400, "ExpiredToken", "", StorageDenied, True),
        (400, "InvalidToken", "", StorageDenied, True),
        (403, "InvalidAccessKeyId", "", StorageDenied, True),
        (403, "SignatureDoesNotMatch", "", StorageDenied, True),
        (403, "RequestTimeTooSkewed", "", StorageDenied, True),
        (404, "NoSuchBucket", "", StorageNotFound, True),
        (301, "PermanentRedirect", "", StorageError, True),
        (400, "AuthorizationHeaderMalformed", "", StorageError, True),
        (400, "KMS.DisabledException", "arn:aws:kms:eu-west-3:1:key/x is disabled.", StorageDenied, True),
        (403, "AccessDenied", "User x is not authorized to perform: kms:Decrypt on this resource", StorageDenied, True),
    ],
)
def test_an_answer_has_its_kind(
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    code: str,
    message: str,
    kind: type[StorageError],
    *,
    environment: bool,
) -> None:
    storage: Any = open_storage("s3://bucket/root", SETTINGS)

    def fail(**_request: object) -> object:
        answer = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
        raise ClientError(answer, "GetObject")  # type: ignore[arg-type]

    monkeypatch.setattr(storage._client, "get_object", fail)
    error = failure_of(storage)
    assert type(error) is kind
    assert error.environment is environment


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://no-such-host.invalid"])
def test_an_endpoint_that_cannot_be_reached(endpoint: str) -> None:
    error = failure_of(open_storage("s3://bucket/root", SETTINGS.model_copy(update={"s3_endpoint": endpoint})))
    assert type(error) is StorageUnavailable
    assert error.environment


@pytest.mark.parametrize("profile", [None, "nobody"])
def test_no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, profile: str | None) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    if profile:
        monkeypatch.setenv("AWS_PROFILE", profile)
    error = failure_of(open_storage("s3://bucket/root", SETTINGS))
    assert isinstance(error, StorageDenied)
    assert error.environment


def test_a_missing_local_file_concerns_only_itself(tmp_path: Path) -> None:
    with pytest.raises(StorageNotFound) as caught:
        open_storage(tmp_path).read("none")
    assert not caught.value.environment
