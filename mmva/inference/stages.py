"""Inference in two stages, for clusters where CPUs decode for GPUs. The first makes an Arrow table of decoded media.

    decoded = DecodeStage(info.dims, sample_rate, preprocessing, fetch)(items)     # on any CPU
    embedded = pipeline.embed_decoded(decoded)                                     # on the GPU's node

Short media are sent decoded: images as uint8 [H, W, 3], windows of music as float32 [T]. Items with a large decoded
form (long music, video, huge images) are sent encoded, and the second stage streams them. Items that exceed the limit
on a table's bytes are fetched in the second stage.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from typing import Any, Final

import numpy as np
import pyarrow as pa
from PIL import Image

from mmva.errors import MediaError
from mmva.files import sha256_hex
from mmva.inference.causes import NOT_AN_ITEM, as_media_error
from mmva.inference.config import Preprocessing
from mmva.inference.decode import Decoder, Unit, unit_bytes
from mmva.inference.fetching import Fetch, Fetching
from mmva.inference.items import Item, items_of, refusal
from mmva.inference.tables import table_of
from mmva.media.limits import Limits

MOST_BYTES: Final = 256 * 2**20
_SMALL: Final = 4 * 2**20  # most decoded bytes of an item that is sent decoded: a minute of music, 1.4 megapixels

UNIT: Final = pa.struct(
    [
        ("track", pa.string()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("height", pa.int32()),  # of an image, else null
        ("width", pa.int32()),
        ("data", pa.large_binary()),
    ]
)
DECODED_SCHEMA: Final = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("uri", pa.string()),
        pa.field("modality", pa.string()),
        pa.field("caption", pa.string()),
        pa.field("bytes", pa.int64()),
        pa.field("sha256", pa.string()),  # null if nothing was fetched
        pa.field("units", pa.list_(UNIT)),  # null if the item is not sent decoded, or an earlier row has its bytes
        pa.field("media", pa.large_binary()),  # the encoded bytes of an item that is not sent decoded
        pa.field("stage", pa.string()),  # of an error, else null
        pa.field("error", pa.string()),
        pa.field("message", pa.string()),
    ]
)


class DecodeStage:
    """The first stage: fetches and decodes items, without encoders."""

    def __init__(
        self,
        towers: Collection[str],
        sample_rate: int | None,
        preprocessing: Preprocessing,
        fetch: Fetch,
        *,
        limits: Limits | None = None,
        most_bytes: int = MOST_BYTES,
        fetching: Callable[..., Fetching] = Fetching,
    ) -> None:
        """Set up decoding for a model.

        `sample_rate` is the rate of music in Hz (engines.choice.sample_rate_of), None without music. A table contains
        at most `most_bytes` of media plus one item. `fetching` makes the Fetching, with its handling of outages and
        progress: partial(Fetching, is_outage=..., patience_s=...).
        """
        limits = limits or Limits()
        self._decoder = Decoder(towers, lambda: sample_rate, preprocessing, limits)
        self._fetching = fetching(fetch, max_bytes=limits.max_bytes)
        self._most_bytes = most_bytes

    def __call__(self, items: pa.Table, *, items_at_fault: bool = False) -> pa.Table:
        """Decode items (columns as for Pipeline.embed) into a table (DECODED_SCHEMA) for Pipeline.embed_decoded.

        Raises EnvironmentFault if all fetches fail for one cause or the environment is at fault, and the error of an
        outage that lasts too long.
        """
        all_items = items_of(items)
        for item in all_items:
            item.error = refusal(self._decoder, item)
        usable = [item for item in all_items if item.error is None]
        rows = {id(item): _Row(item) for item in all_items}
        seen: dict[tuple[str, str], Item] = {}
        held = 0
        with closing(self._fetching.read(usable, items_at_fault=items_at_fault)) as fetched:
            for item, data in fetched:
                item.sha256 = sha256_hex(data)
                first = seen.setdefault(item.key, item)
                if first is item:
                    held += rows[id(item)].fill(self._decoder, data)
                item.error = first.error
                if held >= self._most_bytes:
                    break
        return _table([rows[id(item)] for item in all_items])


class _Row:
    """The media of one item that are sent."""

    def __init__(self, item: Item) -> None:
        self.item = item
        self.units: list[dict[str, Any]] | None = None
        self.media: bytes | None = None

    def fill(self, decoder: Decoder, data: bytes) -> int:
        """Decode the item, or keep its bytes if the decoded form is large. Returns the number of bytes to send."""
        if self.item.modality == "video":
            self.media = data
            return len(data)
        held, units = 0, []
        try:
            for unit in decoder.units(str(self.item.modality), data):
                held += unit_bytes(unit)
                if held > _SMALL:
                    self.media = data
                    return len(data)
                units.append(_packed(unit))
        except NOT_AN_ITEM:
            raise
        except Exception as error:  # noqa: BLE001 - hostile bytes raise anything
            self.item.error = as_media_error(error, "decode")
            return 0
        self.units = units
        return held


def decoded_items(decoded: pa.Table) -> tuple[list[Item], list[Iterator[Unit] | bytes | None]]:
    """The items of a table (DECODED_SCHEMA), and for each its units, its encoded bytes, or None."""
    items = items_of(decoded)
    columns = (decoded[name].combine_chunks() for name in ("sha256", "stage", "error", "message", "units", "media"))
    states: list[Iterator[Unit] | bytes | None] = []
    for item, sha256, stage, error, message, units, media in zip(items, *columns, strict=True):
        item.sha256 = sha256.as_py()
        if error.is_valid:
            item.error = MediaError(error.as_py(), message.as_py(), stage=stage.as_py())
        if units.is_valid:
            states.append(map(_unpacked, units.values))
        else:
            states.append(media.as_py())
    return items, states


def _packed(unit: Unit) -> dict[str, Any]:
    content, height, width = unit.content, None, None
    if isinstance(content, Image.Image):
        width, height = content.size
        data = content.tobytes()
    else:
        data = content.encode() if isinstance(content, str) else np.asarray(content, np.float32).tobytes()
    return {
        "track": unit.track, "start_s": unit.start_s, "end_s": unit.end_s, "height": height, "width": width,
        "data": data,
    }  # fmt: skip


def _unpacked(packed: pa.StructScalar) -> Unit:
    track, start_s, end_s = (packed[name].as_py() for name in ("track", "start_s", "end_s"))
    data = packed["data"].as_buffer()
    content: Any
    if packed["height"].is_valid:
        content = Image.frombytes("RGB", (packed["width"].as_py(), packed["height"].as_py()), data)
    elif track == "caption":
        content = data.to_pybytes().decode()
    else:
        content = np.frombuffer(data, np.float32)
    return Unit(track, start_s, end_s, content)


def _table(rows: Sequence[_Row]) -> pa.Table:
    items = [row.item for row in rows]
    errors = [item.error for item in items]
    columns = {name: [getattr(item, name) for item in items] for name in ("id", "uri", "modality", "caption", "sha256")}
    columns |= {
        "bytes": [item.size for item in items],
        "units": [row.units for row in rows],
        "media": [row.media for row in rows],
        "stage": [error and error.stage for error in errors],
        "error": [error and error.code for error in errors],
        "message": [error and str(error) for error in errors],
    }
    return table_of(columns, DECODED_SCHEMA)
