"""The tables of an evaluation, and the model card inside a bundle, in Markdown."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mmva.imemnet.splits import LEAKAGE_WARNING
from mmva.modalities import MODALITIES

if TYPE_CHECKING:
    from mmva_platform.training.evaluation.evaluate import Evaluation
    from mmva_platform.training.evaluation.slices import SliceFigure
    from mmva_platform.training.recipe import Recipe

# MSE (valence, arousal) of the best constant prediction on IMEMNet-C's own labels, recomputed from its published files.
PUBLISHED_FLOORS: Final = {"image": (0.0240, 0.0483), "music": (0.0272, 0.0283)}
# System, data, figure: from each system's own paper, on its own data and split.
RELATED: Final = (
    ("CDCML (2020)", "IMEMNet, split by song", "music arousal MSE .015"),
    ("MMVA (2025)", "IMEMNet-C, most likely split by clip", "music arousal MSE .0002 (second-hand)"),
    ("MERT-95M frozen, linear probe", "DEAM", "arousal R2 about .58"),
    ("Music2Emo (2025)", "DEAM, song level", "R2 valence .518, arousal .623"),
    ("Music2Emo (2025)", "EmoMusic, song level", "R2 valence .651, arousal .762"),
    ("Emo-CLIM (2024)", "image to music", "P@1 .688, P@5 .682, MRR .767"),
    ("ResNet-50", "IAPS", "VA MSE .0174 on [0, 1]"),
)
# Licences of the weights by source or family; users must know those of other sources.
LICENCES: Mapping[str, str] = {
    "hf:openai/clip-vit-base-patch32": "MIT (code); weights for research, see their model card",
    "hf:m-a-p/MERT-v1-95M": "CC-BY-NC-4.0: no commercial use",
    "hf:FacebookAI/roberta-base": "MIT",
    "efficientnet-lite": "Apache-2.0",
    "musicnn": "ISC",
    "minilm": "Apache-2.0",
}
PACKAGES = ("mmva-platform", "torch", "transformers", "numpy", "ray", "pyarrow")
_INTERVALS = """\
Half widths from the validation split, for media like its own. They are calibrated by song and by image (hierarchical
conformal prediction): they hold about nine in ten of a new song's clips, somewhat fewer if validation has few songs,
because it also chose the penalties and the epoch. ± 1.000 means that validation has fewer than nine songs: nothing is
promised."""
_INTERVALS_OF_FOLDS = """\
Half widths from training and validation rows, each predicted by a model of the same recipe that saw nothing of its
group and was trained on two thirds of the rows. They are calibrated by group (hierarchical conformal prediction): they
hold nine in ten items of a new group, or more. ± 1.000 means that there are fewer than nine groups: nothing is
promised."""
_SHOWN = ("mse", "mae", "r2", "pearson", "ccc")


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def evaluation_markdown(evaluation: Evaluation, by_clip: Evaluation | None = None) -> str:
    """An evaluation's tables, warnings first; at the end, its figures beside those of `by_clip`, if given."""
    counted = ", ".join(f"{n} {m} ({evaluation.groups[m]} groups)" for m, n in evaluation.rows.items())
    sampled = ", ".join(f"{rows} {modality} rows" for modality, rows in evaluation.sampled.items())
    sampled = f" of a random sample ({sampled}; retrieval likewise)" if sampled else ""
    floors = "; ".join(f"{m} V {valence:.4f}, A {arousal:.4f}" for m, (valence, arousal) in PUBLISHED_FLOORS.items())
    parts = [
        *(f"> **Warning.** {warning}" for warning in evaluation.warnings),
        f"Split `{evaluation.split}` of `{evaluation.dataset}` (digest `{evaluation.dataset_digest[:16]}`): {counted}.",
        "Intervals are 95 %, bootstrap by song or image. The floor is the MSE of the training mean on the same rows.",
        _va_table(evaluation),
        f"MSE of the best constants on IMEMNet-C's own labels: {floors}.",
        f"Matching score (sigma {evaluation.sigma:g}), MSE over all pairs{sampled}:",
        table(["pair", "MSE"], [[pair, figure] for pair, figure in evaluation.matching.items()]),
        "Retrieval by distance of predicted points, judged by labels (P, MRR: by quadrants); in brackets, chance:",
        _retrieval_table(evaluation),
        "Related systems, by their own papers on their own data:",
        table(["system", "data", "figure"], RELATED),
    ]
    if by_clip is not None:
        title = "## For comparison: the same recipe on a split by clip"
        parts += [title, f"> **Warning.** {LEAKAGE_WARNING}", _both_splits(evaluation, by_clip)]
    return "\n\n".join(parts) + "\n"


