"""A MusicGen model of a few thousand random weights, in the hub's layout."""

from __future__ import annotations

from pathlib import Path


def save_tiny_musicgen(folder: Path) -> Path:
    """Two codebooks of 16, 25 frames a second, 800 samples a second, and a tokenizer of a few words."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import (
        EncodecConfig,
        MusicgenConfig,
        MusicgenDecoderConfig,
        MusicgenForConditionalGeneration,
        PreTrainedTokenizerFast,
        T5Config,
    )

    from mmva.backbones.pretrained import quiet

    words = Tokenizer(WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "piano": 3, "drums": 4}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    text = T5Config(vocab_size=8, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    sound = EncodecConfig(
        target_bandwidths=[0.2], sampling_rate=800, num_filters=2, upsampling_ratios=[8, 4], num_lstm_layers=1,
        codebook_size=16, codebook_dim=8, hidden_size=8,
    )  # fmt: skip
    decoder = MusicgenDecoderConfig(
        vocab_size=16, pad_token_id=16, bos_token_id=16, num_codebooks=2, hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, ffn_dim=16, max_position_embeddings=128,
    )  # fmt: skip
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = MusicgenConfig(text_encoder=text.to_dict(), audio_encoder=sound.to_dict(), decoder=decoder.to_dict())
        model = MusicgenForConditionalGeneration(config)
        for layer in model.audio_encoder.quantizer.layers:
            layer.codebook.embed.normal_()  # zeros at first: all codes would sound the same
        model.generation_config.decoder_start_token_id = 16
        model.generation_config.pad_token_id = 16
        model.save_pretrained(folder)
    return folder
