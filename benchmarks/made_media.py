"""Media for annotation.py, made from what the development packages bring: the same seed gives the same files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

PHOTOS = (
    "astronaut",
    "chelsea",
    "coffee",
    "rocket",
    "colorwheel",
    "hubble_deep_field",
    "immunohistochemistry",
    "retina",
)
SIDE, RATE = 512, 44_100


def make_pictures(folder: Path, count: int, seed: int = 0) -> Path:
    """`count` JPEGs, 512 pixels wide: crops of scikit-image's photographs, no two alike."""
    import skimage.data

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    photos = [Image.fromarray(getattr(skimage.data, name)()).convert("RGB") for name in PHOTOS]
    taken: set[tuple[int, ...]] = set()
    while (number := len(taken)) < count:
        which = int(rng.integers(len(photos)))
        photo, share = photos[which], rng.uniform(0.5, 1.0)
        width, height = int(photo.width * share), int(photo.height * share)
        left, top = int(rng.integers(photo.width - width + 1)), int(rng.integers(photo.height - height + 1))
        if (place := (which, left, top, width, height)) in taken:
            continue
        taken.add(place)
        crop = photo.crop((left, top, left + width, top + height))
        crop.resize((SIDE, SIDE * height // width)).save(folder / f"{number:06d}.jpg", quality=88)
    return folder


def make_tracks(folder: Path, count: int, minutes: float = 3.0, seed: int = 0) -> Path:
    """`count` Ogg files of stereo chords that change every second, over noise."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    time_T = np.arange(RATE) / RATE
    for number in range(count):
        with soundfile.SoundFile(folder / f"{number:04d}.ogg", "w", RATE, 2, format="OGG", subtype="VORBIS") as file:
            for _ in range(round(minutes * 60)):
                pitches = 110 * 2 ** (rng.integers(0, 36, 4) / 12)
                chord_T = np.sin(2 * np.pi * pitches[:, None] * time_T).sum(axis=0) / 8
                file.write(np.stack([chord_T, chord_T], axis=1) + rng.normal(0, 0.01, (RATE, 2)))
    return folder


def spoil(folder: Path, every: int) -> int:
    """Cut every `every`-th file short; how many."""
    files = sorted(folder.iterdir())[::every]
    for file in files:
        file.write_bytes(file.read_bytes()[:2000])
    return len(files)
