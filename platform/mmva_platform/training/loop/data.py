"""The input of the training loop: the features of one split, and which items can be paired.

Shapes: N images, M partners, K rows of any modality; D differs by modality. The partner of an image is a clip with its
caption, a clip without a caption, or a caption without a clip: nothing here assumes a complete triple. Without images,
clips take their place and captions are the partners; a single modality is its own partner.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from mmva.errors import UsageError
from mmva.evaluation.metrics import matching_mse, va_metrics
from mmva.modalities import MODALITIES

if TYPE_CHECKING:
    from mmva_platform.datasets.features import Features

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Pairing:
    """The labels of rows that can be paired; an epoch's plan is drawn from them."""

    image_va_N2: Floats  # labels of the images, about [0, 1]; without images, of the lead modality
    partner_va_M2: Floats  # labels of their partners; a clip and its caption share one label
    # By modality of the partners: the row of each partner, int64 [M], or -1 if it has no such item.
    partner_rows: Mapping[str, NDArray[np.int64]]
    lead: str = field(default="image", kw_only=True)  # without images, the modality in their place

    @property
    def modalities(self) -> tuple[str, ...]:
        """The lead modality and those of the partners."""
        return (self.lead, *self.partner_rows)

    def labels(self) -> dict[str, Floats]:
        """Labels [K, 2] by modality."""
        labels = {self.lead: self.image_va_N2}
        for modality, row_M in self.partner_rows.items():
            has_M = row_M >= 0
            labels[modality] = np.empty((int(has_M.sum()), 2), self.partner_va_M2.dtype)
            labels[modality][row_M[has_M]] = self.partner_va_M2[has_M]
        return labels

    def rows(self, modality: str, image_B: NDArray[np.int64], partner_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows [B] of a modality for pairs; -1 if a partner has no such item."""
        return image_B if modality == self.lead else self.partner_rows[modality][partner_B]


@dataclass(frozen=True)
class Triplets(Pairing):
    """A pairing with embeddings [K, D] by modality."""

    emb: Mapping[str, Floats]


def triplets(features: Features, split: str) -> Triplets:
    """One split's rows; embeddings are views. Raises UsageError if the split has no rows."""
    rows = features.split(split)
    found = {str(modality): rows[modality] for modality in MODALITIES if modality in rows and len(rows[modality])}
    if not found:
        raise UsageError(f"dataset: split {split!r} has no rows; import more data or other splits")
    emb = {modality: of.emb_ND for modality, of in found.items()}
    lead, *others = found
    if not others:
        return Triplets(found[lead].va_N2, found[lead].va_N2, {}, emb, lead=lead)
    partner_rows, first = partners({modality: found[modality].ids for modality in others})
    partner_va_M2 = np.concatenate([found[modality].va_N2[first[modality]] for modality in first])
    return Triplets(found[lead].va_N2, partner_va_M2, partner_rows, emb, lead=lead)


def known_rows(features: Features) -> Features:
    """Training and validation rows, all as "train", without the test rows."""
    known = {modality: rows.where(rows.split != "test") for modality, rows in features.items()}
    return replace(
        features,
        modalities={m: replace(rows, split=np.full(len(rows), "train", "<U5")) for m, rows in known.items()},
    )


def partners(
    ids: Mapping[str, NDArray[np.str_]],
) -> tuple[dict[str, NDArray[np.int64]], dict[str, NDArray[np.int64]]]:
    """The partners: clips, each with the caption of its id, then captions without a clip.

    `ids` are unique within a modality and are of "music", "caption" or both. Returns the partners' rows [M] by modality
    (-1 if missing), and by modality the rows whose labels are the partners' labels.
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
            pairing.image_va_N2[image_B] if modality == pairing.lead else pairing.partner_va_M2[partner_B],
            dtype=like.dtype,
            device=like.device,
        )
        for modality in rows
    }
    return labels, {modality: torch.as_tensor(row_B >= 0, device=like.device) for modality, row_B in rows.items()}


def validation_row(
    points: Mapping[str, NDArray[np.floating]], labels: Mapping[str, NDArray[np.floating]], sigma: float
) -> dict[str, Any]:
    """Validation metrics of predicted points and labels [K, 2] by modality; one of them chooses the best epoch.

    val_va_mse (mean over modalities and axes), val_matching_mse (mean over all pairs of image-music and image-caption;
    0 without pairs), val_total (their sum), and R2 by modality and axis for the curves.
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
        if "image" in points and other != "image"
    ]
    row["val_va_mse"], row["val_matching_mse"] = float(np.mean(errors)), float(np.mean(matching or [0.0]))
    row["val_total"] = row["val_va_mse"] + row["val_matching_mse"]
    return row
