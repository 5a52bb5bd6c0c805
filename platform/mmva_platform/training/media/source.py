"""Media mode's batches and validation.

Shapes: B rows of a share, K rows of a modality in a split.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray

from mmva.matching import EpochPlan
from mmva_platform.training.data import row_labels
from mmva_platform.training.loop import Batch, Row, World
from mmva_platform.training.media.decoding import Decoder, Inputs, Pipeline, Share, ShareRequest
from mmva_platform.training.media.items import MediaPairing
from mmva_platform.training.media.tuned import TunedMMVA
from mmva_platform.training.source import batch_labels, validation_row

if TYPE_CHECKING:
    from mmva_platform.training.recipe import Recipe

_MEASURED_AT_ONCE: Final = 32


class MediaSource:
    """Decodes an epoch's plan as it goes, a share of a step at a time."""

    def __init__(
        self, train: MediaPairing, val: MediaPairing, recipe: Recipe, decoder: Decoder, pipeline: Pipeline
    ) -> None:
        self._train, self._val = train, val
        self._recipe, self._decoder, self._pipeline = recipe, decoder, pipeline

    @property
    def pairing(self) -> MediaPairing:
        """The training split."""
        return self._train

    def batches(self, plan: EpochPlan, epoch: int, shares: Sequence[slice], model: torch.nn.Module) -> Iterator[Batch]:
        """Every row of the shares once, in `media.pieces` pieces."""
        assert isinstance(model, TunedMMVA)
        requests = [self._request(plan, epoch, share) for share in shares]
        for share, decoded in zip(shares, self._pipeline(self._decoder, requests), strict=True):
            yield self._batch(plan, share, decoded, model)

    def validate(self, model: torch.nn.Module, world: World) -> Row:
        """Every rank measures its part of the rows; all get the same figures."""
        assert isinstance(model, TunedMMVA)
        points: dict[str, NDArray[np.floating]] = {}
        for modality in self._val.items:
            if modality in model.mmva.dims:
                parts = world.all(self._measured(modality, model, world))
                points[modality] = np.concatenate(parts)
        return validation_row(points, row_labels(self._val), self._recipe.loss.sigma)

    def _request(self, plan: EpochPlan, epoch: int, share: slice) -> ShareRequest:
        image_B, partner_B = plan.image_index_P[share], plan.music_index_P[share]
        places = {
            modality: [
                rows.place(int(row)) if row >= 0 else None for row in self.pairing.rows(modality, image_B, partner_B)
            ]
            for modality, rows in self.pairing.items.items()
        }
        return ShareRequest(places, range(share.start, share.stop), (self._recipe.seed, epoch))

    def _batch(self, plan: EpochPlan, share: slice, decoded: Share, model: TunedMMVA) -> Batch:
        like = next(model.mmva.parameters())
        rows = share.stop - share.start
        pieces = max(1, min(self._recipe.media.pieces, rows))
        cuts = [slice(rows * i // pieces, rows * (i + 1) // pieces) for i in range(pieces)]
        inputs, labels, present = [], [], []
        for cut in cuts:
            of_plan = slice(share.start + cut.start, share.start + cut.stop)
            image_B, partner_B = plan.image_index_P[of_plan], plan.music_index_P[of_plan]
            index = {modality: self.pairing.rows(modality, image_B, partner_B) for modality in self.pairing.items}
            piece_labels, piece_present = batch_labels(self.pairing, index, image_B, partner_B, like)
            labels.append(piece_labels)
            present.append(piece_present)
            inputs.append(
                {
                    modality: model.groups_of(modality, [None if item is None else item[0] for item in items[cut]])
                    for modality, items in decoded.items()
                }
            )
        return Batch(inputs, labels, present)

    def _measured(self, modality: str, model: TunedMMVA, world: World) -> NDArray[np.float32]:
        """Points [K of this rank, 2] of a contiguous part of the validation rows."""
        rows = self._val.items[modality]
        first, last = (len(rows) * rank // world.size for rank in (world.rank, world.rank + 1))
        requests = [
            ShareRequest(
                {modality: [rows.place(row) for row in range(start, min(start + _MEASURED_AT_ONCE, last))]},
                range(start, min(start + _MEASURED_AT_ONCE, last)),
                None,
            )
            for start in range(first, last, _MEASURED_AT_ONCE)
        ]
        measured = (
            _points(modality, [item or [] for item in decoded[modality]], model)
            for decoded in self._pipeline(self._decoder, requests)
        )
        return np.concatenate([np.empty((0, 2), np.float32), *measured])


@torch.inference_mode()
def _points(modality: str, items: Sequence[Sequence[Inputs]], model: TunedMMVA) -> NDArray[np.float32]:
    """Points of items; a long clip's embedding is the mean over its windows, as in service."""
    pieces = [piece for item in items for piece in item]
    emb_WD = model.embed(modality, *model.groups_of(modality, pieces)).float().cpu().numpy()
    ends = np.cumsum([len(item) for item in items])
    emb_KD = np.stack([rows.mean(axis=0) for rows in np.split(emb_WD, ends[:-1])])
    return model.mmva.predict_embeddings(modality, emb_KD)
