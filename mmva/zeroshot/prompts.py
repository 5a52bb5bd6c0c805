"""Turn a VA point into a prompt for a text-to-music generator.

The caption tower predicts a point for each template, from its sentence at its home point. For a target, the nearest
template provides genre and instruments. The target determines mood, tempo, mode and loudness by established rules of
music psychology: faster and louder with arousal, major with valence (Gabrielsson & Lindström 2010, "The role of
structure in the musical expression of emotions"). So tempo and loudness never fall as arousal rises, and mode never
changes to minor as valence rises, for any tower.

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

if TYPE_CHECKING:
    from mmva.models.model import MMVA
    from mmva.models.predictor import Predictor

_SLOWEST_BPM, _FASTEST_BPM, _BPM_STEP = 56, 176, 4
_TEMPI: Final = ((72, "very slow"), (92, "slow"), (116, "mid-tempo"), (144, "fast"), (1000, "very fast"))
_MODES: Final = ((0.45, "minor"), (0.55, "modal"), (2.0, "major"))
_LOUDNESS: Final = ((0.25, "very soft"), (0.45, "soft"), (0.6, "moderate"), (0.8, "loud"), (2.0, "very loud"))
# The circumplex's words describe a person's feeling; these adjectives describe music.
_ADJECTIVES: Final = {
    "happy": "happy", "delighted": "joyful", "excited": "exhilarating", "aroused": "driving", "tense": "tense",
    "distressed": "anxious", "miserable": "bleak", "depressed": "mournful", "bored": "dreary", "tired": "sleepy",
    "calm": "calm", "content": "gentle", "neutral": "restrained",
}  # fmt: skip


@dataclass(frozen=True)
class Template:
    """A kind of music with a unique name; mood, tempo, mode and loudness are added for a target."""

    name: str
    genre: str
    instruments: str
    home: tuple[float, float]


TEMPLATES: Final[tuple[Template, ...]] = (
    Template("punk", "punk rock", "distorted guitars and pounding drums", (0.40, 0.92)),
    Template("thrash", "thrash metal", "palm-muted guitars and double bass drums", (0.15, 0.93)),
    Template("industrial", "industrial", "harsh synthesizers and metallic percussion", (0.20, 0.80)),
    Template("drum-and-bass", "drum and bass", "breakbeats and a growling bass", (0.45, 0.90)),
    Template("chase", "film chase", "staccato strings, low brass and taiko drums", (0.30, 0.86)),
    Template("horror", "horror film", "scraping strings and a low drone", (0.12, 0.70)),
    Template("thriller", "thriller", "a ticking pulse, muted piano and tremolo strings", (0.25, 0.66)),
    Template("dark-ambient", "dark ambient", "deep drones and distant bells", (0.22, 0.45)),
    Template("doom", "doom metal", "slow fuzzy guitars and a tolling bell", (0.15, 0.55)),
    Template("trip-hop", "trip hop", "a dusty drum loop, electric piano and sub bass", (0.38, 0.42)),
    Template("cello", "classical", "a solo cello", (0.22, 0.25)),
    Template("requiem", "choral", "a low choir and organ", (0.20, 0.35)),
    Template("piano-lament", "neoclassical", "a felt piano and faint strings", (0.25, 0.18)),
    Template("slow-blues", "blues", "a bottleneck guitar and brushed drums", (0.35, 0.32)),
    Template("fado", "fado", "a nylon guitar and an aching voice", (0.30, 0.38)),
    Template("music-box", "minimal", "a music box and tape hiss", (0.40, 0.15)),
    Template("drone", "drone", "a harmonium and bowed vibraphone", (0.45, 0.08)),
    Template("post-rock", "post-rock", "delayed guitars and swelling cymbals", (0.50, 0.55)),
    Template("jazz-ballad", "jazz ballad", "a breathy saxophone, piano and double bass", (0.55, 0.30)),
    Template("lo-fi", "lo-fi hip hop", "a mellow electric piano and soft drums", (0.62, 0.32)),
    Template("ambient", "ambient", "warm synthesizer pads", (0.68, 0.14)),
    Template("harp", "new age", "a harp and a wooden flute", (0.78, 0.16)),
    Template("acoustic-folk", "acoustic folk", "a fingerpicked guitar and soft humming", (0.74, 0.28)),
    Template("bossa-nova", "bossa nova", "a nylon guitar, shaker and upright bass", (0.78, 0.40)),
    Template("string-quartet", "classical", "a string quartet", (0.60, 0.45)),
    Template("gospel", "gospel", "a choir, organ and hand claps", (0.88, 0.70)),
    Template("soul", "soul", "a horn section, electric bass and tambourine", (0.80, 0.58)),
    Template("indie-pop", "indie pop", "jangling guitars and a light drum kit", (0.76, 0.60)),
    Template("ukulele", "children's", "a ukulele, glockenspiel and whistling", (0.90, 0.55)),
    Template("swing", "big band swing", "brass, clarinet and walking bass", (0.85, 0.74)),
    Template("funk", "funk", "slap bass, wah guitar and tight drums", (0.75, 0.76)),
    Template("reggae", "reggae", "an off-beat guitar, organ and round bass", (0.76, 0.50)),
    Template("samba", "samba", "surdos, tamborims and cavaquinho", (0.92, 0.84)),
    Template("disco", "disco", "a four-on-the-floor beat, strings and a funky bass", (0.88, 0.80)),
    Template("house", "house", "a pumping kick, piano chords and bright synthesizers", (0.82, 0.88)),
    Template("balkan-brass", "Balkan brass", "trumpets, tuba and a racing snare drum", (0.78, 0.94)),
    Template("orchestral-triumph", "orchestral", "a full orchestra with blazing horns", (0.84, 0.82)),
    Template("arena-rock", "arena rock", "ringing guitars, big drums and a chanting crowd", (0.72, 0.86)),
    Template("synthwave", "synthwave", "arpeggiated synthesizers and gated drums", (0.62, 0.70)),
    Template("tango", "tango", "a bandoneon, violin and piano", (0.48, 0.64)),
)


@dataclass(frozen=True)
class MusicPrompt:
    """A prompt and its parts."""

    text: str  # one English sentence
    template: str  # name of the template
    va: tuple[float, float]  # the caption tower's point for the template
    distance: float  # from that point to the target
    genre: str
    instruments: str
    mood: str  # word for the target, as in annotations; the sentence uses an adjective for music
    tempo: str
    bpm: int  # beats per minute; tempo, bpm and loudness rise with the target's arousal
    mode: str  # "minor", "modal" or "major", by the target's valence
    loudness: str

    def to_json(self) -> dict[str, Any]:
        """JSON-able dictionary."""
        return dataclasses.asdict(self)


class PromptBank:
    """The templates and their points [T, 2] in the plane."""

    def __init__(self, va_T2: ArrayLike) -> None:
        self.va_T2 = np.asarray(va_T2, np.float64)
        assert self.va_T2.shape == (len(TEMPLATES), 2)

    @classmethod
    def place(cls, model: MMVA | Predictor) -> Self:
        """Predict the templates' points with a model's caption tower. Raises UsageError if it has none."""
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
    """A prompt for music at a target point. A model places all templates in each call; keep a PromptBank instead.

    Raises UsageError if the model has no caption tower.
    """
    bank = model_or_bank if isinstance(model_or_bank, PromptBank) else PromptBank.place(model_or_bank)
    return bank.prompt(va_2)


def fill(template: Template, va_2: ArrayLike) -> dict[str, Any]:
    """The parts of a prompt that depend on a target point: text, mood, tempo, bpm, mode and loudness."""
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
