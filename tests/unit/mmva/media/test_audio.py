from __future__ import annotations

import io
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmva.errors import MediaError
from mmva.media.audio.decode import decode_audio, probe_audio, stream_audio
from mmva.media.audio.resample import resample_blocks
from mmva.media.limits import Limits

from ...helpers.made_sound import RATE, pyav_bytes, sine, soundfile_bytes, tagged, write_a_picture, write_with_pyav


def wav_bytes(pcm: bytes, *, size: int | None = None, channels: int = 1, rate: int = RATE, code: int = 1) -> bytes:
    """A WAV whose header says what it is told to say."""
    size = len(pcm) if size is None else size
    bits = {1: 16, 3: 32}[code]
    width = channels * bits // 8
    header = struct.pack("<IHHIIHH", 16, code, channels, rate, rate * width & 0xFFFFFFFF, width, bits)
    return (
        b"RIFF"
        + struct.pack("<I", (36 + size) & 0xFFFFFFFF)
        + b"WAVEfmt "
        + header
        + b"data"
        + struct.pack("<I", size)
        + pcm
    )


def dominant_hz(samples_T: np.ndarray, rate: int) -> float:
    spectrum = np.abs(np.fft.rfft(samples_T * np.hanning(len(samples_T))))
    return float(np.fft.rfftfreq(len(samples_T), 1 / rate)[spectrum.argmax()])


PCM = (sine()[:, 0] * 32767).astype("<i2").tobytes()

