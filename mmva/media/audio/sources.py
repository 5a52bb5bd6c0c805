"""The two audio decoders, libsndfile and FFmpeg (PyAV), behind one interface: a header and blocks of frames.

The sniffed format always selects FFmpeg's demuxer; FFmpeg never probes. So it never interprets playlists (HLS, concat),
which could open other files and hosts.
"""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

from mmva.errors import MediaError
from mmva.media.audio.downmix import Block
from mmva.media.guards import refusals
from mmva.media.tags import xing_seconds

# Not MP3: without a Xing tag, libsndfile guesses the length from the first frame's bit rate, and stops there.
# Not AIFF: with damaged chunk sizes, libsndfile seeks to before the start, which Python reports on stderr.
_SOUNDFILE_FORMATS = frozenset({"wav", "flac", "ogg"})
# libsndfile does not say which channel is which.
_SOUNDFILE_CHANNELS: Final = 2
_DEMUXERS = {"mp4": "mov"}
_BLOCK_VALUES = 2**18
# Players skip a damaged packet of about 20 ms; with a larger share, the music is no longer the same.
_TOLERATED_BAD_PACKETS = 0.02
# Any codec writes more bytes per second, even for silence; a longer duration is wrong or means "unknown".
_LEAST_BYTES_A_SECOND: Final = 50
_SAME_LENGTH: Final = 0.05  # relative difference of an MP3's Xing length and FFmpeg's
# Formats with chunks of samples; mmva.media.audio.decode compares their sizes with the file's size.
_CHUNKED: Final = frozenset({"wav", "aiff"})
_PAGE_HEADER = 27
# Pages that begin a stream; those of one link are adjacent, at its start.
_FIRST_PAGES = re.compile(rb"OggS\0[\x02\x03\x06\x07]", re.DOTALL)


@dataclass(frozen=True, slots=True)
class AudioSource:
    """Opened audio."""

    sample_rate: int  # Hz at the start
    channels: int  # at the start
    promised_s: float | None  # seconds that the file must have; None if the header is not reliable
    duration_s: float | None  # seconds by the header; None if missing or impossible
    blocks: Iterator[Block]  # the frames; can be read once


@contextmanager
def open_audio(data: bytes, kind: str) -> Iterator[AudioSource]:
    """Open audio of a sniffed format, without leading tags: with libsndfile if possible, else with FFmpeg.

    Raises MediaError "corrupt-audio", "no-sound" or "unsupported-audio", also from `blocks`.
    """
    links = ogg_links(data) if kind == "ogg" else [data]
    with _open_link(links[0], kind) as first:
        if len(links) == 1:
            yield first
        else:
            yield AudioSource(first.sample_rate, first.channels, None, None, _chain(first, links[1:], kind))


def _chain(first: AudioSource, links: Sequence[bytes], kind: str) -> Iterator[Block]:
    yield from first.blocks
    for link in links:
        with _open_link(link, kind) as source:
            yield from source.blocks


# An Ogg file is a chain of links: consecutive streams, each with its own parameters (RFC 3533).
def ogg_links(data: bytes) -> list[bytes]:
    """The links of a chain, each a complete file."""
    starts: list[int] = []
    expected = -1
    for match in _FIRST_PAGES.finditer(data):
        if match.start() != expected:
            starts.append(match.start())
        expected = page_end(data, match.start())
    if len(starts) < 2:
        return [data]
    return [data[start:stop] for start, stop in zip(starts, [*starts[1:], len(data)], strict=True)]


def page_end(data: bytes, page: int) -> int:
    """End of a page by its header; may be after the data's end."""
    segments = data[page + 26] if page + 26 < len(data) else 0
    return page + _PAGE_HEADER + segments + sum(data[page + _PAGE_HEADER : page + _PAGE_HEADER + segments])


@contextmanager
def _open_link(data: bytes, kind: str) -> Iterator[AudioSource]:
    sound = _open_with_soundfile(data) if kind in _SOUNDFILE_FORMATS else None
    if sound is not None:
        with sound:
            duration_s = sound.frames / sound.samplerate
            blocks = _soundfile_blocks(sound, kind)
            yield AudioSource(sound.samplerate, sound.channels, duration_s, duration_s, blocks)
        return
    with opened(data, kind, "corrupt-audio") as container:
        yield _pyav_source(container, kind, data)


