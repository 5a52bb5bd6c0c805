"""The bundle: deterministic bytes, all or nothing, and no changed or surplus byte gets through."""

from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmva.errors import CheckFailed, UsageError
from mmva.models import bundle as module
from mmva.models.bundle import load_bundle, read_bundle, read_bundle_info, save_bundle
from mmva.models.model import MMVA, ModelConfig
from mmva.models.predictor import Predictor

from .fake_encoder import FakeEncoder

INTERVALS = {"image": {"valence": 0.21, "arousal": 0.3}}
PROVENANCE = {"run": "r1", "dataset": "d" * 64}
FILES = {"bundle.json", "model.safetensors", "backbones.json", "preprocessing.json", "intervals.json", "card.md"}


def make_model() -> MMVA:
    torch.manual_seed(3)
    model = MMVA({"image": 3}, ModelConfig(hidden=4, sigma=0.31))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    model.set_statistics({"image": np.random.default_rng(0).normal(2, 3, (40, 3))})
    model.attach_encoders({"image": FakeEncoder()})
    return model


def save(directory: Path, **changes: Any) -> str:
    arguments: dict[str, Any] = {
        "intervals": INTERVALS,
        "card": "# Ein Modell für Bilder\n",
        "provenance": PROVENANCE,
    }
    return save_bundle(directory, make_model(), **(arguments | changes))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    save(tmp_path / "bundle")
    return tmp_path / "bundle"


def reseal(bundle: Path) -> None:
    """Write SHA256SUMS anew, as one would who alters a bundle on purpose."""
    lines = [f"{hashlib.sha256((bundle / name).read_bytes()).hexdigest()}  {name}\n" for name in sorted(FILES)]
    (bundle / "SHA256SUMS").write_text("".join(lines))


def edit(bundle: Path, name: str, change: Callable[[dict[str, Any]], Any]) -> None:
    value = json.loads((bundle / name).read_text())
    change(value)
    (bundle / name).write_text(json.dumps(value))
    reseal(bundle)


def test_loaded_model_is_the_saved_one(bundle: Path) -> None:
    model, loaded = make_model(), load_bundle(bundle, load_encoders=False)
    emb_ND = np.random.default_rng(1).normal(size=(9, 3))
    np.testing.assert_array_equal(loaded.predict_embeddings("image", emb_ND), model.predict_embeddings("image", emb_ND))
    assert loaded.config == model.config
    assert loaded.backbones == model.backbones
    assert loaded.preprocessing == model.preprocessing
    assert loaded.intervals == INTERVALS
    assert loaded.provenance == PROVENANCE
    assert not loaded.training


def test_bytes_are_deterministic_and_the_digest_is_of_the_sums(bundle: Path, tmp_path: Path) -> None:
    digest = save(tmp_path / "again")
    assert {path.name for path in bundle.iterdir()} == FILES | {"SHA256SUMS"}
    for path in bundle.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    assert digest == hashlib.sha256((bundle / "SHA256SUMS").read_bytes()).hexdigest()
    assert load_bundle(bundle, load_encoders=False).digest == read_bundle_info(bundle).digest == digest
    assert save(tmp_path / "other", provenance={"run": "r2"}) != digest


def test_sums_are_what_sha256sum_reads(bundle: Path) -> None:
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=bundle, check=True, capture_output=True)


def test_info_tells_without_weights(bundle: Path) -> None:
    info = read_bundle_info(bundle)
    assert info.dims == {"image": 3}
    assert info.config.sigma == 0.31
    assert info.card == "# Ein Modell für Bilder\n"
    assert info.intervals == INTERVALS


@pytest.mark.parametrize("name", sorted(FILES))
def test_one_flipped_byte_is_noticed_and_named(bundle: Path, name: str) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(CheckFailed, match=f"{name}: changed"):
        load_bundle(bundle, load_encoders=False)


@pytest.mark.parametrize("name", sorted(FILES))
def test_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(CheckFailed, match=f"{name}: missing"):
        read_bundle_info(bundle)


def test_surplus_file_is_refused_whether_listed_or_not(bundle: Path) -> None:
    (bundle / "model.pkl").write_bytes(pickle.dumps({}))
    with pytest.raises(CheckFailed, match=r"model\.pkl: not listed"):
        load_bundle(bundle, load_encoders=False)
    with (bundle / "SHA256SUMS").open("a") as sums:
        sums.write(f"{hashlib.sha256(pickle.dumps({})).hexdigest()}  model.pkl\n")
    with pytest.raises(CheckFailed, match="must list exactly"):
        load_bundle(bundle, load_encoders=False)


@pytest.mark.parametrize("line", ["", "zz  card.md\n", f"{'0' * 64}  ../card.md\n"])
def test_sums_with_other_lines_are_refused(bundle: Path, line: str) -> None:
    sums = (bundle / "SHA256SUMS").read_text()
    kept = "".join(other for other in sums.splitlines(keepends=True) if "card.md" not in other)
    (bundle / "SHA256SUMS").write_text(kept + line)
    with pytest.raises(CheckFailed, match="must list exactly"):
        load_bundle(bundle, load_encoders=False)


