"""Decode video bytes to RGB pictures, one for each window of time; the sound track is decoded like other audio.

There are two passes: the first reads packets without decoding, which gives the true duration and thus the windows; the
second decodes, with one picture in memory at a time. The sniffed format selects the demuxer, as for audio.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import av
import numpy as np
from av.stream import Disposition
from numpy.typing import NDArray
from PIL import Image

from mmva.errors import MediaError
from mmva.media.audio.decode import stream_audio
from mmva.media.audio.sources import decoded_frames, opened
from mmva.media.formats import VIDEO_FORMATS
from mmva.media.guards import checked_format, refusals
from mmva.media.limits import Limits
from mmva.media.windows import window_bounds

_TICKS_PER_S: Final = 1000  # windows of pictures are cut on a grid of milliseconds
# Encoders and containers round a little: a file this close to its header's length counts as complete.
_WHOLE_SHARE, _ROUNDING_S = 0.98, 0.5
# By the file's rotation, in degrees counterclockwise.
_UPRIGHT = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """The contents of a video, mostly by its packets, not its header."""

    duration_s: float  # end of the last packet, of pictures or sound
    picture_s: float | None  # end of the last picture; None without pictures
    width: int  # pixels of a picture as stored, before rotation; 0 without pictures
    height: int
    sound: bool
    format: str  # as sniffed
    fps: float  # mean pictures per second, by the header; 0 if missing


def probe_video(data: bytes, limits: Limits | None = None) -> VideoInfo:
    """Check the header against the limits, then read the packets without decoding them.

    Raises MediaError "empty-file", "too-many-bytes", "not-video", "corrupt-video", "unsupported-video", "no-track",
    "too-many-pixels", "too-long" or "truncated-video".
    """
    limits = limits or Limits()
    kind = checked_format(data, limits, VIDEO_FORMATS, "not-video")
    missing = 8 + int.from_bytes(data[4:8], "little") - len(data) if kind == "avi" else 0
    if missing > 0:
        raise MediaError("truncated-video", f"the file ends {missing:,} bytes early")
    with opened(data, kind, "corrupt-video") as container:
        picture, sound = _picture_stream(container), bool(container.streams.audio)
        if picture is None and not sound:
            raise MediaError("no-track", f"{kind} data with neither pictures nor sound")
        _check_header(container, picture, limits)
        ends_s = _ends(container, picture, kind, limits)
        _refuse_truncated(container, ends_s)
        pictured = picture is not None and ends_s.get(picture.index, 0.0) > 0
        if not pictured and not sound:
            raise MediaError("no-track", f"{kind} data without a single picture, and without sound")
        context = picture.codec_context if picture is not None and pictured else None
        return VideoInfo(
            duration_s=max(ends_s.values(), default=0.0),
            picture_s=ends_s[picture.index] if picture is not None and pictured else None,
            width=context.width if context else 0,
            height=context.height if context else 0,
            sound=sound,
            format=kind,
            fps=float((context and picture.average_rate) or 0),
        )


def stream_frames(
    data: bytes, info: VideoInfo, window_s: float, hop_s: float, limits: Limits | None = None
) -> Iterator[tuple[float, Image.Image]]:
    """Yield the start in seconds and the central picture of each window (see window_bounds).

    `info` is the result of probe_video. Pictures are RGB and upright by the file's rotation. Raises MediaError
    "corrupt-video" or "too-many-pixels", possibly after some pictures.
    """
    if info.picture_s is None:
        return
    spans_ms = window_bounds(
        max(1, round(info.picture_s * _TICKS_PER_S)), round(window_s * _TICKS_PER_S), round(hop_s * _TICKS_PER_S)
    )
    centres_s = [(start + stop) / 2 / _TICKS_PER_S for start, stop in spans_ms]
    for (start, _), picture in zip(spans_ms, pictures_at(data, info, centres_s, limits), strict=True):
        yield start / _TICKS_PER_S, picture


def pictures_at(
    data: bytes, info: VideoInfo, times_s: Iterable[float], limits: Limits | None = None
) -> Iterator[Image.Image]:
    """Yield the picture that a viewer sees at each of these times: RGB, upright, one in memory at a time.

    `info` is the result of probe_video; the video must have pictures. Times are ascending, in seconds from the start;
    after the end, the last picture is used. Raises MediaError "corrupt-video" or "too-many-pixels", possibly after some
    pictures.
    """
    waiting = iter(times_s)
    wanted_s = next(waiting, None)
    shown: Any = None  # the frame that a viewer sees until the next one
    for time_s, frame in _frames(data, info.format, limits or Limits()):
        while wanted_s is not None and shown is not None and time_s > wanted_s:
            yield _upright_rgb(shown, info.format)
            wanted_s = next(waiting, None)
        if wanted_s is None:
            return
        shown = frame
    if shown is None:
        raise MediaError("corrupt-video", f"{info.format} data without a picture that can be decoded")
    while wanted_s is not None:
        yield _upright_rgb(shown, info.format)
        wanted_s = next(waiting, None)


def stream_sound(data: bytes, sample_rate: int, limits: Limits | None = None) -> Iterator[NDArray[np.float32]]:
    """stream_audio for a video's sound track, without a minimum duration."""
    return stream_audio(data, sample_rate, replace(limits or Limits(), min_duration_s=0.0), accepted=VIDEO_FORMATS)