@contextmanager
def opened(data: bytes, kind: str, code: str) -> Iterator[Any]:
    """Open a file of a sniffed format with FFmpeg. Raises MediaError with this code if it cannot be opened."""
    with refusals(code, kind):
        container = av.open(io.BytesIO(data), format=_DEMUXERS.get(kind, kind), metadata_errors="ignore")
    with closing(container):
        yield container


def _open_with_soundfile(data: bytes) -> soundfile.SoundFile | None:
    """The opened file; None for unknown codecs, surround sound, and missing or impossible lengths."""
    try:
        opened = soundfile.SoundFile(io.BytesIO(data))
    except soundfile.LibsndfileError:
        return None
    believable = 0 < opened.frames / max(opened.samplerate, 1) <= len(data) / _LEAST_BYTES_A_SECOND
    if believable and opened.channels <= _SOUNDFILE_CHANNELS:
        return opened
    opened.close()
    return None


def _soundfile_blocks(opened: soundfile.SoundFile, kind: str) -> Iterator[Block]:
    # Not SoundFile.blocks(): it yields uninitialised memory for truncated files.
    frames = max(1, _BLOCK_VALUES // opened.channels)
    while True:
        with refusals("corrupt-audio", kind):
            samples_TC: NDArray[np.float32] = opened.read(frames, dtype="float32", always_2d=True)
        if len(samples_TC) == 0:
            return
        yield Block(samples_TC, opened.samplerate)


def _pyav_source(container: av.container.InputContainer, kind: str, data: bytes) -> AudioSource:
    if not container.streams.audio:
        raise MediaError("no-sound", f"{kind} data without an audio stream")
    stream = container.streams.audio[0]
    if stream.codec_context is None:
        raise MediaError("unsupported-audio", f"{kind} data in a codec that FFmpeg does not know")
    rate, channels = stream.codec_context.sample_rate or 0, stream.codec_context.channels
    duration_s = None
    if stream.duration is not None and stream.time_base is not None and kind != "aac":
        said_s = float(stream.duration * stream.time_base)
        duration_s = said_s if 0 < said_s <= len(data) / _LEAST_BYTES_A_SECOND else None
    if kind == "mp3" and duration_s is not None:
        # FFmpeg also estimates the length of a stream without a tag from its first bit rate, but does not stop there.
        written_s = xing_seconds(data) or 0.0
        duration_s = duration_s if abs(duration_s - written_s) < _SAME_LENGTH * written_s else None
    if kind in _CHUNKED and duration_s is not None and stream.codec_context.bit_rate:
        duration_s = min(duration_s, len(data) * 8 / stream.codec_context.bit_rate)
    promised_s = None if kind in _CHUNKED else duration_s
    return AudioSource(rate, channels, promised_s, duration_s, _pyav_blocks(container, stream, kind))


def _pyav_blocks(container: av.container.InputContainer, stream: av.AudioStream, kind: str) -> Iterator[Block]:
    to_float, parameters = None, None
    with refusals("corrupt-audio", kind):
        for frame in decoded_frames(container, stream, "corrupt-audio", kind):
            names = tuple(channel.name for channel in frame.layout.channels)
            found = (frame.format.name, frame.sample_rate, names)
            if to_float is None or found != parameters:  # a stream may change midway: podcasts with ads, radio
                # Interleaved: PyAV 18 counts one plane too many for planar audio of 8 channels, an invalid read.
                to_float, parameters = av.AudioResampler(format="flt"), found
            for converted in to_float.resample(frame):
                samples_TC = converted.to_ndarray().reshape(-1, len(names))
                yield Block(samples_TC, frame.sample_rate, names)


def decoded_frames(container: av.container.InputContainer, stream: Any, code: str, kind: str) -> Iterator[Any]:
    """Yield a stream's frames; skips damaged packets, as players do, and raises MediaError `code` for too many."""
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
