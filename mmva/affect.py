"""The valence-arousal plane: scales, the matching score, quadrants and mood words.

Shapes: B items; va_B2 holds (valence, arousal) per row, each in [0, 1] with .5 as the neutral point.
"""

import math
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

# IMEMNet's sigma of each split, recomputed from its published scores. MMVA's own sigma is not published.
IMEMNET_SIGMA: Final[dict[str, float]] = {"train": 0.380699, "val": 0.384407163, "test": 0.356300420}
DEFAULT_SIGMA: Final[float] = IMEMNET_SIGMA["train"]
QUADRANTS: Final[tuple[str, ...]] = ("excited", "tense", "sad", "calm")

# Twelve words around Russell's circumplex (J. Pers. Soc. Psychol. 39, 1980), counter-clockwise from pleasure at
# 0 degrees in steps of 30; "neutral" is the disc around the centre.
MOOD_WORDS: Final[tuple[str, ...]] = (
    "happy", "delighted", "excited", "aroused", "tense", "distressed",
    "miserable", "depressed", "bored", "tired", "calm", "content",
)  # fmt: skip
_NEUTRAL_RADIUS = 0.08
# DEAM's dynamic annotations lie in about [-1, 1]; IMEMNet maps them to [0, 1] by (x + .832) / 1.548 on both axes.
DEAM_RANGE: Final[tuple[float, float]] = (-0.832, 1.548 - 0.832)  # the ratings that become 0 and 1


def matching_score(va_a: ArrayLike, va_b: ArrayLike, sigma: float = DEFAULT_SIGMA) -> NDArray[np.float64]:
    """How well items match: S = exp(-||va_a - va_b||_2 / sigma), in (0, 1], 1 for the same point.

    `va_a` [..., 2] and `va_b` broadcast; the scores have their shape without the last axis. At the distance sigma the
    score is 1/e (see IMEMNET_SIGMA). Raises ValueError if sigma is not a positive number.

    Source: IMEMNet's published scores (reproduced to 1e-12), MMVA section 3 (arXiv 2501.01094).
    """
    if not (math.isfinite(sigma) and sigma > 0):
        raise ValueError(f"sigma must be a positive number, got {sigma}")
    difference = np.asarray(va_a, np.float64) - np.asarray(va_b, np.float64)
    return np.exp(-np.linalg.norm(difference, axis=-1) / sigma)


def quadrant(va_B2: ArrayLike) -> NDArray[np.str_]:
    """Name of each VA point's quadrant: excited (+V +A), tense (-V +A), sad (-V -A), calm (+V -A)."""
    va = np.asarray(va_B2, np.float64)
    pleasant, active = va[..., 0] >= 0.5, va[..., 1] >= 0.5
    index = np.select([pleasant & active, ~pleasant & active, ~pleasant & ~active], [0, 1, 2], default=3)
    return np.asarray(QUADRANTS)[index]


def mood(va_B2: ArrayLike) -> NDArray[np.str_]:
    """Nearest mood word per VA point: by angle around the neutral point, "neutral" within .08 of it."""
    centred = np.asarray(va_B2, np.float64) - 0.5
    degrees = np.degrees(np.arctan2(centred[..., 1], centred[..., 0]))
    index = np.round(degrees / 30.0).astype(int) % len(MOOD_WORDS)
    words = np.asarray(MOOD_WORDS)[index]
    return np.where(np.linalg.norm(centred, axis=-1) < _NEUTRAL_RADIUS, "neutral", words)
