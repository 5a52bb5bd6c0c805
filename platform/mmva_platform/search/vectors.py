"""An optional Lance index of an annotation's embeddings: `mmva annotations index` builds it, searches use it.

`_mmva/<version>/index/<modality>/` is a Lance dataset with rows of the annotation, points to filter by, embeddings, and
their index. `<modality>.json` next to it is written last: without it, the index does not count.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mmva.errors import UsageError
from mmva.modalities import AXES, MEDIA_KINDS
from mmva.zeroshot.search import Region
from mmva_platform.annotation.plan.plan import index_folder
from mmva_platform.annotation.table.reader import Annotation, open_annotation
from mmva_platform.search.embeddings import matrix_of
from mmva_platform.settings import Settings

logger = logging.getLogger(__name__)

Block = tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]

LEAST: Final = 10_000  # items; a scan of fewer is as fast
DEEPEST: Final = 1000  # last hit that the index finds; later pages use an exact scan
_PROBES: Final = 32  # partitions searched; more if they have too few items
_REFINE: Final = 10  # candidates compared exactly per wanted hit
_STEP: Final = 100  # the number of wanted hits is rounded up to it, so that several pages use the same search
_MULTIPLE: Final = 8  # embeddings are padded with zeros to a multiple of it, as the quantizer requires
_CACHE_BYTES: Final = 256 * 2**20


class VectorIndex:
    """The index of one modality."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def nearest(self, place: int, wanted: int, region: Region) -> tuple[NDArray[np.int64], NDArray[np.float64]] | None:
        """Rows and cosines [K] of the items most similar to the one at `place` in its modality, which is left out.

        The cosines are exact, but the result may miss items. None if the embedding is zero and has no direction.
        """
        own = self._dataset.take([place], columns=["row", "embedding"])
        row = own["row"][0].as_py()
        query_D = np.asarray(own["embedding"].combine_chunks().flatten())
        if not query_D.any():
            return None
        asked = {"column": "embedding", "q": query_D, "k": math.ceil(wanted / _STEP) * _STEP + 1}
        found = self._dataset.to_table(
            columns=["row", "_distance"], nearest=asked | {"minimum_nprobes": _PROBES, "refine_factor": _REFINE},
            filter=_filter(region), prefilter=True,
        )  # fmt: skip
        row_K, cosine_K = np.asarray(found["row"]), 1 - np.asarray(found["_distance"], np.float64)
        order_K = np.lexsort((row_K, -cosine_K))
        order_K = order_K[row_K[order_K] != row][:wanted]
        return row_K[order_K], cosine_K[order_K].clip(-1, 1)


def open_vectors(annotation: Annotation, modality: str) -> VectorIndex | None:
    """The index of a modality; None if this version has none, or it cannot be opened here."""
    storage, folder = annotation.storage, index_folder(annotation.version)
    if not storage.exists(f"{folder}/{modality}.json"):
        return None
    try:
        import lance  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        logger.warning("%s: has an index of embeddings, which needs the package pylance", annotation.uri)
        return None
    place, options = storage.join(f"{folder}/{modality}"), storage.object_store_options()
    try:
        return VectorIndex(lance.dataset(place, storage_options=options, index_cache_size_bytes=_CACHE_BYTES))
    except Exception as error:  # noqa: BLE001 - Lance raises anything; a scan works without the index
        logger.warning("%s: the index of embeddings cannot be opened (%s)", place, str(error).partition("\n")[0])
        return None


