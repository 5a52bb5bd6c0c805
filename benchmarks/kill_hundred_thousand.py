"""A catalog of many small items, annotated by a process that is SIGKILLed three times; what that cost.

    python benchmarks/kill_hundred_thousand.py --items 100000 --folder /tmp/kill

The catalog: captions in a table and 3 % tiny pictures, of which several share their bytes. The driver is killed after
seeded shares of what is left. Executed items are those of every run's commits plus what was in flight when a
driver died, bounded from above by workers times the largest shard.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

KILLS = 3
SEED = 7


def main() -> None:
    """Make the catalog, kill, finish, verify, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, required=True, help="must not exist")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True)
    catalog = make_catalog(arguments.folder / "catalog", arguments.items)
    bundle = make_bundle(arguments.folder / "bundle")
    out = arguments.folder / "out"
    command = [
        *mmva(arguments.folder), "annotate", str(catalog), "--model", str(bundle), "--out", str(out),
        "--workers", str(arguments.workers),
    ]  # fmt: skip
    chance = random.Random(SEED)
    shares: list[float | None] = [chance.uniform(0.1, 0.5) for _ in range(KILLS)]
    runs = [run(command, out, share) for share in [*shares, None]]
    verdict = subprocess.run(
        [*mmva(arguments.folder), "annotations", "verify", str(out), "--json"],
        stdout=subprocess.PIPE, check=False, text=True,
    )  # fmt: skip
    print(json.dumps(result(arguments, out, runs, json.loads(verdict.stdout)), indent=1))


def mmva(folder: Path) -> list[str]:
    """The command line's beginning."""
    return [sys.executable, "-c", "from mmva_platform.cli.main import main; main()", "--home", str(folder / "home")]


def make_catalog(folder: Path, items: int) -> Path:
    """A table of captions and pictures, shuffled; every fourth picture has the bytes of an earlier one."""
    folder.mkdir()
    chance = np.random.default_rng(SEED)
    rows = []
    for number in range(items):
        if number % 33:
            rows.append({"id": f"caption-{number}", "uri": "", "caption": f"Song {number} is {number % 97} shades."})
            continue
        name = f"picture-{number}.png"
        (folder / name).write_bytes(tiny_picture(chance, repeat=number % 4 == 0))
        rows.append({"id": name, "uri": name, "caption": ""})
    random.Random(SEED).shuffle(rows)
    path = folder / "catalog.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["id", "uri", "caption"])
        writer.writeheader()
        writer.writerows(rows)
    return path


def tiny_picture(chance: np.random.Generator, *, repeat: bool) -> bytes:
    """A PNG of 16 x 16 pixels; of eight colours if it is to be a repeat."""
    pixels = np.full((16, 16, 3), chance.integers(8) * 30) if repeat else chance.integers(0, 256, (16, 16, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def make_bundle(folder: Path) -> Path:
    """An untrained model over the tiny encoders."""
    import torch

    from mmva.backbones import load_encoder, preset
    from mmva.bundle import save_bundle
    from mmva.model import MMVA

    torch.manual_seed(0)
    encoders = {modality: load_encoder(spec) for modality, spec in preset("tiny").specs.items()}
    model = MMVA({modality: encoder.dim for modality, encoder in encoders.items()})
    model.attach_encoders(encoders)
    intervals = {modality: {"valence": 0.2, "arousal": 0.3} for modality in ("image", "music")}
    save_bundle(folder, model, intervals=intervals, card="untrained", provenance={})
    return folder


def run(command: list[str], out: Path, share: float | None) -> dict[str, Any]:
    """Run until this share of what is left is committed, then SIGKILL; None runs to the end."""
    begun, before = time.monotonic(), committed(out)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peaks = {"driver": 0, "worker": 0}
    watcher = threading.Thread(target=watch_memory, args=(process, peaks))
    watcher.start()
    while process.poll() is None:
        shards = planned(out)
        if share is not None and shards and committed(out) >= before + share * (shards - before):
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.2)
    process.wait()
    watcher.join()
    return {
        "killed at": share, "exit": process.returncode, "seconds": round(time.monotonic() - begun, 1),
        "shards before": before, "shards after": committed(out),
        "peak driver MB": peaks["driver"] // 2**20, "peak worker MB": peaks["worker"] // 2**20,
    }  # fmt: skip


def watch_memory(process: subprocess.Popen[bytes], peaks: dict[str, int]) -> None:
    """Largest resident sizes of the driver and of any Ray worker under it, twice a second."""
    while process.poll() is None:
        try:
            driver = psutil.Process(process.pid)
            peaks["driver"] = max(peaks["driver"], driver.memory_info().rss)
            for child in driver.children(recursive=True):
                if "ray::" in " ".join(child.cmdline()[:1]):
                    peaks["worker"] = max(peaks["worker"], child.memory_info().rss)
        except psutil.Error:
            pass
        time.sleep(0.5)


def planned(out: Path) -> int:
    """Shards of the plan, 0 before there is one."""
    plan = out / "plan.json"
    return len(shard_rows(out)) if plan.exists() else 0


def shard_rows(out: Path) -> list[int]:
    """Items of each shard of the plan."""
    return [rows for part in json.loads((out / "plan.json").read_bytes())["parts"] for rows in part["rows"]]


def committed(out: Path) -> int:
    """Commit records."""
    return len(list((out / "commits").glob("*.json"))) if (out / "commits").is_dir() else 0


def result(arguments: argparse.Namespace, out: Path, runs: list[dict[str, Any]], verdict: dict[str, Any]) -> Any:
    """What is printed."""
    rows = shard_rows(out)
    largest = max(rows)
    commits = [json.loads(path.read_bytes()) for path in (out / "commits").glob("*.json")]
    needed = sum(commit["items"] for commit in commits)
    lost = KILLS * arguments.workers * largest
    return {
        "items": arguments.items, "shards": len(rows), "largest shard": largest, "needed": needed,
        "executed at most": needed + lost, "executed / needed at most": round((needed + lost) / needed, 4),
        "work": {
            kind: sum(commit["work"].get(kind, 0) for commit in commits)
            for kind in sorted({kind for commit in commits for kind in commit["work"]})
        },
        "verify": {key: verdict[key] for key in ("ok", "items", "annotated", "quarantined")},
        "problems": verdict["problems"][:5],
        "runs": runs,
    }  # fmt: skip


if __name__ == "__main__":
    main()
