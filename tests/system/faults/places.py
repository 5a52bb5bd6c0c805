"""Where an annotation stands, a local folder or an S3 prefix, for tests that look at its files themselves."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from delta_rows import read_table, s3_options, version_of
from seaweed import Seaweed

Rows = dict[str, list[dict[str, Any]]]


class Place(ABC):
    """Attributes: uri; options, of deltalake and polars; storage, the settings' part that it needs."""

    def __init__(self, uri: str, options: dict[str, str], storage: dict[str, str]) -> None:
        self.uri, self.options, self.storage = uri, options, storage

    @abstractmethod
    def objects(self, folder: str = "") -> list[str]:
        """Files below a folder."""

    @abstractmethod
    def read(self, path: str) -> bytes:
        """A file."""

    @abstractmethod
    def beside(self, name: str) -> Place:
        """An empty place next to this one."""

    @abstractmethod
    def copied(self, name: str) -> Place:
        """A copy of it next to this one."""

    def version(self) -> int | None:
        """Of the table."""
        return version_of(self.uri, self.options)

    def rows(self, version: int | None = None) -> Rows:
        """See read_table."""
        return read_table(self.uri, self.read, self.options, version)

    def contents(self, folder: str = "") -> dict[str, bytes]:
        """All files below a folder."""
        return {path: self.read(path) for path in self.objects(folder)}


class FolderPlace(Place):
    """A local folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), {}, {})
        self._folder = folder

    def objects(self, folder: str = "") -> list[str]:
        files = sorted(path for path in (self._folder / folder).rglob("*") if path.is_file())
        return [path.relative_to(self._folder).as_posix() for path in files]

    def read(self, path: str) -> bytes:
        return (self._folder / path).read_bytes()

    def beside(self, name: str) -> FolderPlace:
        return FolderPlace(self._folder.with_name(name))

    def copied(self, name: str) -> FolderPlace:
        copy = self.beside(name)
        shutil.copytree(self._folder, copy._folder)
        return copy


class S3Place(Place):
    """A prefix in a bucket of the tests' server; `endpoint` may be that of a proxy."""

    def __init__(self, weed: Seaweed, bucket: str, prefix: str, endpoint: str | None = None) -> None:
        options = s3_options(weed.endpoint)
        super().__init__(f"s3://{bucket}/{prefix}", options, {"s3_endpoint": endpoint or weed.endpoint})
        self._weed, self._bucket, self._prefix, self._client = weed, bucket, prefix, weed.client()

    def objects(self, folder: str = "") -> list[str]:
        start = f"{self._prefix}/{folder}"
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=start)
        return [item["Key"].removeprefix(f"{self._prefix}/") for page in pages for item in page.get("Contents", [])]

    def read(self, path: str) -> bytes:
        data: bytes = self._client.get_object(Bucket=self._bucket, Key=f"{self._prefix}/{path}")["Body"].read()
        return data

    def beside(self, name: str) -> S3Place:
        folder = self._prefix.rpartition("/")[0]
        return S3Place(self._weed, self._bucket, f"{folder}/{name}".lstrip("/"), self.storage["s3_endpoint"])

    def copied(self, name: str) -> S3Place:
        copy = self.beside(name)
        for path, data in self.contents().items():
            self._client.put_object(Bucket=self._bucket, Key=f"{copy._prefix}/{path}", Body=data)
        return copy
