"""`mmva annotate`: music against a loop written by hand, and what bad files, commits and more items cost.

    python benchmarks/annotation.py [--workdir DIR] [--items 400 2000] [--tracks 3 9] [--rounds 3] [--only music ...]

Whole processes, interleaved, `compact` preset. Images against their peers: annotate_images.py.
  music     ours and handwritten_loop.py on the same network at two sizes; the slope is the steady cost of a track
  corrupt   a folder with one file in a hundred cut short against the whole one; the workers' share for commits
  memory    peak of the driver and of a worker at N and 4 N images
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from annotate_images import Setting, exported_network, settings_to_try
from harness import Line, Measured, make_bundle, measured, mmva, workspace
from made_media import make_pictures, make_tracks, spoil
from report import Report, Row

TRACK_S = 180
Rounds = list[Row]
WANTED = {
    "music: times real time, ours": "40",
    "music: ours / by hand": "at least 1",
    "time with 1 % corrupt / clean": "at most 1.1",
    "worker time with commits / without": "at most 1.05",
    "peak of the driver, 4 N / N": "at most 1.1",
    "peak of the worker, 4 N / N": "at most 1.1",
}


class Bench:
    """The commands over one work folder."""

    def __init__(self, workdir: Path) -> None:
        self.workdir, self.runs = workdir, 0
        self.bundle = make_bundle(workdir / "bundle")

    def ours(self, media: Path, name: str = "") -> Measured:
        """A whole `mmva annotate` of a folder, which starts its own Ray. The first one calibrates."""
        self.runs += 1
        options = ("--model", self.bundle, "--out", self.out(name or str(self.runs)), "--engine", "onnx")
        return measured(mmva("annotate", media, *options, home=self.workdir / "home"))

    def out(self, name: str) -> Path:
        """Where a run is; one of an earlier benchmark in this folder would be resumed."""
        return self.workdir / f"out-{name}"

    def by_hand(self, media: Path, tracks: int, network: Path, setting: Setting) -> Measured:
        """The loop over a folder's first tracks."""
        parts = [sys.executable, Path(__file__).with_name("handwritten_loop.py"), "--modality", "music"]
        parts += ["--bundle", self.bundle, "--media", media, "--items", str(tracks), "--onnx", network]
        for name, value in zip(("--workers", "--threads", "--batch"), setting, strict=True):
            parts += [name, str(value)]
        return measured([*parts, "--out", self.workdir / "loop.parquet"])


def music(bench: Bench, sizes: tuple[int, int], rounds: int) -> Rounds:
    """Tracks of three minutes: seconds of audio a second."""
    media = {count: make_tracks(bench.workdir / f"tracks-{count}", count) for count in sizes}
    bench.ours(media[sizes[0]], "warm-up")
    network = exported_network(bench.out("warm-up"), "music", bench.workdir / "network.onnx")

    def by_hand(count: int, setting: Setting) -> Measured:
        return bench.by_hand(media[count], count, network, setting)

    setting = min(settings_to_try(), key=lambda tried: by_hand(sizes[0], tried).seconds)
    rows: Rounds = []
    for _ in range(rounds):
        ours = Line.through(*[(count, bench.ours(media[count])) for count in sizes])
        loop = Line.through(*[(count, by_hand(count, setting)) for count in sizes])
        rows.append({
            "music: times real time, ours": TRACK_S * ours.rate,
            "music: times real time, by hand": TRACK_S * loop.rate,
            "music: ours / by hand": ours.rate / loop.rate,
        })  # fmt: skip
    return rows


def corrupt(bench: Bench, sizes: tuple[int, int], rounds: int) -> Rounds:
    """One file in a hundred cut short, and what writing and committing take of the workers' time."""
    clean = make_pictures(bench.workdir / "clean", sizes[1])
    spoilt = make_pictures(bench.workdir / "spoilt", sizes[1])
    spoil(spoilt, 100)
    bench.ours(make_pictures(bench.workdir / "few", 32))
    rows: Rounds = []
    for number in range(rounds):
        whole = bench.ours(clean, f"clean-{number}").seconds
        rows.append({
            "time with 1 % corrupt / clean": bench.ours(spoilt).seconds / whole,
            "worker time with commits / without": share_of_commits(bench.out(f"clean-{number}")),
        })  # fmt: skip
    return rows


def share_of_commits(out: Path) -> float:
    """Worker seconds of all stages over those without writing, from the version's record."""
    seconds = json.loads((out / "_mmva" / "000000" / "version.json").read_text())["totals"]["seconds"]
    return sum(seconds.values()) / (sum(seconds.values()) - seconds["write"])


def memory(bench: Bench, sizes: tuple[int, int], rounds: int) -> Rounds:
    """Peak memory of the driver and of a worker, at N and 4 N images."""
    small, large = (make_pictures(bench.workdir / f"images-{n}", n) for n in (sizes[1], 4 * sizes[1]))
    bench.ours(make_pictures(bench.workdir / "few", 32))
    rows: Rounds = []
    for _ in range(rounds):
        few, many = bench.ours(small).peak_mb, bench.ours(large).peak_mb
        rows.append({f"peak of the {kind}, 4 N / N": many[kind] / few[kind] for kind in ("driver", "worker")})
    return rows


PARTS: dict[str, Callable[[Bench, tuple[int, int], int], Rounds]] = {
    "music": music,
    "corrupt": corrupt,
    "memory": memory,
}


def main() -> None:
    """Run the parts and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, help="must be empty; a temporary folder by default")
    parser.add_argument("--items", type=int, nargs=2, default=(400, 2000))
    parser.add_argument("--tracks", type=int, nargs=2, default=(3, 9))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    arguments = parser.parse_args()
    with workspace(arguments.workdir, empty=True) as workdir:
        report = Report("annotation", items=arguments.items, tracks=arguments.tracks, rounds=arguments.rounds)
        bench = Bench(workdir)
        for part in arguments.only:
            sizes = tuple(arguments.tracks if part == "music" else arguments.items)
            report.add_rounds(PARTS[part](bench, sizes, arguments.rounds), WANTED)
        report.show(workdir / "results.json")


if __name__ == "__main__":
    main()
