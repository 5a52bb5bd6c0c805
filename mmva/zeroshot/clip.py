"""Join parts of a video, with sound, into a clip.

VP9 and Opus in WebM or MP4: browsers play both, and the encoders are free (BSD). Pictures and sound are decoded side by
side and written in order of time, so memory does not grow with the clip. Shapes: T samples, C channels.
"""

from __future__ import annotations

import heapq
import itertools
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmva.errors import UsageError
from mmva.media.audio.downmix import Block, Downmix
from mmva.media.audio.sources import open_audio
from mmva.media.guards import refusals
from mmva.media.limits import Limits
from mmva.media.video import VideoInfo, pictures_at

CONTAINERS: Final = {".webm": "webm", ".mp4": "mp4"}
_LONG_SIDE: Final = 1280  # pixels; larger pictures are made smaller
_FPS: Final = (1.0, 30.0, 25.0)  # minimum, maximum, and default if the header has no rate
_FADE_S: Final = 0.01  # of the sound at each cut, to avoid clicks
_SOUND_RATE: Final = 48_000  # Opus's rate
# Fast enough for one core, with the quality of a preview.
_PICTURE_OPTIONS: Final = {"deadline": "realtime", "cpu-used": "8", "crf": "34", "b": "0", "threads": "1"}


@dataclass(frozen=True)
class _Piece:
    """A part of the clip: a picture or samples [T, 2], with its time in the clip."""

    at_s: float
    picture: Image.Image | None = None
    samples_T2: NDArray[np.float32] | None = None

    def __lt__(self, other: _Piece) -> bool:
        return self.at_s < other.at_s


def write_clip(data: bytes, info: VideoInfo, spans_s: Sequence[tuple[float, float]], out: Path, limits: Limits) -> None:
    """Write the spans one after another; the file is written completely or not at all.

    Spans (start and end in seconds) are in order and do not overlap. `out` ends in .webm or .mp4, and is replaced.
    Raises UsageError if the name has another ending or the folder is not writable, MediaError if decoding fails.
    """
    check_clip_name(out)
    fps = Fraction(min(max(info.fps or _FPS[2], _FPS[0]), _FPS[1])).limit_denominator(1001)
    # Whole pictures, so that sound and pictures stay in sync.
    whole_s = [(start, start + max(1, round((end - start) * fps)) / float(fps)) for start, end in spans_s]
    size: tuple[int, int] | None = None
    sources: list[Iterator[_Piece]] = []
    if info.picture_s is not None:
        pictures = _pictures(data, info, whole_s, float(fps), limits)
        first = next(pictures)  # for the size: the header's is before rotation
        assert first.picture is not None
        size = even_size(first.picture.size)
        sources.append(itertools.chain([first], pictures))
    if info.sound:
        sources.append(_sounds(data, info, whole_s))
    try:
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".clip-") as folder:
            part = Path(folder) / out.name
            _encode(part, heapq.merge(*sources), fps, size, sound=info.sound)
            part.replace(out)
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({error.strerror or error})") from None


def check_clip_name(out: Path) -> None:
    """Raises UsageError unless the name ends in .webm or .mp4."""
    if out.suffix.lower() not in CONTAINERS:
        raise UsageError(f"{out}: the name of a clip must end in {' or '.join(CONTAINERS)}")


def _encode(path: Path, pieces: Iterable[_Piece], fps: Fraction, size: tuple[int, int] | None, *, sound: bool) -> None:
    """Write pieces to a file, without pictures if `size` is None."""
    with av.open(str(path), "w", format=CONTAINERS[path.suffix.lower()]) as output:
        streams: dict[str, Any] = {}
        if size is not None:
            streams["pictures"] = output.add_stream("libvpx-vp9", rate=fps, options=_PICTURE_OPTIONS)
            streams["pictures"].width, streams["pictures"].height = size
            streams["pictures"].pix_fmt = "yuv420p"
        if sound:
            streams["sound"] = output.add_stream("libopus", rate=_SOUND_RATE, layout="stereo")
        frames = heard = 0
        for piece in pieces:
            if piece.picture is not None and size is not None:
                frame = av.VideoFrame.from_image(piece.picture.resize(size, Image.Resampling.BILINEAR))
                frame.pts, frame.time_base = frames, 1 / fps
                frames += 1
                output.mux(streams["pictures"].encode(frame))
            elif piece.samples_T2 is not None:
                samples = _audio_frame(piece.samples_T2, _SOUND_RATE)
                samples.pts, samples.time_base = heard, Fraction(1, _SOUND_RATE)
                heard += len(piece.samples_T2)
                output.mux(streams["sound"].encode(samples))
        for stream in streams.values():
            output.mux(stream.encode(None))


