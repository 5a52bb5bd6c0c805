"""The command against everything real but the training: MLflow, bundles, a dataset folder with stored embeddings."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
import yaml

from mmva.modalities import AXES, MODALITIES
from mmva.models.bundle import save_bundle
from mmva.models.model import MMVA, ModelConfig
from mmva_platform.cli.context import DONE, SAID_NO, WRONG_USAGE
from mmva_platform.cli.main import run
from mmva_platform.datasets.dataset import Dataset
from mmva_platform.datasets.identity import training_record
from mmva_platform.settings import Settings, TrackingSettings
from mmva_platform.tracking.audit import AuditLog
from mmva_platform.tracking.gate.policy import GatePolicy
from mmva_platform.tracking.gate.verdict import GateRefused
from mmva_platform.tracking.promotion import promote
from mmva_platform.tracking.registry import list_versions, register, show_version
from mmva_platform.tracking.runs import log_training_run
from mmva_platform.training.evaluation.evaluate import evaluate
from mmva_platform.training.recipe import Recipe
from mmva_platform.training.trainer import TrainResult
from mmva_platform.workflows import evaluate_model as evaluate_registered

from ...helpers.embedded_dataset import DIM, OURS, make_dataset

pytestmark = pytest.mark.slow  # MLflow's schema
LAX = "margins: {default: 0.99}\nsmallest_groups: 2\nlargest_shortfall: 0.2\nretrieval_margin: 0.5\n"


def make_run(
    folder: Path, name: str, data: Path, *, factor: float = 1.0, towers: tuple[str, ...] = MODALITIES, **recipe: str
) -> TrainResult:
    """A bundle that reads the label's logits in an embedding, times a factor, evaluated on the dataset."""
    model = MMVA(dict.fromkeys(towers, DIM), ModelConfig(hidden=0))
    for modality in towers:
        model.tower(modality).linear.weight.data.copy_(factor * torch.eye(2, DIM))
        model.backbones[modality] = {"spec": {}, "fingerprint": OURS, "dim": DIM}
        model.preprocessing[modality] = {}
    widths = {str(modality): dict.fromkeys(AXES, 0.5) for modality in towers}
    made_by = Recipe.model_validate({"name": name, "dataset": str(data), "preset": "tiny", **recipe})
    record = training_record(Dataset.open(str(data)), towers)
    provenance = {"recipe": made_by.model_dump(mode="json"), "training_data": record}
    bundle = folder / name / "bundle"
    bundle.parent.mkdir(parents=True)
    digest = save_bundle(bundle, model, intervals=widths, card="# Card", provenance=provenance)
    evaluation = evaluate(bundle, str(data), Settings(home=folder))
    return TrainResult(
        run_name=name,
        run_dir=folder / name,
        bundle_dir=bundle,
        bundle_digest=digest,
        history=[],
        evaluation=evaluation,
        recipe=made_by,
        dataset_digest=evaluation.dataset_digest,
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, copy_schema: Callable[[Path], None]) -> Path:
    """One SQLite database for the module."""
    home = tmp_path_factory.mktemp("home")
    copy_schema(home)
    return home


@pytest.fixture
def settings(home: Path, request: pytest.FixtureRequest) -> Settings:
    """A registered model of its own for each test."""
    name = "".join(c if c.isalnum() else "-" for c in request.node.name)[-60:]
    return Settings(home=home, tracking=TrackingSettings(model_name=name))


def registered(result: TrainResult, settings: Settings, predictions: Any = MappingProxyType({})) -> int:
    """The version; without predictions no plots are drawn, which is most of the time."""
    return register(log_training_run(result, settings, predictions=predictions), settings)


