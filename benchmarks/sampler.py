"""What drawing an epoch of pairs costs beside training it, at IMEMNet-C's size, and how both grow.

    IMEMNET_DIR=... python benchmarks/sampler.py [--repeats 5] [--batch-size 64] [--sizes 10000 100000] [--plot FILE]

The claim: 24,744 x 25,944 items' matched pairs are drawn in under 1 % of that epoch's training time. Training is the
shortest there is: `features` mode, one process, one thread, no Ray, random embeddings of the `compact` preset's widths
in memory. Plans and epochs are timed in turns in one process; the medians' ratio is what counts. Prints a table to
stderr and JSON to stdout; exit code 1 if the claim does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from mmva.losses import LossConfig, mmva_loss
from mmva.matching import STRATEGIES, EpochPlan, batches, epoch_plan, score_histogram
from mmva.models.model import MMVA

IMAGES, CLIPS = 24_744, 25_944
COMPACT_DIMS = {"image": 1280, "music": 753, "caption": 384}
# Mean and standard deviation of IMEMNet's labels (valence, arousal), for a machine that does not have them.
MOMENTS = {"image": ([0.552, 0.527], [0.155, 0.220]), "music": ([0.560, 0.560], [0.165, 0.192])}
CLAIM = 0.01
Va = NDArray[np.float64]


def real_labels(folder: Path) -> tuple[Va, Va]:
    """IMEMNet's image labels, and its known clips' labels repeated up to the number of all clips."""
    images = pd.read_csv(folder / "image_va.csv")
    images = images[~images["img"].duplicated(keep="first")]
    clips = pd.read_csv(folder / "music_va_known.csv")
    return (
        images[["valence", "arousal"]].to_numpy(np.float64)[:IMAGES],
        np.resize(clips[["valence", "arousal"]].to_numpy(np.float64), (CLIPS, 2)),
    )


def generated_labels(images: int, clips: int) -> tuple[Va, Va]:
    """Normal labels with IMEMNet's moments, cut to [0, 1]."""
    rng = np.random.default_rng(0)
    drawn = [rng.normal(*MOMENTS[name], (count, 2)) for name, count in (("image", images), ("music", clips))]
    return drawn[0].clip(0, 1), drawn[1].clip(0, 1)


class Training:
    """One process' training loop over embeddings in memory."""

    def __init__(self, image_va: Va, music_va: Va, batch_size: int) -> None:
        torch.manual_seed(0)
        self.rows = {"image": len(image_va), "music": len(music_va), "caption": len(music_va)}
        self.embeddings = {name: torch.randn(self.rows[name], dim) for name, dim in COMPACT_DIMS.items()}
        music = torch.from_numpy(music_va).float()
        self.labels = {"image": torch.from_numpy(image_va).float(), "music": music, "caption": music}
        self.model = MMVA(COMPACT_DIMS)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.config, self.batch_size = LossConfig(), batch_size

    def epoch(self, plan: EpochPlan) -> None:
        """Train on every pair once."""
        images, clips = torch.from_numpy(plan.image_index_P), torch.from_numpy(plan.music_index_P)
        for rows in batches(plan, self.batch_size):
            index = {"image": images[rows], "music": clips[rows], "caption": clips[rows]}
            va = self.model({name: self.embeddings[name][index[name]] for name in COMPACT_DIMS})
            labels = {name: self.labels[name][index[name]] for name in COMPACT_DIMS}
            self.optimizer.zero_grad()
            mmva_loss(va, labels, None, self.config)[0].backward()
            self.optimizer.step()


def timed_plan(image_va: Va, music_va: Va, strategy: str, epoch: int) -> tuple[float, EpochPlan]:
    """Seconds and plan of one epoch."""
    start = time.perf_counter()
    plan = epoch_plan(image_va, music_va, seed=0, epoch=epoch, strategy=strategy)  # type: ignore[arg-type] # from STRATEGIES
    return time.perf_counter() - start, plan


