"""Features mode: batches and validation from embeddings in memory.

Shapes: B pairs of a share, K rows of a modality; D differs by modality.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from mmva.matching import EpochPlan
from mmva.metrics import matching_mse, va_metrics
from mmva.model import MMVA
from mmva_platform.training.data import Floats, Pairing, Triplets
from mmva_platform.training.loop import Batch, Row, World

Points = Mapping[str, NDArray[np.floating]]


class FeatureSource:
    """Both splits' embeddings; gathers a batch's rows and nothing else, so that shared memory stays shared."""

    def __init__(self, train: Triplets, val: Triplets, sigma: float) -> None:
        self._train, self._val, self._sigma = train, val, sigma
        self._emb = {modality: _view(emb_KD) for modality, emb_KD in train.emb.items()}

    @property
    def pairing(self) -> Triplets:
        """The training split."""
        return self._train

    def batches(self, plan: EpochPlan, epoch: int, shares: Sequence[slice], model: torch.nn.Module) -> Iterator[Batch]:
        """The shares' embeddings as tensors of the model's device and precision, one piece each."""
        del epoch
        return _ahead(self._batch(plan, share, next(model.parameters())) for share in shares)

    def validate(self, model: torch.nn.Module, world: World) -> Row:
        """On rank 0; the others have nothing to add."""
        assert isinstance(model, MMVA)
        if world.rank > 0:
            return {}
        known = {modality: emb_ND for modality, emb_ND in self._val.emb.items() if modality in model.dims}
        points: Points = {modality: model.predict_embeddings(modality, emb_ND) for modality, emb_ND in known.items()}
        return validation_row(points, self._val.labels(), self._sigma)

    def _batch(self, plan: EpochPlan, share: slice, like: torch.Tensor) -> Batch:
        """The share's rows as one piece; a row without such an item holds the last item's embedding, under a mask."""
        image_B, partner_B = plan.image_index_P[share], plan.music_index_P[share]
        rows = {modality: self._train.rows(modality, image_B, partner_B) for modality in self._emb}
        labels, present = batch_labels(self._train, rows, image_B, partner_B, like)
        inputs = {}
        for modality, emb_KD in self._emb.items():
            index_B = torch.from_numpy(rows[modality] % len(emb_KD))
            inputs[modality] = emb_KD.index_select(0, index_B).to(like)  # a third quicker than numpy's gather
        return Batch([inputs], [labels], [present])


def _ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches; the next one is gathered while the model is at the one before it."""
    with ThreadPoolExecutor(1, thread_name_prefix="training-batches") as pool:
        coming = pool.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = pool.submit(next, batches, None)
            yield batch


def _view(array: Floats) -> torch.Tensor:
    """An array's memory as a tensor; nobody writes to it, and Ray's shared memory would not let them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(array)


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


def validation_row(points: Points, labels: Points, sigma: float) -> Row:
    """The validation metrics that choose the best checkpoint.

    Args:
        points: Predicted points [K, 2] by modality.
        labels: Their labels.
        sigma: Of the matching score.

    Returns:
        val_va_mse (mean over modalities and axes), val_matching_mse (mean over image-music and image-caption, every
        pair; 0 where there are none), val_total (their sum), and the R2 of each modality and axis for the curves.
    """
    row: Row = {}
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
