"""Media as a torch dataset: decodes, augments and collates a share of a step, or a piece of validation.

A DataLoader's processes do this ahead of the training thread, which only moves tensors to the device. An item's random
draws depend only on seed, epoch and its position in the epoch, not on the process that decodes it. Shapes: B pairs of a
piece, K rows of a modality, G rows of one batch of the network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmva.backbones.fronts import batches
from mmva.errors import CheckFailed, MediaError, OperationFailed, UsageError
from mmva.matching import EpochPlan
from mmva_platform.training.loop.data import batch_labels, validation_row
from mmva_platform.training.loop.loop import Batch, plan_epoch
from mmva_platform.training.loop.state import Row, World, on_tensors
from mmva_platform.training.media.augment import augment_image, augment_music
from mmva_platform.training.media.cache import MediaCache
from mmva_platform.training.media.items import MediaPairing, Place
from mmva_platform.training.media.model import Groups, TunedMMVA
from mmva_platform.training.recipe import AugmentOptions, Recipe

if TYPE_CHECKING:
    from mmva.backbones import Encoder

_MEASURED_AT_ONCE: Final = 32
_MOST_LOADERS: Final = 16
# What to decode: ("train", epoch, first and end row of its plan) or ("val", modality, first and end row).
Key = tuple[str, Any, int, int]


@dataclass
class Decoder:
    """Decodes an item to the raw inputs of its network (Encoder.raw), one per window."""

    cache: MediaCache
    encoders: dict[str, Encoder]  # by modality; their networks are not used
    augment: AugmentOptions  # of training items

    def __call__(self, modality: str, place: Place, seed: Sequence[int] | None) -> list[dict[str, Tensor]]:
        """Decode an item; with a seed it is augmented, and a long clip gives only one window."""
        encoder = self.encoders[modality]
        try:
            pieces = self._pieces(modality, place, encoder, None if seed is None else np.random.default_rng(seed))
        except MediaError as error:
            shard = self.cache.shards[place.shard].name
            raise OperationFailed(
                f"training: {modality} in row {place.row} of {shard} cannot be decoded on this worker, although the "
                f"import decoded it ({error.code}: {error}); install the same decoders on all machines"
            ) from error
        return [encoder.raw(piece) for piece in pieces]

    def _pieces(self, modality: str, place: Place, encoder: Encoder, rng: np.random.Generator | None) -> list[Any]:
        from mmva.media.audio.decode import decode_audio
        from mmva.media.images.decode import decode_image
        from mmva.media.windows import HOP_S, WINDOW_S, windows

        if modality == "caption":
            return [place.text]
        data = self.cache.read(place.shard, place.row)
        if modality == "image":
            image = decode_image(data)
            return [image if rng is None else augment_image(image, self.augment, rng)]
        assert encoder.sample_rate is not None
        samples = decode_audio(data, encoder.sample_rate)
        if rng is not None:
            return [augment_music(samples, encoder.sample_rate, self.augment, rng)]
        return windows(samples, encoder.sample_rate, WINDOW_S, HOP_S)[1]


class MediaDataset(Dataset[Any]):
    """Indexed by keys; returns inputs of the model, or an error for the training process to raise."""

    def __init__(
        self, train: MediaPairing, val: MediaPairing, recipe: Recipe, decoder: Decoder, *, on_gpu: bool = False
    ) -> None:
        self.train, self.val, self.recipe, self.decoder = train, val, recipe, decoder
        self._on_gpu = on_gpu
        self._drawn: tuple[int, EpochPlan] | None = None  # each process draws an epoch's plan once

    def __getitem__(self, key: Key) -> Any:
        """Pieces of a share as [(inputs, labels, present)], or validation rows as (windows per row, inputs)."""
        torch.set_num_threads(1)
        kind, of, start, stop = key
        try:
            return self._share(of, slice(start, stop)) if kind == "train" else self._rows(of, range(start, stop))
        except (OperationFailed, CheckFailed, UsageError) as error:
            return error

    def _share(self, epoch: int, share: slice) -> list[tuple[Any, Any, Any]]:
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = epoch, plan_epoch(self.train, self.recipe, epoch)
        plan, rows = self._drawn[1], share.stop - share.start
        count = max(1, min(self.recipe.media.pieces, rows))
        bounds = [share.start + rows * piece // count for piece in range(count + 1)]
        return [self._piece(plan, epoch, slice(*bounds[piece : piece + 2])) for piece in range(count)]

    def _piece(self, plan: EpochPlan, epoch: int, piece: slice) -> tuple[Any, Any, Any]:
        image_B, partner_B = plan.image_index_P[piece], plan.music_index_P[piece]
        rows = {modality: self.train.rows(modality, image_B, partner_B) for modality in self.train.items}
        labels, present = batch_labels(self.train, rows, image_B, partner_B, torch.zeros(()))
        inputs = {}
        for number, (modality, row_B) in enumerate(rows.items()):
            items = self.train.items[modality]
            seeds = [(self.recipe.seed, epoch, number, position) for position in range(piece.start, piece.stop)]
            decoded = [
                self.decoder(modality, items.place(int(row)), seed)[0] if row >= 0 else None
                for row, seed in zip(row_B, seeds, strict=True)
            ]
            inputs[modality] = (len(row_B), self._groups(modality, decoded))
        return inputs, labels, present

    def _rows(self, modality: str, rows: range) -> tuple[list[int], tuple[int, Groups]]:
        items = self.val.items[modality]
        decoded = [self.decoder(modality, items.place(row), None) for row in rows]
        flat = [piece for item in decoded for piece in item]
        return [len(item) for item in decoded], (len(flat), self._groups(modality, flat))

    def _groups(self, modality: str, items: Sequence[dict[str, Tensor] | None]) -> Groups:
        """Collated batches of rows, grouped as in the encoder's `encode`."""
        encoder = self.decoder.encoders[modality]
        rows = [row for row, item in enumerate(items) if item is not None]
        there = [item for item in items if item is not None]
        keys = [encoder.batch_key(item) for item in there]
        sizes = [sum(tensor.numel() for tensor in item.values()) for item in there]
        most = None if self._on_gpu else encoder.max_batch_elements  # limits memory on CPUs
        return [
            (torch.tensor([rows[i] for i in chosen]), encoder.collate([there[i] for i in chosen]))
            for chosen in batches(keys, sizes, most)
        ]


