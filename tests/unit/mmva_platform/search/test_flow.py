"""`mmva music-prompt` and `mmva summarize` on files, and where a query's model comes from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mmva.errors import CheckFailed, UsageError
from mmva.models.bundle import read_bundle_info
from mmva.zeroshot.generation import MusicGenerator
from mmva.zeroshot.prompts import TEMPLATES
from mmva_platform.annotation.plan.plan import ModelInfo
from mmva_platform.cli.main import run
from mmva_platform.search import AnnotationIndex, music_prompt, open_query_model, query_point
from mmva_platform.search.models import load_predictor
from mmva_platform.settings import Settings

from ...helpers.made_video import write_video
from ...helpers.published import lively_bundle, publish_points, update_points
from .tiny_musicgen import save_tiny_musicgen


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lively_bundle(tmp_path_factory.mktemp("lively") / "bundle", 0)


@pytest.fixture(scope="module")
def music(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Annotated by the bundle, as version 7 of mmva."""
    rows = [(f"{n}.ogg", "music", n / 10, 0.5) for n in range(11)]
    model = ModelInfo(name="mmva", version="7", digest=read_bundle_info(bundle).digest)
    return publish_points(tmp_path_factory.mktemp("music") / "va", rows, model)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scenes = [(4.0, (200, 30, 30), 0.1), (4.0, (30, 30, 200), 0.8)]
    return write_video(tmp_path_factory.mktemp("film") / "film.mp4", scenes)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    return path


def test_a_registered_annotations_model_is_found_by_its_version(
    music: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[str] = []
    found = {"bundle": bundle}

    def resolve(uri: str, _settings: Settings) -> SimpleNamespace:
        asked.append(uri)
        return SimpleNamespace(bundle_dir=found["bundle"])

    monkeypatch.setattr("mmva_platform.search.models.resolve_model", resolve)
    index = AnnotationIndex.open(str(music), Settings())
    assert open_query_model(index, Settings()).digest == index.model.digest
    found["bundle"] = lively_bundle(tmp_path / "other", 1)  # the name now means another model
    with pytest.raises(CheckFailed, match="points of two models cannot be compared"):
        open_query_model(index, Settings())
    assert asked == ["models:/mmva/7"] * 2


def test_help_names_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in ("search", "music-prompt", "summarize"))


def test_music_prompt(picture: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["music-prompt", str(picture), "--model", str(bundle), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    model = load_predictor(str(bundle), Settings())
    wanted = music_prompt(model, query_point(model, "image", picture.read_bytes()))
    assert said == json.loads(json.dumps(wanted.to_json()))
    assert said["template"] in {template.name for template in TEMPLATES}
    assert run(["music-prompt", str(picture), "--model", str(bundle)]) == 0
    assert capsys.readouterr().out == wanted.text + "\n"


def test_summarize(film: Path, bundle: Path, music: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = tmp_path / "clip.webm"
    command = ["summarize", str(film), "--seconds", "3", "--model", str(bundle)]
    assert run([*command, "--out", str(clip), "--prompts", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["clip"], summary["picture"]) == (str(clip), str(tmp_path / "clip.png"))
    assert clip.stat().st_size > 1000
    (segment,) = summary["segments"]
    assert segment["start_s"] < 4 < segment["end_s"]
    assert " BPM" in segment["suggestion"]
    assert run([*command, "--music-from", str(music)]) == 0
    nearest = round(10 * segment["valence"])
    assert f"/media/{nearest}.ogg (" in capsys.readouterr().out
    updated = shutil.copytree(music, tmp_path / "updated")
    update_points(updated, [("only.ogg", "music", 0.5, 0.5)])
    for version, name in (([], "only"), (["--version", "0"], nearest)):
        assert run([*command, "--music-from", str(updated), *version]) == 0
        assert f"/media/{name}.ogg (" in capsys.readouterr().out


@pytest.fixture(scope="module")
def musicgen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_musicgen(tmp_path_factory.mktemp("musicgen") / "model")


def test_a_picture_becomes_sound(
    picture: Path, bundle: Path, musicgen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = tmp_path / "clip.wav"
    command = ["music-prompt", str(picture), "--model", str(bundle), "--generate", str(clip)]
    assert run([*command, "--musicgen", str(musicgen), "--seconds", "1"]) == 0
    assert " BPM" in capsys.readouterr().out
    sound, rate = soundfile.read(clip)
    assert (len(sound), rate) == (800, 800)
    assert sound.std() > 0.01
    generator = MusicGenerator.load(str(musicgen))
    one, again, other = (generator.generate("piano", 0.5, seed) for seed in (3, 3, 4))
    assert one.shape == (400, 1)
    assert (one == again).all()
    assert (one != other).any()
    with pytest.raises(UsageError, match="at most 30"):
        generator.generate("piano", 31)


def test_what_is_no_generator_is_one_line(
    picture: Path, bundle: Path, musicgen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pickled, partial = (shutil.copytree(musicgen, tmp_path / name) for name in ("pickled", "partial"))
    weights = load_file(musicgen / "model.safetensors")
    (pickled / "model.safetensors").unlink()
    torch.save(weights, pickled / "pytorch_model.bin")
    del weights["decoder.lm_heads.0.weight"]
    save_file(weights, partial / "model.safetensors", {"format": "pt"})
    clip = ["--generate", str(tmp_path / "clip.wav")]
    cases = [
        ([*clip, "--musicgen", str(tmp_path / "none")], "no MusicGen weights there"),
        ([*clip, "--musicgen", "nobody/musicgen"], "no MusicGen weights there"),
        ([*clip, "--musicgen", str(pickled)], "no MusicGen weights there"),
        ([*clip, "--musicgen", str(partial)], "1 weights are missing, the first is decoder.lm_heads.0.weight"),
        (clip, "give both"),
        (["--generate", "clip.mp3", "--musicgen", str(musicgen)], "must end in .wav"),
    ]
    for options, named in cases:
        assert run(["music-prompt", str(picture), "--model", str(bundle), *options]) == 2
        complaint = capsys.readouterr().err
        assert named in complaint
        assert complaint.count("\n") == 1
    assert not list(tmp_path.glob("*clip*"))


def test_mistakes_are_one_line(
    film: Path, bundle: Path, music: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "no.mp4").write_bytes(b"nothing")
    other = str(lively_bundle(tmp_path / "other", 1))
    cases = [
        (["music-prompt", str(film), "--model", str(bundle)], 2, "not-an-image"),
        (["music-prompt", str(tmp_path / "none.png"), "--model", str(bundle)], 2, "cannot be read"),
        (["summarize", str(tmp_path / "no.mp4"), "--model", str(bundle)], 2, "no.mp4: not-video"),
        (["summarize", str(film), "--model", str(bundle), "--seconds", "0"], 2, "more than 0 seconds"),
        (["summarize", str(film), "--model", str(bundle), "--out", "clip.gif"], 2, "must end in .webm or .mp4"),
        (["summarize", str(film), "--model", str(bundle), "--prompts", "--music-from", "x"], 2, "not both"),
        (["summarize", str(film), "--model", str(bundle), "--version", "0"], 2, "needs --music-from"),
        (
            ["summarize", str(film), "--model", str(bundle), "--music-from", str(music), "--version", "1"],
            2,
            "version 1",
        ),
        (["summarize", str(film), "--model", other, "--music-from", str(music)], 3, "cannot be compared"),
    ]
    for command, code, named in cases:
        assert run(command) == code
        complaint = capsys.readouterr().err
        assert named in complaint
        assert complaint.count("\n") == 1