def test_file_replaced_by_a_folder_is_refused(bundle: Path) -> None:
    (bundle / "card.md").unlink()
    (bundle / "card.md").mkdir()
    with pytest.raises(CheckFailed, match=r"card\.md: not a regular file"):
        load_bundle(bundle, load_encoders=False)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("bundle.json", lambda v: v.update(schema_version=2), "schema version 2, this mmva reads version 1"),
        ("bundle.json", lambda v: v.pop("schema_version"), "schema version None"),
        ("bundle.json", lambda v: v.update(code="os.system"), "bundle.json: code"),
        ("bundle.json", lambda v: v["config"].update(hidden=-1), "bundle.json: config.hidden"),
        ("bundle.json", lambda v: v["config"].update(hidden=6), "model.safetensors does not fit"),
        ("bundle.json", lambda v: v.update(dims={"image": 10**12}), "have different embedding widths"),
        ("backbones.json", lambda v: v["image"].update(dim=10**12), "backbones.json: dim"),
        ("backbones.json", lambda v: v["image"].pop("fingerprint"), "backbones.json: fingerprint"),
    ],
)
def test_inconsistent_descriptions_are_named_in_one_line(bundle: Path, name: str, change: Any, message: str) -> None:
    edit(bundle, name, change)
    with pytest.raises(UsageError, match=message) as caught:
        load_bundle(bundle, load_encoders=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[1, 2]", "{", "null"])
def test_description_that_is_no_json_object_is_named(bundle: Path, text: str) -> None:
    (bundle / "intervals.json").write_text(text)
    reseal(bundle)
    with pytest.raises(UsageError, match=r"intervals\.json"):
        load_bundle(bundle, load_encoders=False)


class Canary:
    """Leaves a trace if anything unpickles it."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.trace,))


def test_pickle_in_the_weights_place_never_runs(bundle: Path, tmp_path: Path) -> None:
    torch.save({"weight": Canary(tmp_path / "ran")}, bundle / "model.safetensors")
    reseal(bundle)
    with pytest.raises(UsageError, match=r"model\.safetensors is not a safetensors file"):
        load_bundle(bundle, load_encoders=False)
    assert not (tmp_path / "ran").exists()


def read_predictor(bundle: Path) -> Predictor:
    info, files = read_bundle(bundle)
    return Predictor(info, files["model.safetensors"], lambda _: pytest.fail("no encoder is needed"))


@pytest.mark.parametrize("load", [partial(load_bundle, load_encoders=False), read_predictor])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state["towers.image.linear.bias"].fill_(float("nan")), "NaN or infinite weights"),
        (lambda state: state["towers.image.std_D"].fill_(float("inf")), "NaN or infinite weights"),
        (lambda state: state.pop("towers.image.linear.bias"), "does not fit bundle.json"),
        (lambda state: state.update({"towers.image.extra": torch.ones(2)}), "does not fit bundle.json"),
        (lambda state: state.update({"towers.image.linear.weight": torch.ones(2, 4)}), "does not fit bundle.json"),
        (lambda state: state.update({"towers.image.std_D": torch.ones(1)}), "does not fit bundle.json"),
    ],
)
def test_both_loaders_refuse_weights_that_are_not_finite_or_do_not_fit(
    bundle: Path, load: Any, change: Any, message: str
) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(bundle / "model.safetensors")
    change(state)
    save_file(state, bundle / "model.safetensors")
    reseal(bundle)
    with pytest.raises(UsageError, match=message) as caught:
        load(bundle)
    assert "\n" not in str(caught.value)


def test_nothing_is_overwritten(bundle: Path) -> None:
    before = (bundle / "SHA256SUMS").read_bytes()
    with pytest.raises(UsageError, match="exists already"):
        save(bundle, card="another")
    assert (bundle / "SHA256SUMS").read_bytes() == before


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        if path.name == "model.safetensors":
            raise OSError(28, "No space left on device")
        path.write_bytes(data)

    monkeypatch.setattr(module, "write_atomically", full)
    with pytest.raises(UsageError, match="No space left"):
        save(tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_saved_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"intervals\.json: not representable as JSON"):
        save(tmp_path / "a", intervals={"image": {"valence": float("nan")}})
    with pytest.raises(UsageError, match=r"bundle\.json: not representable"):
        save(tmp_path / "b", provenance={"path": tmp_path})
    with pytest.raises(UsageError, match="has no image backbone"):
        save_bundle(tmp_path / "c", MMVA({"image": 3}), intervals={}, card="", provenance={})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_bundle_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a bundle"):
        load_bundle(tmp_path)
    with pytest.raises(UsageError, match="not a bundle"):
        load_bundle(tmp_path / "nowhere")


@pytest.mark.slow
def test_towers_alone_need_no_transformers(bundle: Path) -> None:
    code = (
        "import sys; from mmva import load_bundle; load_bundle(sys.argv[1], load_encoders=False); "
        "assert not {'transformers', 'ray', 'mlflow', 'torchaudio'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code, str(bundle)], check=True)
