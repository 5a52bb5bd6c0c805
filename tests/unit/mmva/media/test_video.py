"""Video: a picture for each window, the sound track, and every refusal; the files are made here with FFmpeg."""

import io
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmva.errors import MediaError, UsageError
from mmva.media.limits import Limits
from mmva.media.video import probe_video, stream_frames, stream_sound
from mmva_platform.settings import Settings, limits_of, load_config

RATE = 16_000
CONTAINERS = [
    ("mp4", "mpeg4", "aac"),
    ("mov", "mpeg4", "aac"),
    ("matroska", "mpeg4", "aac"),
    ("webm", "libvpx", "libopus"),
    ("avi", "mpeg4", "mp3"),
    ("ipod", "mpeg4", "aac"),  # m4v
    ("mpegts", "mpeg2video", "mp2"),
    ("mpegts", "mpeg4", "aac"),
    ("mpeg", "mpeg1video", "mp2"),
    ("vob", "mpeg2video", "mp2"),
]


def video(
    seconds: float = 4.0,
    container: str = "mp4",
    codec: str = "mpeg4",
    sound: str | None = "aac",
    *,
    pictures: bool = True,
    fps: int = 10,
    size: tuple[int, int] = (64, 48),
) -> bytes:
    """Pictures that grow brighter evenly from black to white, and a tone."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        picture_stream, sound_stream = None, None
        if pictures:
            picture_stream = output.add_stream(codec, rate=fps)
            picture_stream.width, picture_stream.height, picture_stream.pix_fmt = *size, "yuv420p"
        if sound:
            sound_stream = output.add_stream(sound, rate=48_000 if sound == "libopus" else RATE, layout="mono")
        if picture_stream:
            _write_pictures(output, picture_stream, round(seconds * fps), size)
        if sound_stream:
            _write_tone(output, sound_stream, seconds)
    return buffer.getvalue()


def _write_pictures(output: Any, stream: Any, count: int, size: tuple[int, int]) -> None:
    for number in range(count):
        pixels = np.full((size[1], size[0], 3), round(255 * number / count), np.uint8)
        output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
    output.mux(stream.encode(None))


def _write_tone(output: Any, stream: Any, seconds: float) -> None:
    samples = np.sin(np.arange(round(seconds * stream.rate)) * 0.1).astype(np.float32)[None] / 2
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
    frame.sample_rate = stream.rate
    output.mux(stream.encode(frame))
    output.mux(stream.encode(None))


def frames(data: bytes, window_s: float = 2.0, hop_s: float = 1.0) -> list[tuple[float, Image.Image]]:
    return list(stream_frames(data, probe_video(data), window_s, hop_s))


@pytest.mark.parametrize(("container", "codec", "sound"), CONTAINERS)
def test_a_picture_at_the_centre_of_each_window_and_the_sound(container: str, codec: str, sound: str) -> None:
    data = video(4.0, container, codec, sound, fps=25 if codec == "mpeg1video" else 10)
    info = probe_video(data)
    assert (info.picture_s, info.duration_s) == (pytest.approx(4.0, abs=0.05), pytest.approx(4.0, abs=0.2))
    assert (info.width, info.height, info.sound) == (64, 48, True)
    found = frames(data)
    assert [start for start, _ in found] == [0.0, 1.0, 2.0]
    assert [np.asarray(image).mean() for _, image in found] == pytest.approx([62, 126, 190], abs=8)
    assert all((image.mode, image.size) == ("RGB", (64, 48)) for _, image in found)
    assert sum(map(len, stream_sound(data, RATE))) == pytest.approx(4 * RATE, rel=0.03)


def test_shorter_than_a_window_gives_the_picture_in_its_middle() -> None:
    ((start, image),) = frames(video(1.0))
    assert start == 0.0
    assert np.asarray(image).mean() == pytest.approx(127, abs=20)


@pytest.mark.parametrize(("angle", "corner"), [(90, (0, -1)), (180, (-1, -1)), (270, (-1, 0))])
def test_rotation_in_the_file_is_applied(angle: int, corner: tuple[int, int]) -> None:
    data = bytearray(video(1.0, sound=None))
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[angle]
    matrix = b"".join(v.to_bytes(4, "big", signed=True) for v in (cos << 16, sin << 16, 0, -sin << 16, cos << 16))
    at = bytes(data).index(b"tkhd") + 4 + 40  # the display matrix of the track's header
    data[at : at + len(matrix)] = matrix
    ((_, image),) = frames(bytes(data))
    assert image.size == ((48, 64) if angle != 180 else (64, 48))


def test_without_sound_and_without_pictures() -> None:
    silent = probe_video(video(2.0, sound=None))
    assert (silent.sound, silent.picture_s) == (False, pytest.approx(2.0))
    data = video(2.0, pictures=False)
    heard = probe_video(data)
    assert (heard.sound, heard.picture_s, heard.width) == (True, None, 0)
    assert frames(data) == []


def test_four_minutes_hold_one_picture_at_a_time() -> None:
    data = video(240.0, sound=None, fps=2)
    found = [start for start, _ in stream_frames(data, probe_video(data), 3.0, 1.5)]
    assert found == [1.5 * index for index in range(159)]


@pytest.mark.parametrize("container", ["matroska", "avi", "mp4"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_video_is_refused(container: str, share: float) -> None:
    data = video(8.0, container, sound="mp3" if container == "avi" else "aac")
    with pytest.raises(MediaError) as caught:
        probe_video(data[: round(share * len(data))])
    assert caught.value.code in {"truncated-video", "corrupt-video"}


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty-file"),
        (b"hello, I am no film", "not-video"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "not-video"),
        (b"\x1a\x45\xdf\xa3" + bytes(100), "corrupt-video"),
        (b"\0\0\0\x14ftypisom\0\0\2\0isom", "corrupt-video"),
    ],
    ids=["empty", "text", "playlist", "broken header", "header alone"],
)
def test_what_cannot_be_used_is_refused_with_its_cause(data: bytes, code: str) -> None:
    with pytest.raises(MediaError) as caught:
        probe_video(data)
    assert caught.value.code == code


def test_limits_hold_before_a_picture_is_decoded() -> None:
    data = video(3.0)
    for limits, code in [
        (Limits(max_pixels=64 * 48 - 1), "too-many-pixels"),
        (Limits(max_duration_s=2.0), "too-long"),
        (Limits(max_bytes=100), "too-many-bytes"),
    ]:
        with pytest.raises(MediaError) as caught:
            probe_video(data, limits)
        assert caught.value.code == code


def test_a_feature_film_is_read_if_the_settings_allow_it() -> None:
    data = video(9000.0, sound=None, fps=1, size=(16, 16))
    with pytest.raises(MediaError) as caught:
        probe_video(data, limits_of(Settings()))
    assert caught.value.code == "too-long"
    longer = load_config(Settings, overrides=["annotation.limits.max_duration_s=14400"])
    assert probe_video(data, limits_of(longer)).duration_s == pytest.approx(9000, abs=1)


def test_limits_by_settings() -> None:
    assert limits_of(Settings()) == Limits()
    chosen = {"max_mb": 3, "max_pixels": 5, "max_duration_s": 7, "max_caption_characters": 9}
    limits = limits_of(load_config(Settings, base={"annotation": {"limits": chosen}}))
    assert limits == Limits(max_bytes=3 * 2**20, max_pixels=5, max_duration_s=7, max_caption_characters=9)
    with pytest.raises(UsageError, match=r"annotation\.limits\.max_pixels"):
        load_config(Settings, overrides=["annotation.limits.max_pixels=200000000"])


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["mpegts", "mpeg"]), st.data())
def test_damage_anywhere_gives_pictures_or_a_media_error(container: str, draw: st.DataObject) -> None:
    data = bytearray(STREAMS[container])
    for _ in range(draw.draw(st.integers(1, 4))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    limits = Limits(max_pixels=1_000_000, max_duration_s=60)
    try:
        info = probe_video(bytes(data), limits)
        found = list(stream_frames(bytes(data), info, 2.0, 1.0, limits))
    except MediaError:
        return
    assert all(image.mode == "RGB" for _, image in found)


STREAMS = {container: video(2.0, container, "mpeg2video", "mp2", fps=25) for container in ("mpegts", "mpeg")}


def test_damaged_pictures_are_refused_and_not_shown() -> None:
    data = bytearray(video(8.0, "matroska", sound=None, size=(160, 120)))
    rng = np.random.default_rng(0)
    data[2000:-200] = rng.integers(0, 256, len(data) - 2200, np.uint8).tobytes()
    with pytest.raises(MediaError):
        frames(bytes(data))
