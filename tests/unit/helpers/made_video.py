"""Videos of plain scenes: each has a colour, a tone's loudness and a length, so what comes out can be foretold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np

Scene = tuple[float, tuple[int, int, int], float]  # seconds, colour, loudness
RATE, FPS = 16_000, 10


def write_video(
    path: Path, scenes: list[Scene], *, sound: bool = True, pictures: bool = True, size: tuple[int, int] = (96, 64)
) -> Path:
    """Scenes one after another, by the container that the path's ending names."""
    with av.open(str(path), "w") as output:
        picture_stream: Any = None
        sound_stream: Any = None
        webm = path.suffix == ".webm"
        if pictures:
            picture_stream = output.add_stream("libvpx" if webm else "mpeg4", rate=FPS)
            picture_stream.width, picture_stream.height, picture_stream.pix_fmt = *size, "yuv420p"
        if sound:
            sound_stream = output.add_stream("libopus" if webm else "aac", rate=48_000 if webm else RATE, layout="mono")
        if picture_stream:
            for seconds, colour, _ in scenes:
                for _number in range(round(seconds * FPS)):
                    pixels = np.full((size[1], size[0], 3), colour, np.uint8)
                    output.mux(picture_stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            output.mux(picture_stream.encode(None))
        if sound_stream:
            loudness_T = np.concatenate([np.full(round(s * sound_stream.rate), loud) for s, _, loud in scenes])
            tone = loudness_T * np.sin(2 * np.pi * 440 * np.arange(len(loudness_T)) / sound_stream.rate)
            frame = av.AudioFrame.from_ndarray(tone.astype(np.float32)[None], format="fltp", layout="mono")
            frame.sample_rate = sound_stream.rate
            output.mux(sound_stream.encode(frame))
            output.mux(sound_stream.encode(None))
    return path