def _picture_stream(container: Any) -> Any:
    """The first video stream that is not a cover image."""
    return next((one for one in container.streams.video if not one.disposition & Disposition.attached_pic), None)


def _check_header(container: Any, picture: Any, limits: Limits) -> None:
    limits.check_duration((container.duration or 0) / av.time_base)
    if picture is None:
        return
    context = picture.codec_context
    if context is None:
        raise MediaError("unsupported-video", "pictures in a codec that FFmpeg does not know")
    limits.check_pixels(context.width, context.height)


def _ends(container: Any, picture: Any, kind: str, limits: Limits) -> dict[int, float]:
    """End of the last packet of each stream in seconds, from the stream's own start."""
    streams = [*([picture] if picture is not None else []), *container.streams.audio[:1]]
    ends_s: dict[int, float] = {}
    with refusals("corrupt-video", kind):
        for packet in container.demux(streams):
            if packet.size == 0:
                continue
            stream = packet.stream
            stamp = packet.pts if packet.pts is not None else packet.dts
            # AVI packets before the first key frame have no time stamp.
            end = 0 if stamp is None else stamp - (stream.start_time or 0) + (packet.duration or 0)
            end_s = max(float(end * packet.time_base), 1 / _TICKS_PER_S)
            ends_s[stream.index] = max(ends_s.get(stream.index, 0.0), end_s)
            if end_s > limits.max_duration_s:
                raise MediaError("too-long", f"over {limits.max_duration_s:,.0f} s, despite the header")
    return ends_s


def _refuse_truncated(container: Any, ends_s: dict[int, float]) -> None:
    promised_s = (container.duration or 0) / av.time_base
    held_s = max(ends_s.values(), default=0.0)
    if held_s < _WHOLE_SHARE * promised_s - _ROUNDING_S:
        raise MediaError("truncated-video", f"{held_s:,.1f} s where the header promises {promised_s:,.1f}")


def _frames(data: bytes, kind: str, limits: Limits) -> Iterator[tuple[float, Any]]:
    """Yield time from the start in seconds and frame, in display order."""
    with opened(data, kind, "corrupt-video") as container:
        stream = _picture_stream(container)
        stream.codec_context.thread_count = 1  # each actor has one CPU
        stream.codec_context.options = {"max_pixels": str(limits.max_pixels)}
        start, last_s = stream.start_time or 0, 0.0
        with refusals("corrupt-video", kind):
            for frame in decoded_frames(container, stream, "corrupt-video", kind):
                limits.check_pixels(frame.width, frame.height)
                if frame.pts is not None:
                    last_s = float((frame.pts - start) * frame.time_base)
                yield last_s, frame


def _upright_rgb(frame: Any, kind: str) -> Image.Image:
    with refusals("corrupt-video", kind):
        image: Image.Image = frame.to_image()
        turn = _UPRIGHT.get(round(getattr(frame, "rotation", 0)) % 360)
        return image if turn is None else image.transpose(turn)
