"""An encoder whose network runs in ONNX Runtime; the exported file describes everything else."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from mmva.backbones.fronts import Front, Prepared, batches, make_front
from mmva.errors import CheckFailed, error_line

if TYPE_CHECKING:
    from mmva.backbones.base import Encoder

# Key of the export's description in the file's metadata.
DESCRIPTION: Final = "mmva"


class OnnxEncoder:
    """Computes the embeddings of an exported encoder, whose weights were verified before the export."""

    def __init__(self, data: bytes, load_encoder: Callable[[], Encoder] | None = None) -> None:
        """Open an exported network whose digest was checked. Raises CheckFailed if this package did not export it.

        `load_encoder` loads the torch encoder, for families without a front.
        """
        self._session, description = _open(data)
        self.fingerprint: str = description["fingerprint"]
        self.dim: int = description["dim"]
        self.sample_rate: int | None = description["sample_rate"]
        if description["front"] is not None:
            self._front = make_front(description["front"])
        else:
            assert load_encoder is not None
            self._front = _EncoderFront(load_encoder())

    def encode(self, items: Sequence[Any], batch_size: int = 16) -> NDArray[np.float32]:
        """Embeddings [N, D] of N decoded items, in their order; see Encoder.encode."""
        emb_ND = np.empty((len(items), self.dim), np.float32)
        for start in range(0, len(items), batch_size):
            prepared = [self._front.prepare(item) for item in items[start : start + batch_size]]
            keys = [self._front.batch_key(one) for one in prepared]
            sizes = [sum(array.size for array in one.values()) for one in prepared]
            for rows in batches(keys, sizes, self._front.max_batch_elements):
                batch = self._front.collate([prepared[row] for row in rows])
                emb_ND[[start + row for row in rows]] = self._session.run(None, batch)[0]
        return emb_ND


def _open(data: bytes) -> tuple[Any, dict[str, Any]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        return session, json.loads(session.get_modelmeta().custom_metadata_map[DESCRIPTION])
    except Exception as error:  # onnxruntime's errors share no public base
        raise CheckFailed(
            f"exported network: cannot be opened ({type(error).__name__}: {error_line(error)})"
        ) from error


class _EncoderFront(Front):
    """Prepares items with the torch encoder, whose network is not used."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.max_batch_elements = encoder.max_batch_elements  # type: ignore[misc]

    def prepare(self, item: Any) -> Prepared:
        return {name: tensor.numpy() for name, tensor in self._encoder.prepare(item).items()}

    def batch_key(self, prepared: Prepared) -> Any:
        return self._encoder.batch_key(_tensors(prepared))

    def collate(self, prepared: Sequence[Prepared]) -> Prepared:
        batch = self._encoder.collate([_tensors(item) for item in prepared])
        return {name: tensor.numpy() for name, tensor in batch.items()}


def _tensors(prepared: Prepared) -> Any:
    import torch

    return {name: torch.from_numpy(array) for name, array in prepared.items()}
