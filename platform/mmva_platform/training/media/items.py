"""The media of a split, and which items can be paired, without embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmva.errors import UsageError
from mmva.modalities import AXES
from mmva_platform.datasets.dataset import Dataset
from mmva_platform.training.loop.data import Pairing, partners


class Place(NamedTuple):
    """An item's shard and row; for a caption, its text."""

    shard: int
    row: int
    text: str = ""


@dataclass(frozen=True)
class MediaRows:
    """K rows of one modality: numbers of shard and row, [K] each; texts of captions."""

    shard_K: NDArray[np.int64]
    row_K: NDArray[np.int64]
    texts: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.shard_K)

    def place(self, row: int) -> Place:
        """The place of one row's item."""
        return Place(int(self.shard_K[row]), int(self.row_K[row]), self.texts[row] if self.texts else "")


@dataclass(frozen=True)
class MediaPairing(Pairing):
    """A pairing with the places of its items by modality."""

    items: Mapping[str, MediaRows]


def media_pairing(dataset: Dataset, split: str) -> MediaPairing:
    """The pairing of one split, in the row order of its features. Raises UsageError without images or partners."""
    labels = dataset.labels().to_pandas()
    counts = [shard.rows for shard in dataset.shards]
    labels["shard_number"] = np.repeat(np.arange(len(counts)), counts)
    labels["shard_row"] = np.concatenate([np.arange(count) for count in counts])
    labels = labels[labels["split"] == split]
    captioned = (labels["modality"] == "caption") | ((labels["modality"] == "music") & (labels["caption"] != ""))
    rows = {m: labels[captioned if m == "caption" else labels["modality"] == m] for m in ("image", "music", "caption")}
    rows = {modality: found for modality, found in rows.items() if len(found)}
    if "image" not in rows or len(rows) == 1:
        missing = "image" if "image" not in rows else "clip and no caption"
        raise UsageError(f"dataset: split {split!r} has no {missing} to train with; import more data or other splits")
    va = {modality: found[list(AXES)].to_numpy(np.float64) for modality, found in rows.items()}
    partner_rows, first = partners({m: found["id"].to_numpy(np.str_) for m, found in rows.items() if m != "image"})
    partner_va_M2 = np.concatenate([va[modality][row_K] for modality, row_K in first.items()])
    items = {
        modality: MediaRows(
            found["shard_number"].to_numpy(np.int64),
            found["shard_row"].to_numpy(np.int64),
            tuple(found["caption"]) if modality == "caption" else (),
        )
        for modality, found in rows.items()
    }
    return MediaPairing(va["image"], partner_va_M2, partner_rows, items)
