"""Video summaries: known changes of mood are found, and the clip holds their pictures and their sound, in step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmva.errors import MediaError, UsageError
from mmva.media.limits import Limits
from mmva.media.video import pictures_at, probe_video, stream_sound
from mmva.zeroshot import video as module
from mmva.zeroshot.clip import as_stereo, cut, even_size
from mmva.zeroshot.video import VideoSummary, as_clock, summarize

from ...helpers.made_video import RATE, write_video

pytestmark = pytest.mark.slow  # encodes films
SAD, WILD, CALM = (20, 40, 140), (230, 60, 30), (70, 190, 90)
SCENES = [(16.0, SAD, 0.1), (13.0, WILD, 0.8), (19.0, CALM, 0.3)]
CHANGES_S = (16.0, 29.0)


class Moods:
    """Red raises arousal and falls short of valence; of music, loudness is arousal."""

    digest = "d" * 64

    def __init__(self, *modalities: str) -> None:
        self.dims = dict.fromkeys(modalities or ("image", "music"), 2)
        self.sizes: list[int] = []

    def encoder(self, modality: str) -> SimpleNamespace:
        return SimpleNamespace(sample_rate=RATE)

    def predict(self, modality: str, items: list[Any]) -> np.ndarray:
        self.sizes.append(len(items))
        if modality == "image":
            colours = [np.asarray(item, np.float64).reshape(-1, 3).mean(axis=0) / 255 for item in items]
            return np.array([(green, red) for red, green, _ in colours], np.float32)
        return np.array([(0.5, min(1, np.pi / 2 * float(np.abs(item).mean()))) for item in items], np.float32)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("film") / "film.mp4", SCENES)


@pytest.fixture(scope="module")
def summary(film: Path) -> VideoSummary:
    return summarize(film, Moods(), seconds=8.0, out=film.with_name("summary.webm"), suggest=lambda va: f"{va[1]:.1f}")


def test_segments_hit_the_changes(summary: VideoSummary) -> None:
    assert len(summary.moments) == 2
    for moment, change_s in zip(summary.moments, CHANGES_S, strict=True):
        assert moment.start_s + 1 <= change_s <= moment.end_s - 1
    assert summary.seconds <= 8
    assert summary.change > 0.95
    assert summary.tracks == ("image", "music")
    assert summary.duration_s == pytest.approx(48, abs=0.2)


def test_the_curve_is_the_mean_of_pictures_and_sound(summary: VideoSummary) -> None:
    for time_s, colour, loudness in ((8, SAD, 0.1), (22, WILD, 0.8), (40, CALM, 0.3)):
        at = int(np.abs(summary.time_s_W - time_s).argmin())
        wanted = ((colour[1] / 255 + 0.5) / 2, (colour[0] / 255 + loudness) / 2)
        assert summary.va_W2[at] == pytest.approx(wanted, abs=0.05)


def test_the_clip_holds_their_pictures_and_their_sound_in_step(summary: VideoSummary) -> None:
    assert summary.clip is not None
    data = summary.clip.read_bytes()
    info = probe_video(data)
    assert (info.format, info.sound, info.width, info.height) == ("matroska", True, 96, 64)
    assert info.duration_s == pytest.approx(summary.seconds, abs=0.3)
    at_s = 0.0
    samples_T = np.concatenate(list(stream_sound(data, RATE)))
    scene_ends = np.cumsum([seconds for seconds, *_ in SCENES])
    for moment in summary.moments:
        for time_s in (moment.start_s + 0.5, moment.end_s - 0.5):
            _, colour, loudness = SCENES[int(np.searchsorted(scene_ends, time_s))]
            clip_s = at_s + time_s - moment.start_s
            (picture,) = pictures_at(data, info, [clip_s])
            assert np.asarray(picture).reshape(-1, 3).mean(axis=0) == pytest.approx(colour, abs=16)
            heard = samples_T[round((clip_s - 0.1) * RATE) : round((clip_s + 0.1) * RATE)]
            assert np.abs(heard).max() == pytest.approx(loudness, abs=0.1)
        at_s += moment.end_s - moment.start_s


def test_sound_and_pictures_change_at_the_same_moment_of_the_clip(summary: VideoSummary) -> None:
    assert summary.clip is not None
    data = summary.clip.read_bytes()
    change_s = CHANGES_S[0] - summary.moments[0].start_s
    before, after = pictures_at(data, probe_video(data), [change_s - 0.15, change_s + 0.15])
    assert [np.asarray(one)[..., 0].mean() for one in (before, after)] == pytest.approx([SAD[0], WILD[0]], abs=25)
    samples_T = np.concatenate(list(stream_sound(data, RATE)))
    loud_s = np.flatnonzero(np.abs(samples_T) > 0.4)[0] / RATE
    assert loud_s == pytest.approx(change_s, abs=0.1)


def test_picture_json_and_text(summary: VideoSummary) -> None:
    assert summary.picture is not None
    with Image.open(summary.picture) as picture:
        assert (picture.format, picture.width > 1000, picture.height > 500) == ("PNG", True, True)
    value = summary.to_json()
    assert [one["suggestion"] for one in value["segments"]] == [f"{one.arousal:.1f}" for one in summary.moments]
    assert len(value["curve"]) == len(summary.time_s_W) == 96
    assert value["model_digest"] == "d" * 64
    assert f"{as_clock(summary.moments[1].start_s)} to" in summary.to_text()
    assert as_clock(65.5) == "1:05.5"


@pytest.mark.parametrize("name", ["film.webm", "film.mkv", "film.avi", "film.mov"])
def test_other_containers_into_mp4(tmp_path: Path, name: str) -> None:
    film = write_video(tmp_path / name, [(3.0, SAD, 0.1), (3.0, WILD, 0.7)])
    summary = summarize(film, Moods(), seconds=3.0, out=tmp_path / "clip.mp4")
    info = probe_video((tmp_path / "clip.mp4").read_bytes())
    assert (info.format, info.sound) == ("mp4", True)
    assert info.duration_s == pytest.approx(summary.seconds, abs=0.3)


def test_without_sound_without_pictures_and_with_one_tower(tmp_path: Path) -> None:
    scenes = [(4.0, SAD, 0.1), (4.0, WILD, 0.9)]
    silent = write_video(tmp_path / "silent.mp4", scenes, sound=False)
    heard = write_video(tmp_path / "heard.mp4", scenes, pictures=False)
    for film, track in ((silent, "image"), (heard, "music")):
        summary = summarize(film, Moods(), seconds=3.0, out=tmp_path / "clip.webm")
        assert summary.tracks == (track,)
        assert summary.moments[0].start_s < 4 < summary.moments[0].end_s
        info = probe_video((tmp_path / "clip.webm").read_bytes())
        assert (info.sound, info.picture_s is not None) == (track == "music", track == "image")
    both = write_video(tmp_path / "both.mp4", scenes)
    assert summarize(both, Moods("music"), seconds=3.0, out=None).tracks == ("music",)
    with pytest.raises(MediaError, match="which this video has no track for") as caught:
        summarize(silent, Moods("music"), seconds=3.0, out=None)
    assert caught.value.code == "no-tower"


def test_hostile_videos_are_refused(film: Path, tmp_path: Path) -> None:
    data = film.read_bytes()
    cases = [
        (b"", "empty-file", {}),
        (b"no video at all" * 10, "not-video", {}),
        (data[: len(data) // 2], None, {}),
        (data, "too-many-pixels", {"limits": Limits(max_pixels=1000)}),
        (data, "too-long", {"limits": Limits(max_duration_s=10)}),
        (data, "too-many-bytes", {"limits": Limits(max_bytes=1000)}),
        (data, "timed-out", {"time_limit_s": 0.0}),
    ]
    for content, code, options in cases:
        path = tmp_path / "hostile.mp4"
        path.write_bytes(content)
        with pytest.raises(MediaError) as caught:
            summarize(path, Moods(), seconds=5.0, out=tmp_path / "clip.webm", **options)
        assert code in {caught.value.code, None}
        assert not (tmp_path / "clip.webm").exists()


def test_no_more_than_a_batch_of_pictures_is_held(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = 0

    def counted(*arguments: Any) -> Iterator[Image.Image]:
        nonlocal decoded
        for picture in pictures_at(*arguments):
            decoded += 1
            yield picture

    class Watching(Moods):
        def predict(self, modality: str, items: list[Any]) -> np.ndarray:
            assert decoded - sum(self.sizes) == len(items) <= 8
            return super().predict(modality, items)

    monkeypatch.setattr(module, "pictures_at", counted)
    model = Watching("image")
    summary = summarize(film, model, seconds=5.0, out=None)
    assert (summary.clip, summary.picture) == (None, None)
    assert sum(model.sizes) == decoded == 96


def test_mistakes_are_named(film: Path, tmp_path: Path) -> None:
    for options, named in (
        ({"seconds": 0.0}, "more than 0 seconds"),
        ({"out": tmp_path / "clip.gif"}, "must end in .webm or .mp4"),
        ({"out": tmp_path / "nowhere" / "clip.webm"}, "cannot be written"),
        ({"video": tmp_path / "none.mp4"}, "cannot be read"),
        ({"out": film}, "is the video itself"),
    ):
        with pytest.raises(UsageError, match=named):
            summarize(**({"video": film, "model": Moods(), "seconds": 5.0, "out": None} | options))


def test_cutting_sound() -> None:
    samples_T2 = np.arange(2000, dtype=np.float32).reshape(1000, 2)
    blocks = [samples_T2[:300], samples_T2[300:310], samples_T2[310:]]
    pieces = np.concatenate(list(cut(blocks, [(0.5, 2.0), (2.05, 3.2), (9.0, 11.0)], 100)))
    wanted = np.concatenate([samples_T2[50:200], samples_T2[205:320], samples_T2[900:1000], np.zeros((100, 2))])
    ends = np.array([0, 149, 150, 264, 265, 464])  # faded to nothing, where a span begins or ends
    kept = np.setdiff1d(np.arange(len(wanted)), [*ends, *range(365, 465)])
    assert len(pieces) == len(wanted)
    assert np.array_equal(pieces[kept], wanted[kept])
    assert not pieces[ends].any()
    assert not pieces[365:].any()


def test_sound_that_is_no_sound_does_not_reach_the_encoder() -> None:
    wild = np.full((4000, 6), 7.0, np.float32)
    wild[1000:2000] = np.nan
    wild[2000:3000] = -np.inf
    samples_T2 = np.concatenate(list(as_stereo([wild], 8000, "mp4")))
    assert samples_T2.shape == (24_000, 2)
    middles = [float(samples_T2[at, 1]) for at in (3000, 9000, 15_000, 21_000)]
    assert middles == pytest.approx([1, 0, -1, 1], abs=0.01)
    with pytest.raises(MediaError, match="mp4 data that cannot be decoded"):
        list(as_stereo([wild], 0, "mp4"))


def test_sizes_of_pictures() -> None:
    assert [even_size(size) for size in ((96, 64), (3840, 2160), (101, 1), (1081, 1921))] == [
        (96, 64), (1280, 720), (100, 2), (720, 1280),
    ]  # fmt: skip


def test_the_clips_sound_is_whole(tmp_path: Path) -> None:
    """A summary as long as the video is the video: nothing of the sound is lost or doubled at a cut."""
    film = write_video(tmp_path / "film.mp4", [(5.0, SAD, 0.1), (5.0, WILD, 0.8), (5.0, CALM, 0.3)])
    summary = summarize(film, Moods("music"), seconds=60.0, out=tmp_path / "clip.webm")
    assert [(one.start_s, one.change) for one in summary.moments] == [(0.0, 1.0)]
    original = np.concatenate(list(stream_sound(film.read_bytes(), RATE)))
    copy = np.concatenate(list(stream_sound((tmp_path / "clip.webm").read_bytes(), RATE)))
    assert len(copy) == pytest.approx(len(original), abs=0.15 * RATE)
    for at_s in (2, 7, 12):
        window = slice(at_s * RATE, (at_s + 1) * RATE)
        assert np.abs(copy[window]).max() == pytest.approx(np.abs(original[window]).max(), abs=0.05)
