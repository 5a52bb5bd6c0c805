"""What the driver of an annotation run takes for a million and for ten million items: time and memory.

    python benchmarks/driver.py [--workdir DIR] [--items 1000000 10000000] [--steps plan resume publish verify]

Nothing is annotated. The catalog is a folder of Parquet files with made-up images in S3, the model is the `tiny` preset
with an engine of unknown speed (so that shards have some 480 items, as for a large model on CPUs), and every shard is
committed by `commit_shard` with rows of constants. Each step is a process of its own:
  plan      look_up and make_plan
  resume    what the same call does again before it executes: look_up, the plan, the commit records
  publish   the whole call again, with every shard committed: `annotate` publishes
  verify    `verify` of the whole run on a local Ray: its time is mostly the workers', its memory the driver's alone
Memory is the largest resident set of the step's own process, without Ray's processes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from harness import make_bundle, workspace
from report import Report

PART_ROWS = 250_000
ROOT_URI = "s3://media/photos"
WRITERS = 8
MEASURED = ("plan", "resume", "publish", "verify")
OPTIONS: dict[str, Any] = {"engine": "torch", "roots": (ROOT_URI,)}


def make_catalog(folder: Path, items: int) -> None:
    """Images by URI, with sizes and ETags, as an S3 Inventory lists them."""
    folder.mkdir()
    for first in range(0, items, PART_ROWS):
        numbers_N = np.arange(first, min(items, first + PART_ROWS))
        names = [f"2026/{number % 4096:04d}/photo-{number:010d}.jpg" for number in numbers_N]
        columns = {
            "id": names,
            "uri": [f"{ROOT_URI}/{name}" for name in names],
            "modality": ["image"] * len(names),
            "bytes": 50_000 + numbers_N * 7919 % 400_000,
            "etag": [f"{number * 2654435761:032x}" for number in numbers_N.tolist()],
        }
        pq.write_table(pa.table(columns), folder / f"part-{first // PART_ROWS:05d}.parquet")


class Call:
    """The public calls of one run below a folder."""

    def __init__(self, folder: Path, shard_items: int | None) -> None:
        from mmva_platform.settings import Settings

        self.settings = Settings(home=folder / "home")
        self.words = (str(folder / "catalog"), str(folder.parent / "bundle"), str(folder / "out"))
        self.options = OPTIONS | {"shard_items": shard_items}

    def plan(self) -> None:
        """Read the catalog, write the plan."""
        from mmva_platform.annotation.options import AnnotateOptions
        from mmva_platform.annotation.run.prepare import look_up, make_plan

        make_plan(look_up(*self.words, self.settings, AnnotateOptions(**self.options)), self.settings)

    def resume(self) -> None:
        """Up to what would be executed."""
        from mmva_platform.annotation.options import AnnotateOptions
        from mmva_platform.annotation.run.prepare import look_up
        from mmva_platform.annotation.table.commit import committed_shards, read_commits

        request = look_up(*self.words, self.settings, AnnotateOptions(**self.options))
        if request.continued() is None:
            raise SystemExit(f"{self.words[2]}: holds no plan; the step `plan` comes first")
        read_commits(request.storage, 0, sorted(committed_shards(request.storage, 0)))

    def publish(self) -> None:
        """The same call once more."""
        from mmva_platform.annotation.run.runner import annotate

        annotate(*self.words, self.settings, **self.options)

    def verify(self) -> None:
        """Everything; SystemExit if a fault is found."""
        from mmva_platform.annotation.table.verify import verify

        found = verify(self.words[2], self.settings)
        if not found.ok:
            raise SystemExit(found.to_text()[:2000])

    def commit(self) -> None:
        """Commit every shard with made-up rows."""
        from mmva_platform.annotation.plan.plan import ItemReader, read_plan
        from mmva_platform.annotation.schema import QUARANTINE_SCHEMA
        from mmva_platform.annotation.table.commit import ShardResult, commit_shard
        from mmva_platform.storage import open_storage

        storage = open_storage(self.words[2], self.settings.storage)
        plan = read_plan(storage)

        def commit(shards: list[str]) -> None:
            read = ItemReader(storage, plan)
            for shard in shards:
                rows = made_up_rows(read(shard), plan.run_id, shard)
                work = {"media": rows.num_rows}
                result = ShardResult(rows, QUARANTINE_SCHEMA.empty_table(), made_up_embeddings(rows), work)
                commit_shard(storage, plan, shard, result)

        step = -(-len(plan.shards) // WRITERS)
        with ThreadPoolExecutor(WRITERS) as pool:
            list(pool.map(commit, [plan.shards[first : first + step] for first in range(0, len(plan.shards), step)]))


def made_up_rows(items: pa.Table, run_id: str, shard: str) -> pa.Table:
    """A row of ANNOTATION_SCHEMA for each item: its own id and URI, constants for the rest."""
    from mmva_platform.annotation.schema import ANNOTATION_SCHEMA

    constants = {"modality": "image", "mood": "calm", "run_id": run_id, "shard": shard}
    columns = []
    for field in ANNOTATION_SCHEMA:
        if field.name in {"id", "uri", "item_digest"}:
            column = items[field.name].cast(field.type)
        elif field.name in constants:
            column = pa.repeat(pa.scalar(constants[field.name], field.type), items.num_rows)
        elif field.nullable:
            column = pa.nulls(items.num_rows, field.type)
        else:
            column = pa.repeat(_any_value(field.type), items.num_rows)
        columns.append(column)
    return pa.table(columns, ANNOTATION_SCHEMA)


def made_up_embeddings(rows: pa.Table) -> pa.Table:
    """An embedding of one value for each row."""
    from mmva_platform.annotation.schema import EMBEDDING_FILE_SCHEMA

    kinds = EMBEDDING_FILE_SCHEMA
    embedding = pa.repeat(pa.scalar([0.0], kinds.field("embedding").type), rows.num_rows)
    columns = [rows["id"], embedding, pa.nulls(rows.num_rows, kinds.field("windows").type)]
    return pa.table(columns, EMBEDDING_FILE_SCHEMA)


def _any_value(kind: pa.DataType) -> pa.Scalar:
    if pa.types.is_list(kind):
        return pa.scalar([], kind)
    return pa.scalar("0" * 64, kind) if pa.types.is_string(kind) else pa.scalar(0, pa.int64()).cast(kind)


def peak_mb() -> float:
    """Largest resident set of this process since it began, in MB."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1000


