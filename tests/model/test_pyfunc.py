"""The registered model through MLflow's own door, as a stranger with a DataFrame uses it."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from PIL import Image

from mmva.backbones import load_encoder, preset
from mmva.media.windows import HOP_S, WINDOW_S, windows
from mmva.modalities import AXES, MODALITIES
from mmva.models.bundle import load_bundle, save_bundle
from mmva.models.model import MMVA
from mmva_platform.tracking.model import save_model
from mmva_platform.tracking.store import quiet

pytestmark = pytest.mark.slow  # imports MLflow
COLUMNS = ["valence", "arousal", "valence_low", "valence_high", "arousal_low", "arousal_high"]


def wav(seconds: float) -> bytes:
    buffer = io.BytesIO()
    time_T = np.arange(int(16_000 * seconds)) / 16_000
    soundfile.write(buffer, 0.4 * np.sin(2 * np.pi * 330 * time_T**1.2), 16_000, format="WAV")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle on the tiny encoders, its MLflow model, and a few media files."""
    folder = tmp_path_factory.mktemp("pyfunc")
    encoders = {modality: load_encoder(spec) for modality, spec in preset("tiny").specs.items()}
    torch.manual_seed(0)
    model = MMVA({modality: encoder.dim for modality, encoder in encoders.items()})
    model.attach_encoders(encoders)
    widths = {modality: {"valence": 0.1, "arousal": 0.2} for modality in MODALITIES}
    save_bundle(folder / "some-run", model, intervals=widths, card="", provenance={})
    with quiet():
        save_model(folder / "model", folder / "some-run")
    Image.new("RGB", (90, 70), (250, 200, 10)).save(folder / "sun.jpg")
    (folder / "tone.wav").write_bytes(wav(5.0))
    (folder / "text.txt").write_bytes(b"ein ruhiger Abend")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    return folder


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Any:
    import mlflow

    with quiet():
        return mlflow.pyfunc.load_model(str(folder / "model"))


def predict(loaded: Any, rows: list[dict[str, Any]]) -> pd.DataFrame:
    result: pd.DataFrame = loaded.predict(pd.DataFrame(rows))
    return result


def test_each_modality_has_its_point_inside_its_interval(loaded: Any, folder: Path) -> None:
    rows = [
        {"modality": "image", "uri": str(folder / "sun.jpg"), "caption": None},
        {"modality": "music", "uri": str(folder / "tone.wav"), "caption": None},
        {"modality": "caption", "uri": None, "caption": "a calm piano piece"},
        {"modality": "caption", "uri": str(folder / "text.txt"), "caption": None},
    ]
    result = predict(loaded, rows)
    assert list(result.columns) == [*COLUMNS, "error"]
    assert result["error"].isna().all()
    assert result[COLUMNS].to_numpy().min() >= 0
    assert result[COLUMNS].to_numpy().max() <= 1
    for axis, width in (("valence", 0.1), ("arousal", 0.2)):
        # All columns are float32 values.
        assert (result[f"{axis}_low"] - np.clip(result[axis] - width, 0, 1)).abs().max() < 1e-6
        assert (result[f"{axis}_high"] - np.clip(result[axis] + width, 0, 1)).abs().max() < 1e-6


def test_predictions_are_the_bundles_own(loaded: Any, folder: Path) -> None:
    model = load_bundle(folder / "some-run")
    result = predict(
        loaded, [{"modality": "caption", "caption": "rain"}, {"modality": "image", "uri": str(folder / "sun.jpg")}]
    )
    expected = [
        model.predict("caption", ["rain"])[0],
        model.predict("image", [Image.open(folder / "sun.jpg").convert("RGB")])[0],
    ]
    np.testing.assert_allclose(result[["valence", "arousal"]].to_numpy(), expected, atol=1e-6)


def test_a_bad_row_costs_only_itself(loaded: Any, folder: Path) -> None:
    good = {"modality": "caption", "uri": None, "caption": "rain"}
    bad = {
        "corrupt-image": {"modality": "image", "uri": str(folder / "broken.png")},
        "unreadable": {"modality": "image", "uri": str(folder / "missing.jpg")},
        "not-local": {"modality": "image", "uri": "http://169.254.169.254/latest/meta-data"},
        "not-audio": {"modality": "music", "uri": str(folder / "sun.jpg")},
        "no-media": {"modality": "music"},
        "not-video": {"modality": "video", "uri": str(folder / "sun.jpg")},
        "unknown-modality": {"modality": "smell", "uri": str(folder / "sun.jpg")},
        "empty-caption": {"modality": "caption", "caption": " \0 "},
    }
    empty = {"uri": None, "caption": None}
    result = predict(loaded, [good, *(empty | row for row in bad.values()), good])
    assert result["error"].isna().tolist() == [True, *[False] * len(bad), True]
    assert [error.partition(":")[0] for error in result["error"].iloc[1:-1]] == list(bad)
    assert result[COLUMNS].iloc[1:-1].isna().all().all()
    np.testing.assert_array_equal(result[COLUMNS].iloc[0], result[COLUMNS].iloc[-1])


def test_other_schemes_are_not_fetched(loaded: Any, folder: Path) -> None:
    for uri in (f"file://{folder}/sun.jpg", "s3://bucket/sun.jpg"):
        (error,) = predict(loaded, [{"modality": "image", "uri": uri}])["error"]
        assert error.startswith("not-local")


def test_long_music_is_the_point_of_its_mean_embedding(loaded: Any, folder: Path) -> None:
    """As in an annotation run; the mean of its windows' points is another one."""
    model = load_bundle(folder / "some-run")
    samples_T, rate = soundfile.read(io.BytesIO(wav(5.0)), dtype="float32")
    _, pieces = windows(samples_T, rate, WINDOW_S, HOP_S)
    assert len(pieces) > 1
    result = predict(loaded, [{"modality": "music", "uri": str(folder / "tone.wav")}])
    mean_1D = model.embed("music", pieces).mean(axis=0, keepdims=True)
    expected_2 = model.predict_embeddings("music", mean_1D)[0]
    np.testing.assert_allclose(result[["valence", "arousal"]].to_numpy()[0], expected_2, atol=1e-6)


def test_the_signature_names_the_columns(loaded: Any) -> None:
    inputs, outputs = loaded.metadata.signature.inputs, loaded.metadata.signature.outputs
    assert inputs.input_names() == ["modality", "uri", "caption"]
    assert inputs.required_input_names() == ["modality"]
    assert outputs.input_names() == [*COLUMNS, "error"]


def test_the_model_is_a_bundle_and_our_code_and_no_pickle(folder: Path) -> None:
    files = {path.relative_to(folder / "model").as_posix() for path in (folder / "model").rglob("*") if path.is_file()}
    assert "pyfunc.py" in files
    assert {f"artifacts/bundle/{path.name}" for path in (folder / "some-run").iterdir()} <= files
    assert not [name for name in files if name.endswith((".pkl", ".pickle", ".pt", ".pth", ".bin"))]


def test_loading_it_brings_neither_ray_nor_the_platform(folder: Path) -> None:
    code = (
        "import sys, mlflow, pandas as pd\n"
        f"model = mlflow.pyfunc.load_model({str(folder / 'model')!r})\n"
        "found = model.predict(pd.DataFrame({'modality': ['caption'], 'caption': ['rain']}))\n"
        "assert found['error'].isna().all(), found\n"
        "print([name for name in sys.modules if name.partition('.')[0] in ('ray', 'mmva_platform')])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_axes_are_named_as_everywhere() -> None:
    assert COLUMNS[:2] == list(AXES)
