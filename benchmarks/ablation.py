"""What matched sampling, the similarity loss and the third modality each bring, over several seeds, with intervals.

    python benchmarks/ablation.py --workdir DIR [--seeds 5] [--images 1000] [--clips 1000]

One generated dataset, imported and embedded once with the `compact` preset; every variant then trains its towers in
this process (features mode, the quickstart's recipe) under the same seeds and is measured on the same test split. A
seed deals songs and images to the splits anew, so that the interval holds what another test set would change, too. Each
line is the mean over seeds of (variant - baseline), with a 95 % t interval of that paired difference; what includes
zero brings nothing that these seeds can show. Prints a Markdown table; JSON to stdout with --json. What is in the work
folder is used again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from mmva.imemnet.splits import split_by_group
from mmva_platform.datasets.features import Features, load_features
from mmva_platform.settings import Settings, load_config
from mmva_platform.training.evaluation.card import table
from mmva_platform.training.loop.in_process import train_here
from mmva_platform.training.recipe import Recipe
from mmva_platform.training.trainer import git_commit

RECIPE = Path(__file__).resolve().parents[1] / "jobs" / "recipes" / "quickstart.yaml"
FRACTIONS = (0.7, 0.15, 0.15)
# Each variant is the baseline (random pairs, L_sim, captions) with one thing changed.
VARIANTS: dict[str, list[str]] = {
    "baseline": ["strategy=random"],
    "matched sampling": ["strategy=matched"],
    "no similarity loss": ["strategy=random", "loss.similarity_weight=0"],
    "matched, no similarity loss": ["strategy=matched", "loss.similarity_weight=0"],
    "similarity loss x 4": ["strategy=random", "loss.similarity_weight=4"],
    "no captions": ["strategy=random"],
}
MEASURES = ("image VA MSE", "music VA MSE", "matching MSE, random pairs", "matching MSE, pairs above .8", "nDCG@10")


def dealt(features: Features, seed: int) -> Features:
    """The features with songs and images dealt to the splits by this seed."""
    modalities = {}
    for modality, rows in features.modalities.items():
        modalities[modality] = replace(rows, split=split_by_group(rows.group.tolist(), seed, FRACTIONS))
    return replace(features, modalities=modalities)


def measured(model: Any, features: Features, sigma: float) -> dict[str, float]:
    """The measures on the test split, all of them without captions."""
    from mmva.affect import matching_score
    from mmva.evaluation.retrieval import retrieval_per_query

    rows = {modality: features.split("test")[modality] for modality in ("image", "music")}
    points = {m: model.predict_embeddings(m, of.emb_ND).astype(np.float64) for m, of in rows.items()}
    label_NM, predicted_NM = (
        matching_score(va["image"][:, None, :], va["music"][None, :, :], sigma)
        for va in ({m: of.va_N2 for m, of in rows.items()}, points)
    )
    error_NM = np.square(label_NM - predicted_NM)
    retrieval = retrieval_per_query(
        points["image"], points["music"], rows["image"].va_N2, rows["music"].va_N2, sigma=sigma
    )
    values = (
        *(float(np.square(points[m] - of.va_N2).mean()) for m, of in rows.items()),
        float(error_NM.mean()),
        float(error_NM[label_NM > 0.8].mean()),
        float(retrieval["ndcg@10"].mean()),
    )
    return dict(zip(MEASURES, values, strict=True))


def run(features: Features, recipes: dict[str, Recipe], seeds: int, workdir: Path) -> dict[str, list[dict[str, float]]]:
    """Measures of every variant under every seed; each is written down, so that a run that was ended goes on."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in recipes}
    for seed in range(seeds):
        there = dealt(features, seed)
        for name, recipe in recipes.items():
            began = time.monotonic()
            used = there
            written = workdir / f"seed-{seed}-{name.replace(' ', '-')}.json"
            if written.exists():
                found[name].append(json.loads(written.read_text()))
                continue
            if name == "no captions":
                used = replace(there, modalities={m: of for m, of in there.modalities.items() if m != "caption"})
            model, _ = train_here(recipe.model_copy(update={"seed": seed}), used)
            found[name].append(measured(model, used, recipe.loss.sigma))
            written.write_text(json.dumps(found[name][-1]))
            print(f"seed {seed}, {name}: {time.monotonic() - began:.1f} s", file=sys.stderr)
    return found


def difference(values: list[float], baseline: list[float]) -> tuple[float, float, float]:
    """Mean of the paired differences and its 95 % t interval."""
    change = np.subtract(values, baseline)
    mean, error = float(change.mean()), float(stats.sem(change))
    half = float(stats.t.ppf(0.975, len(change) - 1)) * error
    return mean, mean - half, mean + half


def report(found: dict[str, list[dict[str, float]]]) -> str:
    """The table: the baseline's means, then each variant's differences; an asterisk where zero is not among them."""
    lines: list[list[object]] = []
    for name, rows in found.items():
        line: list[object] = [name]
        for measure in MEASURES:
            values, base = [row[measure] for row in rows], [row[measure] for row in found["baseline"]]
            if name == "baseline":
                line.append(f"{np.mean(values):.4f}")
            else:
                mean, low, high = difference(values, base)
                line.append(f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]{'' if low <= 0 <= high else ' *'}")
        lines.append(line)
    return table(["variant", *MEASURES], lines)


def prepare(workdir: Path, images: int, clips: int, settings: Settings) -> str:
    """Media, dataset and embeddings, each only if it is not there."""
    from mmva.imemnet.generator import generate
    from mmva_platform.datasets.embedding.run import embed_dataset
    from mmva_platform.datasets.importing.run import ImportConfig, import_dataset
    from mmva_platform.datasets.sources.config import ImemnetSource

    media, dataset = workdir / "media", workdir / "dataset"
    if not media.exists():
        generate(media, images=images, clips=clips, seed=0)
    if not (dataset / "dataset.json").exists():
        import_dataset(
            ImportConfig(sources=(ImemnetSource(root=str(media)),), fractions=FRACTIONS), str(dataset), settings
        )
    embed_dataset(str(dataset), "compact", None, settings)
    return str(dataset)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    settings = Settings(home=arguments.workdir / "home")
    dataset = prepare(arguments.workdir, arguments.images, arguments.clips, settings)
    recipes = {
        name: load_config(Recipe, RECIPE, [f"dataset={dataset}", *changes]) for name, changes in VARIANTS.items()
    }
    found = run(load_features(dataset, "compact", settings), recipes, arguments.seeds, arguments.workdir)
    print(report(found), file=sys.stderr)
    if arguments.json:
        facts = {"commit": git_commit(), "seeds": arguments.seeds, "images": arguments.images, "clips": arguments.clips}
        print(json.dumps({**facts, "found": found}, indent=2))


if __name__ == "__main__":
    main()