ENCODERS: dict[str, Callable[[np.ndarray], bytes]] = {
    "wav": lambda s: soundfile_bytes(s, RATE, format="WAV"),
    "wav-float": lambda s: soundfile_bytes(s, RATE, format="WAV", subtype="FLOAT"),
    "wav-24": lambda s: soundfile_bytes(s, RATE, format="WAV", subtype="PCM_24"),
    "wav-adpcm": lambda s: pyav_bytes(s, RATE, "wav", "adpcm_ms"),
    "flac": lambda s: soundfile_bytes(s, RATE, format="FLAC"),
    "mp3": lambda s: soundfile_bytes(s, RATE, format="MP3"),
    "ogg-vorbis": lambda s: soundfile_bytes(s, RATE, format="OGG"),
    "ogg-opus": lambda s: soundfile_bytes(s, 48_000, format="OGG", subtype="OPUS"),
    "m4a": lambda s: pyav_bytes(s, RATE, "ipod", "aac"),
    "aac": lambda s: pyav_bytes(s, RATE, "adts", "aac"),
    "aiff": lambda s: soundfile_bytes(s, RATE, format="AIFF"),
    "aiff-24": lambda s: soundfile_bytes(s, RATE, format="AIFF", subtype="PCM_24"),
    "aiff-float": lambda s: soundfile_bytes(s, RATE, format="AIFF", subtype="FLOAT"),
    "aiff-alaw": lambda s: pyav_bytes(s, RATE, "aiff", "pcm_alaw"),
    "wma": lambda s: pyav_bytes(s, RATE, "asf", "wmav2"),
    "wma-1": lambda s: pyav_bytes(s, RATE, "asf", "wmav1"),
    "aac-tagged": lambda s: tagged(pyav_bytes(s, RATE, "adts", "aac")),
    "aac-two-tags": lambda s: tagged(tagged(pyav_bytes(s, RATE, "adts", "aac")), footer=True),
    "flac-tagged": lambda s: tagged(soundfile_bytes(s, RATE, format="FLAC")),
    "mp3-tagged": lambda s: tagged(soundfile_bytes(s, RATE, format="MP3")),
    "mp4-video": lambda s: pyav_bytes(s, RATE, "mp4", "aac", video=True),
}


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("name", ENCODERS)
def test_pitch_level_and_length_survive_every_format(name: str, channels: int) -> None:
    written_rate = 48_000 if name == "ogg-opus" else RATE
    data = ENCODERS[name](sine(rate=written_rate, channels=channels))
    for rate in (16_000, 24_000):
        decoded_T = decode_audio(data, rate)
        assert decoded_T.dtype == np.float32
        assert decoded_T.ndim == 1
        assert len(decoded_T) == pytest.approx(rate, abs=0.06 * rate)
        assert dominant_hz(decoded_T, rate) == pytest.approx(440, rel=0.01)
        assert np.abs(decoded_T[rate // 4 : rate // 2]).max() == pytest.approx(0.5, abs=0.06)
    info = probe_audio(data)
    assert (info.sample_rate, info.channels) == (written_rate, channels)
    assert info.duration_s == pytest.approx(1, abs=0.06)
    format_name = name.split("-", maxsplit=1)[0]
    assert info.format == {"m4a": "mp4", "wma": "asf"}.get(format_name, format_name)


@pytest.mark.parametrize("channels", [6, 8])
def test_surround_sound_in_m4a(channels: int) -> None:
    """8 planar channels make PyAV read wild memory; a fuzzer found it as a segmentation fault."""
    data = pyav_bytes(sine(channels=channels), RATE, "mp4", "aac")
    assert probe_audio(data).channels == channels
    assert dominant_hz(decode_audio(data, 16_000), 16_000) == pytest.approx(440, rel=0.01)


def test_downmix_is_the_mean_of_the_channels() -> None:
    left, right = sine(440), sine(440) * -0.5
    stereo = soundfile_bytes(np.concatenate([left, right], axis=1), RATE, format="WAV", subtype="FLOAT")
    np.testing.assert_allclose(decode_audio(stereo, RATE), left[:, 0] / 4, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    total=st.integers(1, 1_400_000),
    cuts=st.lists(st.integers(0, 1_400_000), max_size=5),
    rates=st.sampled_from([(44_100, 16_000), (48_000, 24_000), (8_000, 24_000), (22_050, 16_000), (16_000, 16_000)]),
)
def test_resampling_in_blocks_equals_resampling_the_whole(total: int, cuts: list[int], rates: tuple[int, int]) -> None:
    from torchaudio.transforms import Resample  # after mmva, which makes it importable

    whole_T = np.random.default_rng(total).uniform(-1, 1, total).astype(np.float32)
    blocks = np.split(whole_T, sorted(min(cut, total) for cut in cuts))
    resampled_T = np.concatenate(list(resample_blocks(blocks, *rates)))
    expected_T = Resample(*rates)(torch.from_numpy(whole_T)).numpy()
    # torchaudio takes the length ceil(total * new / old) in single precision, which loses a last sample now and then.
    assert len(resampled_T) == -(-total * rates[1] // rates[0])
    assert 0 <= len(resampled_T) - len(expected_T) <= 1
    np.testing.assert_allclose(resampled_T[: len(expected_T)], expected_T, atol=1e-5)


def test_odd_sample_rates_stay_cheap_and_in_tune() -> None:
    tracemalloc.start()
    resampled_T = np.concatenate(list(resample_blocks([sine(rate=44_101)[:, 0]], 44_101, 16_000)))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 20e6
    assert dominant_hz(resampled_T, 16_000) == pytest.approx(440, rel=0.01)


def test_memory_is_bounded_by_the_result() -> None:
    """A long file goes through in blocks: far less is held than its decoded stereo samples (42 MB here)."""
    data = soundfile_bytes(sine(seconds=120, channels=2), RATE, format="FLAC")
    tracemalloc.start()
    samples = sum(len(block_T) for block_T in stream_audio(data, 16_000))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert samples == 120 * 16_000
    assert peak_bytes < 25e6


def refusal(data: bytes, **limits: float) -> str:
    with pytest.raises(MediaError) as caught:
        decode_audio(data, 16_000, Limits(**limits))
    assert caught.value.stage == "decode"
    return caught.value.code


def float_wav(*values: float) -> bytes:
    return wav_bytes(np.array([0.1, *values, 0.1] * 100, "<f4").tobytes(), code=3)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty-file"),
        (b"RIFF", "not-audio"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "not-audio"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "not-audio"),
        (b"OggS" + bytes(100), "corrupt-audio"),
        (b"fLaC" + bytes(100), "corrupt-audio"),
        (b"\0\0\0\x18ftypM4A " + bytes(100), "corrupt-audio"),
        (wav_bytes(PCM)[:30], "corrupt-audio"),
        (wav_bytes(PCM, channels=0), "no-sound"),
        (wav_bytes(PCM, rate=0), "corrupt-audio"),
        (wav_bytes(PCM, rate=2**31 - 1), "unsupported-audio"),
        (wav_bytes(PCM, rate=10), "unsupported-audio"),
        (wav_bytes(b""), "no-sound"),
        (wav_bytes(PCM[: len(PCM) // 2], size=len(PCM)), "truncated-audio"),
        (ENCODERS["flac"](sine())[:9000], "corrupt-audio"),
        (ENCODERS["aiff"](sine(seconds=3))[:253_000], "truncated-audio"),
        (ENCODERS["aiff"](sine())[:30], "corrupt-audio"),
        (ENCODERS["wma"](sine(seconds=3))[:5_300], "truncated-audio"),
        (ENCODERS["wma"](sine())[:60], "corrupt-audio"),
        (ENCODERS["mp3"](sine(seconds=3))[:9000], "truncated-audio"),
        (ENCODERS["ogg-vorbis"](sine(seconds=3))[:5000], "truncated-audio"),
        (ENCODERS["ogg-opus"](sine(seconds=3))[:9001], "truncated-audio"),
        (ENCODERS["m4a"](sine(seconds=3))[:9000], "corrupt-audio"),
        (wav_bytes(PCM).replace(b"\x10\0\0\0\x01\0", b"\x10\0\0\0\x99\x99"), "unsupported-audio"),
        (float_wav(float("nan")), "non-finite-samples"),
        (float_wav(float("inf"), float("-inf")), "non-finite-samples"),
        (float_wav(20_000.0), "samples-out-of-range"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_cause(data: bytes, code: str) -> None:
    assert refusal(data) == code


def test_mp4_that_breaks_off_after_its_header_is_truncated(tmp_path: Path) -> None:
    path = tmp_path / "faststart.m4a"
    write_with_pyav(str(path), sine(seconds=3), RATE, "mp4", "aac", movflags="faststart")
    for cut in (5000, 9000, 9001, 12_345):
        assert refusal(path.read_bytes()[:cut]) == "truncated-audio"


def test_mp3_without_a_frame_count_is_decoded_to_its_end() -> None:
    """Two files in one: a length guessed from the first frame, or read from the first file's tag, is far off."""
    parts = []
    for quality in (0.99, 0.0):
        buffer = io.BytesIO()
        options = {"format": "MP3", "bitrate_mode": "CONSTANT", "compression_level": quality}
        with soundfile.SoundFile(buffer, "w", RATE, 1, **options) as output:
            output.write(sine(seconds=4))
        parts.append(buffer.getvalue())
    for data in (parts[0] + parts[1], parts[1] + parts[0]):
        assert len(decode_audio(data, 16_000)) == pytest.approx(8 * 16_000, rel=0.02)
    assert probe_audio(parts[0] + parts[1]).duration_s == pytest.approx(8, rel=0.02)


def test_a_damaged_packet_is_skipped_and_many_are_refused() -> None:
    data = bytearray(ENCODERS["m4a"](sine(seconds=3)))
    with av.open(io.BytesIO(data)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux() if packet.size]
    for damaged, refused in ((places[20:21], False), (places[20:60], True)):
        broken = bytearray(data)
        for position, size in damaged:
            broken[position : position + size] = b"\xff" * size
        if refused:
            assert refusal(bytes(broken)) == "corrupt-audio"
        else:
            assert len(decode_audio(bytes(broken), 16_000)) == pytest.approx(3 * 16_000, rel=0.05)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFF000])
def test_wav_written_to_a_pipe_without_its_length_is_decoded(size: int) -> None:
    assert len(decode_audio(wav_bytes(PCM, size=size), RATE)) == len(PCM) // 2


def test_limits() -> None:
    data = ENCODERS["flac"](sine(seconds=2, channels=2))
    assert refusal(data, max_bytes=len(data) - 1) == "too-many-bytes"
    assert refusal(data, max_channels=1) == "unsupported-audio"
    assert refusal(data, max_duration_s=1.9) == "too-long"
    assert refusal(wav_bytes(PCM, size=0xFFFFFFFF), max_duration_s=0.9) == "too-long"
    assert len(decode_audio(data, 16_000, Limits(max_duration_s=2))) == 32_000


def test_video_without_sound_is_refused() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        write_a_picture(output)
    assert refusal(buffer.getvalue()) == "no-sound"


DAMAGED = {
    name: ENCODERS[name](sine(seconds=0.3))
    for name in ("wav", "flac", "mp3", "ogg-vorbis", "m4a", "aac", "aiff", "wma", "aac-tagged", "flac-tagged")
}


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(DAMAGED)), st.data())
def test_damage_anywhere_gives_sound_samples_or_a_media_error(name: str, draw: st.DataObject) -> None:
    data = bytearray(DAMAGED[name])
    for _ in range(draw.draw(st.integers(1, 4))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    cut = draw.draw(st.integers(1, len(data)))
    try:
        decoded_T = decode_audio(bytes(data[:cut]), 16_000, Limits(max_duration_s=60))
    except MediaError:
        return
    assert np.isfinite(decoded_T).all()
