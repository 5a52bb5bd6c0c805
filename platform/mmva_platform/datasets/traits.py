"""Brightness of images and loudness of clips, measured from a dataset's own media, to divide rows into slices.

The media of a set of N rows are read once; the numbers are then cached under settings.home.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmva.affect import quadrant
from mmva.errors import MediaError, OperationFailed
from mmva.files import sha256_hex
from mmva.media.audio.decode import decode_audio
from mmva.media.images.decode import decode_image
from mmva.modalities import Modality
from mmva_platform.datasets.dataset import Dataset
from mmva_platform.datasets.schema import parquet_bytes, read_parquet
from mmva_platform.settings import Settings
from mmva_platform.storage import StorageNotFound, open_storage

TRAITS: Final[Mapping[Modality, str]] = {"image": "brightness", "music": "loudness"}
LEVELS: Final = {"brightness": ("dark", "medium", "bright"), "loudness": ("quiet", "medium", "loud")}
SILENCE_DBFS: Final = -100.0
_SAMPLE_RATE: Final = 16_000
_CACHE: Final = "cache/traits"
_VERSION: Final = 1  # of the formulas; part of a cached file's name


def brightness(data: bytes) -> float:
    """Mean luma (ITU-R BT.601) of an image's pixels, from 0 (black) to 1 (white)."""
    return float(np.asarray(decode_image(data).convert("L"), np.float64).mean() / 255)


def loudness(data: bytes) -> float:
    """Root mean square of a piece of music as mono, in dB of full scale; at least SILENCE_DBFS."""
    rms = float(np.sqrt(np.mean(np.square(decode_audio(data, _SAMPLE_RATE), dtype=np.float64))))
    return max(SILENCE_DBFS, 20 * float(np.log10(rms))) if rms > 0 else SILENCE_DBFS


def measure(dataset: Dataset, modality: Modality, ids: Sequence[str], settings: Settings) -> NDArray[np.float64]:
    """Brightness or loudness of rows of a modality, float64 [N], in the order of the ids; NaN for an id without media.

    Raises CheckFailed if a shard is not the published one, OperationFailed if media do not decode although the import
    checked them.
    """
    key = sha256_hex("\n".join(ids).encode())[:16]
    name = f"{dataset.digest[:16]}-{modality}-{key}-{_VERSION}.parquet"
    cache = open_storage(settings.home.resolve() / _CACHE)
    try:
        values = read_parquet(cache.read(name))["value"].to_numpy()
    except StorageNotFound:
        values = _measure(dataset, modality, ids)
        cache.write(name, parquet_bytes(pa.table({"id": list(ids), "value": values})))
    return np.asarray(values, np.float64)


def _measure(dataset: Dataset, modality: Modality, ids: Sequence[str]) -> NDArray[np.float64]:
    row_of = {item: row for row, item in enumerate(ids)}
    values_N = np.full(len(ids), np.nan)
    for items in dataset.items(modality):
        wanted = [place for place, item in enumerate(items.ids) if item in row_of]
        if not wanted:
            continue
        shard = dataset.read_shard(items.shard.name)
        media = [shard["media"][place].as_py() for place in wanted]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(partial(_value, modality, items.shard.name), media))
        values_N[[row_of[items.ids[place]] for place in wanted]] = found
    return values_N


def _value(modality: Modality, shard: str, data: bytes) -> float:
    try:
        return brightness(data) if modality == "image" else loudness(data)
    except MediaError as error:
        raise OperationFailed(f"{shard}: {modality} does not decode now, but did in the import ({error})") from None


def sources_of(dataset: Dataset, modality: Modality, ids: NDArray[np.str_]) -> NDArray[np.str_]:
    """Source of each row; a caption without a row of its own has the source of its clip."""
    labels = dataset.labels().select(["id", "source", "modality"]).to_pydict()
    kinds = {"caption": ("music", "caption")}.get(modality, (modality,))
    source_of = {
        item: source
        for item, source, kind in zip(labels["id"], labels["source"], labels["modality"], strict=True)
        if kind in kinds
    }
    return np.array([source_of[item] for item in ids], dtype=np.str_)


def thirds(values_N: NDArray[np.float64], names: tuple[str, str, str]) -> NDArray[np.str_]:
    """One of three names for each row, by the third of the rows that its value is in; equal values get equal names."""
    return np.asarray(names)[np.searchsorted(np.quantile(values_N, (1 / 3, 2 / 3)), values_N)]


def part_names(
    kind: str,
    modality: Modality,
    label_N2: NDArray[np.float64],
    source_N: NDArray[np.str_],
    trait_N: NDArray[np.float64] | None,
) -> NDArray[np.str_] | None:
    """The slice that each row belongs to; None if rows of this modality are not divided by this kind.

    `kind` is "source", "quadrant" (of the labels), "loudness" or "brightness". Raises ValueError if `kind` needs
    `trait_N`, the brightness or loudness, and it is None or not finite.
    """
    if kind == "source":
        return source_N
    if kind == "quadrant":
        return np.asarray(quadrant(label_N2))
    if TRAITS.get(modality) != kind:
        return None
    if trait_N is None or not np.isfinite(trait_N).all():
        raise ValueError(f"{kind} is unknown for some rows")
    return thirds(trait_N, LEVELS[kind])
