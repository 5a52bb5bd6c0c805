"""Does the driver of an annotation run stay linear in its shards: plan, resume and publication of 10^4 to 10^6 shards?

    python benchmarks/million_shards.py

One item a shard, in a store that makes its commit records up when they are read, so that the times and the memory are
the driver's own. Each size is a process of its own. What storage adds is a number of requests, printed beside. Exit
code 1 if a shard of the largest run costs over twice the time, or over one and a half times the memory, of one of the
run before it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from mmva.inference.config import Preprocessing
from mmva_platform.annotation.catalog import Catalog
from mmva_platform.annotation.commit import COMMITS, CommitRecord, FileRecord, committed_shards, read_commits
from mmva_platform.annotation.plan import PLAN_FILE, ModelInfo, Plan, make_plan, settle_plan
from mmva_platform.annotation.publish import MANIFEST_FILE, publish, read_manifest
from mmva_platform.annotation.schema import CATALOG_SCHEMA
from mmva_platform.storage.base import Entry, Storage, StorageNotFound

SIZES = (10_000, 100_000, 1_000_000)
LISTED_AT_ONCE = 1000
MOST_TIME, MOST_MEMORY = 2.0, 1.5


class MadeUpStore(Storage):
    """Holds what is put; commit records exist as soon as `plan` is set, and are made when they are read."""

    def __init__(self) -> None:
        self.uri = "made-up"
        self.kept: dict[str, bytes] = {}
        self.plan: Plan | None = None
        self.requests = {"PUT": 0, "GET": 0, "LIST": 0}

    def read(self, path: str, most: int | None = None) -> bytes:  # noqa: ARG002
        """What was put, or a record."""
        self.requests["GET"] += 1
        if path in self.kept:
            return self.kept[path]
        if self.plan and path.startswith(COMMITS):
            return self._record(path.removeprefix(COMMITS).removesuffix(".json"))
        raise StorageNotFound(path)

    def write(self, path: str, data: bytes) -> None:
        """As put_if_absent."""
        self.put_if_absent(path, data)

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Nobody else writes here."""
        self.requests["PUT"] += 1
        self.kept.setdefault(path, data)
        return True

    def exists(self, path: str) -> bool:
        """Whether it was put."""
        self.requests["GET"] += 1
        return path in self.kept

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """All commit records; nothing else is listed by a driver."""
        assert self.plan
        assert prefix == COMMITS
        for number, shard in enumerate(self.plan.shards):
            self.requests["LIST"] += number % LISTED_AT_ONCE == 0
            yield Entry(f"{COMMITS}{shard}.json", 900)

    def delete(self, path: str) -> None:
        """Forget it."""
        del self.kept[path]

    def size(self, path: str) -> int:
        """Of what is read."""
        return len(self.read(path))

    def local_path(self, path: str) -> None:
        """None."""
        del path

    def _record(self, shard: str) -> bytes:
        assert self.plan
        file = FileRecord(path=f"data/{shard}-{'0' * 16}.parquet", rows=1, size=9_000, sha256="0" * 64)
        return CommitRecord(
            shard=shard, run_id=self.plan.run_id, items=1, ok=1, quarantined=0, by_modality={"image": 1}, causes={},
            work={"media": 1}, seconds={"fetch": 0.01, "decode": 0.01, "infer": 0.02, "write": 0.03}, data=file,
            quarantine=None, windows=None,
        ).model_dump_json(indent=1).encode()  # fmt: skip


def catalog(items: int) -> Catalog:
    """So many images by their address."""
    names = [f"photos/{number:09d}.jpg" for number in range(items)]
    columns: dict[str, Any] = {
        "id": names, "uri": [f"s3://media/{name}" for name in names], "modality": ["image"] * items,
        "bytes": list(range(items)),
    }  # fmt: skip
    table = pa.table([pa.array(columns.get(f.name, [None] * items), f.type) for f in CATALOG_SCHEMA], CATALOG_SCHEMA)
    return Catalog("s3://media/photos", table, {}, 0, ())


def measure(shards: int) -> dict[str, Any]:
    """Seconds of each step, bytes of what it writes, requests, peak memory; of this process."""
    store, seconds = MadeUpStore(), {}
    items = catalog(shards)
    base_mb = _peak_mb()
    begun = time.perf_counter()

    def step(name: str) -> None:
        nonlocal begun
        seconds[name] = time.perf_counter() - begun
        begun = time.perf_counter()

    model = ModelInfo(name="mmva", version="1", digest="0" * 64)
    preprocessing = Preprocessing(fingerprints={"image": "0" * 64}, window_s=3.0, hop_s=1.5, short_side=224)
    plan, contents = make_plan(items, model, preprocessing, 1)
    assert len(plan.shards) == shards
    step("plan")
    settle_plan(store, plan, contents)
    step("write the plan")
    settled = settle_plan(store, plan, contents)  # as a resume does: read, compare, adopt
    step("read and compare the plan")
    store.plan = settled
    done = committed_shards(store)
    step("list the commits")
    commits = read_commits(store, sorted(done))
    step("read the commits")
    publish(store, settled, commits)
    step("publish")
    del commits, contents
    begun = time.perf_counter()
    read_manifest(store)
    step("read the manifest")
    return {
        "shards": shards, "seconds": seconds, "peak_mb": _peak_mb(), "catalog_mb": base_mb, "requests": store.requests,
        "plan_mb": len(store.kept[PLAN_FILE]) / 1e6, "manifest_mb": len(store.kept[MANIFEST_FILE]) / 1e6,
    }  # fmt: skip


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def main() -> int:
    """Measure each size in a process of its own and compare the last two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", type=int, help="measure this size here, and print JSON")
    parser.add_argument("--largest", type=int, default=SIZES[-1])
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one)))
        return 0
    found = []
    for size in (size for size in SIZES if size <= options.largest):
        command = [sys.executable, Path(__file__), "--one", str(size)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout))
        _show(found[-1])
    return _verdict(*found[-2:])


def _show(result: dict[str, Any]) -> None:
    steps = ", ".join(f"{name} {value:.2f} s" for name, value in result["seconds"].items())
    print(f"{result['shards']:>9} shards: {steps}")
    print(
        f"{'':>9} plan.json {result['plan_mb']:.1f} MB, MANIFEST.json {result['manifest_mb']:.1f} MB, "
        f"peak {result['peak_mb']:.0f} MB (the catalog alone {result['catalog_mb']:.0f} MB), "
        f"requests {result['requests']}"
    )


def _verdict(smaller: dict[str, Any], larger: dict[str, Any]) -> int:
    def each(result: dict[str, Any]) -> tuple[float, float]:
        own_mb = result["peak_mb"] - result["catalog_mb"]
        return sum(result["seconds"].values()) / result["shards"], own_mb / result["shards"]

    (time_before, memory_before), (time_after, memory_after) = each(smaller), each(larger)
    print(
        f"a shard: {time_before * 1e6:.0f} -> {time_after * 1e6:.0f} us, "
        f"{memory_before * 1e3:.1f} -> {memory_after * 1e3:.1f} kB"
    )
    return int(time_after > MOST_TIME * time_before or memory_after > MOST_MEMORY * memory_before)


if __name__ == "__main__":
    sys.exit(main())
