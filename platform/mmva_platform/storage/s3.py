"""S3 (or a server that speaks it) as storage. Credentials come from boto3's own chain and are never logged."""

from __future__ import annotations

import io
import logging
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple, TypeVar, cast

import boto3
import botocore.session
from botocore.config import Config as BotoConfig
from botocore.exceptions import ClientError, NoCredentialsError
from botocore.loaders import Loader

from mmva_platform.settings import StorageSettings
from mmva_platform.storage import base
from mmva_platform.storage.s3_errors import FAILURES, back_off_s, is_throttled, status_of, typed_failure
from mmva_platform.storage.s3_listing import walk_keys

if TYPE_CHECKING:
    from botocore.credentials import ReadOnlyCredentials
    from mypy_boto3_s3.client import S3Client
    from pyarrow.fs import FileSystem

logger = logging.getLogger(__name__)
T = TypeVar("T")
_WRITER = "mmva-writer"  # metadata of an object: the mark of its writer
_UNSORTED_BUCKETS = "--x-s3"  # suffix of the names of S3 Express buckets
BUFFER_BYTES: Final = 2**20  # of one request, unless the reader asks for more at once


class Part(NamedTuple):
    """An answer to a range request: its bytes, the size of the whole object in bytes, and the object's ETag."""

    data: bytes
    size: int
    etag: str


Fetch = Callable[[str, str | None], Part]  # (range such as "bytes=0-99", the ETag the object must still have)


class RangeFile(io.RawIOBase):
    """The raw file under io.BufferedReader.

    The first request asks for the object's tail, because readers of Parquet begin there and its answer has the object's
    size. Later requests name the ETag of the first answer, so that a replaced object is an error.
    """

    def __init__(self, fetch: Fetch) -> None:
        """Ask for the tail. Raises StorageError if the object cannot be read."""
        self._fetch, self._position = fetch, 0
        self._tail, self._size, self._etag = fetch(f"bytes=-{BUFFER_BYTES}", None)

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Position in bytes from the start."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move; no request is made."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"cannot seek to {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, target: bytearray | memoryview) -> int:  # type: ignore[override] # typeshed wants any buffer
        """Fill the target as far as the object goes, with at most one request."""
        count = max(0, min(len(target), self._size - self._position))
        if count:
            target[:count] = self._range(self._position, count)
            self._position += count
        return count

    def _range(self, start: int, count: int) -> bytes:
        tail_start = self._size - len(self._tail)
        if start >= tail_start:
            return self._tail[start - tail_start :][:count]
        return self._fetch(f"bytes={start}-{start + count - 1}", self._etag).data


@cache
def _service_descriptions() -> Loader:
    """Boto's descriptions of services. Parsing them takes .15 s of CPU, so all storages of a process share them."""
    loader: Loader = botocore.session.get_session().get_component("data_loader")
    return loader


