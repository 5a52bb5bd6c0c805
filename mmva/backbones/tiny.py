"""Small encoders (a few hundred kB) with random weights from a seed, for tests.

They use transformers' CLIP vision tower, HuBERT and RoBERTa at a small size, and the same encoder classes.
"""

from typing import Any, Final

import torch

from mmva.backbones.base import Encoder
from mmva.backbones.clip import ClipEncoder
from mmva.backbones.mert import MertEncoder
from mmva.backbones.spec import BackboneSpec
from mmva.backbones.text import MAX_TOKENS, TextEncoder
from mmva.files import sha256_hex

_WIDTH: Final = 64
_TRANSFORMER: Final[dict[str, Any]] = {
    "hidden_size": _WIDTH,
    "intermediate_size": 2 * _WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
_IMAGE_SIDE: Final = 64
_SAMPLE_RATE: Final = 16_000


class ByteTokenizer:
    """UTF-8 bytes as tokens, after RoBERTa's four special ids; needs no vocabulary."""

    pad_id = 1
    vocabulary = 4 + 256
    digest = sha256_hex(b"utf-8 bytes + 4, <s> 0, </s> 2")

    def __call__(self, text: str) -> list[int]:
        """Token ids of one text, cut to MAX_TOKENS; a lone surrogate becomes a question mark."""
        return [0, *(4 + byte for byte in text.encode(errors="replace")[: MAX_TOKENS - 2]), 2]


def load(spec: BackboneSpec) -> Encoder:
    """Build the tiny encoder of the spec's modality. The same seed gives the same weights in every process."""
    build = {"image": _image, "music": _music, "caption": _caption}[spec.modality]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(spec.name))
        return build(spec)


def _image(spec: BackboneSpec) -> Encoder:
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(**_TRANSFORMER, image_size=_IMAGE_SIDE, patch_size=16, projection_dim=_WIDTH)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": _IMAGE_SIDE}, crop_size={"height": _IMAGE_SIDE, "width": _IMAGE_SIDE}
    )
    return ClipEncoder(spec, CLIPVisionModelWithProjection(config), processor)


def _music(spec: BackboneSpec) -> Encoder:
    from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

    config = HubertConfig(
        **_TRANSFORMER, conv_dim=(32,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4
    )
    return MertEncoder(spec, HubertModel(config), Wav2Vec2FeatureExtractor(sampling_rate=_SAMPLE_RATE))


def _caption(spec: BackboneSpec) -> Encoder:
    from transformers import RobertaConfig, RobertaModel

    tokenizer = ByteTokenizer()
    config = RobertaConfig(
        **_TRANSFORMER,
        vocab_size=tokenizer.vocabulary,
        max_position_embeddings=MAX_TOKENS + tokenizer.pad_id + 1,
        pad_token_id=tokenizer.pad_id,
    )
    return TextEncoder(spec, RobertaModel(config, add_pooling_layer=False), tokenizer)
