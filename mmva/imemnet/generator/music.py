"""Two-second clips of songs whose sound follows their VA point by published relations.

- Mode: major is happy, minor sad (Hevner 1936, "Experimental studies of the elements of expression in music").
- Tempo, loudness, articulation: fast, loud and detached are active; slow, soft and legato are not (Gabrielsson &
  Lindstrom 2010, "The role of structure in the musical expression of emotions"; Juslin & Laukka 2003,
  "Communication of emotions in vocal expression and music performance", Psychol. Bull. 129).
- Register: high is happier (Hevner 1937; Gabrielsson & Lindstrom 2010).
- Roughness and dissonance are unpleasant and tense; a bright timbre is active (Eerola & Vuoskoski 2013, "A review of
  music and emotion studies", Music Perception 30).

Instruments, key, melody, hiss and sample rate carry little or no affect and are confounders. All clips of a song share
a small difference between its feeling and its label (label noise): a model that recognises the song knows the label
better than one that listens. A split by clip rewards this, a split by song does not.
"""

from dataclasses import dataclass

import numpy as np

from mmva.imemnet.generator.labels import Clip, stream
from mmva.imemnet.generator.synth import VOICES, Samples, hat, kick, snare, tone

CLIP_SECONDS = 2.0
_FELT_STD = (0.065, 0.065)  # deviation of the played feeling from the label, per axis
_UNIT = 0.2  # one standard unit of the relations below, on the label's scale
_MAJOR, _MINOR = (0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10)
_PROGRESSIONS = ((0, 3, 4, 0), (0, 5, 3, 4), (0, 4, 5, 3), (0, 2, 5, 4), (0, 3, 0, 4))


@dataclass(frozen=True)
class Style:
    """The properties that all clips of a song share; shares and densities in [0, 1]."""

    felt: tuple[float, float]
    sample_rate: int
    major: bool
    tonic: float  # MIDI note number
    bpm: float
    loudness_db: float
    detached: float
    brightness: float
    roughness: float
    drums: float
    lead: str
    pad: str
    progression: tuple[int, ...]
    motif: tuple[int, ...]
    hiss_db: float


def song_style(song: int, song_va: tuple[float, float], seed: int) -> Style:
    """The style of a song for its VA point in [0, 1]^2; a pure function of its arguments."""
    rng = stream(seed, "song-style", song)
    felt = np.asarray(song_va) + rng.normal(0.0, _FELT_STD)
    v, a = (felt - 0.55) / _UNIT

    def share(slope_v: float, slope_a: float, noise: float) -> float:
        return float(1 / (1 + np.exp(-(slope_v * v + slope_a * a + rng.normal(0.0, noise)))))

    voices = list(VOICES)
    soft = share(0.0, -1.2, 0.5)
    likely = np.array([soft if name in ("harp", "flute", "piano", "organ") else 1 - soft for name in voices])
    return Style(
        felt=(float(felt[0]), float(felt[1])),
        sample_rate=44_100 if rng.random() < 0.25 else 22_050,
        major=bool(rng.random() < share(2.6, 0.0, 0.3)),
        tonic=float(np.clip(57 + 4.5 * v + 1.0 * a + rng.normal(0.0, 2.5), 42, 74)),
        bpm=float(np.clip(104 + 6 * v + 30 * a + rng.normal(0.0, 8.0), 48, 190)),
        loudness_db=float(np.clip(-23 + 5 * a + rng.normal(0.0, 1.5), -40, -12)),
        detached=share(0.5, 1.0, 0.5),
        brightness=share(0.2, 1.1, 0.4),
        roughness=share(-1.8, 0.5, 0.4),
        drums=share(0.2, 1.4, 0.6),
        lead=str(rng.choice(voices, p=likely / likely.sum())),
        pad=str(rng.choice(["strings", "organ", "piano", "guitar"])),
        progression=_PROGRESSIONS[int(rng.integers(len(_PROGRESSIONS)))],
        motif=tuple(int(step) for step in rng.integers(0, 8, 8)),
        hiss_db=float(rng.uniform(-80, -48)),
    )


