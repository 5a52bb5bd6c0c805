"""Zero-shot uses against known answers: generated media whose points are known, real encoders, ridge regression."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from mmva.backbones import load_encoder, preset
from mmva.evaluation.retrieval import retrieval_per_query
from mmva.imemnet.generator.captions import write_caption
from mmva.imemnet.generator.labels import Clip, draw_clips, draw_image_labels
from mmva.imemnet.generator.music import render_clip, song_style
from mmva.imemnet.generator.pictures import render_picture
from mmva.media.audio.resample import resample_blocks
from mmva.models.model import MMVA
from mmva.zeroshot.prompts import PromptBank
from mmva.zeroshot.search import PlaneIndex
from mmva.zeroshot.video import summarize
from mmva_platform.training.loop.data import Triplets
from mmva_platform.training.loop.probe import start_from_probes

pytestmark = pytest.mark.slow

IMAGES, CLIPS, SEED = 130, 240, 5
SCENE_S, FPS = 8, 4
# Valence and arousal of the scenes of a film, as the generator draws and plays them.
SCENES = ((0.85, 0.8), (0.2, 0.2), (0.15, 0.85), (0.8, 0.15))


@dataclass(frozen=True)
class World:
    """A model of generated media, and those that it has not seen.

    Attributes:
        model: Compact encoders under towers of ridge regression.
        clips: Held-out clips; their songs are not among the training's.
        music: Their samples.
        captions: Their captions.
        va_M2: Their labels.
    """

    model: MMVA
    clips: Sequence[Clip]
    music: list[np.ndarray]
    captions: list[str]
    va_M2: np.ndarray


def heard(clip: Clip, rate: int) -> np.ndarray:
    style = song_style(clip.song, clip.song_va, SEED)
    blocks = resample_blocks(iter([render_clip(clip, style, SEED)]), style.sample_rate, rate)
    return np.concatenate(list(blocks)).astype(np.float32)


@pytest.fixture(scope="module")
def world() -> World:
    encoders = {modality: load_encoder(spec) for modality, spec in preset("compact").specs.items()}
    rate = encoders["music"].sample_rate
    assert rate is not None
    image_va_N2 = draw_image_labels(IMAGES, SEED)
    pictures = [
        Image.open(io.BytesIO(render_picture((v, a), SEED, number))) for number, (v, a) in enumerate(image_va_N2)
    ]
    clips = draw_clips(CLIPS, SEED)
    music = [heard(clip, rate) for clip in clips]
    captions = [write_caption(clip, song_style(clip.song, clip.song_va, SEED), SEED) for clip in clips]
    music_va_M2 = np.array([clip.va for clip in clips])
    emb = {
        name: encoders[name].encode(items)
        for name, items in (("image", pictures), ("music", music), ("caption", captions))
    }
    songs = sorted({clip.song for clip in clips})
    song_M = np.array([songs.index(clip.song) for clip in clips])

    def split(image_rows: slice, clip_rows: np.ndarray) -> Triplets:
        row_M = np.arange(int(clip_rows.sum()))
        rows = {
            "image": emb["image"][image_rows],
            "music": emb["music"][clip_rows],
            "caption": emb["caption"][clip_rows],
        }
        return Triplets(image_va_N2[image_rows], music_va_M2[clip_rows], {"music": row_M, "caption": row_M}, rows)

    train = split(slice(0, 100), song_M < 0.6 * len(songs))
    val = split(slice(100, None), (song_M >= 0.6 * len(songs)) & (song_M < 0.7 * len(songs)))
    model = MMVA({modality: encoder.dim for modality, encoder in encoders.items()}).eval()
    model.set_statistics(train.emb)
    start_from_probes(model, train, val)
    model.attach_encoders(encoders)
    held_out = np.flatnonzero(song_M >= 0.7 * len(songs)).tolist()
    return World(
        model,
        [clips[index] for index in held_out],
        [music[index] for index in held_out],
        [captions[index] for index in held_out],
        music_va_M2[held_out],
    )


def test_a_sentence_finds_music_of_its_mood(world: World) -> None:
    query_M2, gallery_M2 = world.model.predict("caption", world.captions), world.model.predict("music", world.music)
    figures = retrieval_per_query(query_M2, gallery_M2, world.va_M2, world.va_M2)
    for name in ("ndcg@10", "recall@10"):
        gain_M = figures[name] - figures[f"random_{name}"]
        assert gain_M.mean() > 3 * gain_M.std() / np.sqrt(len(gain_M)), name
    # The index gives the ranking that the figures are of.
    index = PlaneIndex(gallery_M2)
    nearest = [index.nearest(query_2, 10)[0] for query_2 in query_M2]
    label_score = np.exp(-np.linalg.norm(world.va_M2[:, None] - world.va_M2[None], axis=-1) / 0.380699)
    discount = 1 / np.log2(np.arange(2, 12))
    found = np.array([label_score[row, rows] @ discount for row, rows in enumerate(nearest)])
    ideal = np.sort(label_score, axis=1)[:, ::-1][:, :10] @ discount
    assert float((found / ideal).mean()) == pytest.approx(figures["ndcg@10"].mean(), abs=1e-6)


def test_the_caption_tower_reads_a_prompt_as_it_was_meant(world: World) -> None:
    bank = PromptBank.place(world.model)
    target_N2 = np.array([(v, a) for v in np.linspace(0.1, 0.9, 7) for a in np.linspace(0.1, 0.9, 7)])
    read_N2 = world.model.predict("caption", [bank.prompt(target_2).text for target_2 in target_N2])
    for axis, least in ((0, 0.4), (1, 0.4)):
        assert np.corrcoef(target_N2[:, axis], read_N2[:, axis])[0, 1] > least


def write_film(path: Path, *, rate: int = 16_000) -> Path:
    """Scenes of the generator, one after another: a new picture each second, clips of one song under them."""
    with av.open(str(path), "w") as output:
        pictures: Any = output.add_stream("mpeg4", rate=FPS)
        pictures.width, pictures.height, pictures.pix_fmt = 256, 192, "yuv420p"
        pictures.bit_rate = 2_000_000
        sound: Any = output.add_stream("aac", rate=rate, layout="mono")
        for number, va in enumerate(SCENES):
            for second in range(SCENE_S):
                picture = Image.open(io.BytesIO(render_picture(va, SEED, 1000 + 100 * number + second)))
                for _ in range(FPS):
                    output.mux(pictures.encode(av.VideoFrame.from_image(picture.convert("RGB").resize((256, 192)))))
        output.mux(pictures.encode(None))
        clips = [
            Clip(900 + number, 10 + part, va, va) for number, va in enumerate(SCENES) for part in range(SCENE_S // 2)
        ]
        samples_T = np.concatenate([heard(clip, rate) for clip in clips]).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(samples_T[None], format="fltp", layout="mono")
        frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
        output.mux(sound.encode(frame))
        output.mux(sound.encode(None))
    return path


def test_a_summary_hits_the_changes_of_mood(world: World, tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.mp4")
    summary = summarize(film, world.model, seconds=12.0, out=None)
    changes_s = [SCENE_S * number for number in range(1, len(SCENES))]
    hit = [any(one.start_s < change_s < one.end_s for one in summary.moments) for change_s in changes_s]
    assert hit == [True, True, True]
    # Each scene's points lie nearest to the mood that it was made of.
    for number in range(len(SCENES)):
        inside_W = (summary.time_s_W > SCENE_S * number + 2) & (summary.time_s_W < SCENE_S * (number + 1) - 2)
        centred_2 = summary.va_W2[inside_W].mean(axis=0) - summary.va_W2.mean(axis=0)
        assert np.sign(centred_2).tolist() == np.sign(np.array(SCENES[number]) - 0.5).tolist()
