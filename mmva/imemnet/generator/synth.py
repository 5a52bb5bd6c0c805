"""Notes from wavetables and drums from noise, in numpy, well under a millisecond per note.

Shapes: T samples; every function returns float32 samples with a peak of about 1 at the given rate.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]
_TABLE = 2048  # a power of two: its wrap-around is a bit mask
_SEMITONE = 2 ** (1 / 12)
_VIBRATO_HZ = 5.5


@dataclass(frozen=True)
class Voice:
    """The sound of an instrument."""

    partials: tuple[float, ...]  # relative strength of the harmonics, without brightness
    attack_s: float  # time to full loudness
    decay_s: float  # time constant of the decay during the note; large for blown and bowed voices
    vibrato: float = 0.0  # depth in semitones
    breath: float = 0.0  # share of noise


VOICES: Final[dict[str, Voice]] = {
    "piano": Voice((1, 0.6, 0.35, 0.25, 0.15, 0.12, 0.08, 0.06), 0.004, 0.5),
    "guitar": Voice((1, 0.8, 0.6, 0.3, 0.35, 0.15, 0.1, 0.1), 0.003, 0.35),
    "harp": Voice((1, 0.35, 0.2, 0.1, 0.05), 0.003, 0.45),
    "flute": Voice((1, 0.25, 0.1, 0.03), 0.06, 5.0, 0.15, 0.04),
    "clarinet": Voice((1, 0.05, 0.6, 0.05, 0.35, 0.03, 0.2), 0.04, 5.0),
    "strings": Voice(tuple(1 / k for k in range(1, 15)), 0.12, 5.0, 0.2),
    "organ": Voice((1, 0.8, 0, 0.6, 0, 0, 0, 0.4), 0.02, 9.0),
    "synth": Voice(tuple(1 / k for k in range(1, 22)), 0.008, 2.0, 0.05),
    "brass": Voice((0.8, 1, 0.9, 0.7, 0.5, 0.4, 0.3, 0.2, 0.15), 0.05, 4.0, 0.08),
}


def frequency(midi: float) -> float:
    """Pitch of a MIDI note number in Hz; 69 is 440 Hz."""
    return 440.0 * _SEMITONE ** (midi - 69.0)


def tone(
    voice: Voice, midi: float, seconds: float, sample_rate: int, *, brightness: float, rng: np.random.Generator
) -> Samples:
    """One note at a (fractional) MIDI note number.

    Partials above .45 of the sample rate are left out. Brightness in [0, 1] tilts the spectrum by about -9 to +3 dB per
    octave; `rng` decides the phase and the breath.
    """
    hertz = frequency(midi)
    count = max(1, int(seconds * sample_rate))
    time = np.arange(count, dtype=np.float32) / np.float32(sample_rate)
    # The phase needs float64: float32 drifts audibly within a second.
    phase = np.arange(count) * (hertz / sample_rate * _TABLE) + rng.random() * _TABLE
    if voice.vibrato:
        depth = (_SEMITONE**voice.vibrato - 1) * hertz / (2 * np.pi * _VIBRATO_HZ) * _TABLE
        phase += np.float32(depth) * np.sin(np.float32(2 * np.pi * _VIBRATO_HZ) * time)
    wave = _cycle(voice, int(0.45 * sample_rate / hertz), brightness)[phase.astype(np.int32) & (_TABLE - 1)]
    if voice.breath:
        wave += np.float32(voice.breath) * rng.standard_normal(count, np.float32)
    wave *= np.exp(time * np.float32(-1 / voice.decay_s))
    attack, fade = _ramp(voice.attack_s, sample_rate, count), _ramp(min(0.02, seconds / 4), sample_rate, count)
    wave[: len(attack)] *= attack
    wave[count - len(fade) :] *= fade[::-1]
    return wave


def _ramp(seconds: float, sample_rate: int, longest: int) -> Samples:
    return np.linspace(0.0, 1.0, min(max(1, int(seconds * sample_rate)), longest), dtype=np.float32)


def _cycle(voice: Voice, highest: int, brightness: float) -> Samples:
    strengths = np.asarray(voice.partials[: max(1, highest)], np.float64)
    order = np.arange(1, len(strengths) + 1)
    strengths = strengths * order ** (2.0 * (brightness - 0.75))
    spectrum = np.zeros(_TABLE // 2 + 1, np.complex128)
    spectrum[1 : len(strengths) + 1] = -1j * strengths
    wave = np.fft.irfft(spectrum)
    return (wave / np.abs(wave).max()).astype(np.float32)


def kick(sample_rate: int) -> Samples:
    """A falling sine."""
    time = _seconds(0.18, sample_rate)
    return np.sin(2 * np.pi * (50 * time + 4 * (1 - np.exp(-time * 30)))) * np.exp(-time * 18)


def snare(sample_rate: int, rng: np.random.Generator) -> Samples:
    """Noise over a short tone."""
    time = _seconds(0.14, sample_rate)
    body = 0.4 * np.sin(2 * np.pi * 190 * time)
    return (body + 0.25 * rng.standard_normal(len(time), np.float32)) * np.exp(-time * 28)


def hat(sample_rate: int, rng: np.random.Generator) -> Samples:
    """High noise, very short."""
    time = _seconds(0.05, sample_rate)
    noise = np.diff(rng.standard_normal(len(time) + 1, np.float32))
    return 0.25 * noise * np.exp(-time * 90)


def _seconds(length: float, sample_rate: int) -> Samples:
    return np.arange(int(length * sample_rate), dtype=np.float32) / np.float32(sample_rate)
