"""Summarise a video by its mood: a curve in the plane, the segments with most of its change, a clip, a picture.

The image tower reads evenly sampled pictures; the music tower reads windows of the sound track, as in an annotation,
interpolated at the pictures' times. The curve is the mean of the two, or the only one.

Hostile files: the guards of mmva.media.video apply, with a stricter limit on pixels, and a time limit per video. A
crash in a native decoder still ends the process, so services must run this in a process that may die.

Shapes: W points of the curve.
"""

from __future__ import annotations

import io
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmva.affect import mood
from mmva.errors import MediaError, UsageError
from mmva.media.limits import Limits
from mmva.media.video import VideoInfo, pictures_at, probe_video, stream_sound
from mmva.media.windows import HOP_S, WINDOW_S, stream_windows
from mmva.zeroshot.clip import check_clip_name, write_clip
from mmva.zeroshot.summary import Segment, choose_segments, point_of

if TYPE_CHECKING:
    from mmva.models.model import MMVA
    from mmva.models.predictor import Predictor

# 4K pictures; one batch of them is in memory at a time.
SUMMARY_LIMITS: Final = Limits(max_pixels=4096 * 2304)
TIME_LIMIT_S: Final = 900.0
_FINEST_S, _MOST_POINTS = 0.5, 1200  # a point every half second, or less often in videos over ten minutes
_BATCH: Final = 8
_THUMBNAIL: Final = (320, 320)
T = TypeVar("T")


@dataclass(frozen=True)
class Moment:
    """A chosen segment, in seconds from the video's start."""

    start_s: float
    end_s: float
    change: float  # share of the curve's total change, [0, 1]
    valence: float  # mean over the segment
    arousal: float
    mood: str
    suggestion: str | None  # music for that point, if requested
    jpeg: bytes = field(repr=False)  # a small picture from the middle of the segment; empty without pictures

    @property
    def span(self) -> str:
        """For example "1:05.5 to 1:09.0"."""
        return f"{as_clock(self.start_s)} to {as_clock(self.end_s)}"


@dataclass(frozen=True)
class VideoSummary:
    """The summary of a video: its curve, and the chosen segments."""

    video: str
    duration_s: float
    tracks: tuple[str, ...]  # towers used for the curve: "image", "music" or both
    time_s_W: NDArray[np.float64]
    va_W2: NDArray[np.float64]
    moments: list[Moment]  # in order
    clip: Path | None
    picture: Path | None
    digest: str | None  # the model's

    @property
    def seconds(self) -> float:
        """Total length of the segments."""
        return sum(moment.end_s - moment.start_s for moment in self.moments)

    @property
    def change(self) -> float:
        """Share of the curve's change in the segments."""
        return sum(moment.change for moment in self.moments)

    def to_json(self) -> dict[str, Any]:
        """JSON-able dictionary, without the pictures."""
        names = ("start_s", "end_s", "change", "valence", "arousal", "mood", "suggestion")
        return {
            "video": self.video,
            "duration_s": self.duration_s,
            "seconds": self.seconds,
            "change": self.change,
            "tracks": list(self.tracks),
            "segments": [{name: getattr(moment, name) for name in names} for moment in self.moments],
            "curve": [
                {"time_s": float(time_s), "valence": float(valence), "arousal": float(arousal)}
                for time_s, (valence, arousal) in zip(self.time_s_W, self.va_W2, strict=True)
            ],
            "clip": str(self.clip) if self.clip else None,
            "picture": str(self.picture) if self.picture else None,
            "model_digest": self.digest,
        }

    def to_text(self) -> str:
        """One line for the video, one for each segment, and the paths of the written files."""
        curve = f"curve of {len(self.time_s_W)} points ({' and '.join(self.tracks)})"
        held = f"{len(self.moments)} segments of {self.seconds:.1f} s contain {self.change:.0%} of its change"
        lines = [f"{self.video}: {self.duration_s:.1f} s, {curve}; {held}"]
        for one in self.moments:
            lines.append(f"  {one.span}  {one.valence:.2f} {one.arousal:.2f}  {one.mood}")
            lines += [f"      {one.suggestion}"] if one.suggestion else []
        return "\n".join([*lines, *(str(path) for path in (self.clip, self.picture) if path)])


def summarize(
    video: Path,
    model: MMVA | Predictor,
    *,
    seconds: float,
    out: Path | None,
    suggest: Callable[[ArrayLike], str | None] | None = None,
    limits: Limits = SUMMARY_LIMITS,
    time_limit_s: float = TIME_LIMIT_S,
) -> VideoSummary:
    """Summarise a local video (mp4, mov, mkv, webm or avi) in at most `seconds`.

    Writes a clip to `out` (.webm or .mp4), and the picture next to it as .png; neither if None. `suggest` returns music
    for a segment's point. `time_limit_s` limits the sampling. Raises UsageError if the file cannot be read, the clip
    cannot be written, or `seconds` is not above 0; MediaError if the video is unusable, with "timed-out" above the time
    limit, and "no-tower" if the model has no tower for the video's tracks.
    """
    if not seconds > 0:
        raise UsageError(f"seconds {seconds:g}: a summary needs more than 0 seconds")
    if out is not None:
        check_clip_name(out)
        if out.resolve() == video.resolve():
            raise UsageError(f"{out}: is the video itself; choose another file")
    data = _read(video, limits)
    info = probe_video(data, limits)
    curve = _curve(data, info, model, limits, time_limit_s)
    segments = choose_segments(curve.time_s_W, curve.va_W2, info.duration_s, seconds)
    moments = [_moment(segment, curve, suggest) for segment in segments]
    picture = None
    if out is not None:
        from mmva.zeroshot.picture import write_picture

        write_clip(data, info, [(one.start_s, one.end_s) for one in segments], out, limits)
        picture = out.with_suffix(".png")
        write_picture(picture, video.name, curve.time_s_W, curve.va_W2, moments)
    return VideoSummary(
        video=str(video),
        duration_s=info.duration_s,
        tracks=curve.tracks,
        time_s_W=curve.time_s_W,
        va_W2=curve.va_W2,
        moments=moments,
        clip=out,
        picture=picture,
        digest=model.digest,
    )


