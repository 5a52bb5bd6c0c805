"""The points of a published annotation in memory, with ids and URIs; embeddings are read on demand."""

import dataclasses
import logging
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from mmva.affect import matching_score
from mmva.errors import UsageError
from mmva.modalities import AXES, MEDIA_KINDS
from mmva.zeroshot.likeness import most_alike
from mmva.zeroshot.search import PlaneIndex, Region
from mmva_platform.annotation.plan.plan import ModelInfo
from mmva_platform.annotation.table.reader import Annotation, open_annotation
from mmva_platform.search.embeddings import embeddings
from mmva_platform.search.vectors import DEEPEST, VectorIndex, open_vectors
from mmva_platform.settings import Settings

logger = logging.getLogger(__name__)

By = Literal["va", "embedding"]

_COLUMNS: Final = ("id", "uri", "modality", *AXES, "mood")


@dataclass(frozen=True)
class Hit:
    """An annotated item found by a search."""

    id: str
    uri: str  # "" for a caption whose text is in the catalog
    modality: str  # "image", "music", "caption" or "video"
    valence: float  # in [0, 1]
    arousal: float  # in [0, 1]
    mood: str  # nearest mood word
    distance: float  # to the query, in the plane
    score: float  # matching score S of that distance; in a search by embedding, the cosine

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)


