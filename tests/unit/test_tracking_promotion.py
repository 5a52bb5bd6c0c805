"""The command against everything real but the training: MLflow, bundles, a dataset folder with stored embeddings."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from registry_cases import CARD

from mmva.bundle import load_bundle, save_bundle
from mmva.modalities import AXES, MODALITIES
from mmva.model import MMVA
from mmva_platform.cli.context import DONE, SAID_NO, WRONG_USAGE
from mmva_platform.cli.main import run
from mmva_platform.settings import Settings
from mmva_platform.tracking.audit import AuditLog
from mmva_platform.tracking.registry import register
from mmva_platform.tracking.runs import log_training_run
from mmva_platform.training.evaluation import evaluate
from mmva_platform.training.recipe import Recipe
from mmva_platform.training.trainer import TrainResult

from .test_tracking_paired import DIM, OURS, label_rows, make_dataset

pytestmark = pytest.mark.slow  # MLflow's schema
LAX = "margins: {default: 0.99}\nsmallest_groups: 2\nlargest_shortfall: 0.2\nretrieval_margin: 0.5\n"


def make_run(folder: Path, name: str, data: Path, *, bias: float) -> TrainResult:
    """A bundle whose heads say the labels' mean, plus a bias on the logits, evaluated on the dataset."""
    mean_2 = np.array([[row[axis] for axis in AXES] for row in label_rows()]).mean(axis=0)
    model = MMVA(dict.fromkeys(MODALITIES, DIM))
    for modality in MODALITIES:
        model.tower(modality).linear.bias.data.copy_(torch.from_numpy(np.log(mean_2 / (1 - mean_2)) + bias))
        model.backbones[modality] = {"spec": {}, "fingerprint": OURS, "dim": DIM}
        model.preprocessing[modality] = {}
    widths = {str(modality): dict.fromkeys(AXES, 0.5) for modality in MODALITIES}
    bundle = folder / name / "bundle"
    bundle.parent.mkdir(parents=True)
    save_bundle(bundle, model, intervals=widths, card=CARD, provenance={})
    evaluation = evaluate(bundle, str(data), Settings(home=folder))
    floors: dict[str, dict[str, float]] = {
        modality: dict.fromkeys(AXES, 1.0) for modality in MODALITIES
    }  # the first rule is not this test's
    return TrainResult(
        run_name=name,
        run_dir=folder / name,
        bundle_dir=bundle,
        bundle_digest=load_bundle(bundle, load_encoders=False).digest or "",
        history=[],
        evaluation=dataclasses.replace(evaluation, floors=floors),
        recipe=Recipe(name=name, dataset=str(data), preset="tiny"),
        dataset_digest=evaluation.dataset_digest,
    )


def test_promote_with_a_policy_file_force_and_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, home = make_dataset(tmp_path / "data", OURS), tmp_path / "home"
    settings = Settings(home=home)
    for name, bias in (("first", 0.0), ("alike", 0.02), ("worse", 2.0)):
        register(log_training_run(make_run(tmp_path, name, data, bias=bias), settings, predictions={}), settings)
    (tmp_path / "lax.yaml").write_text(LAX)
    lax = ["--policy", str(tmp_path / "lax.yaml")]

    def mmva(*arguments: str) -> tuple[int, str]:
        code = run(["--home", str(home), "models", *arguments])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    assert mmva("promote", "1")[0] == DONE
    code, said = mmva("promote", "2")
    assert (code, "enough-groups image" in said) == (SAID_NO, True)
    code, said = mmva("promote", "2", *lax, "--json")
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
    code, said = mmva("compare", "3", "champion", *lax, "--report", str(page))
    assert (code, "compare version 3 (against version 2): would be refused" in said) == (DONE, True)
    assert "would be refused" in page.read_text()
    code, said = mmva("promote", "3", *lax, "--report", str(page))
    assert (code, bool(re.search("NO +non-inferior +music/valence", said))) == (SAID_NO, True)
    assert "What said no" in page.read_text()
    assert mmva("audit")[0] == DONE
    assert mmva("promote", "3", "--force")[0] == WRONG_USAGE
    assert mmva("promote", "3", "--force", "--reason", "a drill")[0] == DONE
    for command in (["list"], ["show", "3"]):
        assert "FORCED by" in mmva(*command)[1]
    assert [each["passed"] for each in AuditLog.of(settings).read()] == [True, False, True, False, False]
    code, said = mmva("promote", "1", "--policy", str(tmp_path / "none.yaml"))
    assert (code, "none.yaml" in said) == (WRONG_USAGE, True)
