"""How large an item may be. Checked from headers before anything is decoded, and again while it is decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# To be raised whenever some file's pixels, samples or text come out otherwise than before: annotations record it.
# 2: colour profiles, downmix by channel, TIFF's kinds of pixels, streams of unknown length.
DECODERS: Final = 2


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one item; the defaults accept a 108-megapixel photograph and a two-hour mix.

    Attributes:
        max_bytes: Size of the encoded file.
        max_pixels: Width x height of an image. Pillow refuses more than 178,956,970 in any case.
        max_duration_s: Seconds of audio or video.
        min_duration_s: Seconds of audio; what is shorter is a click and has no mood.
        min_sample_rate: Hz, of the file.
        max_sample_rate: Hz, of the file.
        max_channels: Channels of audio.
        max_peak: Largest sample magnitude; full scale is 1, decoded MP3 overshoots a little.
        max_caption_characters: Length of a caption.
    """

    max_bytes: int = 256 * 2**20
    max_pixels: int = 120_000_000
    max_duration_s: float = 2 * 3600.0
    min_duration_s: float = 0.1
    min_sample_rate: int = 2_000
    max_sample_rate: int = 384_000
    max_channels: int = 32
    max_peak: float = 16.0
    max_caption_characters: int = 20_000
