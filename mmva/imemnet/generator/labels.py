"""Ids and labels distributed as in IMEMNet-C.

Shapes: N items; va_N2 holds (valence, arousal) per row in [0, 1].

The moments were computed from the published image_va.csv (24,758 rows) per source, and from the 9,144 published clip
labels. One exception: the variance of music arousal is .0367 there (train and val songs only) and .0283 in the
published test songs; we use the latter, because results are compared with it.
"""

import zlib
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, norm, qmc

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation per axis, and the correlation between the axes."""

    mean: tuple[float, float]
    std: tuple[float, float]
    correlation: float


IMAGE_MOMENTS: Final[dict[str, Moments]] = {
    "EMOTIC": Moments((0.5539, 0.5304), (0.1459, 0.2191), 0.153),
    "IAPS": Moments((0.5305, 0.5502), (0.2519, 0.2054), -0.282),
    "NAPS": Moments((0.5205, 0.3328), (0.2341, 0.1958), -0.526),
}
MUSIC_MOMENTS: Final = Moments((0.5605, 0.5600), (0.1649, 0.1682), 0.481)

# Of 40 images, two are IAPS and one is NAPS (4.7 % and 2.1 % in the published file); the rest are EMOTIC.
_SOURCE_CYCLE = 40
_IAPS_TURNS, _NAPS_TURN = (3, 23), 11
_EMOTIC_STEPS = 9  # EMOTIC's annotators chose whole numbers from 1 to 10
_NAPS_KINDS = ("Animals", "Faces", "Landscapes", "Objects", "People")

# Neighbouring clips of a song differ by an MSE of .000155 (V) and .000234 (A).
_STEP_STD = np.sqrt([0.000155, 0.000234])
_FIRST_SONG, _FIRST_WINDOW = 2, 9  # DEAM's numbering; its annotations begin at 15 s
_CLIPS_PER_SONG = (4, 8)  # fewer than in DEAM, so that few clips still come from many songs


@dataclass(frozen=True)
class Clip:
    """One clip: song and k of its id `song-k`, its own (v, a), and the song's, around which its clips vary."""

    song: int
    k: int
    va: tuple[float, float]
    song_va: tuple[float, float]

    @property
    def id(self) -> str:
        """The published form of a clip's id."""
        return f"{self.song}-{self.k}"


def stream(seed: int, name: str, index: int = 0) -> np.random.Generator:
    """A random generator that depends on the arguments alone, so that an item does not depend on the other items."""
    return np.random.default_rng([seed, zlib.crc32(name.encode()), index])


def image_source(index: int) -> str:
    """The collection that the image of this index imitates: "IAPS", "NAPS" or "EMOTIC"."""
    turn = index % _SOURCE_CYCLE
    return "IAPS" if turn in _IAPS_TURNS else "NAPS" if turn == _NAPS_TURN else "EMOTIC"


def image_id(seed: int, index: int) -> str:
    """A unique id in its collection's pattern: 1203, Animals_001_h, COCO_train2014_..., frame_..."""
    source = image_source(index)
    if source == "IAPS":
        return str(1000 + index)
    if source == "NAPS":
        kind, number = _NAPS_KINDS[index // _SOURCE_CYCLE % 5], 1 + index // (5 * _SOURCE_CYCLE)
        return f"{kind}_{number:03d}_{'hv'[index % 3 == 0]}"
    rng = stream(seed, "image-id", index)
    if rng.random() < 0.75:
        return f"COCO_{rng.choice(['train', 'train', 'train', 'val'])}2014_{index * 23 + int(rng.integers(23)):012d}"
    letters = "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz0123456789"), 10))
    return f"{rng.choice(['frame_', ''])}{letters}{zlib.crc32(str(index).encode()):08x}"


def draw_image_labels(count: int, seed: int) -> FloatArray:
    """Labels of images 0 .. count-1, va_N2; EMOTIC's are multiples of 1/9, as in the published file."""
    va_N2 = np.empty((count, 2))
    sources = np.array([image_source(index) for index in range(count)])
    for offset, (name, moments) in enumerate(IMAGE_MOMENTS.items()):
        mine = np.flatnonzero(sources == name)
        rounding = 1 / _EMOTIC_STEPS if name == "EMOTIC" else 0.0
        va = _spread(len(mine), moments, seed * 10 + offset, rounding)
        va_N2[mine] = np.round(va / rounding) * rounding if rounding else va
    return va_N2


def draw_clips(count: int, seed: int) -> list[Clip]:
    """The first `count` clips: songs of 4 to 8 neighbouring windows whose labels change in small steps."""
    song_va_S2 = _spread(count // _CLIPS_PER_SONG[0] + 1, MUSIC_MOMENTS, seed * 10 + 9, 0.0)
    clips: list[Clip] = []
    for song, va in enumerate(song_va_S2):
        rng = stream(seed, "song-labels", song)
        length = int(rng.integers(_CLIPS_PER_SONG[0], _CLIPS_PER_SONG[1] + 1))
        walk = np.cumsum(rng.normal(0.0, _STEP_STD, (length, 2)), axis=0)
        path = np.clip(va + walk - walk.mean(axis=0), 0.0, 1.0)
        clips += [
            Clip(_FIRST_SONG + song, _FIRST_WINDOW + k, (float(v), float(a)), (float(va[0]), float(va[1])))
            for k, (v, a) in enumerate(path)
        ]
        if len(clips) >= count:
            break
    return clips[:count]


def _spread(count: int, moments: Moments, seed: int, rounding: float) -> FloatArray:
    """Points with these moments: beta marginals under a Gaussian copula, from a scrambled Halton sequence.

    The first points of the sequence already cover the plane evenly, so a hundred items have the right moments. A point
    does not depend on the number of later points.
    """
    uniform = qmc.Halton(d=2, scramble=True, rng=seed).random(count)
    z = norm.ppf(np.clip(uniform, 1e-6, 1 - 1e-6))
    z[:, 1] = moments.correlation * z[:, 0] + np.sqrt(1 - moments.correlation**2) * z[:, 1]
    va = np.empty_like(z)
    for axis, (mean, std) in enumerate(zip(moments.mean, moments.std, strict=True)):
        variance = std**2 - rounding**2 / 12  # rounding to a grid adds step^2 / 12
        size = mean * (1 - mean) / variance - 1
        va[:, axis] = beta.ppf(norm.cdf(z[:, axis]), mean * size, (1 - mean) * size)
    return va
