"""What `update` costs: new heads over stored embeddings, and a catalog that has grown by 1 %, against full passes.

    python benchmarks/update.py [--workdir DIR] [--items 10000] [--rounds 3] [--preset compact] [--engine onnx]

One process on one core, without Ray: whole calls of `annotate` and `update`, planning and publishing included, with
the bulk passes run within the process (tests/system/inline_pass.py). On Ray the start of the actors, some ten seconds,
comes on top of both sides. JPEGs 512 pixels wide. Each round:
  base    `annotate` of N pictures
  full    `annotate` of N pictures and 1 % more
  grown   `update` of a copy of base, whose folder has those 1 % more by now
  heads   `update --model` of a copy of full: another model with the same backbone
Exit code 1 where a wanted figure is missed, or where `grown` changed a file of version 0.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from harness import ROOT, workspace
from made_media import make_pictures
from report import Report

from mmva.backbones import load_encoder, preset
from mmva.models.bundle import save_bundle
from mmva.models.model import MMVA
from mmva_platform.annotation import AnnotationSummary, annotate, update
from mmva_platform.settings import Settings

WANTED = {"items/s, heads / full": "at least 100", "seconds, grown / full": "at most .03"}


def make_bundle(folder: Path, backbones: str, seed: int) -> Path:
    """A model of a preset's image encoder, with untrained towers of full size."""
    encoder = load_encoder(preset(backbones).specs["image"])
    torch.manual_seed(seed)
    model = MMVA({"image": encoder.dim})
    for parameter in model.towers.parameters():  # from zero every point would be the neutral one
        torch.nn.init.normal_(parameter, std=0.05)
    model.attach_encoders({"image": encoder})
    shutil.rmtree(folder, ignore_errors=True)
    save_bundle(folder, model, intervals={}, card="untrained", provenance={})
    return folder


class Bench:
    """Two models, pictures, and the calls over them."""

    def __init__(self, workdir: Path, items: int, backbones: str, engine: str) -> None:
        self.workdir, self.items, self.engine = workdir, items, engine
        self.settings = Settings(home=workdir / "home")
        self.bundles = [make_bundle(workdir / f"bundle-{seed}", backbones, seed) for seed in (0, 1)]
        self.more = items // 100
        self.media = make_pictures(workdir / "pictures", items + self.more)
        self.later = workdir / "later"
        self.later.mkdir(exist_ok=True)

    def annotate(self, name: str) -> tuple[float, AnnotationSummary]:
        """Seconds of a full pass over the pictures that are there."""
        out = self.workdir / name
        shutil.rmtree(out, ignore_errors=True)
        begun = time.perf_counter()
        summary = annotate(str(self.media), str(self.bundles[0]), str(out), self.settings, engine=self.engine)
        return time.perf_counter() - begun, summary

    def update(self, base: str, name: str, **options: Any) -> tuple[float, AnnotationSummary]:
        """Seconds of an update of a copy of an annotation; SystemExit if a data file of it was changed."""
        out = self.workdir / name
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(self.workdir / base, out)
        before = _data_files(out)
        begun = time.perf_counter()
        summary = update(str(out), self.settings, **options)
        seconds = time.perf_counter() - begun
        if not before.items() <= _data_files(out).items():
            raise SystemExit(f"{name}: files of version 0 have other names, times or bytes now")
        return seconds, summary

    def round(self) -> dict[str, float]:
        """All four, and what they say."""
        for picture in sorted(self.media.iterdir())[self.items :]:
            picture.rename(self.later / picture.name)
        base_s, _ = self.annotate("base")
        for picture in self.later.iterdir():
            picture.rename(self.media / picture.name)
        full_s, full = self.annotate("full")
        grown_s, grown = self.update("base", "grown")
        heads_s, heads = self.update("full", "heads", model=str(self.bundles[1]))
        count = self.items + self.more
        assert full.ok == count
        assert grown.changes == {"unchanged": self.items, "new": self.more, "changed": 0, "removed": 0}
        work = [{how: items for how, items in each.work.items() if items} for each in (grown, heads)]
        assert work == [{"media": self.more}, {"heads": count}]
        return {
            "items/s, full": count / full_s,
            "items/s, heads": count / heads_s,
            "items/s, heads / full": full_s / heads_s,
            "seconds, base": base_s,
            "seconds, full": full_s,
            "seconds, grown": grown_s,
            "seconds, grown / full": grown_s / full_s,
        }


def _data_files(out: Path) -> dict[str, tuple[int, int]]:
    """Name -> time of modification and size."""
    files = ((path, path.stat()) for path in out.glob("status=*/**/*.parquet"))
    return {str(path.relative_to(out)): (found.st_mtime_ns, found.st_size) for path, found in files}


def main() -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, help="must be empty; a temporary folder by default")
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--preset", default="compact")
    parser.add_argument("--engine", default="onnx")
    arguments = parser.parse_args()
    sys.path.append(str(ROOT / "tests" / "system"))
    from inline_pass import install_annotation

    if hasattr(os, "sched_setaffinity"):  # every thread of both sides on one core
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    with workspace(arguments.workdir, empty=True) as workdir, pytest.MonkeyPatch.context() as patch:
        install_annotation(patch)
        report = Report("update", items=arguments.items, preset=arguments.preset, engine=arguments.engine)
        bench = Bench(workdir, arguments.items, arguments.preset, arguments.engine)
        bench.round()  # exports the network, and warms up
        rows = [bench.round() for _ in range(arguments.rounds)]
        report.add_rounds(rows, WANTED)
        report.show(workdir / "results.json")
    faster, share = (median(row[key] for row in rows) for key in WANTED)
    return int(faster < 100 or share > 0.03)


if __name__ == "__main__":
    sys.exit(main())
