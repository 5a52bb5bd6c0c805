"""S3 (or a server that speaks it) as storage. Credentials come from boto3's own chain and are never logged."""

from __future__ import annotations

import logging
import random
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar

import boto3
from botocore.config import Config as BotoConfig
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    FlexibleChecksumError,
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
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError as UrllibError

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
    refuse_above,
)

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Nothing came back, or not all of it, or not what was sent. The parser's error is that of a cut-off XML answer.
_TRANSIENT = (
    BotoConnectionError, FlexibleChecksumError, HTTPClientError, IncompleteReadError, ReadTimeoutError,
    ResponseParserError, ResponseStreamingError, UrllibError,
)  # fmt: skip
_FAILURES = (ClientError, BotoCoreError, *_TRANSIENT)
_DENIED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "Forbidden"}
_MISSING = {"NoSuchKey", "NoSuchBucket", "NotFound"}
_BUSY = {"SlowDown", "Throttling", "ThrottlingException", "RequestTimeout", "ConditionalRequestConflict"}
_WRITER = "mmva-writer"  # object metadata: whose put it was
_MAX_BACKOFF_S = 20.0


class S3Storage(Storage):
    """Objects under s3://bucket/prefix; what another attempt may cure is tried settings.max_attempts times."""

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
            # botocore leaves broken bodies and bare 429s alone and gives up early in an outage: see _tried.
            retries={"total_max_attempts": 1, "mode": "standard"},
            connect_timeout=settings.connect_timeout_s,
            read_timeout=settings.read_timeout_s,
            max_pool_connections=32,
            s3={"addressing_style": "path" if settings.s3_endpoint else "auto"},
        )
        region = settings.s3_region or ("us-east-1" if settings.s3_endpoint else None)
        session = boto3.session.Session(region_name=region)
        return session.client("s3", endpoint_url=settings.s3_endpoint, config=config)

    def read(self, path: str, most: int | None = None) -> bytes:
        """All bytes of an object; a body that breaks off is fetched again."""
        key = self._key(path)

        def get() -> bytes:
            answer = self._client.get_object(Bucket=self.bucket, Key=key)
            with closing(answer["Body"]) as body:
                if most is not None:
                    refuse_above(most, answer["ContentLength"], self.join(path))
                return body.read()

        return self._tried(path, get)

    def write(self, path: str, data: bytes) -> None:
        """One PUT, which S3 makes visible whole."""
        key = self._key(path)
        self._tried(path, lambda: self._client.put_object(Bucket=self.bucket, Key=key, Body=data))

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Conditional PUT (If-None-Match: *).

        A PUT whose answer was lost is sent again and then meets its own object. The writer's mark in the metadata
        tells that object from a rival's, even from one with the same bytes.
        """
        key, mark = self._key(path), uuid.uuid4().hex

        def put() -> bool:
            try:
                self._client.put_object(
                    Bucket=self.bucket, Key=key, Body=data, IfNoneMatch="*", Metadata={_WRITER: mark}
                )
            except ClientError as error:
                if _status(error) == 412:
                    return self._written_by(key, mark)
                raise
            return True

        return self._tried(path, put)

    def delete(self, path: str) -> None:
        """One DELETE."""
        key = self._key(path)
        self._tried(path, lambda: self._client.delete_object(Bucket=self.bucket, Key=key))

    def exists(self, path: str) -> bool:
        """Whether the object is there."""
        try:
            self.size(path)
        except StorageNotFound:
            return False
        return True

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Objects page by page, in S3's own order, which is by path; folder markers are left out."""
        request: dict[str, Any] = {"Bucket": self.bucket, "Prefix": self.prefix + checked_prefix(prefix)}
        while True:
            page = self._tried(prefix, partial(self._client.list_objects_v2, **request))
            for item in page.get("Contents", []):
                path = item["Key"].removeprefix(self.prefix)
                if not path.endswith("/") and path:
                    yield Entry(path, item["Size"], item.get("ETag", "").strip('"') or None)
            if not page.get("IsTruncated"):
                return
            request["ContinuationToken"] = page["NextContinuationToken"]

    def size(self, path: str) -> int:
        """Size in bytes."""
        key = self._key(path)
        return self._tried(path, lambda: self._client.head_object(Bucket=self.bucket, Key=key)["ContentLength"])

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

    def _tried(self, path: str, operation: Callable[[], T]) -> T:
        """Its result; transient failures are tried again with back-off and jitter, all end as typed errors."""
        place = f"{self.uri}/{path}"
        for attempt in range(1, self.settings.max_attempts + 1):
            try:
                return operation()
            except _FAILURES as error:
                failure = typed_failure(place, error)
                if not isinstance(failure, StorageUnavailable) or attempt == self.settings.max_attempts:
                    if attempt > 1:
                        failure.args = (f"{failure} ({attempt} attempts)",)
                    raise failure from error
                pause_s = back_off_s(attempt, throttled=_throttled(error))
                logger.debug("%s; attempt %d, the next in %.1f s", failure, attempt, pause_s)
                time.sleep(pause_s)
        raise AssertionError("the last attempt returns or raises")


def typed_failure(place: str, error: Exception) -> StorageError:
    """The kind of failure that a caller can act on; StorageUnavailable is what another attempt may cure."""
    if isinstance(error, ClientError):
        return _typed_answer(place, error)
    if isinstance(error, (NoCredentialsError, PartialCredentialsError)):
        return StorageDenied(f"{place}: no S3 credentials found (environment, profile or role)")
    if isinstance(error, BotoCoreError) and not isinstance(error, _TRANSIENT):
        return StorageError(f"{place}: {error}")
    return StorageUnavailable(f"{place}: {' '.join(str(error).split())}")


def back_off_s(attempt: int, *, throttled: bool) -> float:
    """Pause after the attempt with this number, from 1: full jitter under a limit that doubles, higher if throttled."""
    base_s = 1.0 if throttled else 0.1
    return random.uniform(0, min(_MAX_BACKOFF_S, base_s * 2 ** (attempt - 1)))


def _typed_answer(place: str, error: ClientError) -> StorageError:
    details = error.response.get("Error", {})
    code, status = str(details.get("Code", "")), _status(error)
    if status == 404 or code in _MISSING:
        return StorageNotFound(f"{place}: not found" + (" (no such bucket)" if code == "NoSuchBucket" else ""))
    if status in {401, 403} or code in _DENIED:
        return StorageDenied(f"{place}: access denied ({code or status})")
    if status == 501 or code == "NotImplemented":
        reason = details.get("Message") or code or status
        return StorageUnsupported(f"{place}: this store does not offer that ({reason})")
    if status >= 500 or status in {409, 429} or code in _BUSY:
        return StorageUnavailable(f"{place}: storage does not answer properly ({code or status})")
    return StorageError(f"{place}: {code or status} {details.get('Message', '')}".rstrip())


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _throttled(error: Exception) -> bool:
    return isinstance(error, ClientError) and _status(error) in {429, 503}
