"""The two decoders of audio, libsndfile and FFmpeg (PyAV), behind one small interface: a header and blocks of frames.

FFmpeg's demuxer is always named after the sniffed format, never probed: playlists (HLS, concat) that would open other
files and hosts are therefore never interpreted.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

from mmva.errors import MediaError
from mmva.media.formats import id3_bytes
from mmva.media.guards import refusals

# Not MP3: without a Xing tag libsndfile guesses its length from the first frame's bit rate, and stops there.
# Not AIFF: with damaged chunk sizes libsndfile seeks to before the start, which Python reports on stderr.
_SOUNDFILE_FORMATS = frozenset({"wav", "flac", "ogg"})
_DEMUXERS = {"mp4": "mov"}
_BLOCK_VALUES = 2**18
# A damaged packet is some 20 ms that players skip; more of them than this, and the file is no longer the music.
_TOLERATED_BAD_PACKETS = 0.02


@dataclass(frozen=True, slots=True)
class AudioSource:
    """Opened audio.

    Attributes:
        sample_rate: Hz.
        channels: Channels.
        promised: Frames that the header promises; None where it makes no promise worth holding it to.
        duration_s: Seconds by the header; None if it does not say.
        blocks: The frames, float32 [t, channels], once.
    """

    sample_rate: int
    channels: int
    promised: int | None
    duration_s: float | None
    blocks: Iterator[NDArray[np.float32]]


@contextmanager
def open_audio(data: bytes, kind: str) -> Iterator[AudioSource]:
    """Open audio of a sniffed format: with libsndfile where it can, else with FFmpeg.

    Raises:
        MediaError: "corrupt-audio", "no-sound" or "unsupported-audio", here or from `blocks`.
    """
    opened = _open_with_soundfile(data) if kind in _SOUNDFILE_FORMATS else None
    if opened is not None:
        with opened:
            yield AudioSource(
                sample_rate=opened.samplerate,
                channels=opened.channels,
                promised=opened.frames,
                duration_s=opened.frames / opened.samplerate,
                blocks=_soundfile_blocks(opened, kind),
            )
        return
    with refusals("corrupt-audio", kind):
        container = av.open(io.BytesIO(data), format=_DEMUXERS.get(kind, kind), metadata_errors="ignore")
    with closing(container):
        # FFmpeg too estimates the length of a bare stream from its first bit rate; it just does not stop there.
        estimated = kind == "aac" or (kind == "mp3" and not _has_xing_tag(data))
        yield _pyav_source(container, kind, estimated=estimated)


def _open_with_soundfile(data: bytes) -> soundfile.SoundFile | None:
    """The opened file, or None where FFmpeg may do better: unknown codecs, and headers written before the length."""
    try:
        opened = soundfile.SoundFile(io.BytesIO(data))
    except soundfile.LibsndfileError:
        return None
    if opened.frames > 0:
        return opened
    opened.close()
    return None


def _soundfile_blocks(opened: soundfile.SoundFile, kind: str) -> Iterator[NDArray[np.float32]]:
    # Not SoundFile.blocks(): that yields uninitialised memory where a file ends before its header says.
    frames = max(1, _BLOCK_VALUES // opened.channels)
    while True:
        with refusals("corrupt-audio", kind):
            block_TC = opened.read(frames, dtype="float32", always_2d=True)
        if len(block_TC) == 0:
            return
        yield block_TC


def _pyav_source(container: av.container.InputContainer, kind: str, *, estimated: bool) -> AudioSource:
    if not container.streams.audio:
        raise MediaError("no-sound", f"{kind} data without an audio stream")
    stream = container.streams.audio[0]
    if stream.codec_context is None:
        raise MediaError("unsupported-audio", f"{kind} data in a codec that FFmpeg does not know")
    rate, channels = stream.codec_context.sample_rate or 0, stream.codec_context.channels
    duration_s = None
    if stream.duration is not None and stream.time_base is not None and not estimated:
        duration_s = float(stream.duration * stream.time_base)
    promised = None if duration_s is None else int(duration_s * rate)
    return AudioSource(rate, channels, promised, duration_s, _pyav_blocks(container, stream, kind))


def _pyav_blocks(
    container: av.container.InputContainer, stream: av.AudioStream, kind: str
) -> Iterator[NDArray[np.float32]]:
    # Interleaved, because PyAV 18 counts one plane too many in planar audio of 8 channels and reads wild memory there.
    to_float = av.AudioResampler(format="flt")
    with refusals("corrupt-audio", kind):
        for frame in decoded_frames(container, stream, "corrupt-audio", kind):
            for converted in to_float.resample(frame):
                yield converted.to_ndarray().reshape(-1, converted.layout.nb_channels)


def decoded_frames(container: av.container.InputContainer, stream: Any, code: str, kind: str) -> Iterator[Any]:
    """Frames of a stream; a damaged packet is left out, as players do.

    Raises:
        MediaError: `code`, at the end, if more packets than those were damaged.
    """
    packets = bad = 0
    for packet in container.demux(stream):
        packets += 1
        try:
            frames = packet.decode()
        except av.FFmpegError:
            bad += 1
            continue
        yield from frames
    if bad > 1 + _TOLERATED_BAD_PACKETS * packets:
        raise MediaError(code, f"{bad} of {packets} {kind} packets cannot be decoded")


def _has_xing_tag(data: bytes) -> bool:
    """Whether an MP3 opens with the frame count that encoders of variable bit rate write."""
    start = id3_bytes(data)
    head = data[start : start + 64]
    return b"Xing" in head or b"Info" in head
