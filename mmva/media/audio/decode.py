"""Decode audio bytes to mono float32 at the encoder's sample rate, as one array or in blocks."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from mmva.errors import MediaError
from mmva.media.audio.downmix import Downmix
from mmva.media.audio.resample import resample_blocks
from mmva.media.audio.sources import AudioSource, open_audio, page_end
from mmva.media.formats import AUDIO_FORMATS, sound_start
from mmva.media.guards import checked_format
from mmva.media.limits import Limits

# Encoders pad and trim a little: a file this close to its header's length counts as complete.
_WHOLE_SHARE, _CODEC_DELAY_FRAMES = 0.98, 4096
# Programs that write to a pipe do not know the length, and write data sizes from here up.
_UNKNOWN_CHUNK_SIZE = 0x7FFF_F000
_ROUNDING = 1e-9  # of sums of seconds
_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """An audio file's header; `duration_s` in seconds, `sample_rate` in Hz, `format` as sniffed."""

    duration_s: float
    sample_rate: int
    channels: int
    format: str


def decode_audio(data: bytes, sample_rate: int, limits: Limits | None = None) -> NDArray[np.float32]:
    """Decode to mono, shape [T] float32, finite, full scale 1, resampled to `sample_rate` Hz.

    `data` is a file: wav, aiff, flac, mp3, ogg (Vorbis, Opus), m4a/mp4, mka/webm, wma or raw AAC. Channels are mixed as
    described in mmva.media.audio.downmix. Needs about twice the result's memory; see stream_audio. Raises MediaError
    "empty-file", "too-many-bytes", "not-audio", "corrupt-audio", "truncated-audio", "no-sound", "too-long",
    "too-short", "cancelling-channels", "unsupported-audio", "non-finite-samples" or "samples-out-of-range".
    """
    return np.concatenate(list(stream_audio(data, sample_rate, limits)))


def stream_audio(
    data: bytes, sample_rate: int, limits: Limits | None = None, accepted: Collection[str] = AUDIO_FORMATS
) -> Iterator[NDArray[np.float32]]:
    """Yield the result of decode_audio in blocks of some seconds, so that memory does not grow with the duration.

    `accepted` are the formats to read; videos have others. Raises as decode_audio, possibly after some blocks, because
    a file may be damaged at its end. If the sample rate changes midway, resampling starts again.
    """
    limits = limits or Limits()
    kind, data = _sound_of(data, limits, accepted)
    with open_audio(data, kind) as source:
        _check_header(source, limits)
        for rate, run in groupby(_mono(source, limits), key=itemgetter(0)):
            yield from resample_blocks((mono_T for _, mono_T in run), rate, sample_rate)


def probe_audio(data: bytes, limits: Limits | None = None) -> AudioInfo:
    """Read the header and check it against the limits. Decodes the sound only if the header has no duration.

    Raises MediaError as decode_audio, if the header shows the problem.
    """
    limits = limits or Limits()
    kind, data = _sound_of(data, limits, AUDIO_FORMATS)
    with open_audio(data, kind) as source:
        _check_header(source, limits)
        duration_s = source.duration_s
        if duration_s is None:
            duration_s = sum(len(mono_T) / rate for rate, mono_T in _mono(source, limits))
        return AudioInfo(duration_s, source.sample_rate, source.channels, kind)


def _sound_of(data: bytes, limits: Limits, accepted: Collection[str]) -> tuple[str, bytes]:
    """The format, and the data from the start of the sound. Raises MediaError if it is truncated."""
    kind = checked_format(data, limits, accepted, "not-audio")
    start = sound_start(data)
    sound = data[start:] if start else data
    # Some decoders accept truncated files, so compare the end with the sizes in the header.
    if kind in _MISSING_BYTES and (missing := _MISSING_BYTES[kind](sound)) > 0:
        raise MediaError("truncated-audio", f"the file ends {missing:,} bytes early")
    return kind, sound


