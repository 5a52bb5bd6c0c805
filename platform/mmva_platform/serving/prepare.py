"""Fetches items in threads and decodes them in child processes, which may crash without harm."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from mmva.errors import MediaError
from mmva.inference.causes import NOT_AN_ITEM, as_media_error, fetch_error
from mmva.inference.decode import Unit
from mmva.inference.decoders import DecodeJob, DecoderPool, DecodeSpec, TooLongError
from mmva_platform.annotation.media import Fetcher
from mmva_platform.serving.context import ItemRequest
from mmva_platform.settings import Settings
from mmva_platform.storage import StorageUnavailable

Result = TypeVar("Result")

_SHORT_BYTES: Final = 16 * 2**20  # items of at most so many decoded bytes are decoded before they are embedded
_FETCHES: Final = 8  # concurrent fetches
_HELD_BYTES: Final = 512 * 2**20  # of all items of a replica between fetch and row
_LEAST_BYTES: Final = 4 * 2**20  # an item counts at least so many, because it decodes to more than its file


@dataclass
class Prepared:
    """A decoded item, or one with an error."""

    request: ItemRequest
    sha256: str | None = None  # of its bytes
    error: MediaError | None = None
    units: Iterator[Unit] = field(default_factory=lambda: iter(()))  # to embed
    long: bool = False  # its units are decoded while they are read


class Preparing:
    """Fetches and decodes items for a replica. Keeps nothing of an item after its answer."""

    def __init__(self, settings: Settings) -> None:
        """Start the decoders."""
        serving = settings.serving
        storage = settings.storage.model_copy(update={"max_attempts": 2, "patience_s": 0.0})  # a client waits
        self._fetch = Fetcher(storage, serving.roots)
        self._decoders = DecoderPool(serving.decoders, serving.item_timeout_s)
        self._long_decoder = DecoderPool(1, serving.item_timeout_s)
        self._fetch_threads = ThreadPoolExecutor(_FETCHES, thread_name_prefix="mmva-fetch")
        self._decode_threads = ThreadPoolExecutor(serving.decoders, thread_name_prefix="mmva-decode")
        self._room = ByteBudget(_HELD_BYTES)

    def close(self) -> None:
        """End decoders and threads; no item may be in preparation."""
        self._decoders.close()
        self._long_decoder.close()
        self._fetch_threads.shutdown()
        self._decode_threads.shutdown()

    @asynccontextmanager
    async def __call__(self, spec: DecodeSpec, request: ItemRequest) -> AsyncIterator[Prepared]:
        """Prepare an item during the block; its errors are in the result.

        Raises OperationFailed if no decoder starts.
        """
        try:
            data = await self._bytes_of(spec, request)
        except MediaError as error:
            yield Prepared(request, error=error)
            return
        async with self._room.hold(max(len(data), _LEAST_BYTES)):
            yield await self._decoded(spec, request, data)

    async def _bytes_of(self, spec: DecodeSpec, request: ItemRequest) -> bytes:
        error = spec.decoder().refusal(request["modality"])
        if error is not None:
            raise error
        if request["caption"] is not None:
            return request["caption"].encode(errors="replace")
        if request["data"] is not None:
            return request["data"]
        if request["uri"] is None:
            raise MediaError("no-media", "the item has neither a uri, a caption nor a file", stage="catalog")
        try:
            return await _in(self._fetch_threads, self._fetch, request["uri"], None, spec.limits.max_bytes)
        except StorageUnavailable as away:  # a bulk run would wait; here it is the item's error
            raise MediaError("storage-unavailable", str(away), stage="fetch") from None
        except Exception as problem:  # noqa: BLE001 - an odd URI may raise anything
            raise fetch_error(problem) from None

    async def _decoded(self, spec: DecodeSpec, request: ItemRequest, data: bytes) -> Prepared:
        prepared, modality = Prepared(request, hashlib.sha256(data).hexdigest()), str(request["modality"])
        prepared.long = modality == "video"
        try:
            if modality == "caption":  # plain text cannot crash a decoder
                prepared.units = iter(list(spec.decoder().units(modality, data)))
            elif not prepared.long:
                job = DecodeJob(spec, modality, data, _SHORT_BYTES)
                prepared.units = iter(await _in(self._decode_threads, self._decoders.decode, job))
        except TooLongError:
            prepared.long = True
        except NOT_AN_ITEM:
            raise
        except Exception as error:  # noqa: BLE001 - hostile bytes may raise anything
            prepared.error = as_media_error(error, "decode")
        if prepared.long:
            prepared.units = self._long_decoder.stream(DecodeJob(spec, modality, data))
        return prepared


class ByteBudget:
    """Limits the bytes held at once; further callers wait."""

    def __init__(self, most: int) -> None:
        self._most, self._used = most, 0
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[None]:
        """Hold bytes during the block. An item larger than the budget is held alone."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._used or self._used + size <= self._most)
            self._used += size
        try:
            yield
        finally:
            async with self._changed:
                self._used -= size
                self._changed.notify_all()


async def _in(pool: ThreadPoolExecutor, function: Callable[..., Result], *arguments: Any) -> Result:
    return await asyncio.get_running_loop().run_in_executor(pool, function, *arguments)
