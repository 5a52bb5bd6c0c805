"""S3 (or a server that speaks it) as storage. Credentials come from boto3's own chain and are never logged."""

from __future__ import annotations

import logging
import random
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config as BotoConfig
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ReadTimeoutError,
    ResponseStreamingError,
)
from botocore.exceptions import (
    ConnectionError as BotoConnectionError,
)

from mmva_platform.settings import StorageSettings
from mmva_platform.storage.base import (
    Entry,
    Storage,
    StorageDenied,
    StorageError,
    StorageNotFound,
    StorageUnavailable,
    StorageUnsupported,
    checked,
    checked_prefix,
)

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

logger = logging.getLogger(__name__)

_BODY_BROKE = (IncompleteReadError, ReadTimeoutError, ResponseStreamingError)
_DENIED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "Forbidden"}
_MISSING = {"NoSuchKey", "NoSuchBucket", "NotFound"}
_BUSY = {"SlowDown", "Throttling", "ThrottlingException", "RequestTimeout", "ConditionalRequestConflict"}
_WRITER = "mmva-writer"  # object metadata: whose put it was
_MAX_BACKOFF_S = 20.0


class S3Storage(Storage):
    """Objects under s3://bucket/prefix. botocore retries requests; broken bodies and conflicts are retried here."""

    def __init__(self, bucket: str, prefix: str, settings: StorageSettings) -> None:
        self.bucket = bucket
        self.prefix = f"{checked(prefix)}/" if prefix else ""
        self.settings = settings
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")

    @property
    def described(self) -> str:
        """The root and the server."""
        return f"{self.uri} at {self.settings.s3_endpoint}" if self.settings.s3_endpoint else self.uri

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the connection, which every process makes for itself."""
        return {key: value for key, value in self.__dict__.items() if key != "_client"}

    @cached_property
    def _client(self) -> S3Client:
        settings = self.settings
        config = BotoConfig(
            retries={"mode": "standard", "total_max_attempts": settings.max_attempts},
            connect_timeout=settings.connect_timeout_s,
            read_timeout=settings.read_timeout_s,
            max_pool_connections=32,
            s3={"addressing_style": "path" if settings.s3_endpoint else "auto"},
        )
        region = settings.s3_region or ("us-east-1" if settings.s3_endpoint else None)
        session = boto3.session.Session(region_name=region)
        return session.client("s3", endpoint_url=settings.s3_endpoint, config=config)

    def read(self, path: str) -> bytes:
        """All bytes of an object; a body that breaks off is fetched again."""
        key = self._key(path)
        with self._typed_errors(path):
            for attempt in range(1, self.settings.max_attempts):
                try:
                    return self._client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
                except _BODY_BROKE as error:
                    logger.info("%s: body broke off (%s), attempt %d", self.join(path), type(error).__name__, attempt)
                    _back_off(attempt)
            return self._client.get_object(Bucket=self.bucket, Key=key)["Body"].read()

    def write(self, path: str, data: bytes) -> None:
        """One PUT, which S3 makes visible whole."""
        with self._typed_errors(path):
            self._client.put_object(Bucket=self.bucket, Key=self._key(path), Body=data)

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Conditional PUT (If-None-Match: *).

        A PUT whose answer was lost is sent again by botocore and then meets its own object. The writer's mark in the
        metadata tells that object from a rival's, even from one with the same bytes.
        """
        key, mark = self._key(path), uuid.uuid4().hex
        with self._typed_errors(path):
            for attempt in range(1, self.settings.max_attempts + 1):
                try:
                    self._client.put_object(
                        Bucket=self.bucket, Key=key, Body=data, IfNoneMatch="*", Metadata={_WRITER: mark}
                    )
                except ClientError as error:
                    if _status(error) == 412:
                        return self._written_by(key, mark)
                    if _status(error) != 409 or attempt == self.settings.max_attempts:
                        raise
                    _back_off(attempt)  # another writer is in the middle of it: ask again who won
                else:
                    return True
        raise AssertionError("the last attempt returns or raises")

    def delete(self, path: str) -> None:
        """One DELETE."""
        with self._typed_errors(path):
            self._client.delete_object(Bucket=self.bucket, Key=self._key(path))

    def exists(self, path: str) -> bool:
        """Whether the object is there."""
        try:
            self.size(path)
        except StorageNotFound:
            return False
        return True

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Objects page by page, in S3's own order, which is by path; folder markers are left out."""
        start = self.prefix + checked_prefix(prefix)
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=start)
        with self._typed_errors(prefix):
            for page in pages:
                for item in page.get("Contents", []):
                    path = item["Key"].removeprefix(self.prefix)
                    if not path.endswith("/") and path:
                        yield Entry(path, item["Size"], item.get("ETag", "").strip('"') or None)

    def size(self, path: str) -> int:
        """Size in bytes."""
        with self._typed_errors(path):
            return self._client.head_object(Bucket=self.bucket, Key=self._key(path))["ContentLength"]

    def local_path(self, path: str) -> None:
        """Nothing here is on this machine."""
        self._key(path)

    def _key(self, path: str) -> str:
        return self.prefix + checked(path)

    def _written_by(self, key: str, mark: str) -> bool:
        try:
            return self._client.head_object(Bucket=self.bucket, Key=key)["Metadata"].get(_WRITER) == mark
        except ClientError as error:
            if _status(error) == 404:  # the rival's object has been deleted since
                return False
            raise

    @contextmanager
    def _typed_errors(self, path: str) -> Iterator[None]:
        place = f"{self.uri}/{path}"
        try:
            yield
        except ClientError as error:
            raise _typed(place, error) from error
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise StorageDenied(f"{place}: no S3 credentials found (environment, profile or role)") from error
        except (HTTPClientError, BotoConnectionError, *_BODY_BROKE) as error:
            raise StorageUnavailable(f"{place}: {error} ({self.settings.max_attempts} attempts)") from error
        except BotoCoreError as error:
            raise StorageError(f"{place}: {error}") from error


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _typed(place: str, error: ClientError) -> StorageError:
    details = error.response.get("Error", {})
    code, status = str(details.get("Code", "")), _status(error)
    if status == 404 or code in _MISSING:
        return StorageNotFound(f"{place}: not found" + (" (no such bucket)" if code == "NoSuchBucket" else ""))
    if status in {401, 403} or code in _DENIED:
        return StorageDenied(f"{place}: access denied ({code or status})")
    if status == 501 or code == "NotImplemented":
        return StorageUnsupported(
            f"{place}: this store does not offer that ({details.get('Message') or code or status})"
        )
    if status >= 500 or status == 429 or code in _BUSY:
        return StorageUnavailable(f"{place}: storage does not answer properly ({code or status}), after all retries")
    return StorageError(f"{place}: {code or status} {details.get('Message', '')}".rstrip())


def _back_off(attempt: int) -> None:
    time.sleep(random.uniform(0, min(_MAX_BACKOFF_S, 0.1 * 2**attempt)))
