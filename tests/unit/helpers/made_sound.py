"""Sound of known content in many containers, and the odd things that stand in front of it."""

from __future__ import annotations

import io

import av
import numpy as np
import soundfile

RATE = 44_100


def sine(hz: float = 440.0, seconds: float = 1.0, rate: int = RATE, channels: int = 1) -> np.ndarray:
    wave = 0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)
    return np.repeat(wave.astype(np.float32)[:, None], channels, axis=1)


def soundfile_bytes(samples_TC: np.ndarray, rate: int, **kwargs: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples_TC, rate, **kwargs)
    return buffer.getvalue()


def pyav_bytes(samples_TC: np.ndarray, rate: int, container: str, codec: str, *, video: bool = False) -> bytes:
    buffer = io.BytesIO()
    write_with_pyav(buffer, samples_TC, rate, container, codec, video=video)
    return buffer.getvalue()


def write_with_pyav(
    target: io.BytesIO | str, samples_TC: np.ndarray, rate: int, container: str, codec: str, *, video=False, **options
) -> None:
    layout = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}[samples_TC.shape[1]]
    with av.open(target, "w", format=container, options=options) as output:
        stream = output.add_stream(codec, rate=rate, layout=layout)
        stream.bit_rate = 128_000
        if video:
            write_a_picture(output)
        frame = av.AudioFrame.from_ndarray(samples_TC.reshape(1, -1), format="flt", layout=layout)
        frame.sample_rate = rate
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def write_a_picture(output: av.container.OutputContainer) -> None:
    stream = output.add_stream("mpeg4", rate=10)
    stream.width = stream.height = 64
    stream.pix_fmt = "yuv420p"
    output.mux(stream.encode(av.VideoFrame(64, 64, "yuv420p")))
    output.mux(stream.encode(None))


def tagged(data: bytes, size: int = 3000, *, footer: bool = False) -> bytes:
    """Behind an ID3v2 tag of this many bytes, whose content looks like the start of an MP3 frame."""
    header = b"ID3\x04\0" + bytes([0x10 if footer else 0, 0, 0, size >> 7, size & 0x7F])
    return header + (b"\xff\xfb\x90\x64" * size)[:size] + (b"3DI" + header[3:] if footer else b"") + data


def melody(seconds: float = 2.0, rate: int = RATE) -> np.ndarray:
    """A rising row of tones, so that a part that is lost or played twice shows; float32 [T, 1]."""
    t = np.arange(round(seconds * rate)) / rate
    hz = 220 * 2 ** (np.floor(t * 4) / 12)
    return (0.4 * np.sin(2 * np.pi * np.cumsum(hz) / rate)).astype(np.float32)[:, None]


def ape_tagged(data: bytes) -> bytes:
    """Behind an APEv2 tag of one item with header and footer."""
    item = (6).to_bytes(4, "little") + bytes(4) + b"Artist\0\xff\xfb\x90\x64xx"
    ends = [
        b"APETAGEX" + (2000).to_bytes(4, "little") + (len(item) + 32).to_bytes(4, "little")
        + (1).to_bytes(4, "little") + flags.to_bytes(4, "little") + bytes(8)
        for flags in (0xA0000000, 0x80000000)
    ]  # fmt: skip
    return ends[0] + item + ends[1] + data


def flac_of_unknown_length(data: bytes) -> bytes:
    """As an encoder writes it to a pipe: no number of samples, no digest."""
    header = bytearray(data)
    header[21] &= 0xF0
    header[22:42] = bytes(20)
    return bytes(header)
