"""The interface of all encoders: items in, one embedding per item out, and a fingerprint of what computed it.

Shapes: B items of one batch, N items of one call, D = the encoder's dim.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mmva.backbones.fronts import batches
from mmva.backbones.spec import BackboneSpec
from mmva.errors import UsageError

Prepared = dict[str, Tensor]


class Exportable(NamedTuple):
    """A network with named inputs, an example of each, and their axes of variable length."""

    module: nn.Module
    example: Prepared
    dynamic: dict[str, tuple[int, ...]]


class Encoder(nn.Module, ABC):
    """A pretrained (or, for `tiny`, random) network and its preprocessing.

    The other items of a batch change an item's result by less than 1e-5, because items of different shapes are never
    padded together if that affects the network.

    Attributes:
        spec: Where it came from.
        dim: D, length of an embedding.
        preprocessing: JSON-able; every step before the network that changes the result.
        fingerprint: SHA-256 over family, architecture, weights and preprocessing; equal in every process.
        sample_rate: Rate in Hz that music must have; None for images and captions.
    """

    # A batch with more elements is split, so that memory for long audio does not multiply by the batch size.
    max_batch_elements: ClassVar[int | None] = None
    # Axes of a batch, besides the first, whose length varies.
    varying_axes: ClassVar[tuple[int, ...]] = ()

    def __init__(
        self,
        spec: BackboneSpec,
        network: nn.Module,
        *,
        dim: int,
        preprocessing: Mapping[str, Any],
        architecture: Mapping[str, Any],
        sample_rate: int | None = None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.dim = dim
        self.sample_rate = sample_rate
        self.preprocessing: dict[str, Any] = json.loads(json.dumps(preprocessing))
        self.network = network
        self._architecture = dict(architecture)
        self.fingerprint = _fingerprint(spec.family, network, self.preprocessing, architecture)
        self.eval()

    def load_tuned(self, weights: Mapping[str, Tensor]) -> None:
        """Replace some of the network's weights, by parameter name; this changes the fingerprint.

        Raises UsageError if the network has no such weight.
        """
        own = {name: parameter.shape for name, parameter in self.network.named_parameters()}
        if wrong := [name for name, tensor in weights.items() if own.get(name) != tensor.shape]:
            raise UsageError(f"backbone {self.spec.source}: tuned weight {wrong[0]!r} does not fit this network")
        self.network.load_state_dict(weights, strict=False)
        self.fingerprint = _fingerprint(self.spec.family, self.network, self.preprocessing, self._architecture)

    @abstractmethod
    def prepare(self, item: Any) -> Prepared:
        """Turn one decoded item into the network's input, without a batch axis, on the CPU.

        An item is a PIL image in mode RGB, mono float32 samples [T] at sample_rate, or a string.
        """

    @abstractmethod
    def forward(self, **batch: Tensor) -> Tensor:
        """Embed a collated batch: emb_BD, float32."""

    def exportable(self, items: Sequence[Any]) -> Exportable:
        """The part of this encoder to export, with inputs to trace it; by default everything after collate."""
        batch = self.collate([self.prepare(item) for item in items])
        return Exportable(self, batch, dict.fromkeys(batch, (0, *self.varying_axes)))

    def front(self) -> dict[str, Any] | None:
        """Description of the torch-free front before the exported part (mmva.backbones.fronts); None without one."""
        return None

    def raw(self, item: Any) -> Prepared:
        """Like prepare, but with less data if the network's device can do the rest (see finish). For training."""
        return self.prepare(item)

    def finish(self, batch: Prepared) -> Prepared:
        """The network's inputs for a collated batch of raw items, which is on the network's device."""
        return batch

    def blocks(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """The network's repeated blocks in order, and the modules after the last block.

        Raises UsageError for a family without this information: all of its layers are trained, or none.
        """
        raise UsageError(f"media.layers: the blocks of {self.spec.family} are not known; use 0 or all")

    def collate(self, prepared: Sequence[Prepared]) -> Prepared:
        """Stack prepared items of equal shapes along a new first axis."""
        return {name: torch.stack([item[name] for item in prepared]) for name in prepared[0]}

    def encode(self, items: Sequence[Any], batch_size: int = 16) -> NDArray[np.float32]:
        """Embeddings [N, D] of N decoded items (see prepare), in their order, at most `batch_size` at once."""
        emb_ND = np.empty((len(items), self.dim), np.float32)
        device = next(self.parameters()).device
        training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                for start in range(0, len(items), batch_size):
                    prepared = [self.prepare(item) for item in items[start : start + batch_size]]
                    keys = [self.batch_key(item) for item in prepared]
                    sizes = [sum(tensor.numel() for tensor in item.values()) for item in prepared]
                    for rows in batches(keys, sizes, self.max_batch_elements):
                        batch = self.collate([prepared[row] for row in rows])
                        emb_BD = self(**{name: tensor.to(device) for name, tensor in batch.items()})
                        emb_ND[[start + row for row in rows]] = emb_BD.float().cpu().numpy()
        finally:
            self.train(training)
        return emb_ND

    def batch_key(self, prepared: Prepared) -> Any:
        """Items with equal keys may share a batch; by default those of equal shapes."""
        return tuple(tensor.shape for tensor in prepared.values())


def _fingerprint(
    family: str, network: nn.Module, preprocessing: Mapping[str, Any], architecture: Mapping[str, Any]
) -> str:
    """Digest of everything that affects an embedding.

    Hashes the loaded weights, not the file: pytorch_model.bin and model.safetensors give the same encoder.
    """
    digest = hashlib.sha256()
    facts = {"family": family, "preprocessing": preprocessing, "architecture": architecture}
    digest.update(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()
