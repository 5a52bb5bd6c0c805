"""Does reading an annotation stay quick and small as it grows? Points of a tenth of the items against all of them.

    python benchmarks/table.py [--items 1000000] [--dim 64] [--shard-items 16384] [--rounds 5] [--workdir DIR]

Annotations of images are made up without a model: random points, digests and embeddings, committed shard by shard and
published as a run does it. Then, interleaved, in processes of their own: `open_annotation(out).table(id, modality,
valence, arousal, mood)`, with its seconds (imports not counted) and the process's largest resident set (imports
counted); `verify` beside a Ray that runs, which it uses from 256 shards on; and, as the floor under any check of
digests, reading the bytes of all its files and their SHA-256 by threads. Medians. Exit code 1 if reading all points
takes 2 s or more, or 300 MB or more.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
from harness import ROOT, workspace
from report import Report, Row

from mmva.affect import mood
from mmva.inference.config import Preprocessing
from mmva.inference.tables import table_of
from mmva_platform.annotation import open_annotation, verify
from mmva_platform.annotation.catalog.catalog import Catalog
from mmva_platform.annotation.plan.plan import ItemReader, ModelInfo, Plan
from mmva_platform.annotation.plan.planning import write_plan
from mmva_platform.annotation.plan.spool import spooled
from mmva_platform.annotation.run.annotator import stamps
from mmva_platform.annotation.schema import (
    ANNOTATION_SCHEMA,
    CATALOG_SCHEMA,
    EMBEDDING_FILE_SCHEMA,
    QUARANTINE_SCHEMA,
)
from mmva_platform.annotation.table.commit import ShardResult, commit_shard
from mmva_platform.annotation.table.publish import publish
from mmva_platform.cluster import ray_session
from mmva_platform.settings import Settings
from mmva_platform.storage import open_storage

POINTS = ["id", "modality", "valence", "arousal", "mood"]
MOST_S, MOST_MB = 2.0, 300.0
READERS = 16


def make(out: Path, count: int, dim: int, shard_items: int) -> None:
    """Publish an annotation of made-up images."""
    storage, model = open_storage(out), ModelInfo(name="made-up", version=None, digest="0" * 64)
    cut = Preprocessing(fingerprints={"image": "0" * 64}, window_s=3.0, hop_s=1.5, short_side=224)
    with spooled(catalog_of(count)) as spool:
        plan = write_plan(storage, spool, model, cut, shard_items=shard_items)
    read, rng = ItemReader(storage, plan), np.random.default_rng(0)
    commits = [commit_shard(storage, plan, shard, made_up(read(shard), plan, shard, dim, rng)) for shard in plan.shards]
    publish(storage, plan, commits)


def catalog_of(count: int) -> Catalog:
    """Images that are nowhere."""
    ids = [f"{number // 1000:04d}/{number:08d}.jpg" for number in range(count)]
    values = {
        "id": ids, "uri": [f"/photos/{name}" for name in ids], "modality": ["image"] * count,
        "caption": pa.nulls(count), "bytes": range(count), "etag": [f"{number:032x}" for number in range(count)],
    }  # fmt: skip
    columns = [pa.array(values[field.name], field.type) for field in CATALOG_SCHEMA]
    return Catalog.of_table("/photos", pa.Table.from_arrays(columns, schema=CATALOG_SCHEMA))


def made_up(items: pa.Table, plan: Plan, shard: str, dim: int, rng: np.random.Generator) -> ShardResult:
    """Rows of a shard."""
    count = items.num_rows
    va_N2 = rng.beta(2.2, 2.2, (count, 2)).astype(np.float32)
    columns: dict[str, Any] = {field.name: pa.nulls(count, field.type) for field in ANNOTATION_SCHEMA}
    columns |= {name: items[name] for name in ("id", "uri", "modality", "caption", "item_digest")}
    for axis, values_N in (("valence", va_N2[:, 0]), ("arousal", va_N2[:, 1])):
        columns |= {axis: values_N, f"{axis}_low": values_N - 0.1, f"{axis}_high": values_N + 0.1}
    digests = [rng.bytes(32).hex() for _ in range(count)]
    columns |= {"mood": mood(va_N2).tolist(), "sha256": digests} | stamps(plan, shard, count)
    offsets = pa.array(np.arange(0, (count + 1) * dim, dim, dtype=np.int32))
    vectors = pa.ListArray.from_arrays(offsets, pa.array(rng.normal(size=count * dim).astype(np.float32)))
    kept = {"id": items["id"], "embedding": vectors, "windows": pa.nulls(count)}
    return ShardResult(
        table_of(columns, ANNOTATION_SCHEMA),
        QUARANTINE_SCHEMA.empty_table(),
        table_of(kept, EMBEDDING_FILE_SCHEMA),
        {"media": count},
    )


def points(out: str) -> Row:
    """Read all points; largest resident set of the process, imports and all."""
    begun = time.perf_counter()
    table = open_annotation(out).table(POINTS)
    seconds = time.perf_counter() - begun
    # Not getrusage: what that says of a new process includes the process that started it.
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return {"s": seconds, "MB": int(line.split()[1]) / 1024, "rows": table.num_rows}


def verified(out: str) -> Row:
    """Verify on a Ray that runs already."""
    with ray_session():
        begun = time.perf_counter()
        report = verify(out, Settings())
        seconds = time.perf_counter() - begun
    assert report.ok, report.to_text()
    return {"s": seconds, "rows": report.annotated}


def read_bytes(out: str) -> Row:
    """Read and digest every file that `verify` looks at, by threads."""
    storage = open_storage(out)
    files = [entry for prefix in ("status=", "_mmva/000000/embeddings/") for entry in storage.walk(prefix)]
    begun = time.perf_counter()
    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(lambda entry: sha256(storage.read(entry.path)).digest(), files))
    return {"s": time.perf_counter() - begun, "MB": sum(entry.size for entry in files) / 1e6, "files": len(files)}


MEASURES: dict[str, Callable[[str], Row]] = {"points": points, "verify": verified, "bytes": read_bytes}


def apart(name: str, out: Path) -> dict[str, float]:
    """A measure in a process of its own."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "platform"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, __file__, "--measure", name, "--out", str(out)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    """Make, measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--shard-items", type=int, default=16_384)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workdir", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(MEASURES[arguments.measure](arguments.out)))
        return 0
    report = Report("table", items=arguments.items, dim=arguments.dim, shard_items=arguments.shard_items)
    with workspace(arguments.workdir) as folder:
        sizes = {"a tenth": arguments.items // 10, "all": arguments.items}
        for name, count in sizes.items():
            if not (folder / name / "_delta_log").exists():
                make(folder / name, count, arguments.dim, arguments.shard_items)
        rounds = []
        for number in range(arguments.rounds + 1):
            found: dict[str, float] = {}
            for name, count in sizes.items():
                seen = apart("points", folder / name)
                assert seen["rows"] == count, seen
                found |= {f"points of {name}, s": seen["s"], f"points of {name}, MB": seen["MB"]}
            checked, raw = apart("verify", folder / "all"), apart("bytes", folder / "all")
            found |= {"verify, s": checked["s"], "bytes by threads, s": raw["s"]}
            found |= {"verify / bytes": checked["s"] / raw["s"], "verify, MB/s": raw["MB"] / checked["s"]}
            if number:  # the first round fills the file system's cache
                rounds.append(found)
    report.details["files"] = raw["files"]
    report.add_rounds(rounds, {"points of all, s": f"< {MOST_S:g}", "points of all, MB": f"< {MOST_MB:g}"})
    report.show(arguments.json)
    medians = {row["what"]: row["value"] for row in report.rows}
    return int(medians["points of all, s"] >= MOST_S or medians["points of all, MB"] >= MOST_MB)


if __name__ == "__main__":
    sys.exit(main())
