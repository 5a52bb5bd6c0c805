"""An encoder's network as one self-describing ONNX file."""

import io
import json
import logging
import warnings
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from mmva.backbones.base import Encoder
from mmva.engines.onnx_encoder import DESCRIPTION
from mmva.errors import OperationFailed

_LOG = logging.getLogger(__name__)
_OPSET: Final = 18


def export_onnx(encoder: Encoder, items: Sequence[Any]) -> bytes:
    """Export the graph of an encoder that is on the CPU and in evaluation mode, tracing it with a few decoded `items`.

    The file's metadata contain the encoder's fingerprint and the front that prepares items. Raises OperationFailed if
    the encoder cannot be exported.
    """
    import onnx

    module, example, dynamic = encoder.exportable(items)
    names = list(example)
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            # The tracer warns about every Python branch; calibration compares its results with the encoder's.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _ByPosition(module, names).eval(),
                tuple(example.values()),
                buffer,  # type: ignore[arg-type] # the tracing exporter takes a stream; the annotation forgets it
                input_names=names,
                output_names=["embedding"],
                dynamic_axes={name: {axis: f"{name}_{axis}" for axis in axes} for name, axes in dynamic.items()},
                opset_version=_OPSET,
                dynamo=False,
            )
    except Exception as error:
        _LOG.debug("%s does not export", encoder.spec.source, exc_info=True)
        raise OperationFailed(
            f"backbone {encoder.spec.source}: cannot be exported to ONNX ({type(error).__name__})"
        ) from error
    finally:
        encoder.eval()
    model = onnx.load_from_string(buffer.getvalue())
    description = {
        "fingerprint": encoder.fingerprint,
        "dim": encoder.dim,
        "sample_rate": encoder.sample_rate,
        "front": encoder.front(),
    }
    onnx.helper.set_model_props(model, {DESCRIPTION: json.dumps(description, sort_keys=True)})
    return model.SerializeToString()


class _ByPosition(nn.Module):
    """Takes inputs by position, as the tracer does; encoders take keywords."""

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.module, self.names = module, names

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.module(**dict(zip(self.names, tensors, strict=True)))
