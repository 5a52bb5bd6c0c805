"""What a training loop reads: the features of one split, and which items stand together.

Shapes: N images, M partners, K rows of any modality; D differs by modality. A partner of images is a clip with its
caption, a clip that has none, or a caption without a clip: nothing here assumes a complete triple.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from mmva.errors import UsageError
from mmva.metrics import matching_mse, va_metrics

if TYPE_CHECKING:
    from mmva_platform.datasets.features import Features

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Pairing:
    """Which rows can meet, by labels alone: what an epoch's plan is drawn from.

    Attributes:
        image_va_N2: Labels of the images, about [0, 1].
        partner_va_M2: Labels of their partners; a clip and its caption share one.
        partner_rows: Row of each partner in its modality's rows, int64 [M]; -1 where it has no such item. Only the
            modalities of which there is at least one.
    """

    image_va_N2: Floats
    partner_va_M2: Floats
    partner_rows: Mapping[str, NDArray[np.int64]]

    @property
    def modalities(self) -> tuple[str, ...]:
        """Images and what their partners have."""
        return ("image", *self.partner_rows)

    def rows(self, modality: str, image_B: NDArray[np.int64], partner_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows [B] of a modality for pairs; -1 where a partner has no such item."""
        return image_B if modality == "image" else self.partner_rows[modality][partner_B]


@dataclass(frozen=True)
class Triplets(Pairing):
    """A pairing with the rows' embeddings.

    Attributes:
        emb: Embeddings [K, D] by modality.
    """

    emb: Mapping[str, Floats]

    def labels(self) -> dict[str, Floats]:
        """Labels [K, 2] of the embeddings' rows, by modality."""
        return row_labels(self)


def row_labels(pairing: Pairing) -> dict[str, Floats]:
    """Labels [K, 2] of every modality's rows."""
    labels = {"image": pairing.image_va_N2}
    for modality, row_M in pairing.partner_rows.items():
        has_M = row_M >= 0
        labels[modality] = np.empty((int(has_M.sum()), 2), pairing.partner_va_M2.dtype)
        labels[modality][row_M[has_M]] = pairing.partner_va_M2[has_M]
    return labels


def triplets(features: Features, split: str) -> Triplets:
    """One split's rows; embeddings are views of the features'.

    Raises:
        UsageError: If the split has no image, or neither clips nor captions.
    """
    rows = features.split(split)
    found = {str(modality): rows[modality] for modality in rows if len(rows[modality])}
    ids: dict[str, NDArray[np.str_]] = {m: found[m].ids for m in ("music", "caption") if m in found}
    if "image" not in found or not ids:
        missing = "image" if "image" not in found else "clip and no caption"
        raise UsageError(f"dataset: split {split!r} has no {missing} to train with; import more data or other splits")
    partner_rows, first = partners(ids)
    partner_va_M2 = np.concatenate([found[modality].va_N2[first[modality]] for modality in first])
    emb = {modality: found[modality].emb_ND for modality in ("image", *ids)}
    return Triplets(found["image"].va_N2, partner_va_M2, partner_rows, emb)


def partners(
    ids: Mapping[str, NDArray[np.str_]],
) -> tuple[dict[str, NDArray[np.int64]], dict[str, NDArray[np.int64]]]:
    """Clips first, each with the caption of its id, then the captions that have no clip.

    Args:
        ids: Ids by modality, "music" and "caption" or one of them; unique within each.

    Returns:
        Rows of the partners [M] by modality (-1 for none), and by modality the rows that bring the partners' labels.
    """
    if len(ids) == 1:
        ((modality, own),) = ids.items()
        every = np.arange(len(own))
        return {modality: every}, {modality: every}
    row_of = {str(id_): row for row, id_ in enumerate(ids["caption"])}
    caption_of_clip = np.array([row_of.get(str(id_), -1) for id_ in ids["music"]], np.int64)
    alone = np.setdiff1d(np.arange(len(ids["caption"])), caption_of_clip)
    rows = {
        "music": np.concatenate([np.arange(len(ids["music"])), np.full(len(alone), -1)]),
        "caption": np.concatenate([caption_of_clip, alone]),
    }
    return rows, {"music": np.arange(len(ids["music"])), "caption": alone}


def batch_labels(
    pairing: Pairing,
    rows: Mapping[str, NDArray[np.int64]],
    image_B: NDArray[np.int64],
    partner_B: NDArray[np.int64],
    like: torch.Tensor,
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Labels [B, 2] and masks [B] of pairs, by modality."""
    labels = {
        modality: torch.as_tensor(
            pairing.image_va_N2[image_B] if modality == "image" else pairing.partner_va_M2[partner_B],
            dtype=like.dtype,
            device=like.device,
        )
        for modality in rows
    }
    return labels, {modality: torch.as_tensor(row_B >= 0, device=like.device) for modality, row_B in rows.items()}


def validation_row(
    points: Mapping[str, NDArray[np.floating]], labels: Mapping[str, NDArray[np.floating]], sigma: float
) -> dict[str, Any]:
    """The validation metrics that choose the best checkpoint.

    Args:
        points: Predicted points [K, 2] by modality; images and clips or captions among them.
        labels: Their labels.
        sigma: Of the matching score.

    Returns:
        val_va_mse (mean over modalities and axes), val_matching_mse (mean over image-music and image-caption, every
        pair), val_total (their sum), and the R2 of each modality and axis for the curves.
    """
    row: dict[str, Any] = {}
    errors = []
    for modality, va_N2 in points.items():
        for axis, values in va_metrics(va_N2, labels[modality]).items():
            errors.append(values["mse"])
            row[f"val_r2/{modality}/{axis}"] = values["r2"]
    matching = [
        matching_mse(points["image"], points[other], labels["image"], labels[other], sigma=sigma)
        for other in points
        if other != "image"
    ]
    row["val_va_mse"], row["val_matching_mse"] = float(np.mean(errors)), float(np.mean(matching))
    row["val_total"] = row["val_va_mse"] + row["val_matching_mse"]
    return row
