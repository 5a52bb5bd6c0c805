"""Augmentations that do not change the affect of a training item, and a few that do, which are off by default.

Brightness and saturation carry valence and arousal (Valdez and Mehrabian, "Effects of color on emotions", 1994);
loudness, tempo and pitch carry arousal (Juslin and Laukka, "Communication of emotions in vocal expression and music
performance", 2003). Changing them under the same label teaches the model to ignore them. Mirrors, moderate crops,
windows and inverted polarity change none of them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from mmva.media.windows import HOP_S, WINDOW_S, windows
from mmva_platform.training.recipe import AugmentOptions


def augment_image(image: Image.Image, options: AugmentOptions, rng: np.random.Generator) -> Image.Image:
    """A random crop of an RGB image, of at least `crop` of its area and in its proportions, perhaps mirrored."""
    side = np.sqrt(rng.uniform(options.crop, 1.0))
    width, height = max(1, round(image.width * side)), max(1, round(image.height * side))
    left, top = rng.integers(0, image.width - width + 1), rng.integers(0, image.height - height + 1)
    image = image.crop((int(left), int(top), int(left) + width, int(top) + height))
    if options.mirror and rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for enhance, most in ((ImageEnhance.Brightness, options.brightness), (ImageEnhance.Color, options.saturation)):
        if most > 0:
            image = enhance(image).enhance(float(rng.uniform(1 - most, 1 + most)))
    return image


def augment_music(
    samples: NDArray[np.float32], sample_rate: int, options: AugmentOptions, rng: np.random.Generator
) -> NDArray[np.float32]:
    """One of a clip's windows, perhaps with inverted polarity."""
    pieces = windows(samples, sample_rate, WINDOW_S, HOP_S)[1]
    piece = pieces[int(rng.integers(len(pieces)))]
    if options.polarity and rng.random() < 0.5:
        piece = -piece
    if options.gain_db > 0:
        piece = piece * np.float32(10 ** (rng.uniform(-options.gain_db, options.gain_db) / 20))
    return np.ascontiguousarray(piece, np.float32)