def _check_header(source: AudioSource, limits: Limits) -> None:
    _check_parameters(source.sample_rate, source.channels, limits)
    if source.duration_s is not None:
        limits.check_duration(source.duration_s)


def _check_parameters(sample_rate: int, channels: int, limits: Limits) -> None:
    if channels < 1:
        raise MediaError("no-sound", "audio without channels")
    if channels > limits.max_channels:
        raise MediaError("unsupported-audio", f"{channels} channels, over the limit of {limits.max_channels}")
    if not limits.min_sample_rate <= sample_rate <= limits.max_sample_rate:
        allowed = f"{limits.min_sample_rate:,} to {limits.max_sample_rate:,}"
        raise MediaError("unsupported-audio", f"sample rate {sample_rate:,} Hz; supported: {allowed}")


def _mono(source: AudioSource, limits: Limits) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield sample rate and mono samples of each block; check the header's duration and every sample."""
    downmix = Downmix()
    held_s = 0.0
    for block in source.blocks:
        _check_parameters(block.sample_rate, block.samples_TC.shape[1], limits)
        held_s += len(block.samples_TC) / block.sample_rate
        if held_s > limits.max_duration_s * (1 + _ROUNDING):
            raise MediaError("too-long", f"over {limits.max_duration_s:,.0f} s, despite the header")
        peak = max(float(block.samples_TC.max(initial=0)), -float(block.samples_TC.min(initial=0)))
        if not np.isfinite(peak):
            raise MediaError("non-finite-samples", f"NaN or infinite samples in the first {held_s:,.3f} s")
        if peak > limits.max_peak:
            raise MediaError("samples-out-of-range", f"a sample of {peak:g}; full scale is 1")
        yield block.sample_rate, downmix.mono(block)
    if held_s == 0:
        raise MediaError("no-sound", "audio without samples")
    delay_s = _CODEC_DELAY_FRAMES / source.sample_rate
    if source.promised_s is not None and held_s < _WHOLE_SHARE * source.promised_s - delay_s:
        raise MediaError("truncated-audio", f"{held_s:,.2f} s where the header promises {source.promised_s:,.2f}")
    if held_s < limits.min_duration_s:
        raise MediaError("too-short", f"{held_s:.3f} s of sound; at least {limits.min_duration_s:g} s are needed")
    downmix.refuse_cancelled()


def _missing_wav_bytes(data: bytes) -> int:
    """RF64 and BW64 have sizes of 64 bits elsewhere, which the decoder checks."""
    order: Literal["little", "big"] = "big" if data[:4] == b"RIFX" else "little"
    return _missing_chunk_bytes(data, b"data", order) if data[:4] in {b"RIFF", b"RIFX"} else 0


def _missing_chunk_bytes(data: bytes, name: bytes, order: Literal["little", "big"]) -> int:
    """Number of bytes missing from the chunk with the samples."""
    position = 12
    while position + 8 <= len(data):
        size = int.from_bytes(data[position + 4 : position + 8], order)
        if data[position : position + 4] == name:
            missing = position + 8 + size - len(data)
            return missing if size < _UNKNOWN_CHUNK_SIZE and missing > (1 - _WHOLE_SHARE) * size else 0
        position += 8 + size + size % 2
    return 0


def _missing_asf_bytes(data: bytes) -> int:
    """By the file size in the File Properties Object, unless its broadcast flag says that the size is unknown."""
    position = data.find(_ASF_FILE_PROPERTIES, 0, 2**16)
    size = int.from_bytes(data[position + 40 : position + 48], "little")
    live = data[position + 88] & 1 if 0 <= position < len(data) - 88 else 1
    return 0 if live else size - len(data)


_MISSING_BYTES: Final[dict[str, Callable[[bytes], int]]] = {
    "wav": _missing_wav_bytes,
    "aiff": lambda data: _missing_chunk_bytes(data, b"SSND", "big"),
    "ogg": lambda data: page_end(data, data.rfind(b"OggS")) - len(data),
    "asf": _missing_asf_bytes,
}
