"""Turn a musical prompt into sound with a MusicGen model in transformers (Copet et al. 2023), if it is installed.

Weights must be safetensors, and code from a repository never runs.
"""

import math
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from mmva.errors import UsageError, error_line

LONGEST_S: Final = 30.0  # the length of MusicGen's training clips
_GUIDANCE: Final = 3.0  # the authors' weight of the prompt


class MusicGenerator:
    """A MusicGen model and its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model, self._tokenizer = model, tokenizer
        self.sample_rate: int = model.config.audio_encoder.sampling_rate

    @classmethod
    def load(cls, source: str) -> Self:
        """Load a model from a local folder in the hub's layout, or from the hub by NAME or NAME@REVISION.

        Raises UsageError if it has no weights of a MusicGen model.
        """
        from transformers import AutoTokenizer, MusicgenForConditionalGeneration

        from mmva.backbones.pretrained import quiet

        name, _, revision = source.partition("@") if not Path(source).exists() else (source, "", "")
        options = {"revision": revision or None, "trust_remote_code": False}
        try:
            with quiet():
                tokenizer = AutoTokenizer.from_pretrained(name, **options)
                model, report = MusicgenForConditionalGeneration.from_pretrained(
                    name, use_safetensors=True, output_loading_info=True, **options
                )
        except Exception as error:  # transformers raises many types; all mean that there is no usable model
            raise UsageError(
                f"--musicgen {source}: no MusicGen weights there ({error_line(error)}); give a folder or a repository "
                "of the hub with safetensors"
            ) from error
        if report["missing_keys"]:
            raise UsageError(
                f"--musicgen {source}: {len(report['missing_keys'])} weights are missing, "
                f"the first is {min(report['missing_keys'])}"
            )
        return cls(model.eval(), tokenizer)

    def generate(self, prompt: str, seconds: float, seed: int = 0) -> NDArray[np.float32]:
        """Generate sound [T, C] in [-1, 1] at `sample_rate`. The same seed gives the same sound on one machine.

        Raises UsageError unless 0 < seconds <= LONGEST_S.
        """
        import torch

        if not 0 < seconds <= LONGEST_S:
            raise UsageError(f"generate {seconds:g} seconds: use more than 0 and at most {LONGEST_S:g}")
        config = self._model.config
        frames = math.ceil(seconds * config.audio_encoder.frame_rate)
        words = self._tokenizer([prompt], return_tensors="pt")
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            torch.manual_seed(seed)
            audio_1CT = self._model.generate(
                input_ids=words["input_ids"],
                attention_mask=words["attention_mask"],
                do_sample=True,
                guidance_scale=_GUIDANCE,
                max_new_tokens=frames + config.decoder.num_codebooks - 1,  # each codebook is one step later
            )
        sound_TC = audio_1CT[0].T.float().numpy()[: round(seconds * self.sample_rate)]
        return np.clip(sound_TC, -1, 1)


def write_wav(path: Path, sound_TC: NDArray[np.float32], sample_rate: int) -> None:
    """Write 16-bit PCM, completely or not at all, over an existing file. Raises UsageError if this fails."""
    import soundfile

    check_wav(path)
    part = path.with_name(f".{path.name}.part")
    try:
        soundfile.write(part, sound_TC, sample_rate, format="WAV", subtype="PCM_16")
        part.replace(path)
    except (OSError, soundfile.SoundFileError) as error:
        raise UsageError(f"{path}: cannot be written ({error})") from None
    finally:
        part.unlink(missing_ok=True)


def check_wav(path: Path) -> None:
    """Raises UsageError if the name does not end in .wav."""
    if path.suffix.lower() != ".wav":
        raise UsageError(f"{path}: the name of a sound file must end in .wav")