def test_promote_with_a_policy_file_force_and_list(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_dataset(tmp_path / "data", OURS)
    for name, factor in (("first", 0.9), ("alike", 0.89), ("worse", -0.3)):
        registered(make_run(tmp_path, name, data, factor=factor), settings)
    file = tmp_path / "settings.yaml"
    file.write_text(json.dumps(settings.model_dump(mode="json")))
    (tmp_path / "lax.yaml").write_text(LAX)
    options = ["--policy", str(tmp_path / "lax.yaml")]

    def mmva(*arguments: str) -> tuple[int, str]:
        code = run(["--settings", str(file), "models", *arguments])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    assert mmva("promote", "1")[0] == DONE
    code, said = mmva("promote", "2")
    assert (code, "enough-groups image" in said) == (SAID_NO, True)
    code, said = mmva("promote", "2", *options, "--json")
    assert code == DONE
    verdict = json.loads(said)
    assert {f["rule"] for f in verdict["findings"]} >= {
        "non-inferior",
        "slice",
        "coverage",
        "retrieval",
        "rows-counted",
    }
    counted = {f["subject"]: f["value"] for f in verdict["findings"] if f["rule"] == "rows-counted"}
    assert counted == {"image": 10, "music": 14, "caption": 7}
    assert any(f["value"] == "too few" for f in verdict["findings"])
    page = tmp_path / "reports" / "verdict.html"
    code, said = mmva("compare", "3", "champion", *options, "--report", str(page))
    assert (code, "compare version 3 (against version 2): would be refused" in said) == (DONE, True)
    assert "would be refused" in page.read_text()
    code, said = mmva("promote", "3", *options, "--report", str(page))
    assert (code, bool(re.search("NO +non-inferior +music/valence", said))) == (SAID_NO, True)
    assert "Rules that failed" in page.read_text()
    assert mmva("audit")[0] == DONE
    assert mmva("promote", "3", "--force")[0] == WRONG_USAGE
    assert mmva("promote", "3", "--force", "--reason", "a drill")[0] == DONE
    for command in (["list"], ["show", "3"]):
        assert "FORCED by" in mmva(*command)[1]
    assert [each["passed"] for each in AuditLog.of(settings).read()] == [True, False, True, False, False]
    code, said = mmva("promote", "1", "--policy", str(tmp_path / "none.yaml"))
    assert (code, "none.yaml" in said) == (WRONG_USAGE, True)


def lax(**changed: Any) -> GatePolicy:
    """Few groups, few rows: what is not a test's own subject is allowed."""
    return GatePolicy.model_validate({**yaml.safe_load(LAX), "slices": {"apply": False}, **changed})


@pytest.mark.parametrize("towers", [("image", "music"), ("caption",)])
def test_models_with_one_or_two_towers_are_logged_promoted_and_shown(
    settings: Settings, tmp_path: Path, towers: tuple[str, ...]
) -> None:
    data = make_dataset(tmp_path / "data", OURS)
    first, second = (registered(make_run(tmp_path, name, data, towers=towers), settings) for name in ("a", "b"))
    promote(first, settings)
    verdict = promote(second, settings, policy=lax())
    assert {f.subject.partition("/")[0] for f in verdict.findings if f.rule == "non-inferior"} == set(towers)
    assert set(list_versions(settings)[1].mse) == set(towers)
    assert f"{towers[0]} valence: mse" in show_version(second, settings).to_text()
    whole = registered(make_run(tmp_path, "c", data), settings)
    promote(whole, settings, policy=lax())
    with pytest.raises(GateRefused, match="covers-champion") as caught:
        promote(first, settings, policy=lax())
    lost = {f.subject for f in caught.value.verdict.failures if f.rule == "covers-champion"}
    assert lost == set(MODALITIES) - set(towers)


def test_embeddings_stored_elsewhere_work_in_log_register_evaluate_and_promote(
    settings: Settings, tmp_path: Path
) -> None:
    data = make_dataset(tmp_path / "data", OURS, embeddings=tmp_path / "elsewhere")
    for name in ("a", "b"):
        registered(make_run(tmp_path, name, data, embeddings=str(tmp_path / "elsewhere")), settings, None)
    promote(1, settings)
    assert promote(2, settings, policy=lax()).passed
    found = evaluate_registered(f"models:/{settings.tracking.model_name}/2", str(data), settings, clip_split=False)
    assert found.rows == {"image": 10, "music": 14, "caption": 7}
    assert not found.warnings


def test_a_challenger_does_not_choose_its_own_exam_and_a_pinned_one_holds_for_both(
    settings: Settings, tmp_path: Path
) -> None:
    """A copy of the data whose test split is the training split of the first: other ids would change nothing."""
    data = make_dataset(tmp_path / "data", OURS)
    other = make_dataset(tmp_path / "other", OURS, swapped=True)
    promote(registered(make_run(tmp_path, "a", data), settings), settings)
    cheat = registered(make_run(tmp_path, "b", other), settings)
    with pytest.raises(GateRefused) as caught:
        promote(cheat, settings, policy=lax())
    verdict = caught.value.verdict
    assert verdict.exam == {
        "dataset": str(data),
        "digest": Dataset.open(str(data)).digest,
        "split": "test",
        "embeddings": None,
    }
    assert {(f.rule, f.subject) for f in verdict.failures} == {("exam-unseen", f"candidate/{m}") for m in MODALITIES}
    pinned = {"dataset": str(other), "digest": Dataset.open(str(other)).digest}
    with pytest.raises(GateRefused) as caught:
        promote(cheat, settings, policy=lax(exam=pinned))
    failed = {(f.rule, f.subject) for f in caught.value.verdict.failures}
    assert failed == {("exam-unseen", f"champion/{m}") for m in MODALITIES}
    with pytest.raises(GateRefused, match="exam-digest"):
        promote(cheat, settings, policy=lax(exam=pinned | {"digest": "0" * 64}))
    assert promote(cheat, settings, "a drill", lax(), force=True).forced


def test_small_losses_do_not_add_up_over_promotions(settings: Settings, tmp_path: Path) -> None:
    """Each version is within the margin of its champion; the third is not within that of the best so far."""
    data = make_dataset(tmp_path / "data", OURS)
    policy = lax(margins={"default": 0.6})
    for name, factor in (("a", 1.0), ("b", 0.8), ("c", 0.65)):
        registered(make_run(tmp_path, name, data, factor=factor, towers=("caption",)), settings)
    promote(1, settings)
    promote(2, settings, policy=policy)
    with pytest.raises(GateRefused) as caught:
        promote(3, settings, policy=policy)
    assert {f.rule for f in caught.value.verdict.failures} == {"best-so-far"}
