"""Limits on the size of an item, checked in headers before anything is decoded, and again during decoding."""

from dataclasses import dataclass
from typing import Final

from mmva.errors import MediaError

# Increase this if the pixels, samples or text of any file change; annotations record it.
# 2: colour profiles, downmix by channel, TIFF's pixel types, streams of unknown length.
DECODERS: Final = 2


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one item. The defaults accept a 108-megapixel photograph and a two-hour mix."""

    max_bytes: int = 256 * 2**20  # of the encoded file
    max_pixels: int = 120_000_000  # width x height; Pillow always refuses more than 178,956,970
    max_duration_s: float = 2 * 3600.0  # of audio or video
    min_duration_s: float = 0.1  # of audio; anything shorter is a click and has no mood
    min_sample_rate: int = 2_000  # Hz, of the file
    max_sample_rate: int = 384_000
    max_channels: int = 32
    max_peak: float = 16.0  # sample magnitude; full scale is 1, decoded MP3 overshoots a little
    max_caption_characters: int = 20_000

    def check_pixels(self, width: int, height: int) -> None:
        """Raises MediaError "too-many-pixels" above the limit."""
        if width * height > self.max_pixels:
            raise MediaError("too-many-pixels", f"{width} x {height} pixels, over the limit of {self.max_pixels:,}")

    def check_duration(self, seconds: float) -> None:
        """Raises MediaError "too-long" above the limit."""
        if seconds > self.max_duration_s:
            raise MediaError("too-long", f"{seconds:,.0f} s, over the limit of {self.max_duration_s:,.0f}")
