"""Does the driver of an annotation run stay linear in its shards, and bounded in its items?

    python benchmarks/million_shards.py             # 10^4 to 10^6 shards of one item
    python benchmarks/million_shards.py --items     # 10^6 and 10^7 items in shards of a minute

Plan, resume and publication, in a store that makes its commit records up when they are read, so that the times and the
memory are the driver's own. Each size is a process of its own. What storage adds is a number of requests, printed
beside. Exit code 1 if the largest run costs over twice the time of the one before it for each shard (or item), or over
one and a half times its memory for each shard; with --items, if it needs over 1.1 times its memory.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
from pyarrow.fs import FileSystem

from mmva.inference.config import EngineInfo, Preprocessing
from mmva_platform.annotation.catalog import Catalog
from mmva_platform.annotation.commit import COMMITS, CommitRecord, FileRecord, committed_shards, read_commits
from mmva_platform.annotation.plan import PLAN_FILE, ModelInfo, Plan, read_plan
from mmva_platform.annotation.planning import write_plan
from mmva_platform.annotation.publish import MANIFEST_FILE, publish, read_manifest
from mmva_platform.annotation.schema import CATALOG_SCHEMA
from mmva_platform.annotation.spool import spooled
from mmva_platform.storage.base import Entry, OnSkip, Storage, StorageNotFound

SIZES = (10_000, 100_000, 1_000_000)
ITEMS = (1_000_000, 10_000_000)
BATCH = 50_000
IMAGES_S = 82.0  # of one core; scale.py
LISTED_AT_ONCE = 1000
MOST_TIME, MOST_MEMORY, MOST_MEMORY_OF_ITEMS = 2.0, 1.5, 1.1


class MadeUpStore(Storage):
    """Holds what is put; commit records exist as soon as `plan` is set, and are made when they are read."""

    def __init__(self) -> None:
        self.uri = "made-up"
        self.kept: dict[str, bytes] = {}
        self.plan: Plan | None = None
        self.rows: list[int] = []
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

    def walk(self, prefix: str = "", on_skip: OnSkip | None = None) -> Iterator[Entry]:
        """As list."""
        del on_skip
        return self.list(prefix)

    def open(self, path: str) -> BinaryIO:
        """What was put."""
        return io.BytesIO(self.read(path))

    def filesystem(self) -> tuple[FileSystem, str]:
        """None: nothing here is read by pyarrow."""
        raise NotImplementedError

    def size(self, path: str) -> int:
        """Of what is read."""
        return len(self.read(path))

    def local_path(self, path: str) -> None:
        """None."""
        del path

    def _record(self, shard: str) -> bytes:
        assert self.plan
        rows = self.rows[int(shard)]
        file = FileRecord(path=f"data/{shard}-{'0' * 16}.parquet", rows=rows, size=9_000, sha256="0" * 64)
        return CommitRecord(
            shard=shard, run_id=self.plan.run_id, items=rows, ok=rows, quarantined=0, by_modality={"image": rows},
            causes={}, work={"media": rows}, seconds={"fetch": 0.01, "decode": 0.01, "infer": 0.02, "write": 0.03},
            data=file, quarantine=None, windows=None,
        ).model_dump_json(indent=1).encode()  # fmt: skip


def catalog(items: int) -> Catalog:
    """So many images by their address, made as they are read."""

    def read(_skipped: Counter[str]) -> Iterator[pa.Table]:
        for start in range(0, items, BATCH):
            rows = range(start, min(start + BATCH, items))
            names = [f"photos/{number:09d}.jpg" for number in rows]
            columns: dict[str, Any] = {
                "id": names, "uri": [f"s3://media/{name}" for name in names], "modality": ["image"] * len(rows),
                "bytes": rows, "etag": [f"{number * 2_654_435_761:032x}" for number in rows],
            }  # fmt: skip
            arrays = [pa.array(columns.get(field.name, [None] * len(rows)), field.type) for field in CATALOG_SCHEMA]
            yield pa.table(arrays, CATALOG_SCHEMA)

    return Catalog("s3://media/photos", read)


def measure(items: int, shard_items: int | None) -> dict[str, Any]:
    """Seconds of each step, bytes of what it writes, requests, peak memory; of this process."""
    store, seconds = MadeUpStore(), {}
    base_mb = _peak_mb()
    begun = time.perf_counter()

    def step(name: str) -> None:
        nonlocal begun
        seconds[name] = time.perf_counter() - begun
        begun = time.perf_counter()

    model = ModelInfo(name="mmva", version="1", digest="0" * 64)
    preprocessing = Preprocessing(fingerprints={"image": "0" * 64}, window_s=3.0, hop_s=1.5, short_side=224)
    engines = {"image": EngineInfo(name="onnx", items_per_s={"onnx": IMAGES_S})}
    with spooled(catalog(items)) as spool:
        step("read the catalog")
        write_plan(store, spool, model, preprocessing, engines=engines, shard_items=shard_items)
        step("write the plan")
    plan_mb = sum(map(len, store.kept.values())) / 1e6  # the made-up store is in memory, a real one is not
    settled = read_plan(store)  # as a resume does
    step("read the plan")
    store.plan, store.rows = settled, settled.rows
    done = committed_shards(store)
    step("list the commits")
    commits = read_commits(store, sorted(done))
    step("read the commits")
    publish(store, settled, commits)
    step("publish")
    del commits
    begun = time.perf_counter()
    read_manifest(store)
    step("read the manifest")
    return {
        "items": items, "shards": len(settled.shards), "seconds": seconds, "peak_mb": _peak_mb() - plan_mb,
        "start_mb": base_mb, "requests": store.requests,
        "plan_mb": len(store.kept[PLAN_FILE]) / 1e6, "manifest_mb": len(store.kept[MANIFEST_FILE]) / 1e6,
    }  # fmt: skip


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def main() -> int:
    """Measure each size in a process of its own and compare the last two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", action="store_true", help="sizes in items, in shards of a minute")
    parser.add_argument("--one", type=int, help="measure this size here, and print JSON")
    parser.add_argument("--largest", type=int, help="leave larger sizes out")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, None if options.items else 1)))
        return 0
    found = []
    sizes = ITEMS if options.items else SIZES
    for size in (size for size in sizes if size <= (options.largest or sizes[-1])):
        command = [sys.executable, Path(__file__), "--one", str(size), *(["--items"] if options.items else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout))
        _show(found[-1])
    return _verdict(*found[-2:], of_items=options.items)


