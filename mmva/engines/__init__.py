"""Engines: what computes an encoder's network. torch in float32 is the reference that the others are measured by.

`torch`       the encoder as training and evaluation use it.
`torch-bf16`  the same under bfloat16 autocast, where the processor has instructions for it.
`onnx`        the network exported once, run by ONNX Runtime on one thread; numpy alone prepares the items where the
              family has a front without torch, so such a worker imports neither torch nor transformers.
"""

from __future__ import annotations

from typing import Final

ENGINES: Final = ("torch", "torch-bf16", "onnx")
