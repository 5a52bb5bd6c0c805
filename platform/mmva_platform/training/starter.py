"""Makes the model that ships with the package: `python jobs/starter.py`.

Imports the three collections of jobs/recipes/sources, embeds them, measures jobs/recipes/ratings.yaml on five folds by
group, trains once more on all rows, and writes the bundle to mmva/starter/bundle, which must not exist. Import and
embedding run on Ray, the rest in this process. Files already in the work folder are reused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from mmva.modalities import AXES
from mmva_platform.settings import Config, Settings, load_config

if TYPE_CHECKING:
    from mmva_platform.datasets.features import Features
    from mmva_platform.training.evaluation.evaluate import Evaluation
    from mmva_platform.training.recipe import Recipe

SOURCES = ("oasis", "vgmidi", "emobank")


class StarterJob(Config):
    """Make the starter from people's ratings."""

    workdir: Path
    recipes: Path = Path("jobs/recipes")
    out: Path = Path("mmva/starter/bundle")
    folds: int = Field(5, ge=2, description="number of folds by group, for the card's figures and intervals")


def make_starter(job: StarterJob, settings: Settings) -> dict[str, Any]:
    """Import, embed, measure, train and write; returns the bundle's path, digest and size."""
    from mmva_platform.datasets.dataset import Dataset
    from mmva_platform.datasets.embedding.run import embed_dataset
    from mmva_platform.datasets.features import load_features
    from mmva_platform.datasets.identity import training_record
    from mmva_platform.datasets.importing.run import ImportConfig, import_dataset
    from mmva_platform.datasets.sources.config import load_source
    from mmva_platform.training.recipe import Recipe

    dataset = str(job.workdir / "dataset")
    recipe = load_config(Recipe, job.recipes / "ratings.yaml", ["dataset=starter"])
    if not (job.workdir / "dataset" / "dataset.json").exists():
        sources = [load_source(job.recipes / "sources" / f"{name}.yaml") for name in SOURCES]
        # No test split: the folds measure, and every row helps training.
        import_dataset(ImportConfig(sources=tuple(sources), fractions=(0.85, 0.15, 0.0)), dataset, settings)
    embed_dataset(dataset, recipe.preset, None, settings)
    features = load_features(dataset, recipe.preset, settings)
    record = training_record(Dataset.open(dataset, settings), features.modalities)
    return write_starter(features, recipe, record, job, settings)


def write_starter(
    features: Features, recipe: Recipe, record: Mapping[str, Any], job: StarterJob, settings: Settings
) -> dict[str, Any]:
    """Make the bundle from embedded rows."""
    from mmva.models.bundle import save_bundle
    from mmva_platform.training.evaluation.card import versions
    from mmva_platform.training.evaluation.evaluate import intervals_of, reference_of
    from mmva_platform.training.evaluation.folds import folds_of
    from mmva_platform.training.loop.in_process import train_here
    from mmva_platform.training.rundir import git_commit
    from mmva_platform.training.trainer import attach_backbones

    evaluation, held_out = folds_of(recipe, features, job.folds, recipe.seed)
    model, _ = train_here(recipe, features)
    attach_backbones(model, features, settings)
    intervals = intervals_of(held_out)
    provenance = {
        "run_name": "starter",
        "dataset": ", ".join(features.terms),
        "dataset_digest": features.digest,
        "rows": {name: {m: len(f) for m, f in features.split(name).items()} for name in ("train", "val")},
        "training_data": record,
        "recipe": recipe.model_dump(mode="json"),
        "commit": git_commit(),
        "versions": versions(),
        "reference": reference_of(model, features),
        "folds": {name: evaluation.to_json()[name] for name in ("split", "rows", "metrics", "floors")},
    }
    card = starter_card(evaluation, features.terms, intervals, provenance, recipe)
    digest = save_bundle(job.out, model, intervals=intervals, card=card, provenance=provenance)
    return {"bundle": str(job.out), "digest": digest, "bytes": sum(f.stat().st_size for f in job.out.iterdir())}


def starter_card(
    evaluation: Evaluation,
    terms: Mapping[str, str],
    intervals: Mapping[str, Mapping[str, float]],
    provenance: Mapping[str, Any],
    recipe: Recipe,
) -> str:
    """The model card."""
    import yaml

    from mmva_platform.training.evaluation.card import fill_card, table

    figures = [
        [
            modality, evaluation.rows[modality], evaluation.groups[modality], axis, of["pearson"], of["r2"], of["mse"],
            f"{evaluation.floors[modality][axis]:.4f}",
        ]
        for modality, axes in evaluation.metrics.items()
        for axis, of in axes.items()
    ]  # fmt: skip
    widths = [[modality, *(f"± {own[axis]:.2f}" for axis in AXES)] for modality, own in intervals.items()]
    return fill_card(
        "starter.md",
        terms=table(["source", "terms"], list(terms.items())),
        split=evaluation.split,
        figures=table(
            ["modality", "rows", "groups", "axis", "Pearson r", "R2", "MSE", "MSE of the best constant"], figures
        ),
        widths=table(["modality", *AXES], widths),
        recipe=yaml.safe_dump(
            recipe.model_dump(mode="json", include={"preset", "epochs", "optimizer", "model", "loss", "refit_folds"})
        ),
        commit=provenance["commit"] or "unknown",
    )
