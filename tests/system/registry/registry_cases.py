"""Finished training runs with made-up figures, and rows on which their bundles err as much as the figures say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmva.backbones import load_encoder, preset
from mmva.bundle import load_bundle, save_bundle
from mmva.modalities import AXES, MODALITIES
from mmva.model import MMVA
from mmva_platform.settings import Settings
from mmva_platform.tracking.audit import AuditLog
from mmva_platform.tracking.evidence import PairedRows, Pairing
from mmva_platform.tracking.policy import GatePolicy
from mmva_platform.tracking.registry import list_versions, register
from mmva_platform.tracking.runs import log_training_run
from mmva_platform.training.evaluation import Evaluation, Figure
from mmva_platform.training.recipe import Recipe
from mmva_platform.training.trainer import TrainResult

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CARD = "# Card\n" + "".join(f"\n## {section}\n\ntext\n" for section in GatePolicy().card_sections)
ROWS = 240


def make_bundle(folder: Path, seed: int = 0) -> Path:
    """A bundle of untrained towers on the tiny encoders; another seed is another digest."""
    encoders = {modality: load_encoder(spec) for modality, spec in preset("tiny").specs.items()}
    torch.manual_seed(seed)
    model = MMVA({modality: encoder.dim for modality, encoder in encoders.items()})
    model.attach_encoders({str(modality): encoder for modality, encoder in encoders.items()})
    widths: dict[str, dict[str, float]] = {modality: dict.fromkeys(AXES, 0.2) for modality in MODALITIES}
    save_bundle(folder, model, intervals=widths, card=CARD, provenance={"commit": f"{COMMIT}-dirty"})
    return folder


def make_result(folder: Path, *, name: str, seed: int = 0, mse: float = 0.02, digest: str = "d" * 64) -> TrainResult:
    """A finished training run with made-up figures."""
    bundle = make_bundle(folder / name / "bundle", seed)
    figures = {
        "mse": Figure(mse, mse - 0.01, mse + 0.01),
        "r2": Figure(0.5, 0.4, 0.6),
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


class FakePairs:
    """Stands in for paired.predict_pair: points that are off by the root of each bundle's MSE, on 60 songs' rows."""

    def __init__(self) -> None:
        self.results: dict[str, TrainResult] = {}
        self.before: Callable[[], object] = lambda: None

    def __call__(
        self, candidate: Path, champion: Path, dataset_uri: str, settings: Settings, *, split: str, policy: GatePolicy
    ) -> Pairing:
        """Bundles lie in the cache under their digests."""
        self.before()
        mine, theirs = self.results[candidate.name], self.results[champion.name]
        assert dataset_uri == mine.evaluation.dataset
        assert split == "test"
        rng = np.random.default_rng(0)
        label = rng.uniform(0.2, 0.8, (ROWS, 2))
        sign = rng.choice([-1.0, 1.0], (ROWS, 2))
        group = np.repeat(np.arange(ROWS // 4), 4).astype(str)
        rows = {
            modality: PairedRows(
                label,
                label + sign * mine.evaluation.metrics[modality]["valence"]["mse"].value ** 0.5,
                label + sign * theirs.evaluation.metrics[modality]["valence"]["mse"].value ** 0.5,
                group,
                np.full(ROWS, "deam"),
                rng.uniform(0, 1, ROWS // 4).repeat(4),
                5.0,
                5.0,
            )
            for modality in MODALITIES
        }
        return Pairing(mine.dataset_digest, split, dict.fromkeys(MODALITIES, ROWS), rows)


def registrar(settings: Settings, folder: Path, pairs: FakePairs) -> Callable[..., int]:
    """Logs and registers runs with the given figures; each call returns a version."""
    made = iter(range(100))

    def make(**figures: Any) -> int:
        number = next(made)
        result = make_result(folder, name=f"run-{number}", seed=number, **figures)
        result.history.clear()  # or each would draw three pictures of it, most of a registration's time
        pairs.results[result.bundle_digest] = result
        return register(log_training_run(result, settings, predictions={}), settings)

    return make


def records(settings: Settings) -> list[dict[str, Any]]:
    """The audit log's."""
    return AuditLog.of(settings).read()


def aliases(settings: Settings) -> dict[str, int]:
    """Version by alias."""
    return {alias: version.version for version in list_versions(settings) for alias in version.aliases}
