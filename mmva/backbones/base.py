"""What every encoder is: items in, one embedding a row out, and a fingerprint that says exactly what computed it.

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
from mmva.modalities import Modality

Prepared = dict[str, Tensor]


class Exportable(NamedTuple):
    """A network with named inputs, an example of each, and their axes of no fixed length."""

    module: nn.Module
    example: Prepared
    dynamic: dict[str, tuple[int, ...]]


class Encoder(nn.Module, ABC):
    """A pretrained (or, for `tiny`, random) network and its preprocessing, behind one interface.

    A result belongs to its item alone: neighbours in a batch change it by less than 1e-5, because items of unequal
    shape are never padded together where the network would notice.

    Attributes:
        spec: Where it came from.
        dim: D, length of an embedding.
        preprocessing: JSON-able; everything between a decoded item and the network that changes the result.
        fingerprint: SHA-256 over family, architecture, weights and preprocessing; equal in every process.
        sample_rate: Rate in Hz that music must have; None for images and captions.
    """

    # Sum of elements over a batch beyond which it is split, so that long audio does not multiply by the batch size.
    max_batch_elements: ClassVar[int | None] = None
    # Axes of a batch beyond the first whose length differs from batch to batch.
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
        """Replace some of the network's weights, by parameter name; the encoder is another one from here on.

        Raises UsageError if a weight is not the network's.
        """
        own = {name: parameter.shape for name, parameter in self.network.named_parameters()}
        if wrong := [name for name, tensor in weights.items() if own.get(name) != tensor.shape]:
            raise UsageError(f"backbone {self.spec.source}: tuned weight {wrong[0]!r} does not fit this network")
        self.network.load_state_dict(weights, strict=False)
        self.fingerprint = _fingerprint(self.spec.family, self.network, self.preprocessing, self._architecture)

    @property
    def modality(self) -> Modality:
        """The modality of the items it reads."""
        return self.spec.modality

    @abstractmethod
    def prepare(self, item: Any) -> Prepared:
        """Turn one decoded item into the network's input, without a batch axis, on the CPU.

        An item is a PIL image in mode RGB, mono float32 samples [T] at sample_rate, or a string.
        """

    @abstractmethod
    def forward(self, **batch: Tensor) -> Tensor:
        """Embed a collated batch: emb_BD, float32."""

    def exportable(self, items: Sequence[Any]) -> Exportable:
        """What of this encoder becomes a graph, with inputs to trace it by; by default all that follows collate."""
        batch = self.collate([self.prepare(item) for item in items])
        return Exportable(self, batch, dict.fromkeys(batch, (0, *self.varying_axes)))

    def front(self) -> dict[str, Any] | None:
        """Description of the torch-free front before that graph (mmva.backbones.fronts); None where there is none."""
        return None

    def raw(self, item: Any) -> Prepared:
        """As prepare, but less data where the network's device can do the rest; see finish. Training uses it."""
        return self.prepare(item)

    def finish(self, batch: Prepared) -> Prepared:
        """A collated batch of raw items, on the network's device, as the network's inputs."""
        return batch

    def blocks(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """The network's repeated blocks in the order of computing, and the modules that come after the last.

        Raises UsageError if it is not known what they are; only all layers can be trained then.
        """
        raise UsageError(f"media.layers: the blocks of {self.spec.family} are not known; use 0 or all")

    def collate(self, prepared: Sequence[Prepared]) -> Prepared:
        """Stack prepared items along a new first axis; they must have equal shapes."""
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
    """Digest of all that decides an embedding.

    The weights are hashed as loaded, not as stored: the same ones from pytorch_model.bin and from model.safetensors
    are the same encoder.
    """
    digest = hashlib.sha256()
    facts = {"family": family, "preprocessing": preprocessing, "architecture": architecture}
    digest.update(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()