class MediaSource:
    """Batches and validation of media mode."""

    def __init__(self, dataset: MediaDataset, model: TunedMMVA, *, loaders: int) -> None:
        self.dataset, self.pairing, self._model = dataset, dataset.train, model
        self._keys: list[Key] = []  # the sampler; refilled for each pass, so that the loader's processes stay alive
        self._like = next(model.mmva.parameters())
        self._loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_size=None,
            sampler=self._keys,
            num_workers=loaders,
            collate_fn=_as_it_is,
            pin_memory=self._like.is_cuda,
            persistent_workers=loaders > 0,
        )

    def batches(self, plan: EpochPlan, epoch: int, shares: Sequence[slice]) -> Iterator[list[Batch]]:
        """Each share in `media.pieces` pieces."""
        del plan  # each of the loader's processes draws it itself
        for pieces in self._loaded([("train", epoch, share.start, share.stop) for share in shares]):
            yield [Batch(*piece) for piece in pieces]

    def validate(self, model: torch.nn.Module, world: World) -> Row:
        """Every rank predicts its part of the rows; all ranks get the same metrics."""
        assert model is self._model
        val = self.dataset.val
        found: dict[str, NDArray[np.floating]] = {
            m: np.concatenate(world.all(self.measured(m, world))) for m in val.items if m in self._model.mmva.dims
        }
        return validation_row(found, val.labels(), self.dataset.recipe.loss.sigma)

    @torch.inference_mode()
    def measured(self, modality: str, world: World) -> NDArray[np.float32]:
        """Points [K, 2] of this rank's part of the validation rows, from the mean embedding of an item's windows."""
        rows = len(self.dataset.val.items[modality])
        first, last = (rows * rank // world.size for rank in (world.rank, world.rank + 1))
        starts = range(first, last, _MEASURED_AT_ONCE)
        points = [np.empty((0, 2), np.float32)]
        for counts, (total, groups) in self._loaded(
            [("val", modality, start, min(start + _MEASURED_AT_ONCE, last)) for start in starts]
        ):
            emb_WD = self._model.embed(modality, total, groups).float().cpu().numpy()
            emb_KD = np.stack([windows.mean(axis=0) for windows in np.split(emb_WD, np.cumsum(counts)[:-1])])
            points.append(self._model.mmva.predict_embeddings(modality, emb_KD))
        return np.concatenate(points)

    def _loaded(self, keys: list[Key]) -> Iterator[Any]:
        """The dataset's values for the keys, in order, on the model's device."""
        if keys:
            self._keys[:] = keys
            for found in self._loader:
                if isinstance(found, Exception):
                    raise found
                yield on_tensors(lambda tensor: tensor.to(self._like.device, non_blocking=True), found)


def default_loaders(processes: int) -> int:
    """Number of decoding processes of a worker, if so many workers are on this machine."""
    from mmva_platform.cluster import own_cpus

    return min(_MOST_LOADERS, max(1, own_cpus() // processes - 1))


def _as_it_is(value: Any) -> Any:
    return value
