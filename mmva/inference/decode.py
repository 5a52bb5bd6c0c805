"""Decode an item's bytes into the units that encoders read: one image, one text, or successive windows of time."""

from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

from PIL import Image

from mmva.errors import MediaError, UsageError
from mmva.inference.config import Preprocessing
from mmva.media.audio.decode import stream_audio
from mmva.media.captions import clean_caption
from mmva.media.images.decode import decode_image
from mmva.media.limits import Limits
from mmva.media.video import probe_video, stream_frames, stream_sound
from mmva.media.windows import stream_windows
from mmva.modalities import MEDIA_KINDS, towers_of


class Unit(NamedTuple):
    """One input of an encoder: `content` is an RGB image, mono float32 samples [T], text, or its prepared form.

    `track` is the tower that reads it. `start_s` is the start of the window and `end_s` the known length of the track,
    in seconds; both are 0 for images and captions.
    """

    track: str
    start_s: float
    end_s: float
    content: Any


def unit_bytes(unit: Unit) -> int:
    """Approximate bytes of a unit's content in memory."""
    content = unit.content
    if isinstance(content, Image.Image):
        return 3 * content.width * content.height
    return len(content) if isinstance(content, str) else 4 * len(content)


class Decoder:
    """Decodes items. Long media are streamed, so memory does not grow with their duration."""

    def __init__(
        self,
        towers: Collection[str],
        sample_rate: Callable[[], int | None],
        preprocessing: Preprocessing,
        limits: Limits,
    ) -> None:
        """Set up decoding for a model; `sample_rate` returns the rate of music in Hz, and is called for music only."""
        self._towers, self._sample_rate = towers, sample_rate
        self._preprocessing, self._limits = preprocessing, limits

    def refusal(self, modality: str | None) -> MediaError | None:
        """Why items of this modality cannot be embedded; None if they can."""
        if modality not in MEDIA_KINDS:
            known = ", ".join(MEDIA_KINDS)
            return MediaError("unknown-modality", f"modality {modality!r} is not one of {known}", stage="catalog")
        wanted = towers_of(modality)
        if not any(track in self._towers for track in wanted):
            return MediaError("no-tower", f"this model has no {' or '.join(wanted)} tower", stage="catalog")
        return None

    def units(self, modality: str, data: bytes) -> Iterator[Unit]:
        """Yield the units of an item, track by track. Raises MediaError if it is damaged, possibly after some units."""
        if modality == "caption":
            yield Unit("caption", 0.0, 0.0, clean_caption(data, self._limits))
        elif modality == "image":
            image = decode_image(data, self._limits, at_least=self._preprocessing.short_side)
            yield Unit("image", 0.0, 0.0, image)
        elif modality == "music":
            yield from self._sound(stream_audio, data)
        else:
            yield from self._video(data)

    def _video(self, data: bytes) -> Iterator[Unit]:
        info = probe_video(data, self._limits)
        pictures = info.picture_s is not None and "image" in self._towers
        sound = info.sound and "music" in self._towers
        if not pictures and not sound:
            missing = "image" if info.picture_s is not None else "music"
            raise MediaError("no-tower", f"this video only has content for the {missing} tower, which this model lacks")
        if pictures:
            cut = self._preprocessing
            for start_s, image in stream_frames(data, info, cut.window_s, cut.hop_s, self._limits):
                yield Unit("image", start_s, info.duration_s, image)
        if sound:
            for unit in self._sound(stream_sound, data):
                yield unit._replace(end_s=max(unit.end_s, info.duration_s))

    def _sound(self, stream: Callable[..., Iterator[Any]], data: bytes) -> Iterator[Unit]:
        rate, cut = self._sample_rate(), self._preprocessing
        if rate is None:
            raise UsageError("the music encoder has no sample rate; save the bundle again with its encoders")
        for start_s, samples_T in stream_windows(stream(data, rate, self._limits), rate, cut.window_s, cut.hop_s):
            yield Unit("music", start_s, start_s + len(samples_T) / rate, samples_T)