class S3Storage(base.Storage):
    """Objects under s3://bucket/prefix; transient failures are retried, settings.max_attempts attempts in all."""

    def __init__(self, bucket: str, prefix: str, settings: StorageSettings) -> None:
        self.bucket = bucket
        self.prefix = f"{base.checked(prefix)}/" if prefix else ""
        self.settings = settings
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")

    @property
    def described(self) -> str:
        """The root and the server."""
        return f"{self.uri} at {self.settings.s3_endpoint}" if self.settings.s3_endpoint else self.uri

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the session and the connection; every process makes its own."""
        return {key: value for key, value in self.__dict__.items() if key not in {"_session", "_client"}}

    @cached_property
    def _session(self) -> boto3.session.Session:
        region = self.settings.s3_region or ("us-east-1" if self.settings.s3_endpoint else None)
        session = botocore.session.get_session()
        session.register_component("data_loader", _service_descriptions())
        return boto3.session.Session(botocore_session=session, region_name=region)

    @cached_property
    def _client(self) -> S3Client:
        settings = self.settings
        config = BotoConfig(
            # _tried retries instead: botocore does not retry broken bodies and bare 429s, and gives up early.
            retries={"total_max_attempts": 1, "mode": "standard"},
            connect_timeout=settings.connect_timeout_s,
            read_timeout=settings.read_timeout_s,
            max_pool_connections=32,
            s3={"addressing_style": "path" if settings.s3_endpoint else "auto"},
        )
        return self._session.client("s3", endpoint_url=settings.s3_endpoint, config=config)

    def read(self, path: str, most: int | None = None) -> bytes:
        """All bytes of an object; an incomplete body is requested again."""
        key = self._any_key(path)

        def get() -> bytes:
            answer = self._client.get_object(Bucket=self.bucket, Key=key)
            with closing(answer["Body"]) as body:
                if most is not None:
                    base.refuse_above(most, answer["ContentLength"], self.uri_of(path))
                return body.read()

        return self._tried(path, get)

    def open(self, path: str) -> BinaryIO:
        """A file read by range requests; each names the ETag of the first answer."""
        raw = RangeFile(partial(self._read_range, path, self._any_key(path)))
        return cast("BinaryIO", io.BufferedReader(raw, BUFFER_BYTES))

    def _read_range(self, path: str, key: str, span: str, etag: str | None) -> Part:
        condition: dict[str, Any] = {} if etag is None else {"IfMatch": etag}

        def get() -> Part:
            try:
                answer = self._client.get_object(Bucket=self.bucket, Key=key, Range=span, **condition)
            except ClientError as error:
                if status_of(error) == 416:  # an empty object has no tail
                    return Part(b"", 0, "")
                if status_of(error) == 412:
                    raise base.StorageError(f"{self.uri_of(path)}: was replaced while it was read") from error
                raise
            with closing(answer["Body"]) as body:
                data = body.read()
            # A server that does not know ranges answers with the whole object, and without this header.
            size = answer.get("ContentRange", "").rpartition("/")[2]
            return Part(data, int(size) if size else len(data), answer["ETag"])

        return self._tried(path, get)

    def write(self, path: str, data: bytes) -> None:
        """One PUT; S3 makes the complete object visible at once."""
        key = self._key(path)
        self._tried(path, lambda: self._client.put_object(Bucket=self.bucket, Key=key, Body=data))

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Conditional PUT (If-None-Match: *).

        If the answer to a PUT is lost, the PUT is sent again and finds its own object. The writer's mark in the
        metadata distinguishes that object from another writer's with the same bytes.
        """
        key, mark = self._key(path), uuid.uuid4().hex

        def put() -> bool:
            try:
                self._client.put_object(
                    Bucket=self.bucket, Key=key, Body=data, IfNoneMatch="*", Metadata={_WRITER: mark}
                )
            except ClientError as error:
                if status_of(error) == 412:
                    return self._written_by(key, mark)
                raise
            return True

        return self._tried(path, put)

    def delete(self, path: str) -> None:
        """One DELETE."""
        key = self._key(path)
        self._tried(path, lambda: self._client.delete_object(Bucket=self.bucket, Key=key))

    def exists(self, path: str) -> bool:
        """Whether there is such an object."""
        try:
            self.size(path)
        except base.StorageNotFound:
            return False
        return True

    def list(self, prefix: str = "") -> Iterator[base.Entry]:
        """Objects page by page, in the server's order; folder markers are left out."""
        return self._entries(self.prefix + base.checked_prefix(prefix), divide=False)

    def walk(self, prefix: str = "", on_skip: base.OnSkip | None = None) -> Iterator[base.Entry]:  # noqa: ARG002 - skips nothing
        """Every object, listed by many requests at once; see s3_listing."""
        return self._entries(self.prefix + prefix, divide=not self.bucket.endswith(_UNSORTED_BUCKETS))

    def _entries(self, prefix: str, *, divide: bool) -> Iterator[base.Entry]:
        for entry in walk_keys(self._list_page, prefix, divide=divide):
            yield entry._replace(path=entry.path.removeprefix(self.prefix))

    def _list_page(self, request: dict[str, Any]) -> dict[str, Any]:
        place = request["Prefix"].removeprefix(self.prefix)
        operation = partial(self._client.list_objects_v2, Bucket=self.bucket, **request)
        return cast("dict[str, Any]", self._tried(place, operation))

    def filesystem(self) -> tuple[FileSystem, str]:
        """The S3 file system of pyarrow with the same endpoint, region and credentials, and bucket/prefix."""
        return self._tried("", self._arrow_filesystem), f"{self.bucket}/{self.prefix}".rstrip("/")

    def object_store_options(self) -> dict[str, str]:
        """Keys, region and endpoint, under the names of object_store."""
        settings = self.settings
        frozen, region = self._tried("", self._credentials)
        options = {
            "aws_access_key_id": frozen.access_key,
            "aws_secret_access_key": frozen.secret_key,
            "aws_session_token": frozen.token,
            "aws_region": region,
            "aws_endpoint": settings.s3_endpoint,
            "aws_virtual_hosted_style_request": str(settings.s3_endpoint is None).lower(),
            "allow_http": str(bool(settings.s3_endpoint and settings.s3_endpoint.startswith("http:"))).lower(),
            "connect_timeout": f"{settings.connect_timeout_s}s",
            "timeout": f"{settings.read_timeout_s}s",
            "conditional_put": "etag",  # exactly one of the racing writers of a file may win
        }
        return {name: value for name, value in options.items() if value is not None}

    def _credentials(self) -> tuple[ReadOnlyCredentials, str]:
        from pyarrow.fs import resolve_s3_region

        credentials = self._session.get_credentials()
        if credentials is None:
            raise NoCredentialsError
        try:
            region = self._session.region_name or resolve_s3_region(self.bucket)
        except OSError as error:
            raise base.StorageError(
                f"{self.uri}: cannot find the bucket's region, set storage.s3_region ({error})"
            ) from error
        return credentials.get_frozen_credentials(), region

    def _arrow_filesystem(self) -> FileSystem:
        from pyarrow.fs import S3FileSystem

        settings = self.settings
        frozen, region = self._credentials()
        return S3FileSystem(
            access_key=frozen.access_key,
            secret_key=frozen.secret_key,
            session_token=frozen.token,
            region=region,
            endpoint_override=settings.s3_endpoint,
            connect_timeout=settings.connect_timeout_s,
            request_timeout=settings.read_timeout_s,
            force_virtual_addressing=False,
        )

    def size(self, path: str) -> int:
        """Size in bytes."""
        key = self._any_key(path)
        return self._tried(path, lambda: self._client.head_object(Bucket=self.bucket, Key=key)["ContentLength"])

    def local_path(self, path: str) -> None:
        """No object is on this machine."""
        base.checked_text(path)

    def _key(self, path: str) -> str:
        return self.prefix + base.checked(path)

    def _any_key(self, path: str) -> str:
        """A key to read, which may be any text: S3 neither decodes nor normalizes keys."""
        return self.prefix + base.checked_text(path)

    def _written_by(self, key: str, mark: str) -> bool:
        try:
            return self._client.head_object(Bucket=self.bucket, Key=key)["Metadata"].get(_WRITER) == mark
        except ClientError as error:
            if status_of(error) == 404:  # the other writer's object has been deleted since
                return False
            raise

    def _tried(self, path: str, operation: Callable[[], T]) -> T:
        """The operation's result. Retries transient failures after a back-off; raises a StorageError at the end."""
        place = self.uri_of(path)
        for attempt in range(1, self.settings.max_attempts + 1):
            try:
                return operation()
            except FAILURES as error:
                failure = typed_failure(place, error)
                if not isinstance(failure, base.StorageUnavailable) or attempt == self.settings.max_attempts:
                    if attempt > 1:
                        failure.args = (f"{failure} ({attempt} attempts)",)
                    raise failure from error
                pause_s = back_off_s(attempt, throttled=is_throttled(error))
                logger.debug("%s; attempt %d, the next in %.1f s", failure, attempt, pause_s)
                time.sleep(pause_s)
        raise AssertionError("the last attempt returns or raises")
