"""Previews of items for a report: a thumbnail, a waveform with a few seconds of sound, or the text."""

import base64
import io
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import soundfile
from numpy.typing import NDArray

from mmva.media.audio.decode import stream_audio
from mmva.media.captions import clean_caption
from mmva.media.images.decode import decode_image

logger = logging.getLogger(__name__)

THUMBNAIL_PX: Final = 160
CAPTION_CHARACTERS: Final = 220
EXCERPT_S: Final = 6.0
MAX_AUDIO_BYTES: Final = 48 * 1024
_SAMPLE_RATE: Final = 16_000
HEARD_S: Final = 90.0
_BARS: Final = 64
_FADE_S: Final = 0.05


@dataclass(frozen=True)
class Preview:
    """A thumbnail, a piece of music or a text."""

    image: str | None = None  # data URI of a JPEG
    width: int = 0  # in pixels
    height: int = 0
    bars: tuple[float, ...] = ()  # loudness along the first HEARD_S seconds of a piece of music, 0 to 1
    audio: str | None = None  # data URI of an MP3 of a few seconds, from their middle
    text: str | None = None  # a caption, cut to CAPTION_CHARACTERS


def preview(modality: str, data: bytes | str) -> Preview:
    """Make the preview of an item's bytes (or a caption's text). Raises MediaError if the media cannot be decoded."""
    if modality == "caption":
        text = clean_caption(data)
        return Preview(text=text if len(text) <= CAPTION_CHARACTERS else text[: CAPTION_CHARACTERS - 1].rstrip() + "…")
    assert isinstance(data, bytes)
    return _thumbnail(data) if modality == "image" else _excerpt(data)


def preview_if_readable(
    modality: str, item_id: str, uri: str | None, read: Callable[[str], bytes], captions: Mapping[str, str]
) -> Preview | None:
    """Preview of an item, whose bytes `read` fetches by URI unless its text is in `captions`; None if not possible."""
    try:
        text = captions.get(item_id) if modality == "caption" else None
        if modality == "video" or (text is None and uri is None):
            return None
        return preview(modality, text if text is not None else read(str(uri)))
    except Exception as error:  # noqa: BLE001 - a deleted file must not fail the page
        logger.warning("report: no preview of %s (%s)", item_id, " ".join(str(error).split()))
        return None


def _thumbnail(data: bytes) -> Preview:
    image = decode_image(data, at_least=THUMBNAIL_PX)
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80, optimize=True)
    return Preview(image=_data_uri("image/jpeg", buffer.getvalue()), width=image.width, height=image.height)


def _excerpt(data: bytes) -> Preview:
    samples_T = _beginning(data)
    bars = [float(np.sqrt(np.mean(piece**2))) if len(piece) else 0.0 for piece in np.array_split(samples_T, _BARS)]
    loudest = max(*bars, 1e-9)
    return Preview(bars=tuple(round(bar / loudest, 3) for bar in bars), audio=_mp3(samples_T))


def _beginning(data: bytes) -> NDArray[np.float32]:
    """The first HEARD_S seconds, so that a two-hour mix costs no more than a song."""
    wanted = int(HEARD_S * _SAMPLE_RATE)
    blocks, have = [], 0
    for block in stream_audio(data, _SAMPLE_RATE):
        blocks.append(block)
        have += len(block)
        if have >= wanted:
            break
    return np.concatenate(blocks)[:wanted]


def _mp3(samples_T: NDArray[np.float32]) -> str | None:
    length = int(EXCERPT_S * _SAMPLE_RATE)
    start = max(0, (len(samples_T) - length) // 2)
    excerpt_T = np.clip(samples_T[start : start + length], -1, 1).copy()
    fade = min(int(_FADE_S * _SAMPLE_RATE), len(excerpt_T) // 2)
    ramp = np.linspace(0, 1, fade, dtype=np.float32)
    excerpt_T[:fade] *= ramp
    excerpt_T[len(excerpt_T) - fade :] *= ramp[::-1]
    buffer = io.BytesIO()
    soundfile.write(buffer, excerpt_T, _SAMPLE_RATE, format="MP3", bitrate_mode="VARIABLE", compression_level=0.7)
    encoded = buffer.getvalue()
    return _data_uri("audio/mpeg", encoded) if len(encoded) <= MAX_AUDIO_BYTES else None


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
