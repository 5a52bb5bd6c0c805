"""A million captions, annotated by a driver that is killed twice and loses a worker; what that cost.

    python benchmarks/kill_a_million.py [--workdir DIR] [--items 1000000] [--shard-items 5000]

`tiny` preset. The driver gets SIGKILL when a third and when two thirds of the shards are committed, and `mmva
annotations resume` continues each time. After five sixths a Ray worker of the driver gets SIGKILL. Then `mmva
annotations verify`. Shards are small here: what a kill costs is at most one shard for each worker.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from harness import Command, end_tree, is_ray_worker, make_bundle, mmva, started, watched, workspace
from report import Report

PART_ROWS = 100_000
LOOK_S = 0.2
COMMITS = "_mmva/000000/commits/*.json"
WORDS = ("calm", "bright", "slow", "loud", "warm", "tense", "sad")


class Run:
    """An annotation run that is cut short and continued."""

    def __init__(self, workdir: Path, items: int, shard_items: int) -> None:
        self.workdir, self.out, self.home = workdir, workdir / "out", workdir / "home"
        catalog, bundle = make_catalog(workdir / "captions", items), make_bundle(workdir / "bundle", "tiny")
        size = ("--shard-items", str(shard_items))
        self.first = self.mmva("annotate", catalog, "--model", bundle, "--out", self.out, *size)
        self.again = self.mmva("annotations", "resume", self.out) if self.has_resume() else self.first
        self.shards = 0

    def mmva(self, *arguments: str | Path) -> Command:
        """A command of this run."""
        return mmva(*arguments, home=self.home)

    def has_resume(self) -> bool:
        """Whether this version can resume; else the first command is run again."""
        command = self.mmva("annotations", "resume", "--help")
        return not subprocess.run(
            command.arguments, env=command.environment, capture_output=True, check=False
        ).returncode

    def committed(self) -> int:
        """Number of commit records."""
        return sum(1 for _ in self.out.glob(COMMITS))

    def share(self) -> float:
        """Committed share of the shards; 0 before there is a plan."""
        if not self.shards and (self.out / "_mmva" / "000000" / "plan.json").exists():
            self.shards = self.json("annotations", "status", self.out)["shards"]
        return self.committed() / self.shards if self.shards else 0.0

    def json(self, *arguments: str | Path) -> Any:
        """What a command prints with --json."""
        command = self.mmva(*arguments, "--json")
        done = subprocess.run(command.arguments, env=command.environment, stdout=subprocess.PIPE, check=False)
        if not done.stdout:
            raise SystemExit(f"{' '.join(command.arguments)}: exit {done.returncode}")
        return json.loads(done.stdout)

    def until(self, command: Command, share: float, act: Callable[[subprocess.Popen[Any]], str]) -> dict[str, Any]:
        """Run a command; act once this share is committed; what happened."""
        begun, before, done = time.monotonic(), self.committed(), ""
        with started(command) as process, watched(process.pid) as watch:
            while process.poll() is None:
                if not done and self.share() >= share:
                    done = act(process)
                time.sleep(LOOK_S)
        if process.returncode and not done:
            raise SystemExit(f"exit {process.returncode} before the kill at {share:.2f}; its last line is above")
        return {
            "exit code": process.returncode,
            "killed": done,
            "seconds": round(time.monotonic() - begun, 1),
            "commits before": before,
            "commits after": self.committed(),
            "peak MB": watch.peak_mb,
        }


def make_catalog(folder: Path, items: int) -> Path:
    """A folder of Parquet files with captions, no two alike."""
    folder.mkdir(exist_ok=True)
    for first in range(0, items, PART_ROWS):
        numbers = range(first, min(items, first + PART_ROWS))
        rows = {
            "id": [f"caption-{number}" for number in numbers],
            "caption": [f"Song {number} is {WORDS[number % len(WORDS)]}." for number in numbers],
            "modality": ["caption"] * len(numbers),
        }
        pq.write_table(pa.table(rows), folder / f"part-{first:09d}.parquet")
    return folder


def kill_driver(process: subprocess.Popen[Any]) -> str:
    """SIGKILL the driver; return when its Ray is gone, too."""
    end_tree(process, signal.SIGKILL)
    return "driver"


def kill_worker(process: subprocess.Popen[Any]) -> str:
    """SIGKILL the busiest Ray worker of this driver."""
    workers = list(ray_workers(process.pid))
    if not workers:
        return ""
    _, pid, title = max(workers)
    os.kill(pid, signal.SIGKILL)
    return f"worker {title}"


def ray_workers(driver: int) -> Iterator[tuple[float, int, str]]:
    """CPU time, process id and title of each Ray worker that descends from a driver."""
    for process in psutil.Process(driver).children(recursive=True):
        with suppress(psutil.Error):
            if is_ray_worker(process):
                yield sum(process.cpu_times()[:2]), process.pid, process.cmdline()[0]


def executed_items(out: Path, kills: int, workers: int) -> dict[str, int]:
    """Items that had to be executed, and bounds of those that were.

    At least: the rows of commits, and those of files that no commit names. At most: the rows of commits, and for each
    kill one shard of every worker that died.
    """
    commits = [json.loads(path.read_bytes()) for path in out.glob(COMMITS)]
    needed = sum(commit["items"] for commit in commits)
    named = {file["path"] for commit in commits for file in commit["files"]}
    files = out.glob("status=*/modality=*/*.parquet")
    left = [path for path in files if path.relative_to(out).as_posix() not in named]
    largest = max(commit["items"] for commit in commits)
    return {
        "needed": needed,
        "work of the commits": sum(sum(commit["work"].values()) for commit in commits),
        "files that no commit names": len(left),
        "executed at least": needed + sum(pq.read_metadata(path).num_rows for path in left),
        "executed at most": needed + (kills * workers + 1) * largest,
    }


def main() -> int:
    """Make the catalog, kill, finish, verify, print; exit code 1 if verify finds a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, help="must be empty; a temporary folder by default")
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--shard-items", type=int, default=5000)
    arguments = parser.parse_args()
    with workspace(arguments.workdir, empty=True) as workdir:
        report = Report("kill_a_million", items=arguments.items, **{"shard items": arguments.shard_items})
        run = Run(workdir, arguments.items, arguments.shard_items)
        runs = [
            run.until(run.first, 1 / 3, kill_driver),
            run.until(run.again, 2 / 3, kill_driver),
            run.until(run.again, 5 / 6, kill_worker),
        ]
        begun = time.monotonic()
        verdict = run.json("annotations", "verify", run.out)
        verified_s = time.monotonic() - begun
        report.details = {"runs": runs, "problems": verdict["problems"]}
        add_figures(report, run, verdict)
        report.add("seconds of the three runs", sum(each["seconds"] for each in runs))
        report.add("seconds of verify", verified_s)
        report.show(workdir / "results.json")
        return int(not verdict["ok"])


def add_figures(report: Report, run: Run, verdict: dict[str, Any]) -> None:
    """What the run directory and verify say."""
    found = executed_items(run.out, kills=2, workers=psutil.cpu_count() or 1)
    report.add("verify", "ok" if verdict["ok"] else f"{len(verdict['problems'])} problems", "ok")
    for key in ("items", "annotated", "quarantined"):
        report.add(f"verify: {key}", float(verdict[key]))
    report.add("shards", float(run.shards))
    for key, value in found.items():
        report.add(key, float(value))
    for bound in ("at least", "at most"):
        report.add(f"executed / needed, {bound}", found[f"executed {bound}"] / found["needed"], "at most 1.05")


if __name__ == "__main__":
    sys.exit(main())