@dataclass(frozen=True)
class _Curve:
    tracks: tuple[str, ...]
    time_s_W: NDArray[np.float64]
    va_W2: NDArray[np.float64]
    jpegs: list[bytes]


def _curve(data: bytes, info: VideoInfo, model: MMVA | Predictor, limits: Limits, time_limit_s: float) -> _Curve:
    """The curve, and a small picture for each of its points."""
    deadline = time.monotonic() + time_limit_s
    step_s = max(_FINEST_S, info.duration_s / _MOST_POINTS)
    time_W = np.asarray((np.arange(max(1, int(info.duration_s / step_s))) + 0.5) * step_s, np.float64)
    tracks: dict[str, NDArray[np.float64]] = {}
    jpegs: list[bytes] = []
    if info.picture_s is not None and "image" in model.dims:
        points = []
        pictures = _until(deadline, pictures_at(data, info, time_W.tolist(), limits))
        for batch in _batched(pictures, _BATCH):
            points.append(model.predict("image", batch))
            jpegs += [_small(picture) for picture in batch]
        tracks["image"] = np.concatenate(points).astype(np.float64)
    if info.sound and "music" in model.dims:
        tracks["music"] = _sound_curve(data, model, time_W, limits, deadline)
    if not tracks:
        raise MediaError("no-tower", f"this model only has {', '.join(model.dims)}, which this video has no track for")
    va_W2 = np.asarray(np.mean(list(tracks.values()), axis=0), np.float64)
    if not np.isfinite(va_W2).all():
        raise MediaError("non-finite", "the model gave NaN or infinite values", stage="infer")
    return _Curve(tuple(tracks), time_W, va_W2, jpegs)


def _sound_curve(
    data: bytes, model: MMVA | Predictor, time_W: NDArray[np.float64], limits: Limits, deadline: float
) -> NDArray[np.float64]:
    """Points [W, 2] of the sound at the curve's times, interpolated between the centres of its windows."""
    rate = model.encoder("music").sample_rate
    assert rate is not None
    step_s = float(time_W[1] - time_W[0]) if len(time_W) > 1 else HOP_S
    windows = stream_windows(stream_sound(data, rate, limits), rate, WINDOW_S, HOP_S)
    every = max(1, round(step_s / HOP_S))  # a long video does not need every window
    points, centres_s = [], []
    for batch in _batched(_until(deadline, itertools.islice(windows, 0, None, every)), _BATCH):
        centres_s += [start_s + len(samples_T) / rate / 2 for start_s, samples_T in batch]
        points.append(model.predict("music", [samples_T for _, samples_T in batch]))
    va_K2 = np.concatenate(points).astype(np.float64)
    return np.column_stack([np.interp(time_W, centres_s, va_K2[:, axis]) for axis in (0, 1)])


def _moment(segment: Segment, curve: _Curve, suggest: Callable[[ArrayLike], str | None] | None) -> Moment:
    va_2, middle = point_of(segment, curve.time_s_W, curve.va_W2)
    return Moment(
        start_s=segment.start_s,
        end_s=segment.end_s,
        change=segment.change,
        valence=float(va_2[0]),
        arousal=float(va_2[1]),
        mood=str(mood(va_2)),
        suggestion=suggest(va_2) if suggest else None,
        jpeg=curve.jpegs[middle] if curve.jpegs else b"",
    )


def _read(video: Path, limits: Limits) -> bytes:
    try:
        if video.is_file() and video.stat().st_size > limits.max_bytes:
            raise MediaError("too-many-bytes", f"{video.stat().st_size:,} bytes, over {limits.max_bytes:,}")
        return video.read_bytes()
    except OSError as error:
        raise UsageError(f"{video}: cannot be read ({error.strerror or error})") from None


def _until(deadline: float, items: Iterable[T]) -> Iterator[T]:
    """Yield the items. Raises MediaError "timed-out" after the deadline."""
    for item in items:
        if time.monotonic() > deadline:
            raise MediaError("timed-out", "sampling this video takes longer than the time limit")
        yield item


def _batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    waiting = iter(items)
    while batch := list(itertools.islice(waiting, size)):
        yield batch


def _small(picture: Any) -> bytes:
    small = picture.copy()
    small.thumbnail(_THUMBNAIL)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def as_clock(seconds: float) -> str:
    """Minutes and seconds: "1:05.5"."""
    return f"{int(seconds // 60)}:{seconds % 60:04.1f}"