class AnnotationIndex:
    """A published annotation in memory: points, ids, URIs and moods, without embeddings. Read-only; safe to share."""

    def __init__(
        self, uri: str, run_id: str, model: ModelInfo, items: pa.Table, annotation: Annotation | None = None
    ) -> None:
        """Index items: the columns id, uri, modality, valence, arousal and mood of ANNOTATION_SCHEMA.

        They are the rows of `annotation`, in its order; without it, search by embedding is not possible.
        """
        self.uri, self.run_id, self.model, self.annotation = uri, run_id, model, annotation
        self._vectors: dict[str, VectorIndex] = {}  # by modality
        # One chunk per column, with offsets that ten million URIs do not overflow.
        large = pa.schema([(name, _large(items.schema.field(name).type)) for name in _COLUMNS])
        self._items = items.select(_COLUMNS).cast(large).combine_chunks()
        va_N2 = np.column_stack([np.asarray(items[axis], np.float32) for axis in AXES])
        kind_N = pc.fill_null(pc.index_in(items["modality"], value_set=pa.array(MEDIA_KINDS)), -1)
        self._plane = PlaneIndex(va_N2, np.asarray(kind_N))

    @classmethod
    def open(cls, uri: str, settings: Settings, version: int | None = None) -> Self:
        """Read the points of a version, by default of the newest, without embeddings.

        Raises UsageError if there is no such version, CheckFailed if a file is damaged.
        """
        annotation = open_annotation(uri, settings.storage, version)
        record = annotation.record
        return cls(annotation.uri, record.run_id, record.model, annotation.table(_COLUMNS), annotation)

    def __len__(self) -> int:
        """Number of annotated items."""
        return self._items.num_rows

    @property
    def items(self) -> pa.Table:
        """id, uri, modality, valence, arousal and mood of all items, in the annotation's order."""
        return self._items

    def search(
        self,
        va_2: ArrayLike,
        *,
        top: int = 10,
        offset: int = 0,
        modality: str | None = None,
        region: Region | None = None,
    ) -> list[Hit]:
        """The items nearest to a point of the plane, exactly; equal distances in the annotation's order.

        Raises UsageError for an unknown modality, a top below 1, an offset below 0, or a query that is not a point.
        """
        query_2 = np.asarray(va_2, np.float64)
        if query_2.shape != (2,) or not np.isfinite(query_2).all():
            raise UsageError(f"a query must be a point (valence, arousal), got {va_2!r}")
        _check_page(top, offset, modality)
        groups = None if modality is None else (MEDIA_KINDS.index(modality),)
        row_K, distance_K = self._plane.nearest(query_2, top, offset=offset, groups=groups, region=region)
        return self._hits(row_K, distance_K)

    def like(
        self,
        id: str,  # noqa: A002 - the column's name
        *,
        by: By = "va",
        top: int = 10,
        offset: int = 0,
        modality: str | None = None,
        region: Region | None = None,
    ) -> list[Hit]:
        """The items most similar to an annotated one, which is left out. See `search` for the filters.

        `by` is "va", the exact distance in the plane to items of any modality, or "embedding", the cosine to items of
        its own modality. The latter uses the index of embeddings if there is one (see `vectors`), which may miss items,
        or else scans every file with such items. Raises UsageError for an unknown id, for another modality by
        embedding, and as search, CheckFailed if a file is damaged.
        """
        _check_page(top, offset, modality)
        own = self.row(id)
        if own is None:
            raise UsageError(f"{self.uri}: no annotated item has the id {id!r}")
        va_2 = [self._items[axis][own].as_py() for axis in AXES]
        if by == "embedding":
            kind = self._items["modality"][own].as_py()
            if modality not in {None, kind}:
                raise UsageError(
                    f"by embedding, {kind!r} items can be compared only with their own kind, not with {modality!r}; "
                    "search by the VA plane"
                )
            row_K, cosine_K = self._most_alike(own, kind, offset + top, region or Region())
            row_K, cosine_K = row_K[offset:], cosine_K[offset:]
            va_K2 = np.column_stack([np.asarray(self._items[axis].take(pa.array(row_K))) for axis in AXES])
            distance_K = np.hypot(*(va_K2 - va_2).T.astype(np.float64))
            return self._hits(row_K, distance_K, cosine_K)
        groups = None if modality is None else (MEDIA_KINDS.index(modality),)
        row_K, distance_K = self._plane.nearest(va_2, offset + top + 1, groups=groups, region=region)
        page_P = np.flatnonzero(row_K != own)[offset : offset + top]  # Hits are made only of these
        return self._hits(row_K[page_P], distance_K[page_P])

    def vectors(self, modality: str, wanted: int) -> VectorIndex | None:
        """The index for a search of `wanted` items by embedding; None if an exact scan is needed."""
        assert self.annotation is not None
        if wanted > DEEPEST:
            return None
        found = self._vectors.get(modality) or open_vectors(self.annotation, modality)
        if found is not None:
            self._vectors[modality] = found
        return found

    def _most_alike(
        self, own: int, kind: str, wanted: int, region: Region
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Rows and cosines of the items whose embeddings are most similar to a row's."""
        assert self.annotation is not None
        vectors = self.vectors(kind, wanted)
        if vectors is not None:
            first: int = pc.index(self._items["modality"], pa.scalar(kind, pa.large_string())).as_py()
            try:
                found = vectors.nearest(own - first, wanted, region)  # rows of a modality are contiguous
            except Exception as error:  # noqa: BLE001 - Lance raises anything: credentials expire, `clean` deletes files
                logger.warning("%s: the index of embeddings: %s", self.uri, str(error).partition("\n")[0])
                found = None
                self._vectors.pop(kind, None)  # the next search opens it again
            if found is not None:
                return found
        may_N = _inside(self._items, region, kind)
        may_N[own] = False
        return most_alike(*embeddings(self.annotation, own, may_N), wanted)

    def item(self, id: str) -> Hit | None:  # noqa: A002 - the column's name
        """The item of an id, as found from its own point; None if it is not annotated."""
        row = self.row(id)
        return None if row is None else self._hits(np.array([row]), np.zeros(1))[0]

    def row(self, id: str) -> int | None:  # noqa: A002
        """The row of `items` with an id; None if there is none."""
        row: int = pc.index(self._items["id"], pa.scalar(id, pa.large_string())).as_py()
        return None if row < 0 else row

    def _hits(
        self, row_K: NDArray[np.int64], distance_K: NDArray[np.float64], score_K: NDArray[np.float64] | None = None
    ) -> list[Hit]:
        rows = self._items.take(pa.array(row_K)).to_pylist()
        if score_K is None:
            score_K = matching_score(np.column_stack([distance_K, 0 * distance_K]), np.zeros(2))
        return [
            Hit(**(row | {"uri": row["uri"] or ""}), distance=float(distance), score=float(score))
            for row, distance, score in zip(rows, distance_K, score_K, strict=True)
        ]


def _large(kind: pa.DataType) -> pa.DataType:
    return pa.large_string() if pa.types.is_string(kind) else kind


def _check_page(top: int, offset: int, modality: str | None) -> None:
    if top < 1 or offset < 0:
        raise UsageError(f"top must be at least 1 and offset at least 0, got top {top}, offset {offset}")
    if modality is not None and modality not in MEDIA_KINDS:
        raise UsageError(f"modality {modality!r} is unknown; choose one of {', '.join(MEDIA_KINDS)}")


def _inside(items: pa.Table, region: Region, modality: str) -> NDArray[np.bool_]:
    inside_N = np.asarray(pc.equal(items["modality"], modality))
    for axis in AXES:
        low, high = (np.float32(bound) for bound in getattr(region, axis))
        value_N = np.asarray(items[axis])
        inside_N = inside_N & (value_N >= low) & (value_N <= high)
    return inside_N