def against_training(image_va: Va, music_va: Va, batch_size: int, repeats: int) -> dict[str, object]:
    """Median seconds of plans and of epochs, in turns, after one of each that does not count."""
    training = Training(image_va, music_va, batch_size)
    seconds: dict[str, list[float]] = {name: [] for name in (*STRATEGIES, "training")}
    histograms: dict[str, list[float]] = {}
    for epoch in range(repeats + 1):
        plans = {}
        for strategy in STRATEGIES:
            took, plans[strategy] = timed_plan(image_va, music_va, strategy, epoch)
            seconds[strategy].append(took)
            shares = score_histogram(plans[strategy].target_P) / len(plans[strategy])
            histograms[strategy] = [round(float(share), 3) for share in shares]
        start = time.perf_counter()
        training.epoch(plans["matched"])
        seconds["training"].append(time.perf_counter() - start)
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    return {
        "images": len(image_va),
        "clips": len(music_va),
        "seconds": medians,
        "share_of_training": {strategy: medians[strategy] / medians["training"] for strategy in STRATEGIES},
        "target_histogram": histograms,
    }


def growth(sizes: list[int], repeats: int) -> list[dict[str, float]]:
    """Median seconds of a plan over size x size items."""
    rows = []
    for size in sizes:
        image_va, music_va = generated_labels(size, size)
        row: dict[str, float] = {"items": size}
        for strategy in STRATEGIES:
            rounds = repeats if size <= 1_000_000 else 1
            row[strategy] = statistics.median(
                timed_plan(image_va, music_va, strategy, epoch)[0] for epoch in range(rounds)
            )
        rows.append(row)
    return rows


def exponents(rows: list[dict[str, float]]) -> dict[str, float]:
    """Slope of log(seconds) over log(items): 1 is linear, n log n from 10^4 to 10^7 is 1.08."""
    items = np.log([row["items"] for row in rows])
    return {name: float(np.polyfit(items, np.log([row[name] for row in rows]), 1)[0]) for name in STRATEGIES}


def plot(rows: list[dict[str, float]], path: Path) -> None:
    """Seconds over items, with lines of n log n and n^2 through the first point to compare by."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    items = np.array([row["items"] for row in rows])
    for name in STRATEGIES:
        axes.loglog(items, [row[name] for row in rows], "o-", label=name)
    first = rows[0]["matched"]
    for label, cost in (("n log n", items * np.log(items)), ("n²", items**2.0)):
        axes.loglog(items, first * cost / cost[0], ":", color="grey")
        place = (items[-2], first * cost[-2] / cost[0])
        axes.annotate(label, place, xytext=(6, -14), textcoords="offset points", color="grey")
    axes.set(xlabel="items a side", ylabel="seconds for an epoch's plan", ylim=(None, 100))
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> int:
    """Run, print, and say whether the claim holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--sizes", type=int, nargs="*", default=[10_000, 100_000, 1_000_000, 10_000_000])
    parser.add_argument("--plot", type=Path, help="PNG of the growth, both axes logarithmic")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = os.environ.get("IMEMNET_DIR")
    labels = real_labels(Path(folder)) if folder else generated_labels(IMAGES, CLIPS)
    result = {
        "labels": "IMEMNet" if folder else "generated",
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, torch {torch.__version__}, numpy {np.__version__}",
        "batch_size": arguments.batch_size,
        **against_training(*labels, arguments.batch_size, arguments.repeats),
        "growth": growth(arguments.sizes, arguments.repeats),
    }
    result["exponents"] = exponents(result["growth"])
    if arguments.plot:
        plot(result["growth"], arguments.plot)
    seconds, share = result["seconds"], result["share_of_training"]
    for name in STRATEGIES:
        print(f"{name:>8}  {seconds[name] * 1e3:8.1f} ms  {share[name]:8.2%} of training", file=sys.stderr)
    print(f"training  {seconds['training'] * 1e3:8.1f} ms an epoch", file=sys.stderr)
    for row in result["growth"]:
        print(
            f"{row['items']:>9,} items: random {row['random']:.4f} s, matched {row['matched']:.4f} s", file=sys.stderr
        )
    print(f"growth: {result['exponents']}", file=sys.stderr)
    print(json.dumps(result, indent=2))
    return 0 if share["matched"] < CLAIM else 1


if __name__ == "__main__":
    sys.exit(main())
