"""Finished training runs with made-up figures, and rows on which their bundles err as much as the figures say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmva.backbones import load_encoder, preset
from mmva.modalities import AXES, MODALITIES
from mmva.models.bundle import load_bundle, save_bundle
from mmva.models.model import MMVA
from mmva_platform.datasets.identity import Seen
from mmva_platform.settings import Settings
from mmva_platform.tracking.audit import AuditLog
from mmva_platform.tracking.gate.evidence import Examined, ExamRows, ModelFacts
from mmva_platform.tracking.gate.policy import Exam, GatePolicy
from mmva_platform.tracking.registry import list_versions, register
from mmva_platform.tracking.runs import log_training_run
from mmva_platform.training.evaluation.evaluate import Evaluation, Figure
from mmva_platform.training.recipe import Recipe
from mmva_platform.training.trainer import TrainResult

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROWS = 240


def make_bundle(folder: Path, seed: int = 0) -> Path:
    """A bundle of untrained towers on the tiny encoders; another seed is another digest."""
    encoders = {modality: load_encoder(spec) for modality, spec in preset("tiny").specs.items()}
    torch.manual_seed(seed)
    model = MMVA({modality: encoder.dim for modality, encoder in encoders.items()})
    model.attach_encoders({str(modality): encoder for modality, encoder in encoders.items()})
    widths: dict[str, dict[str, float]] = {modality: dict.fromkeys(AXES, 0.2) for modality in MODALITIES}
    save_bundle(folder, model, intervals=widths, card="# Card", provenance={"commit": f"{COMMIT}-dirty"})
    return folder


def make_result(folder: Path, *, name: str, seed: int = 0, mse: float = 0.02, digest: str = "d" * 64) -> TrainResult:
    """A finished training run with made-up figures."""
    bundle = make_bundle(folder / name / "bundle", seed)
    figures = {
        "mse": Figure(mse, mse - 0.01, mse + 0.01),
        "r2": Figure(0.5, 0.4, 0.6),
        "pearson": Figure(0.7, 0.6, 0.8),
        "ccc": Figure(float("nan"), 0, 0),
    }
    evaluation = Evaluation(
        dataset=str(folder / "dataset"),
        dataset_digest=digest,
        split="test",
        model_digest=None,
        rows=dict.fromkeys(MODALITIES, ROWS),
        groups=dict.fromkeys(MODALITIES, ROWS // 4),
        metrics={modality: dict.fromkeys(AXES, figures) for modality in MODALITIES},
        matching={"image-music": Figure(0.03, 0.02, 0.04)},
        retrieval={"image->music": {"ndcg@10": Figure(0.8, 0.7, 0.9)}},
        floors={modality: dict.fromkeys(AXES, 0.03) for modality in MODALITIES},
        sigma=0.38,
    )
    history = [
        {"epoch": e, "loss": 1.0 / (e + 1), "val_total": 0.5 / (e + 1), "target_histogram": [1, 2, 3]} for e in range(3)
    ]
    return TrainResult(
        run_name=name,
        run_dir=folder / name,
        bundle_dir=bundle,
        bundle_digest=load_bundle(bundle, load_encoders=False).digest or "",
        history=history,
        evaluation=evaluation,
        recipe=Recipe(name=name, dataset=str(folder / "dataset"), preset="tiny"),
        dataset_digest=digest,
    )


class FakeExam:
    """Stands in for evidence.examine: points that are off by the root of each bundle's MSE, on 60 songs' rows."""

    def __init__(self) -> None:
        self.results: dict[str, TrainResult] = {}

    def __call__(
        self, exam: Exam, bundles: Mapping[int, Path], settings: Settings, policy: GatePolicy, candidate: int
    ) -> Examined:
        """Bundles lie in the cache under their digests."""
        mses = {version: self.mse(bundle.name) for version, bundle in bundles.items()}
        rng = np.random.default_rng(0)
        label = rng.uniform(0.2, 0.8, (ROWS, 2))
        sign = rng.choice([-1.0, 1.0], (ROWS, 2))
        rows = ExamRows(
            label,
            {version: label + sign * mse**0.5 for version, mse in mses.items()},
            np.repeat(np.arange(ROWS // 4), 4).astype(str),
            np.full(ROWS, "deam"),
            rng.uniform(0, 1, ROWS // 4).repeat(4),
        )
        facts = ModelFacts(
            MODALITIES, {m: dict.fromkeys(AXES, 0.2) for m in MODALITIES}, 0, {m: Seen(ROWS, 0, 0) for m in MODALITIES}
        )
        expected = dict.fromkeys(MODALITIES, ROWS)
        return Examined(exam.digest, 0, expected, dict.fromkeys(MODALITIES, rows), dict.fromkeys(bundles, facts))

    def mse(self, digest: str) -> float:
        """Of a registered bundle."""
        result = self.results.get(digest)
        return 0.02 if result is None else result.evaluation.metrics["image"]["valence"]["mse"].value


def registrar(settings: Settings, folder: Path, exam: FakeExam) -> Callable[..., int]:
    """Logs and registers runs with the given figures; each call returns a version."""
    made = iter(range(100))

    def make(**figures: Any) -> int:
        number = next(made)
        result = make_result(folder, name=f"run-{number}", seed=number, **figures)
        result.history.clear()  # or each would draw three pictures of it, most of a registration's time
        exam.results[result.bundle_digest] = result
        return register(log_training_run(result, settings, predictions={}), settings)

    return make


def records(settings: Settings) -> list[dict[str, Any]]:
    """The audit log's."""
    return AuditLog.of(settings).read()


def aliases(settings: Settings) -> dict[str, int]:
    """Version by alias."""
    return {alias: version.version for version in list_versions(settings) for alias in version.aliases}