def build_vectors(out: str, settings: Settings, modality: str | None = None, version: int | None = None) -> list[str]:
    """Build the indexes of a version, for one modality or each that is large enough; returns one line per modality.

    Existing indexes stay. `clean` deletes them with their versions. Raises UsageError if the package pylance or the
    version is missing, or the modality cannot have an index, CheckFailed if a file is damaged.
    """
    try:
        import lance  # noqa: F401
    except ImportError:
        raise UsageError("index needs the package pylance: pip install 'mmva-platform[lance]'") from None
    annotation = open_annotation(out, settings.storage, version)
    said = []
    for kind in MEDIA_KINDS if modality is None else (modality,):
        count = annotation.count(modality=kind)
        if count < LEAST:
            if modality is not None:
                raise UsageError(f"{annotation.uri}: {count} {kind} items; an index needs {LEAST:,}")
            continue
        dim = _dim(annotation, kind)
        if dim is None:
            said.append(f"{kind}: no index, because embeddings differ in length (videos with and without sound)")
        elif annotation.storage.exists(_mark(annotation, kind)):
            said.append(f"{kind}: has an index already")
        else:
            _build(annotation, kind, dim)
            said.append(f"{kind}: {count} embeddings indexed")
    return said or [f"no modality has {LEAST:,} items; no index is needed"]


def _mark(annotation: Annotation, modality: str) -> str:
    return f"{index_folder(annotation.version)}/{modality}.json"


def _build(annotation: Annotation, modality: str, dim: int) -> None:
    storage, folder = annotation.storage, f"{index_folder(annotation.version)}/{modality}"
    for entry in storage.walk(f"{folder}/"):  # of an unfinished build
        storage.delete(entry.path)
    blocks = _blocks(annotation, modality, dim)
    options = storage.object_store_options()
    write_vectors(blocks, dim, annotation.count(modality=modality), storage.join(folder), options)
    storage.put_if_absent(_mark(annotation, modality), b"{}")


def write_vectors(blocks: Iterable[Block], dim: int, count: int, place: str, options: dict[str, str]) -> Any:
    """Write a dataset and its index; returns the dataset.

    `blocks` are row numbers [B], points [B, 2] and embeddings [B, `dim`] of all `count` items, `options` Lance's for
    the storage of `place`.
    """
    import lance

    schema = pa.schema([("row", pa.int64()), *((axis, pa.float32()) for axis in AXES),
                        ("embedding", pa.list_(pa.float32(), dim))])  # fmt: skip

    def batches() -> Iterator[pa.RecordBatch]:
        for row_B, va_B2, emb_BD in blocks:
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(emb_BD.ravel()), dim)
            yield pa.RecordBatch.from_arrays([pa.array(row_B), *map(pa.array, va_B2.T), vectors], schema=schema)

    reader = pa.RecordBatchReader.from_batches(schema, batches())
    dataset = lance.write_dataset(reader, place, storage_options=options)
    # One bit per number finds candidates; their full embeddings rank them.
    return dataset.create_index(
        "embedding", "IVF_RQ", metric="cosine", num_partitions=math.isqrt(count), storage_options=options
    )


def _blocks(annotation: Annotation, modality: str, dim: int) -> Iterator[Block]:
    """All items of a modality, numbered in the order of the annotation's files; embeddings are padded to `dim`."""
    files = annotation.files()
    row = sum(file.rows for file in files[: [file.modality for file in files].index(modality)])
    for table in annotation.tables([*AXES, "embedding"], modality=modality):
        emb_BD = matrix_of(table)
        va_B2 = np.column_stack([np.asarray(table[axis], np.float32) for axis in AXES])
        yield np.arange(row, row + len(va_B2)), va_B2, np.pad(emb_BD, ((0, 0), (0, dim - emb_BD.shape[1])))
        row += len(va_B2)


def _dim(annotation: Annotation, modality: str) -> int | None:
    """Padded length of an embedding; None if embeddings of the modality differ in length."""
    if modality == "video":
        tables = annotation.tables(["tracks"], modality=modality)
        tracks = {one for table in tables for one in pc.unique(pc.binary_join(table["tracks"], "+")).to_pylist()}
        if len(tracks) > 1:
            return None
    first = annotation.read(annotation.files(modality=modality)[0], ["embedding"])
    return math.ceil(len(first["embedding"][0]) / _MULTIPLE) * _MULTIPLE


def _filter(region: Region) -> str | None:
    """The region as SQL, with bounds rounded like the stored points."""
    if region == Region():
        return None
    bounds = [(axis, *(float(np.float32(bound)) for bound in getattr(region, axis))) for axis in AXES]
    return " AND ".join(f"{axis} >= {low!r} AND {axis} <= {high!r}" for axis, low, high in bounds)
