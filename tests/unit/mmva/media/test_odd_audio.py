"""Sound in odd files: the samples are those of the plain file, or the refusal has a code of its own."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import pytest

from mmva.errors import MediaError
from mmva.media.audio.decode import decode_audio, probe_audio, stream_audio
from mmva.media.content import modality_of_content
from mmva.media.limits import Limits

from ...helpers.made_sound import (
    RATE,
    ape_tagged,
    flac_of_unknown_length,
    melody,
    pyav_bytes,
    sine,
    soundfile_bytes,
    tagged,
)
from ...helpers.made_video import write_video

HEARD = 16_000  # Hz that is decoded to
MELODY = melody()
PLAIN = decode_audio(soundfile_bytes(MELODY, RATE, format="WAV", subtype="FLOAT"), HEARD)


def wav(samples_TC: np.ndarray = MELODY, rate: int = RATE, **options: str) -> bytes:
    return soundfile_bytes(samples_TC, rate, **({"format": "WAV", "subtype": "FLOAT"} | options))


def flac(samples_TC: np.ndarray = MELODY, rate: int = RATE) -> bytes:
    return soundfile_bytes(samples_TC, rate, format="FLAC")


def mp3(samples_TC: np.ndarray = MELODY, rate: int = RATE) -> bytes:
    return soundfile_bytes(samples_TC, rate, format="MP3")


def ogg(samples_TC: np.ndarray = MELODY, rate: int = RATE, subtype: str = "VORBIS") -> bytes:
    return soundfile_bytes(samples_TC, rate, format="OGG", subtype=subtype)


def distance(heard_T: np.ndarray, wanted_T: np.ndarray) -> float:
    """Share of the energy that differs, at the best alignment within the delay of a codec (.15 s)."""
    size = len(heard_T) + len(wanted_T)
    likeness = np.fft.irfft(np.fft.rfft(heard_T, size) * np.fft.rfft(wanted_T, size).conj(), size)
    shift = max(range(-2400, 2401), key=lambda shift: likeness[shift])
    a_T, b_T = heard_T[max(0, shift) :], wanted_T[max(0, -shift) :]
    length = min(len(a_T), len(b_T))
    return float(((a_T[:length] - b_T[:length]) ** 2).sum() / (b_T[:length] ** 2).sum())


LOSSLESS: dict[str, Callable[[], bytes]] = {
    "flac of unknown length": lambda: flac_of_unknown_length(flac()),
    "flac behind ID3v2": lambda: tagged(flac()),
    "flac behind zeros": lambda: bytes(1000) + flac(),
    "flac behind ID3v2, padding and a second tag": lambda: tagged(tagged(flac(), footer=True)) + b"TAG" + bytes(125),
    "flac of unknown length behind ID3v2": lambda: tagged(flac_of_unknown_length(flac())),
    "wav behind ID3v2": lambda: tagged(wav()),
    "wav behind APE": lambda: ape_tagged(wav()),
    "wav behind zeros": lambda: bytes(512) + wav(),
    "rifx": lambda: wav(endian="BIG", subtype="PCM_24"),
    "rf64": lambda: soundfile_bytes(MELODY, RATE, format="RF64", subtype="FLOAT"),
    "bw64": lambda: soundfile_bytes(MELODY, RATE, format="RF64", subtype="FLOAT").replace(b"RF64", b"BW64", 1),
    "aiff": lambda: soundfile_bytes(MELODY, RATE, format="AIFF", subtype="PCM_24"),
    "aifc of little-endian numbers": lambda: soundfile_bytes(MELODY, RATE, format="AIFF", endian="LITTLE"),
    "aiff behind ID3v2": lambda: tagged(soundfile_bytes(MELODY, RATE, format="AIFF", subtype="PCM_24")),
    "matroska": lambda: pyav_bytes(MELODY, RATE, "matroska", "pcm_s16le"),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_odd_lossless_files_have_the_samples_of_the_plain_one(name: str) -> None:
    data = LOSSLESS[name]()
    heard_T = decode_audio(data, HEARD)
    assert len(heard_T) == len(PLAIN)
    np.testing.assert_allclose(heard_T, PLAIN, atol=1e-4)
    assert probe_audio(data).duration_s == pytest.approx(2.0, abs=0.01)
    assert modality_of_content(data) == "music"


LOSSY: dict[str, Callable[[], bytes]] = {
    "mp3 behind zeros": lambda: bytes(3000) + mp3(),
    "mp3 behind the rest of a frame": lambda: mp3()[700:900] + mp3(),
    "mp3 behind a server's header": lambda: b"ICY 200 OK\r\nicy-name: radio\r\n\r\n" + mp3(),
    "mp3 behind APE": lambda: ape_tagged(mp3()),
    "mp3 behind ID3v2 and zeros": lambda: tagged(bytes(2000) + mp3()),
    "mp3 behind a tag with a wrong size": lambda: b"ID3\x04\0\0\x7f\x7f\x7f\x7f" + bytes(500) + mp3(),
    "mp3 in wav": lambda: pyav_bytes(MELODY, RATE, "wav", "libmp3lame"),
    "aac behind junk": lambda: b"\xff\xf1junk" + pyav_bytes(MELODY, RATE, "adts", "aac"),
    "ogg behind ID3v2": lambda: tagged(ogg()),
    "opus behind zeros": lambda: bytes(100) + ogg(melody(rate=48_000), 48_000, "OPUS"),
    "webm of a browser's recorder": lambda: pyav_bytes(melody(rate=48_000), 48_000, "webm", "libopus"),
    "matroska of aac": lambda: pyav_bytes(MELODY, RATE, "matroska", "aac"),
    "matroska of mp3": lambda: pyav_bytes(MELODY, RATE, "matroska", "libmp3lame"),
    "m4a behind ID3v2": lambda: tagged(pyav_bytes(MELODY, RATE, "ipod", "aac")),
}


@pytest.mark.parametrize("name", LOSSY)
def test_odd_lossy_files_sound_like_the_plain_one(name: str) -> None:
    data = LOSSY[name]()
    heard_T = decode_audio(data, HEARD)
    assert len(heard_T) == pytest.approx(len(PLAIN), abs=0.1 * HEARD)
    assert distance(heard_T, PLAIN) < 0.02
    assert modality_of_content(data) == "music"


@pytest.mark.parametrize("rates", [(48_000, 48_000), (48_000, 44_100), (44_100, 48_000)])
@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_every_link_of_a_chained_ogg_is_heard_at_its_own_rate(rates: tuple[int, int], subtype: str) -> None:
    if subtype == "OPUS":
        rates = (48_000, 24_000)
    parts = [sine(440, 2.0, rates[0]), sine(880, 1.5, rates[1], channels=2), sine(660, 1.0, rates[0])]
    data = b"".join(ogg(part, rate, subtype) for part, rate in zip(parts, (*rates, rates[0]), strict=True))
    heard_T = decode_audio(data, HEARD)
    assert len(heard_T) == pytest.approx(4.5 * HEARD, abs=0.1 * HEARD)
    for (first_s, last_s), hz in zip([(0.2, 1.8), (2.2, 3.3), (3.7, 4.3)], (440, 880, 660), strict=True):
        assert pitch(heard_T[round(first_s * HEARD) : round(last_s * HEARD)]) == pytest.approx(hz, rel=0.01)
    assert probe_audio(data).duration_s == pytest.approx(4.5, abs=0.1)
    assert refusal(data, max_duration_s=4.0) == "too-long"


def pitch(samples_T: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(samples_T * np.hanning(len(samples_T))))
    return float(np.fft.rfftfreq(len(samples_T), 1 / HEARD)[spectrum.argmax()])


@pytest.mark.parametrize("channels", [(1, 2), (2, 1), (1, 1)])
@pytest.mark.parametrize("rates", [(44_100, 48_000), (48_000, 22_050), (44_100, 44_100)])
def test_mp3_whose_parameters_change_midway_keeps_pitch_and_length(
    rates: tuple[int, int], channels: tuple[int, int]
) -> None:
    data = mp3(sine(440, 2.0, rates[0], channels[0]), rates[0]) + mp3(sine(880, 2.0, rates[1], channels[1]), rates[1])
    heard_T = decode_audio(data, HEARD)
    assert len(heard_T) == pytest.approx(4 * HEARD, abs=0.2 * HEARD)
    assert pitch(heard_T[HEARD // 4 : 7 * HEARD // 4]) == pytest.approx(440, rel=0.01)
    assert pitch(heard_T[9 * HEARD // 4 : 15 * HEARD // 4]) == pytest.approx(880, rel=0.01)


@pytest.mark.parametrize("samples", [0, 2**36 - 1, 10**9])
def test_the_length_that_a_flac_claims_is_not_needed(samples: int) -> None:
    """Unknown, all bits set, and six hours for two seconds: what is there is read, and the limit holds."""
    data = bytearray(flac_of_unknown_length(flac()))
    data[21] |= samples >> 32
    data[22:26] = (samples & 0xFFFFFFFF).to_bytes(4, "big")
    np.testing.assert_allclose(decode_audio(bytes(data), HEARD), PLAIN, atol=1e-4)
    assert refusal(bytes(data), max_duration_s=1.5) == "too-long"


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0xFFFFFFFF])
def test_surround_wav_of_unknown_length_is_read_to_its_end(size: int) -> None:
    data = bytearray(wav(sine(channels=6)))
    data[data.index(b"data") + 4 : data.index(b"data") + 8] = struct.pack("<I", size)
    assert len(decode_audio(bytes(data), HEARD)) == HEARD


FRONT = {2: (0, 1), 3: (0, 1), 4: (0, 1), 5: (0, 1), 6: (0, 1), 7: (0, 1), 8: (0, 1)}
SURROUND_FILES: dict[str, Callable[[np.ndarray], bytes]] = {
    "wav": wav,
    "flac": flac,
    "aiff": lambda samples_TC: soundfile_bytes(samples_TC, RATE, format="AIFF", subtype="PCM_24"),
}


@pytest.mark.parametrize("channels", FRONT)
@pytest.mark.parametrize("kind", SURROUND_FILES)
def test_front_only_sound_is_as_loud_in_surround_as_in_stereo(kind: str, channels: int) -> None:
    samples_TC = np.zeros((len(MELODY), channels), np.float32)
    samples_TC[:, :2] = MELODY
    np.testing.assert_allclose(decode_audio(SURROUND_FILES[kind](samples_TC), HEARD), PLAIN, atol=1e-4)


@pytest.mark.parametrize(
    ("channel", "gain"), [(0, 0.5), (1, 0.5), (2, 0.7071), (3, 0.0), (4, 0.35355), (5, 0.35355)], ids=str
)
def test_each_channel_of_5_1_has_the_share_that_bs_775_gives_it(channel: int, gain: float) -> None:
    """Half of what left and right get: 1 of the front, .7071 of centre and surrounds, nothing of the effects."""
    samples_TC = np.zeros((len(MELODY), 6), np.float32)
    samples_TC[:, channel : channel + 1] = MELODY
    for data in (flac(samples_TC), wav(samples_TC)):
        np.testing.assert_allclose(decode_audio(data, HEARD), gain * PLAIN, atol=1e-4)


def test_channels_are_told_by_name_where_a_codec_has_an_order_of_its_own() -> None:
    """Vorbis puts the centre second, AAC first; libsndfile writes channels as they come, FFmpeg by their names."""
    second_TC, third_TC = (np.zeros((len(MELODY), 6), np.float32) for _ in range(2))
    second_TC[:, 1:2] = third_TC[:, 2:3] = MELODY
    for data in (ogg(second_TC), pyav_bytes(third_TC, RATE, "mp4", "aac")):
        heard_T = decode_audio(data, HEARD)
        assert distance(heard_T / 0.7071, PLAIN) < 0.03


def test_a_sum_beyond_full_scale_is_lowered_and_stays_lowered() -> None:
    """Six equal channels of .9 make 2.2; what is quiet before the first peak keeps its level."""
    loud = np.concatenate([MELODY / 10, MELODY * 2.2, MELODY / 10])
    heard_T = decode_audio(flac(np.repeat(loud, 6, axis=1)), RATE)
    third = len(heard_T) // 3
    assert np.abs(heard_T[third + 4000 : 2 * third]).max() == pytest.approx(1, abs=0.01)
    assert np.abs(heard_T[: third - 4000]).max() == pytest.approx(0.04 * 2.414, abs=0.005)
    assert np.abs(heard_T).max() <= 1.001


def refusal(data: bytes, **limits: float) -> str:
    with pytest.raises(MediaError) as caught:
        decode_audio(data, HEARD, Limits(**limits))
    assert caught.value.stage == "decode"
    return caught.value.code


def stereo(right_share: float) -> np.ndarray:
    return np.concatenate([MELODY, MELODY * right_share], axis=1)


@pytest.mark.parametrize("encode", [wav, flac, mp3, ogg], ids=lambda encode: encode.__name__)
def test_channels_that_cancel_each_other_are_named_and_not_taken_for_silence(encode: Callable[..., bytes]) -> None:
    assert refusal(encode(stereo(-1.0))) == "cancelling-channels"


def test_what_does_not_cancel_is_annotated() -> None:
    """Wide stereo, one silent side, and real silence."""
    for samples_TC in (stereo(-0.8), stereo(0.0), np.zeros((RATE, 2), np.float32)):
        assert len(decode_audio(wav(samples_TC), HEARD)) > 0


@pytest.mark.parametrize("samples", [1, 100, 4400])
def test_sound_under_a_tenth_of_a_second_is_too_short(samples: int) -> None:
    assert refusal(wav(MELODY[:samples])) == "too-short"


def test_a_tenth_of_a_second_is_long_enough() -> None:
    assert len(decode_audio(wav(MELODY[:4410]), HEARD)) == 1600


def test_short_sound_does_not_cost_a_video_its_pictures(tmp_path) -> None:
    from mmva.media.video import stream_sound

    data = write_video(tmp_path / "short.mkv", [(0.1, (9, 9, 9), 0.5)]).read_bytes()
    assert sum(map(len, stream_sound(data, HEARD, Limits(min_duration_s=5.0)))) > 0
    with pytest.raises(MediaError, match="at least 5 s"):
        list(stream_audio(data, HEARD, Limits(min_duration_s=5.0)))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".avi", ".mov", ".ts"])
@pytest.mark.parametrize("pictures", [True, False])
def test_a_container_is_a_video_if_it_has_pictures(tmp_path, suffix: str, *, pictures: bool) -> None:
    told_by_container = suffix in {".avi", ".ts"}  # always taken for videos
    data = write_video(tmp_path / f"x{suffix}", [(1.0, (9, 9, 9), 0.5)], pictures=pictures).read_bytes()
    assert modality_of_content(data) == ("video" if pictures or told_by_container else "music")


@pytest.mark.parametrize("data", [b"", b"a sad tune", b"\x1a\x45\xdf\xa3", b"\0\0\0\x14ftypisom", b"ID3", bytes(9)])
def test_the_modality_of_anything_is_told_without_an_error(data: bytes) -> None:
    assert modality_of_content(data) in {"music", "video", None}


@pytest.mark.parametrize(
    "data",
    [b"\0\0\0\x18ftypM4A " + bytes(100), b"fLaC" + bytes(100), b"OggS" + bytes(100), b"\x1a\x45\xdf\xa3" + bytes(100)],
)
def test_refusals_speak_plainly_and_not_in_ffmpegs_numbers(data: bytes) -> None:
    with pytest.raises(MediaError) as caught:
        decode_audio(data, HEARD)
    assert "Errno" not in str(caught.value)
    assert "<none>" not in str(caught.value)
    assert "damaged" in str(caught.value) or "ends too early" in str(caught.value)