def render_clip(clip: Clip, style: Style, seed: int) -> Samples:
    """The clip's 2 s at the style's rate, [T] in [-1, 1]; a pure function of its arguments."""
    rng = stream(seed, f"clip-{clip.song}", clip.k)
    rate = style.sample_rate
    out = np.zeros(int(CLIP_SECONDS * rate), np.float32)
    beat = 60.0 / style.bpm
    start = (clip.k - 1) * CLIP_SECONDS
    first, last = int(np.floor(start / beat)), int(np.ceil((start + CLIP_SECONDS) / beat))
    for number in range(first, last):
        at = number * beat - start
        if number % 4 == 0 or number == first:
            _chord(out, style, number, max(at, 0.0), rng)
        _melody(out, style, number, at, rng)
        _drums(out, style, number, at, rng)
    drive = 1.0 + 6.0 * max(style.roughness - 0.55, 0.0)
    out = np.tanh(out * np.float32(drive / max(float(np.abs(out).max()), 1e-6)))
    # A clip's arousal changes its loudness within the song: about 2.5 dB per tenth.
    level_db = style.loudness_db + 25.0 * (clip.va[1] - clip.song_va[1]) + rng.normal(0.0, 0.7)
    out *= np.float32(10 ** (level_db / 20) / max(float(np.sqrt(np.mean(out**2))), 1e-6))
    out += np.float32(10 ** (style.hiss_db / 20)) * rng.standard_normal(len(out), np.float32)
    return out / np.float32(max(1.0, float(np.abs(out).max()) / 0.99))


def _degree(style: Style, degree: int) -> float:
    scale = _MAJOR if style.major else _MINOR
    return style.tonic + 12 * (degree // 7) + scale[degree % 7]


def _add(out: Samples, sound: Samples, at: float, rate: int, gain: float) -> None:
    """Mix in a sound at a time in seconds; parts outside the clip are cut off."""
    begin = round(at * rate)
    low, high = max(begin, 0), min(begin + len(sound), len(out))
    if low < high:
        out[low:high] += np.float32(gain) * sound[low - begin : high - begin]


def _chord(out: Samples, style: Style, number: int, at: float, rng: np.random.Generator) -> None:
    """A triad for the bar and its bass; roughness adds a mistuned minor second."""
    root = style.progression[number // 4 % len(style.progression)]
    bar = min(4 * 60.0 / style.bpm, CLIP_SECONDS - at)
    if bar <= 0.05:
        return
    voice = VOICES[style.pad]
    for degree in (root, root + 2, root + 4):
        sound = tone(voice, _degree(style, degree), bar, style.sample_rate, brightness=style.brightness, rng=rng)
        _add(out, sound, at, style.sample_rate, 0.22)
    if style.roughness > 0.4:
        clash = _degree(style, root + 4) + 1 + rng.normal(0.0, 0.15)
        sound = tone(voice, clash, bar, style.sample_rate, brightness=style.brightness, rng=rng)
        _add(out, sound, at, style.sample_rate, 0.6 * (style.roughness - 0.4))
    bass = tone(VOICES["synth"], _degree(style, root) - 24, bar, style.sample_rate, brightness=0.2, rng=rng)
    _add(out, bass, at, style.sample_rate, 0.25)


def _melody(out: Samples, style: Style, number: int, at: float, rng: np.random.Generator) -> None:
    """One or two notes of the song's motif per beat; short ones if the song is detached."""
    beat = 60.0 / style.bpm
    notes = 2 if style.detached > 0.5 else 1
    for half in range(notes):
        degree = style.motif[(number * notes + half) % len(style.motif)] + int(rng.integers(-1, 2))
        length = beat / notes * (1.1 - 0.75 * style.detached)
        pitch = _degree(style, degree) + 12
        sound = tone(VOICES[style.lead], pitch, length, style.sample_rate, brightness=style.brightness, rng=rng)
        _add(out, sound, at + half * beat / notes, style.sample_rate, 0.5)


def _drums(out: Samples, style: Style, number: int, at: float, rng: np.random.Generator) -> None:
    if style.drums < 0.35:
        return
    rate, beat = style.sample_rate, 60.0 / style.bpm
    _add(out, snare(rate, rng) if number % 2 else kick(rate), at, rate, style.drums)
    for part in range(4 if style.drums > 0.75 else 2):
        _add(out, hat(rate, rng), at + part * beat / (4 if style.drums > 0.75 else 2), rate, 0.5 * style.drums)
