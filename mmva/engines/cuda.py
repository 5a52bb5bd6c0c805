"""An encoder on a GPU: the network runs while the next items are prepared, and copies do not block."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmva.backbones.base import Encoder, Prepared
from mmva.backbones.fronts import batches
from mmva.engines.bf16 import has_bf16
from mmva.errors import OperationFailed


class Launched(NamedTuple):
    """Embeddings being copied to the host: number of items, rows and pinned tensors, and the event at the end."""

    items: int
    parts: list[tuple[list[int], Tensor]]
    done: torch.cuda.Event


class CudaEncoder:
    """An encoder on this process's GPU, in float32 without TF32, or under bfloat16 autocast; embeddings are float32."""

    def __init__(self, encoder: Encoder, *, bf16: bool = False) -> None:
        """Move an encoder to the GPU. Raises OperationFailed if torch sees no GPU, or the GPU has no bfloat16."""
        if not torch.cuda.is_available():
            raise OperationFailed(
                "engine cuda: torch sees no GPU on this worker; choose --engine auto, or install torch's CUDA build"
            )
        if bf16 and not has_bf16("cuda"):
            raise OperationFailed("engine cuda-bf16: this worker's GPU has no bfloat16; choose --engine cuda")
        torch.backends.cudnn.allow_tf32 = False  # on by default, and less exact than the limits allow
        self._encoder, self._bf16 = encoder.to("cuda").eval(), bf16
        self.fingerprint, self.dim, self.sample_rate = encoder.fingerprint, encoder.dim, encoder.sample_rate

    def encode(self, items: Sequence[Any], batch_size: int = 16) -> NDArray[np.float32]:
        """Embeddings [N, D] of N decoded items; see Encoder.encode."""
        emb_ND = np.empty((len(items), self.dim), np.float32)
        for start in range(0, len(items), batch_size):
            batch = items[start : start + batch_size]
            emb_ND[start : start + len(batch)] = self.collect(self.launch([self.prepare(item) for item in batch]))
        return emb_ND

    def prepare(self, item: Any) -> Prepared:
        """The network's input for one decoded item, on the CPU; thread-safe."""
        with torch.inference_mode():
            return self._encoder.prepare(item)

    def launch(self, prepared: Sequence[Prepared]) -> Launched:
        """Start the network on prepared items, and return before it has finished."""
        keys = [self._encoder.batch_key(item) for item in prepared]
        sizes = [sum(tensor.numel() for tensor in item.values()) for item in prepared]
        parts = []
        autocast = torch.autocast("cuda", dtype=torch.bfloat16) if self._bf16 else nullcontext()
        with torch.inference_mode(), autocast:
            for rows in batches(keys, sizes, self._encoder.max_batch_elements):
                batch = self._encoder.collate([prepared[row] for row in rows])
                on_gpu = {name: tensor.pin_memory().to("cuda", non_blocking=True) for name, tensor in batch.items()}
                emb_BD = self._encoder(**on_gpu).float()
                host_BD = torch.empty(emb_BD.shape, dtype=torch.float32, pin_memory=True)
                parts.append((rows, host_BD.copy_(emb_BD, non_blocking=True)))
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record()
        return Launched(len(prepared), parts, done)

    def collect(self, launched: Launched) -> NDArray[np.float32]:
        """Wait for a launch. Returns embeddings [N, D] in the order of its items."""
        launched.done.synchronize()
        emb_ND = np.empty((launched.items, self.dim), np.float32)
        for rows, host_BD in launched.parts:
            emb_ND[rows] = host_BD.numpy()
        return emb_ND
