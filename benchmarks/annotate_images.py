"""`mmva annotate` of JPEGs on a local disk against a loop written by hand and against an earlier commit.

    python benchmarks/annotate_images.py [--workdir DIR] [--items 1600 6400] [--rounds 3] [--before 59e76ed]

Three variants in turns, each a whole process that starts its own Ray, `compact` preset, engine onnx:
  ours      `mmva annotate` of this tree
  by hand   handwritten_loop.py on the network that ours exported, with the same decoder, at its best setting
  before    `mmva annotate` of an earlier commit, from a git worktree that is removed at the end
Each runs at two sizes: the slope between them is the steady cost of an image, the rest is fixed cost.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
from harness import ROOT, Line, Measured, make_bundle, measured, mmva, other_commit, workspace
from made_media import make_pictures
from report import Report

BEFORE = "59e76ed"
TRIED = 200  # images, to find the loop's best setting
WANTED = {
    "images/s, ours / by hand": "at least 1.1",
    "images/s, ours / before": "at least .95",
    "fixed s, ours - before": "at most 5",
}

Setting = tuple[int, int, int]  # workers, threads, batch


class Bench:
    """The commands of the three variants over one work folder."""

    def __init__(self, workdir: Path, before: Path) -> None:
        self.workdir, self.trees = workdir, {"ours": ROOT, "before": before}
        self.bundle = make_bundle(workdir / "bundle")

    def out(self, variant: str) -> Path:
        """Where a variant's last run is."""
        return self.workdir / f"out-{variant}"

    def annotate(self, variant: str, media: Path) -> Measured:
        """Annotate a folder with one of the trees. The first run of a variant calibrates."""
        out = self.out(variant)
        shutil.rmtree(out, ignore_errors=True)
        options = ("annotate", media, "--model", self.bundle, "--out", out, "--engine", "onnx")
        return measured(mmva(*options, home=self.workdir / f"home-{variant}", tree=self.trees[variant]))

    def by_hand(self, media: Path, items: int, network: Path, setting: Setting) -> Measured:
        """The loop over a folder's first images."""
        loop = Path(__file__).with_name("handwritten_loop.py")
        parts = [sys.executable, loop, "--bundle", self.bundle, "--media", media, "--onnx", network]
        parts += ["--items", str(items), "--out", self.workdir / "loop.parquet"]
        for name, value in zip(("--workers", "--threads", "--batch"), setting, strict=True):
            parts += [name, str(value)]
        return measured(parts)

    def run(self, variant: str, media: Path, items: int, network: Path, setting: Setting) -> Measured:
        """One process of a variant."""
        if variant == "by hand":
            return self.by_hand(media, items, network, setting)
        return self.annotate(variant, media)


def settings_to_try() -> list[Setting]:
    """Half of the cores and all of them, for workers and for threads; small and large batches."""
    cores = psutil.cpu_count() or 1
    counts = sorted({max(1, cores // 2), cores})
    return [(workers, threads, batch) for workers in counts for threads in counts for batch in (8, 32)]


def exported_network(out: Path, tower: str, copy: Path) -> Path:
    """The network that a run exported for a tower, copied to where it stays."""
    plan = json.loads((out / "_mmva" / "000000" / "plan.json").read_text())
    shutil.copyfile(out / "_mmva" / plan["engines"][tower]["file"], copy)
    return copy


def compare(bench: Bench, sizes: Sequence[int], rounds: int) -> tuple[list[dict[str, float]], Setting]:
    """Rows of figures, one a round, and the loop's setting."""
    media = {items: make_pictures(bench.workdir / f"images-{items}", items) for items in sizes}
    warm_up = make_pictures(bench.workdir / f"images-{TRIED}", TRIED)
    for variant in ("before", "ours"):
        bench.annotate(variant, warm_up)
    network = exported_network(bench.out("ours"), "image", bench.workdir / "network.onnx")
    setting = min(settings_to_try(), key=lambda tried: bench.by_hand(warm_up, TRIED, network, tried).seconds)
    rows = []
    variants = ["ours", "by hand", "before"]
    for _ in range(rounds):
        lines = {}
        for variant in variants:
            small, large = ((items, bench.run(variant, media[items], items, network, setting)) for items in sizes)
            lines[variant] = Line.through(small, large)
        variants.append(variants.pop(0))  # the next round begins with another one
        rows.append(figures(lines["ours"], lines["by hand"], lines["before"]))
    return rows, setting


def figures(ours: Line, by_hand: Line, before: Line) -> dict[str, float]:
    """What one round shows."""
    return {
        "images/s, ours": ours.rate,
        "images/s, by hand": by_hand.rate,
        "images/s, before": before.rate,
        "images/s, ours / by hand": ours.rate / by_hand.rate,
        "images/s, ours / before": ours.rate / before.rate,
        "CPU s an image, ours / by hand": ours.cpu_each / by_hand.cpu_each,
        "CPU s an image, ours / before": ours.cpu_each / before.cpu_each,
        "fixed s, ours": ours.fixed,
        "fixed s, by hand": by_hand.fixed,
        "fixed s, before": before.fixed,
        "fixed s, ours - before": ours.fixed - before.fixed,
    }


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, help="kept, results.json too; a temporary folder by default")
    parser.add_argument("--items", type=int, nargs=2, default=(1600, 6400))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--before", default=BEFORE, help="the commit to compare with")
    arguments = parser.parse_args()
    with workspace(arguments.workdir) as workdir, other_commit(arguments.before) as tree:
        report = Report("annotate_images", items=arguments.items, rounds=arguments.rounds, before=arguments.before)
        rows, setting = compare(Bench(workdir, tree), arguments.items, arguments.rounds)
        report.settings["by hand (workers, threads, batch)"] = setting
        report.add_rounds(rows, WANTED)
        report.show(workdir / "results.json")


if __name__ == "__main__":
    main()