def run_step(step: str, folder: Path, shard_items: int | None) -> dict[str, float]:
    """A step in this process; imports that every step needs are not timed."""
    import torch  # noqa: F401 - a step would import it

    import mmva_platform.annotation.run.runner
    import mmva_platform.annotation.table.verify  # noqa: F401 - likewise

    act: Callable[[], None] = getattr(Call(folder, shard_items), step)
    imported_mb, begun = peak_mb(), time.perf_counter()
    act()
    return {"seconds": time.perf_counter() - begun, "peak_mb": peak_mb(), "imported_mb": imported_mb}


def measure(workdir: Path, items: int, steps: list[str], shard_items: int | None) -> dict[str, dict[str, float]]:
    """All steps for a catalog of this size, each in a process of its own."""
    folder = workdir / f"items-{items}"
    folder.mkdir()
    make_catalog(folder / "catalog", items)
    found = {}
    for step in ("plan", "commit", *MEASURED[1:]):
        if step not in {"plan", "commit", *steps}:
            continue
        command = [sys.executable, __file__, "--step", step, "--folder", str(folder)]
        command += [] if shard_items is None else ["--shard-items", str(shard_items)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
        found[step] = json.loads(done.stdout.splitlines()[-1])
    found["plan"]["shards"] = sum(1 for _ in folder.glob("out/_mmva/000000/commits/*.json"))
    return found


def main() -> None:
    """Measure both sizes and print the table; with --step, be one step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, help="must be empty; a temporary folder by default")
    parser.add_argument("--items", type=int, nargs=2, default=(1_000_000, 10_000_000))
    parser.add_argument("--steps", nargs="+", choices=MEASURED, default=list(MEASURED))
    parser.add_argument("--shard-items", type=int, help="most items of a shard")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        print(json.dumps(run_step(arguments.step, arguments.folder, arguments.shard_items)))
        return
    with workspace(arguments.workdir, empty=True) as workdir:
        report = Report("driver", items=arguments.items, steps=arguments.steps)
        make_bundle(workdir / "bundle", "tiny")
        small, large = (measure(workdir, items, arguments.steps, arguments.shard_items) for items in arguments.items)
        growth = arguments.items[1] / arguments.items[0]
        for items, found in zip(arguments.items, (small, large), strict=True):
            report.add(f"shards of {items:,} items", found["plan"]["shards"])
        for step in (step for step in MEASURED if step in large):
            few, many = small[step], large[step]
            for items, found in zip(arguments.items, (few, many), strict=True):
                report.add(f"{step}, {items:,} items: s", found["seconds"])
                report.add(f"{step}, {items:,} items: peak MB", found["peak_mb"], "below 1,500")
            report.add(f"{step}: time, ratio", many["seconds"] / few["seconds"], f"at most {growth:g} (linear)")
            report.add(f"{step}: peak memory, ratio", many["peak_mb"] / few["peak_mb"], "at most 1.1")
        report.details = {"small": small, "large": large}
        report.show(workdir / "results.json")


if __name__ == "__main__":
    main()
