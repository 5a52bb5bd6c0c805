"""The CPU stages of media mode: a share of a step comes in as places, and goes out as the networks' inputs.

One block is one rank's share of one step, so blocks come out in the plan's order and every rank has as many as there
are steps. An item's random draws depend on seed, epoch and its place in the epoch alone, not on who decodes it.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mmva.errors import MediaError, OperationFailed
from mmva_platform.training.media.cache import MediaCache
from mmva_platform.training.media.items import Place
from mmva_platform.training.recipe import AugmentOptions

if TYPE_CHECKING:
    from mmva.backbones import Encoder
    from mmva_platform.datasets.embedder import EncoderLoader

Inputs = dict[str, np.ndarray[Any, Any]]
# One item may be several inputs: the windows of a long clip, when it is measured and not trained on.
Share = dict[str, list[list[Inputs] | None]]
_PREPARERS: dict[tuple[str, str], Encoder] = {}


@dataclass(frozen=True)
class ShareRequest:
    """What to decode.

    Attributes:
        places: By modality, each row's item; None where the row has none.
        positions: Each row's place in the epoch, the same for all modalities.
        seed: (seed, epoch) of random draws; None for no augmentation.
    """

    places: dict[str, list[Place | None]]
    positions: range
    seed: tuple[int, int] | None


@dataclass(frozen=True)
class Decoder:
    """Turns requests into shares; picklable. Encoders are loaded once a process, and without their networks kept.

    Attributes:
        cache: Where media come from.
        load: Loads encoders.
        specs: Plain values of each modality's BackboneSpec.
        augment: What training items go through.
    """

    cache: MediaCache
    load: EncoderLoader
    specs: dict[str, dict[str, Any]]
    augment: AugmentOptions

    def __call__(self, request: ShareRequest) -> Share:
        """Decode and prepare every item of a share."""
        share: Share = {}
        for number, (modality, places) in enumerate(request.places.items()):
            encoder = self._encoder(modality)
            share[modality] = [
                None
                if place is None
                else self._item(modality, place, encoder, request.seed and (*request.seed, number, position))
                for place, position in zip(places, request.positions, strict=True)
            ]
        return share

    def _item(self, modality: str, place: Place, encoder: Encoder, seed: tuple[int, ...] | None) -> list[Inputs]:
        rng = None if seed is None else np.random.default_rng(seed)
        try:
            pieces = self._decoded(modality, place, encoder, rng)
        except MediaError as error:
            shard = self.cache.shards[place.shard].name
            raise OperationFailed(
                f"training: {modality} in row {place.row} of {shard} does not decode here though the import checked it "
                f"({error.code}: {error}); are the decoders of this worker the same?"
            ) from error
        return [{name: tensor.numpy() for name, tensor in encoder.prepare(piece).items()} for piece in pieces]

    def _decoded(self, modality: str, place: Place, encoder: Encoder, rng: np.random.Generator | None) -> list[Any]:
        from mmva.media.audio import decode_audio
        from mmva.media.images import decode_image
        from mmva.media.windows import HOP_S, WINDOW_S, windows
        from mmva_platform.training.media.augment import augment_image, augment_music

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

    def _encoder(self, modality: str) -> Encoder:
        key = (modality, repr(sorted(self.specs[modality].items())))
        if key not in _PREPARERS:
            import torch

            from mmva.backbones import BackboneSpec

            encoder = self.load(BackboneSpec.from_json(self.specs[modality]))
            encoder.network = torch.nn.Identity()  # preparing needs none of its weights
            _PREPARERS[key] = encoder
        return _PREPARERS[key]


Pipeline = Callable[[Decoder, Sequence[ShareRequest]], Iterator[Share]]


def ray_pipeline(decoder: Decoder, requests: Sequence[ShareRequest]) -> Iterator[Share]:
    """Decode shares on the cluster's CPUs, ahead of their use and in their order."""
    import ray

    if not requests:
        return
    shared = ray.put(decoder)
    blocks = ray.data.from_items([{"request": request} for request in requests], override_num_blocks=len(requests))
    blocks.context.execution_options.preserve_order = True
    blocks.context.enable_progress_bars = False
    decoded = blocks.map(_decode_row, fn_kwargs={"decoder": shared}, num_cpus=_CPUS)
    for row in decoded.iter_rows():
        yield pickle.loads(row["share"])  # noqa: S301 - written by our own stage, in this cluster's memory


_CPUS = 0.5  # a stage that took whole CPUs would find none beside the training workers of a small machine


def _decode_row(row: dict[str, Any], decoder: Any) -> dict[str, Any]:
    import ray

    # As bytes: left to itself, Ray Data makes nested lists of some shares' arrays and not of others'.
    return {"share": pickle.dumps(ray.get(decoder)(row["request"]), protocol=5)}
