"""From a musical prompt to sound, with a MusicGen model in transformers (Copet et al. 2023), if its weights are here.

Weights must be safetensors, and code from a repository does not run.
"""

import math
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from mmva.errors import UsageError

LONGEST_S: Final = 30.0  # what MusicGen was trained on
_GUIDANCE: Final = 3.0  # the authors' weight of the text


class MusicGenerator:
    """A MusicGen model and its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model, self._tokenizer = model, tokenizer
        self.sample_rate: int = model.config.audio_encoder.sampling_rate

    @classmethod
    def load(cls, source: str) -> Self:
        """A model from a local folder in the hub's layout, or a repository of the hub as NAME or NAME@REVISION.

        Raises UsageError if there are no such weights, or they are not a MusicGen model's.
        """
        from transformers import AutoTokenizer, MusicgenForConditionalGeneration

        from mmva.backbones.pretrained import first_line, quiet

        name, _, revision = source.partition("@") if not Path(source).exists() else (source, "", "")
        options = {"revision": revision or None, "trust_remote_code": False}
        try:
            with quiet():
                tokenizer = AutoTokenizer.from_pretrained(name, **options)
                model, report = MusicgenForConditionalGeneration.from_pretrained(
                    name, use_safetensors=True, output_loading_info=True, **options
                )
        except Exception as error:  # transformers raises many types; each means that there is no usable model
            raise UsageError(
                f"--musicgen {source}: no MusicGen weights there ({first_line(error)}); give a folder or a repository "
                "of the hub that has them as safetensors"
            ) from error
        if report["missing_keys"]:
            raise UsageError(
                f"--musicgen {source}: {len(report['missing_keys'])} weights are missing, "
                f"the first {min(report['missing_keys'])}"
            )
        return cls(model.eval(), tokenizer)

    def generate(self, prompt: str, seconds: float, seed: int = 0) -> NDArray[np.float32]:
        """Sound [T, C] in [-1, 1] at `sample_rate`; the same seed gives the same sound on the same machine.

        Raises UsageError unless 0 < seconds <= LONGEST_S.
        """
        import torch

        if not 0 < seconds <= LONGEST_S:
            raise UsageError(f"generate {seconds:g} seconds: more than 0 and at most {LONGEST_S:g}")
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
                max_new_tokens=frames + config.decoder.num_codebooks - 1,  # each codebook lags one step
            )
        sound_TC = audio_1CT[0].T.float().numpy()[: round(seconds * self.sample_rate)]
        return np.clip(sound_TC, -1, 1)


def write_wav(path: Path, sound_TC: NDArray[np.float32], sample_rate: int) -> None:
    """Write 16-bit PCM, whole or not at all; an existing file is replaced. UsageError if it cannot be written."""
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
    """Raises UsageError if the name is not a WAV file's."""
    if path.suffix.lower() != ".wav":
        raise UsageError(f"{path}: the name of a sound file must end in .wav")
