"""Trained heads against closed-form ridge regression, on the same frozen features of the same generated test split.

    python benchmarks/ridge.py --workdir DIR [--images 1000] [--clips 1000] [--recipe jobs/recipes/quickstart.yaml]

A training loop that loses to ridge is broken: exit code 1 if ours has a lower R2 on any modality and axis. Ridge gets
its penalty per modality and axis from the validation split, and its predictions are cut to [0, 1], as ours are. What is
in the work folder already (media, dataset, embeddings) is used again; every call trains anew.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmva.evaluation.metrics import va_metrics
from mmva.modalities import AXES
from mmva_platform.datasets.features import Features, ModalityFeatures, load_features
from mmva_platform.settings import Settings, load_config
from mmva_platform.training.evaluation.card import table
from mmva_platform.training.recipe import Recipe
from mmva_platform.training.trainer import TrainResult, git_commit, train

ALPHAS = np.logspace(-2, 6, 49)
DEFAULT_RECIPE = Path(__file__).resolve().parents[1] / "jobs" / "recipes" / "quickstart.yaml"


def ridge_r2(train_rows: ModalityFeatures, val: ModalityFeatures, test: ModalityFeatures) -> dict[str, float]:
    """R2 on test of ridge regression on standardised features, per axis, with the penalty that is best on val."""
    mean_D, std_D = train_rows.emb_ND.mean(axis=0), train_rows.emb_ND.std(axis=0)
    scale_D = np.where(std_D > 1e-6, std_D, 1.0)
    x_train, x_val, x_test = (((rows.emb_ND - mean_D) / scale_D).astype(np.float64) for rows in (train_rows, val, test))
    intercept_2 = train_rows.va_N2.mean(axis=0)
    u_NK, s_K, vt_KD = np.linalg.svd(x_train, full_matrices=False)
    projected_K2 = u_NK.T @ (train_rows.va_N2 - intercept_2)

    def predict(x_ND: NDArray[np.float64], alpha: float) -> NDArray[np.float64]:
        weights_D2 = vt_KD.T @ (projected_K2 * (s_K / (s_K**2 + alpha))[:, None])
        return np.clip(x_ND @ weights_D2 + intercept_2, 0, 1)

    on_val = [va_metrics(predict(x_val, alpha), val.va_N2) for alpha in ALPHAS]
    r2 = {}
    for axis in AXES:
        best = max(range(len(ALPHAS)), key=lambda i, axis=axis: on_val[i][axis]["r2"])
        r2[axis] = va_metrics(predict(x_test, ALPHAS[best]), test.va_N2)[axis]["r2"]
    return r2


def prepare(arguments: argparse.Namespace, settings: Settings, preset: str) -> str:
    """Media, dataset and embeddings, each only if it is not there; returns the dataset's URI."""
    from mmva.imemnet.generator import generate
    from mmva_platform.datasets.embedding.run import embed_dataset
    from mmva_platform.datasets.importing.run import ImportConfig, import_dataset
    from mmva_platform.datasets.sources.config import ImemnetSource

    media, dataset = arguments.workdir / "media", arguments.workdir / "dataset"
    if not media.exists():
        generate(media, images=arguments.images, clips=arguments.clips, seed=arguments.seed)
    if not (dataset / "dataset.json").exists():
        # IMEMNet's 5 % would leave both sides five songs to choose their penalty or epoch by.
        import_dataset(
            ImportConfig(sources=(ImemnetSource(root=str(media)),), fractions=(0.7, 0.15, 0.15)), str(dataset), settings
        )
    embed_dataset(str(dataset), preset, None, settings)
    return str(dataset)


def compare(result: TrainResult, features: Features) -> list[tuple[str, str, float, float]]:
    """(modality, axis, our R2, ridge's R2) on the test split."""
    splits = {name: features.split(name) for name in ("train", "val", "test")}
    lines = []
    for modality in result.evaluation.metrics:
        ridge = ridge_r2(splits["train"][modality], splits["val"][modality], splits["test"][modality])
        ours = result.evaluation.metrics[modality]
        lines += [(modality, axis, ours[axis]["r2"].value, ridge[axis]) for axis in AXES]
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 if ours is at least ridge everywhere, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--images", type=int, default=700)
    parser.add_argument("--clips", type=int, default=700)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipe", type=Path, default=DEFAULT_RECIPE)
    parser.add_argument("--set", action="append", default=[], help="key=value on top of the recipe")
    options = parser.parse_args(arguments)
    settings = Settings(home=options.workdir)
    preset = load_config(Recipe, options.recipe, options.set).preset
    dataset = prepare(options, settings, preset)
    recipe = load_config(Recipe, options.recipe, [*options.set, f"dataset={json.dumps(dataset)}"])
    began = time.monotonic()
    result = train(recipe, settings)
    seconds = time.monotonic() - began
    lines = compare(result, load_features(dataset, preset, settings))
    print(f"commit {git_commit()}, {platform.processor() or platform.machine()}, {os.cpu_count()} CPUs")
    print(f"run {result.run_name}: {len(result.history)} epochs, {seconds:.1f} s with start-up and evaluation")
    print(table(["modality", "axis", "R2 ours", "R2 ridge", ""], [[*_shown(line)] for line in lines]))
    return int(any(ours < ridge for _, _, ours, ridge in lines))


def _shown(line: tuple[str, str, float, float]) -> tuple[str, ...]:
    modality, axis, ours, ridge = line
    return modality, axis, f"{ours:.4f}", f"{ridge:.4f}", "" if ours >= ridge else "below ridge"


if __name__ == "__main__":
    sys.exit(main())