def _pictures(
    data: bytes, info: VideoInfo, spans_s: Sequence[tuple[float, float]], fps: float, limits: Limits
) -> Iterator[_Piece]:
    times_s = [start + (number + 0.5) / fps for start, end in spans_s for number in range(round((end - start) * fps))]
    for number, picture in enumerate(pictures_at(data, info, times_s, limits)):
        yield _Piece(number / fps, picture=picture)


def _sounds(data: bytes, info: VideoInfo, spans_s: Sequence[tuple[float, float]]) -> Iterator[_Piece]:
    with open_audio(data, info.format) as source:
        at = 0
        runs = itertools.groupby(source.blocks, key=lambda block: block.sample_rate)
        blocks = (as_stereo(map(_at_most_two, run), rate, info.format) for rate, run in runs)
        for samples_T2 in cut(itertools.chain.from_iterable(blocks), spans_s, _SOUND_RATE):
            yield _Piece(at / _SOUND_RATE, samples_T2=samples_T2)
            at += len(samples_T2)


def _at_most_two(block: Block) -> NDArray[np.float32]:
    """Mix surround sound to mono, which as_stereo copies to both sides."""
    return block.samples_TC if block.samples_TC.shape[1] <= 2 else Downmix().mono(block)[:, None]


def as_stereo(blocks: Iterable[NDArray[np.float32]], rate: int, kind: str) -> Iterator[NDArray[np.float32]]:
    """Convert blocks [t, C] to blocks [t, 2] at the clip's rate; mono and more than two channels become their mean.

    NaN becomes silence, and samples above full scale are clipped, because encoders refuse them. Raises MediaError
    "corrupt-audio" for a rate that cannot be converted.
    """
    with refusals("corrupt-audio", kind):
        to_clip = av.AudioResampler(format="flt", layout="stereo", rate=_SOUND_RATE)
    for block_TC in blocks:
        two_T2 = block_TC if block_TC.shape[1] == 2 else np.repeat(block_TC.mean(axis=1, keepdims=True), 2, axis=1)
        with refusals("corrupt-audio", kind):
            converted = to_clip.resample(_audio_frame(np.clip(np.nan_to_num(two_T2), -1, 1), rate))
        yield from (frame.to_ndarray().reshape(-1, 2) for frame in converted)
    with refusals("corrupt-audio", kind):
        converted = to_clip.resample(None)
    yield from (frame.to_ndarray().reshape(-1, 2) for frame in converted)


def _audio_frame(samples_T2: NDArray[np.float32], rate: int) -> Any:
    interleaved = np.ascontiguousarray(samples_T2, np.float32).reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(interleaved, format="flt", layout="stereo")
    frame.sample_rate = rate
    return frame


def cut(
    blocks: Iterable[NDArray[np.float32]], spans_s: Sequence[tuple[float, float]], rate: int
) -> Iterator[NDArray[np.float32]]:
    """Yield the spans' samples of blocks [t, C], faded at each cut, and silence if the stream ends early."""
    spans = [(round(start * rate), round(end * rate)) for start, end in spans_s]
    fade, position, channels = max(1, round(_FADE_S * rate)), 0, 1
    waiting = iter(spans)
    span = next(waiting, None)
    done = 0
    for block_TC in blocks:
        if span is None:
            return
        channels = block_TC.shape[1]
        while span is not None and span[0] < position + len(block_TC):
            first, last = max(span[0], position), min(span[1], position + len(block_TC))
            at_T = np.arange(first, last)
            gain_T = np.minimum(1, np.minimum(at_T - span[0], span[1] - 1 - at_T) / fade).astype(np.float32)
            yield block_TC[first - position : last - position] * gain_T[:, None]
            done += last - first
            if span[1] > position + len(block_TC):
                break
            span = next(waiting, None)
        position += len(block_TC)
    missing = sum(stop - start for start, stop in spans) - done
    while missing > 0:
        yield np.zeros((min(missing, rate), channels), np.float32)
        missing -= rate


def even_size(size: tuple[int, int]) -> tuple[int, int]:
    """A picture's size in the clip; both sides are even, as encoders require."""
    share = min(1.0, _LONG_SIDE / max(size))
    width, height = (max(2, 2 * round(side * share / 2)) for side in size)
    return width, height
