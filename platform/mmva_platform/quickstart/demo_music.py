"""Twelve short pieces of music for the demo catalog, generated in another way than the training clips.

Plucked strings after Karplus & Strong 1983 ("Digital synthesis of plucked-string and drum timbres", Computer Music
Journal 7), bells and electric pianos by frequency modulation after Chowning 1973 (J. Audio Eng. Soc. 21), and bowed
drones; in other scales, metres and tempi, in stereo with echo. A piece's mood is still expressed by its mode, tempo,
register and loudness.

Shapes: T samples at RATE Hz; samples_T2 is stereo.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

RATE: Final = 44_100
_SOFTENING: Final = 4  # rounds of averaging before the first audible one, as if plucked with a fingertip
Samples = NDArray[np.float64]
_SCALES: Final = {
    "lydian": (0, 2, 4, 6, 7, 9, 11), "pentatonic": (0, 2, 4, 7, 9), "dorian": (0, 2, 3, 5, 7, 9, 10),
    "phrygian": (0, 1, 3, 5, 7, 8, 10), "harmonic": (0, 2, 3, 5, 7, 8, 11), "octatonic": (0, 1, 3, 4, 6, 7, 9, 10),
}  # fmt: skip


@dataclass(frozen=True)
class Piece:
    """A piece and how it is played."""

    name: str  # file name; the extension is the format
    voice: str  # "pluck", "fm" or "bow"
    scale: str
    bpm: float
    metre: int  # beats per bar
    tonic: int  # MIDI note number
    level_db: float  # RMS
    seconds: float


PIECES: Final[tuple[Piece, ...]] = (  # three each that should sound excited, tense, sad and calm; not labels
    Piece("01-harvest-dance.flac", "pluck", "lydian", 152, 3, 64, -14, 20),
    Piece("02-fairground.mp3", "fm", "pentatonic", 168, 4, 67, -13, 16),
    Piece("03-kite-weather.ogg", "pluck", "pentatonic", 140, 5, 66, -15, 24),
    Piece("04-pursuit.wav", "fm", "octatonic", 176, 5, 50, -12, 14),
    Piece("05-alarm-below.ogg", "bow", "phrygian", 160, 4, 45, -12, 18),
    Piece("06-wire-and-glass.flac", "pluck", "octatonic", 164, 7, 52, -13, 12),
    Piece("07-empty-station.mp3", "bow", "harmonic", 54, 4, 48, -25, 30),
    Piece("08-last-letter.ogg", "pluck", "harmonic", 58, 3, 50, -26, 28),
    Piece("09-rain-at-four.flac", "fm", "dorian", 62, 4, 49, -27, 22),
    Piece("10-lake-at-dawn.ogg", "bow", "pentatonic", 56, 3, 62, -26, 26),
    Piece("11-warm-stones.wav", "fm", "lydian", 64, 6, 64, -25, 15),
    Piece("12-porch-light.mp3", "pluck", "pentatonic", 66, 4, 62, -24, 25),
)


def render_piece(piece: Piece, seed: int) -> Samples:
    """The whole piece, samples_T2 in [-1, 1]; a pure function of its arguments."""
    rng = np.random.default_rng([seed, *piece.name.encode()])
    dry_T2 = np.zeros((int(piece.seconds * RATE), 2))
    beat = 60.0 / piece.bpm
    step = 0
    for number in range(int(piece.seconds / beat)):
        step += int(rng.choice([-2, -1, -1, 1, 1, 2, 3 if step < 0 else -3]))
        _place(dry_T2, _VOICES[piece.voice](_pitch(piece, step), 1.8 * beat, rng), number * beat, rng.uniform(0.2, 0.8))
        if number % piece.metre == 0:
            for degree in (-7, -3, 0):
                low = _VOICES[piece.voice](_pitch(piece, degree), piece.metre * beat, rng)
                _place(dry_T2, 0.6 * low, number * beat + rng.uniform(0.0, 0.02), 0.5)
    echo = int(0.75 * beat * RATE)
    dry_T2[echo:] += 0.3 * dry_T2[:-echo, ::-1]
    fade = np.minimum(1.0, np.arange(len(dry_T2))[::-1] / RATE)[:, None]
    loud = dry_T2 * fade / np.sqrt(np.mean(dry_T2**2)) * 10 ** (piece.level_db / 20)
    return np.tanh(loud)


def _pitch(piece: Piece, step: int) -> float:
    scale = _SCALES[piece.scale]
    midi = piece.tonic + 12 * (step // len(scale)) + scale[step % len(scale)]
    return 440.0 * 2 ** ((np.clip(midi, 33, 91) - 69) / 12)


def _place(out_T2: Samples, sound: Samples, at: float, pan: float) -> None:
    begin = int(at * RATE)
    sound = sound[: len(out_T2) - begin]
    release = min(len(sound), int(0.03 * RATE))
    sound[len(sound) - release :] *= np.linspace(1.0, 0.0, release)
    out_T2[begin : begin + len(sound)] += sound[:, None] * np.sqrt([1 - pan, pan])


def _pluck(hertz: float, seconds: float, rng: np.random.Generator) -> Samples:
    """A burst of noise goes round a delay line that averages neighbours, one period at a time."""
    period = round(RATE / hertz)
    line = rng.uniform(-1, 1, period)
    for _ in range(_SOFTENING):
        line = 0.5 * (line + np.roll(line, 1))
    out = np.zeros(1 + period * (int(seconds * RATE / period) + 1))
    out[1 : period + 1] = line
    for begin in range(period + 1, len(out), period):
        out[begin : begin + period] = 0.498 * (out[begin - period : begin] + out[begin - period - 1 : begin - 1])
    return out


def _fm(hertz: float, seconds: float, rng: np.random.Generator) -> Samples:
    time = np.arange(int(seconds * RATE)) / RATE
    ratio = float(rng.choice([1.0, 2.0, 3.5]))
    index = 2.5 * np.exp(-time * 5)
    wave = np.sin(2 * np.pi * hertz * time + index * np.sin(2 * np.pi * hertz * ratio * time))
    return wave * np.exp(-time * 2.5) * np.minimum(1.0, time / 0.004)


def _bow(hertz: float, seconds: float, rng: np.random.Generator) -> Samples:
    """Three detuned saws under a slow swell."""
    time = np.arange(int(seconds * RATE)) / RATE
    saws = [2 * ((hertz * cents * time + rng.random()) % 1.0) - 1 for cents in (0.997, 1.0, 1.003)]
    smooth = np.convolve(np.sum(saws, axis=0), np.hanning(24) / 12, mode="same")
    return smooth * np.sin(np.pi * time / max(seconds, 1e-3)) ** 0.7 / 3


_VOICES: Final[dict[str, Callable[[float, float, np.random.Generator], Samples]]] = {
    "pluck": _pluck, "fm": _fm, "bow": _bow,
}  # fmt: skip
