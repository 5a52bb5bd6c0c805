"""The look-alike's labels, its determinism, and the relations of look, sound and words to valence and arousal."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import spearmanr

from mmva.errors import UsageError
from mmva.imemnet.generator import generate
from mmva.imemnet.generator.captions import LEXICON, write_caption
from mmva.imemnet.generator.labels import (
    MUSIC_MOMENTS,
    Clip,
    Moments,
    draw_clips,
    draw_image_labels,
    image_id,
    image_source,
)
from mmva.imemnet.generator.music import render_clip, song_style
from mmva.imemnet.generator.pictures import look_for, render_picture

ALL_IMAGES = Moments((0.5521, 0.5273), (0.1550, 0.2198), 0.102)  # of the published image_va.csv


def assert_moments(va: np.ndarray, moments: Moments) -> None:
    np.testing.assert_allclose(va.mean(axis=0), moments.mean, atol=0.015)
    np.testing.assert_allclose(va.std(axis=0), moments.std, rtol=0.05)
    assert np.corrcoef(va.T)[0, 1] == pytest.approx(moments.correlation, abs=0.06)


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_image_labels_have_the_published_moments(seed: int) -> None:
    va = draw_image_labels(2000, seed)
    assert_moments(va, ALL_IMAGES)
    assert va.min() >= 0
    assert va.max() <= 1


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_clip_labels_have_the_published_moments_and_the_best_constants_error(seed: int) -> None:
    va = np.array([clip.va for clip in draw_clips(4000, seed)])
    assert_moments(va, MUSIC_MOMENTS)
    np.testing.assert_allclose(((va - va.mean(axis=0)) ** 2).mean(axis=0), [0.0272, 0.0283], rtol=0.1)


def test_published_image_moments_are_the_ones_compared_with(imemnet_dir: Path) -> None:
    import pandas as pd

    va = pd.read_csv(imemnet_dir / "image_va.csv")[["valence", "arousal"]].to_numpy()
    np.testing.assert_allclose(va.mean(axis=0), ALL_IMAGES.mean, atol=1e-4)
    np.testing.assert_allclose(va.std(axis=0), ALL_IMAGES.std, atol=1e-4)


def test_neighbouring_clips_differ_as_little_as_the_published_ones() -> None:
    clips = draw_clips(4000, 0)
    same = [(a, b) for a, b in itertools.pairwise(clips) if a.song == b.song]
    assert all(b.k == a.k + 1 for a, b in same)
    step = np.mean([(np.array(b.va) - np.array(a.va)) ** 2 for a, b in same], axis=0)
    np.testing.assert_allclose(step, [0.000155, 0.000234], rtol=0.15)
    counts = np.unique([clip.song for clip in clips], return_counts=True)[1][:-1]
    assert counts.min() >= 4
    assert counts.max() <= 8


def test_an_item_does_not_depend_on_how_many_there_are() -> None:
    np.testing.assert_array_equal(draw_image_labels(40, 3), draw_image_labels(400, 3)[:40])
    assert draw_clips(40, 3) == draw_clips(400, 3)[:40]


def test_image_ids_are_unique_and_of_three_collections() -> None:
    assert len({image_id(0, index) for index in range(5000)}) == 5000
    sources = [image_source(index) for index in range(4000)]
    assert [sources.count(name) for name in ("EMOTIC", "IAPS", "NAPS")] == [3700, 200, 100]


def test_look_follows_the_published_relations_but_not_exactly() -> None:
    rng = np.random.default_rng(0)
    va = rng.uniform(0.15, 0.85, (600, 2))
    looks = [look_for((float(v), float(a)), rng) for v, a in va]
    for cue, axis in (("brightness", 0), ("roundness", 0), ("smile", 0), ("saturation", 1), ("complexity", 1)):
        rank = spearmanr(va[:, axis], [getattr(look, cue) for look in looks]).statistic
        assert 0.5 < rank < 0.97, cue


def test_pictures_show_their_look() -> None:
    def mean_hsv(v: float, a: float) -> np.ndarray:
        pictures = [Image.open(io.BytesIO(render_picture((v, a), 0, index))).convert("HSV") for index in range(12)]
        return np.mean([np.asarray(picture).mean(axis=(0, 1)) for picture in pictures], axis=0)

    assert mean_hsv(0.85, 0.5)[2] > mean_hsv(0.25, 0.5)[2] + 40  # brightness
    assert mean_hsv(0.55, 0.9)[1] > mean_hsv(0.55, 0.2)[1] + 40  # saturation


def test_music_follows_the_published_relations() -> None:
    def styles(v: float, a: float) -> list:
        return [song_style(song, (v, a), 0) for song in range(60)]

    happy, unhappy, active, passive = styles(0.85, 0.5), styles(0.25, 0.5), styles(0.5, 0.9), styles(0.5, 0.2)
    assert np.mean([s.major for s in happy]) > 0.8
    assert 0 < np.mean([s.major for s in unhappy]) < 0.3
    for cue, more, less in (
        ("tonic", happy, unhappy),
        ("roughness", unhappy, happy),
        ("bpm", active, passive),
        ("loudness_db", active, passive),
        ("detached", active, passive),
        ("brightness", active, passive),
    ):
        assert np.mean([getattr(s, cue) for s in more]) > np.mean([getattr(s, cue) for s in less]), cue


def test_active_clips_sound_louder_and_stay_in_range() -> None:
    def loudness(a: float) -> float:
        sounds = [render_clip(Clip(song, 9, (0.5, a), (0.5, a)), song_style(song, (0.5, a), 0), 0) for song in range(8)]
        assert all(np.isfinite(sound).all() and np.abs(sound).max() <= 1 for sound in sounds)
        return float(np.mean([20 * np.log10(np.sqrt(np.mean(sound**2))) for sound in sounds]))

    assert loudness(0.9) > loudness(0.2) + 8


def test_captions_use_words_near_the_clip_and_vary() -> None:
    clips = [Clip(song, 9, (0.85, 0.8), (0.85, 0.8)) for song in range(80)]
    captions = [write_caption(clip, song_style(clip.song, clip.song_va, 0), 0).lower() for clip in clips]
    told = [LEXICON[word] for text in captions for word in LEXICON if f" {word} " in f" {text.replace(',', ' ')} "]
    assert np.mean(told, axis=0) == pytest.approx([0.82, 0.77], abs=0.1)
    assert len(set(captions)) == len(captions)


@pytest.mark.parametrize(("images", "clips", "seed"), [(0, 5, 0), (5, 0, 0), (5, 5, -1)])
def test_counts_out_of_range_are_usage_errors(tmp_path: Path, images: int, clips: int, seed: int) -> None:
    with pytest.raises(UsageError, match="at least"):
        generate(tmp_path / "new", images=images, clips=clips, seed=seed)
    assert not (tmp_path / "new").exists()


def test_an_occupied_folder_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="not an empty folder"):
        generate(tmp_path, images=1, clips=1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
