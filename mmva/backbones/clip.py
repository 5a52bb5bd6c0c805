"""CLIP's image tower: projected image features, 512-d for ViT-B/32.

Weights: openai/clip-vit-base-patch32, MIT licence; Radford et al., "Learning Transferable Visual Models From Natural
Language Supervision" (arXiv 2103.00020).
"""

from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor, nn

from mmva.backbones.base import Encoder, Prepared
from mmva.backbones.pretrained import architecture, load_network, quiet, settings
from mmva.backbones.spec import BackboneSpec

# The processor scales the short side to 224 before it crops the centre: a 1 x 50,000 strip would become
# 224 x 11 million. Only the central square survives the crop, so the ends of a long strip are cut off first.
_MAX_ASPECT: Final = 3
_SETTINGS: Final = (
    *("do_resize", "size", "resample", "do_center_crop", "crop_size"),
    *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
)


class ClipEncoder(Encoder):
    """CLIP image features, not normalised."""

    def __init__(self, spec: BackboneSpec, network: Any, processor: Any) -> None:
        super().__init__(
            spec,
            network,
            dim=network.config.projection_dim,
            preprocessing=settings(processor, _SETTINGS),
            architecture=architecture(network.config),
        )
        self._processor = processor

    def prepare(self, item: Image.Image) -> Prepared:
        """Resize, crop and normalise one RGB image: pixel_values [3, H, W]."""
        pixels = self._processor(images=_central(item), return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels[0]}

    def raw(self, item: Image.Image) -> Prepared:
        """Resize and crop: pixel_values uint8 [3, H, W]."""
        options = {"do_rescale": False, "do_normalize": False}
        pixels = self._processor(images=_central(item), return_tensors="pt", **options)["pixel_values"]
        return {"pixel_values": pixels[0]}

    def finish(self, batch: Prepared) -> Prepared:
        """Rescale and normalise as the processor does."""
        pixels, processor = batch["pixel_values"].float(), self._processor
        if processor.do_rescale:
            pixels = pixels * processor.rescale_factor
        if processor.do_normalize:
            mean, std = (
                torch.tensor(values, device=pixels.device)[:, None, None]
                for values in (processor.image_mean, processor.image_std)
            )
            pixels = (pixels - mean) / std
        return {"pixel_values": pixels}

    def blocks(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """Transformer layers; last norm and projection."""
        network: Any = self.network
        tower = network.vision_model
        return [*tower.encoder.layers], [tower.post_layernorm, network.visual_projection]

    def forward(self, **batch: Tensor) -> Tensor:
        """Embed pixel_values [B, 3, H, W]."""
        return self.network(**batch).image_embeds


def load(spec: BackboneSpec, folder: Path) -> ClipEncoder:
    """CLIP's vision tower from a folder with all of CLIP or only this tower."""
    from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

    network = load_network(CLIPVisionModelWithProjection, spec, folder)
    with quiet():
        # Always Pillow's resampling, even with torchvision: the two differ in the last bits.
        processor = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
    return ClipEncoder(spec, network, processor)


def _central(image: Image.Image) -> Image.Image:
    width, height = image.size
    longest = _MAX_ASPECT * min(width, height)
    if max(width, height) <= longest:
        return image
    left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
    return image.crop((left, top, left + min(width, longest), top + min(height, longest)))
