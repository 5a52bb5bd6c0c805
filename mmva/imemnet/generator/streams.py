"""One random stream per thing that is drawn, so that an item does not depend on how many others there are."""

from __future__ import annotations

import zlib

import numpy as np


def stream(seed: int, name: str, index: int = 0) -> np.random.Generator:
    """A generator that is a pure function of (seed, name, index); seed and index are not negative."""
    return np.random.default_rng([seed, zlib.crc32(name.encode()), index])