def _both_splits(honest: Evaluation, by_clip: Evaluation) -> str:
    rows = [
        [m, axis, *(f"{of.metrics[m][axis][name].value:.4f}" for name in ("mse", "r2") for of in (honest, by_clip))]
        for m in ("music", "caption")
        if m in honest.metrics and m in by_clip.metrics
        for axis in honest.metrics[m]
    ]
    header = ["modality", "axis", "MSE, song-disjoint", "MSE, by clip", "R2, song-disjoint", "R2, by clip"]
    return table(header, rows)


def _va_table(evaluation: Evaluation) -> str:
    rows = [
        [modality, axis, *(figures[name] for name in _SHOWN), f"{evaluation.floors[modality][axis]:.4f}"]
        for modality, axes in evaluation.metrics.items()
        for axis, figures in axes.items()
    ]
    return table(["modality", "axis", "MSE", "MAE", "R2", "Pearson r", "CCC", "floor (MSE)"], rows)


def _retrieval_table(evaluation: Evaluation) -> str:
    names = {"ndcg@10": "nDCG@10", "recall@1": "recall@1", "recall@10": "recall@10"}
    names |= {"precision@1": "P@1", "precision@5": "P@5", "mrr": "MRR"}
    rows = [
        [pair, *(f"{figures[name].value:.3f} ({figures[f'random_{name}'].value:.3f})" if name in figures else "-"
                 for name in names)]
        for pair, figures in evaluation.retrieval.items()
    ]  # fmt: skip
    return table(["query -> gallery", *names.values()], rows)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that affect a model's numbers."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def model_card(
    evaluation: Evaluation,
    recipe: Recipe,
    backbones: Mapping[str, Mapping[str, Any]],
    intervals: Mapping[str, Mapping[str, float]],
    provenance: Mapping[str, Any],
    *,
    slices: Sequence[SliceFigure],
    terms: Mapping[str, str],
) -> str:
    """The model card: use, data, figures, limits, licences.

    `evaluation` is on the test split, `intervals` are half widths by modality and axis, `terms` are licences by source
    of the dataset; the rest is as in the bundle.
    """
    import yaml

    split_rows = [[name, *(counts.get(m, 0) for m in MODALITIES)] for name, counts in provenance["rows"].items()]
    half_widths = [[modality, *(f"± {width:.3f}" for width in axes.values())] for modality, axes in intervals.items()]
    parts = [[each.modality, each.kind, each.name, each.rows, each.groups, each.mse] for each in slices]
    # Sources of the dataset, whether or not they have test rows.
    sources = dict.fromkeys([*terms, *(each.name for each in slices if each.kind == "source")])
    environment = [*provenance["versions"].items(), ["commit", provenance["commit"] or "unknown"]]
    return fill_card(
        "model.md",
        **{name: str(provenance[name]) for name in ("run_name", "dataset", "dataset_digest")},
        backbones=_backbone_table(backbones),
        rows=table(["split", "images", "clips", "captions"], split_rows),
        figures=evaluation_markdown(evaluation).rstrip(),
        slices=table(["modality", "by", "part", "rows", "songs or images", "MSE"], parts),
        intervals_note=_INTERVALS_OF_FOLDS if recipe.refit_folds else _INTERVALS,
        intervals=table(["modality", "valence", "arousal"], half_widths),
        licences=table(["source", "licence"], [[each, terms.get(each, "not stated")] for each in sources]),
        recipe=yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False),
        environment=table(["what", "version"], environment),
    )


def fill_card(name: str, **parts: str) -> str:
    """A card of the folder `cards` with its {parts} filled in."""
    return (Path(__file__).parent / "cards" / name).read_text(encoding="utf-8").format(**parts)


def _backbone_table(backbones: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for modality, record in backbones.items():
        spec = record["spec"]
        licence = LICENCES.get(spec["source"]) or LICENCES.get(spec["family"], "see its source")
        rows.append(
            [modality, spec["family"], f"`{spec['source']}`", record["dim"], f"`{record['fingerprint'][:16]}`", licence]
        )
    return table(["modality", "family", "source", "width", "fingerprint", "licence of the weights"], rows)
