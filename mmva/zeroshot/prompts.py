"""A VA point as a prompt for a text-to-music generator.

The caption tower places every template of the bank in the plane, by the sentence for its home. For a target, the
nearest template gives genre and instruments; the target itself gives mood, tempo, mode and loudness, by the rules that
music psychology agrees on: faster and louder with arousal, major with valence (Gabrielsson & Lindström 2010, "The role
of structure in the musical expression of emotions"). So tempo and loudness never fall as arousal rises, and mode never
turns to minor as valence rises, whatever the tower gives.

Shapes: T templates; va_T2 holds (valence, arousal) per row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
from numpy.typing import ArrayLike

from mmva.affect import mood
from mmva.errors import UsageError
from mmva.zeroshot.prompt_bank import TEMPLATES, Template

if TYPE_CHECKING:
    from mmva.model import MMVA
    from mmva.predictor import Predictor

_SLOWEST_BPM, _FASTEST_BPM, _BPM_STEP = 56, 176, 4
_TEMPI: Final = ((72, "very slow"), (92, "slow"), (116, "mid-tempo"), (144, "fast"), (1000, "very fast"))
_MODES: Final = ((0.45, "minor"), (0.55, "modal"), (2.0, "major"))
_LOUDNESS: Final = ((0.25, "very soft"), (0.45, "soft"), (0.6, "moderate"), (0.8, "loud"), (2.0, "very loud"))
# The circumplex's words describe a person's feeling; music needs other adjectives.
_ADJECTIVES: Final = {
    "happy": "happy", "delighted": "joyful", "excited": "exhilarating", "aroused": "driving", "tense": "tense",
    "distressed": "anxious", "miserable": "bleak", "depressed": "mournful", "bored": "dreary", "tired": "sleepy",
    "calm": "calm", "content": "gentle", "neutral": "restrained",
}  # fmt: skip


@dataclass(frozen=True)
class MusicPrompt:
    """A prompt and its parts."""

    text: str  # one English sentence
    template: str  # name of the template
    va: tuple[float, float]  # where the caption tower places the template
    distance: float  # from there to the target
    genre: str
    instruments: str
    mood: str  # word for the target, as in annotations; the sentence has an adjective for music
    tempo: str
    bpm: int  # beats per minute; tempo, bpm and loudness rise with the target's arousal
    mode: str  # "minor", "modal" or "major", by the target's valence
    loudness: str

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)


class PromptBank:
    """Templates and where they lie in the plane."""

    def __init__(self, va_T2: ArrayLike) -> None:
        """Templates at known points [T, 2]."""
        self.va_T2 = np.asarray(va_T2, np.float64)
        assert self.va_T2.shape == (len(TEMPLATES), 2)

    @classmethod
    def place(cls, model: MMVA | Predictor) -> Self:
        """Let a model's caption tower place the templates (one batch of sentences); UsageError if it has none."""
        if "caption" not in model.dims:
            raise UsageError(f"music prompts need a caption tower; this model has {', '.join(model.dims)}")
        sentences = [fill(template, template.home)["text"] for template in TEMPLATES]
        return cls(model.predict("caption", sentences))

    def prompt(self, va_2: ArrayLike) -> MusicPrompt:
        """The nearest template, filled for a target point."""
        target_2 = np.asarray(va_2, np.float64)
        distance_T = np.linalg.norm(self.va_T2 - target_2, axis=1)
        nearest = int(distance_T.argmin())
        template, (valence, arousal) = TEMPLATES[nearest], self.va_T2[nearest].tolist()
        return MusicPrompt(
            template=template.name,
            va=(valence, arousal),
            distance=float(distance_T[nearest]),
            genre=template.genre,
            instruments=template.instruments,
            **fill(template, target_2),
        )


def music_prompt(model_or_bank: MMVA | Predictor | PromptBank, va_2: ArrayLike) -> MusicPrompt:
    """A prompt for music of a target point. A model places the bank in each call (some 40 sentences); keep a bank.

    Raises UsageError if the model has no caption tower.
    """
    bank = model_or_bank if isinstance(model_or_bank, PromptBank) else PromptBank.place(model_or_bank)
    return bank.prompt(va_2)


def fill(template: Template, va_2: ArrayLike) -> dict[str, Any]:
    """The parts of a prompt that a target point decides: text, mood, tempo, bpm, mode and loudness."""
    target_2 = np.clip(np.asarray(va_2, np.float64), 0, 1)
    valence, arousal = target_2.tolist()
    bpm = _BPM_STEP * round((_SLOWEST_BPM + (_FASTEST_BPM - _SLOWEST_BPM) * arousal) / _BPM_STEP)
    chosen = {
        "mood": str(mood(target_2)),
        "tempo": _word(_TEMPI, bpm),
        "bpm": bpm,
        "mode": _word(_MODES, valence),
        "loudness": _word(_LOUDNESS, arousal),
    }
    return chosen | {"text": _sentence(template, chosen)}


def _sentence(template: Template, chosen: dict[str, Any]) -> str:
    adjective = _ADJECTIVES[chosen["mood"]]
    article = "An" if adjective[0] in "aeiou" else "A"
    key = f"in a {chosen['mode']} key"
    return (
        f"{article} {adjective} {template.genre} piece {key}, with {template.instruments}; "
        f"{chosen['tempo']}, about {chosen['bpm']} BPM, {chosen['loudness']}."
    )


def _word(steps: Sequence[tuple[float, str]], value: float) -> str:
    return next(word for limit, word in steps if value < limit)