def _show(result: dict[str, Any]) -> None:
    steps = ", ".join(f"{name} {value:.2f} s" for name, value in result["seconds"].items())
    print(f"{result['items']:>9} items in {result['shards']} shards: {steps}")
    print(
        f"{'':>9} plan.json {result['plan_mb']:.1f} MB, MANIFEST.json {result['manifest_mb']:.1f} MB, "
        f"peak {result['peak_mb']:.0f} MB ({result['start_mb']:.0f} MB of it before anything is read), "
        f"requests {result['requests']}"
    )


def _verdict(smaller: dict[str, Any], larger: dict[str, Any], *, of_items: bool) -> int:
    unit = "items" if of_items else "shards"
    us_before, us_after = (sum(each["seconds"].values()) / each[unit] * 1e6 for each in (smaller, larger))
    grown = larger["peak_mb"] / smaller["peak_mb"]
    kb_before, kb_after = ((each["peak_mb"] - each["start_mb"]) / each[unit] * 1e3 for each in (smaller, larger))
    print(f"for each of the {unit}: {us_before:.0f} -> {us_after:.0f} us, {kb_before:.2f} -> {kb_after:.2f} kB")
    print(f"peak memory: {grown:.2f} times that of the smaller run")
    too_large = grown > MOST_MEMORY_OF_ITEMS if of_items else kb_after > MOST_MEMORY * kb_before
    return int(us_after > MOST_TIME * us_before or too_large)


if __name__ == "__main__":
    sys.exit(main())
