"""What a fault test works with: a store, a catalog, and `mmva` as a process."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

from faulty_store import FaultyStore
from ray_head import RayHead
from seaweed import ACCESS, SECRET, Seaweed

REPOSITORY = Path(__file__).resolve().parents[3]
BUCKET = "bucket"
PICTURES, CAPTIONS = 40, 20
BROKEN = ["picture-000.jpg", "picture-001.jpg", "words-000.txt"]  # 5 % of the catalog
MAIN = "from mmva_platform.cli.main import main; main()"


def environment() -> dict[str, str]:
    """Of `mmva` and of Ray: this checkout's packages, the server's credentials, one thread a process."""
    return os.environ | {
        "AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_EC2_METADATA_DISABLED": "true",
        "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'platform'}", "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "disabled",
    }  # fmt: skip


class World:
    """A store with a catalog, and the command that a person would type.

    Attributes:
        weed: The server.
        store: The proxy that everything goes through.
        head: The Ray that commands run on.
        out: Where this test's annotation stands.
    """

    def __init__(self, weed: Seaweed, store: FaultyStore, head: RayHead, bundle: Path, folder: Path) -> None:
        self.weed, self.store, self.head, self.bundle, self.folder = weed, store, head, bundle, folder
        self.client = weed.client()
        self.catalog = f"s3://{BUCKET}/catalog"
        self.prefix = f"out-{uuid.uuid4().hex[:8]}"
        self.out = f"s3://{BUCKET}/{self.prefix}"
        self.storage: dict[str, Any] = {
            "max_attempts": 6,
            "connect_timeout_s": 2,
            "read_timeout_s": 10,
            "patience_s": 20,
        }

    def settings(self) -> Path:
        """The settings' file as it must be now."""
        file = self.folder / f"settings-{uuid.uuid4().hex[:8]}.yaml"
        content = {
            "home": str(self.folder / "home"),
            "storage": {"s3_endpoint": self.store.endpoint, **self.storage},
            "cluster": {"address": self.head.address, "stall_timeout_s": 120},
        }
        file.write_text(json.dumps(content))
        return file

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Begin an `mmva` command."""
        return subprocess.Popen(
            [sys.executable, "-c", MAIN, "--settings", str(self.settings()), *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), cwd=self.folder,
        )  # fmt: skip

    def annotation(self, *options: str, model: Path | None = None, catalog: str | None = None) -> subprocess.Popen[str]:
        """Begin an `mmva annotate` of eight shards; torch, because exporting networks takes longer than the run."""
        return self.start(
            "annotate", catalog or self.catalog, "--model", str(model or self.bundle), "--out", self.out,
            "--workers", "2", "--engine", "torch", "--shard-items", "8", "--json", *options,
        )  # fmt: skip

    def verify(self) -> dict[str, Any]:
        """What `mmva annotations verify` finds; it must be nothing."""
        report = json.loads(finished(self.start("annotations", "verify", self.out, "--json")))
        assert report["ok"], report["problems"]
        return report

    def verify_whole(self) -> None:
        """Every item of the standard catalog once, the broken ones in quarantine."""
        report = self.verify()
        found = (report["items"], report["annotated"], report["quarantined"])
        assert found == (PICTURES + CAPTIONS, PICTURES + CAPTIONS - len(BROKEN), len(BROKEN))
        assert [row["id"] for row in self.rows("quarantine")] == BROKEN

    def objects(self, folder: str = "") -> list[str]:
        """Objects of the output, asked of the server itself."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{self.prefix}/{folder}")
        return [item["Key"].removeprefix(f"{self.prefix}/") for page in pages for item in page.get("Contents", [])]

    def read(self, path: str) -> bytes:
        """An object of the output."""
        data: bytes = self.client.get_object(Bucket=BUCKET, Key=f"{self.prefix}/{path}")["Body"].read()
        return data

    def rows(self, kind: str = "data") -> list[dict[str, Any]]:
        """What is published ("data" or "quarantine") by id, without what differs from run to run."""
        import pyarrow.parquet as pq

        rows: list[dict[str, Any]] = []
        for shard in json.loads(self.read("MANIFEST.json"))["shards"]:
            if shard[kind]:
                rows += pq.read_table(io.BytesIO(self.read(shard[kind]["path"]))).to_pylist()
        changing = {"run_id", "annotated_at", "failed_at", "quarantined_at", "attempts"}
        return sorted(({k: v for k, v in row.items() if k not in changing} for row in rows), key=lambda row: row["id"])


def differences(mine: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> list[str]:
    """Where two runs' rows differ by more than rounding: a shard that ran item by item has other batches."""
    if [row["id"] for row in mine] != [row["id"] for row in theirs]:
        return ["other ids"]
    return [
        f"{row['id']}: {name}: {row[name]} and {other[name]}"
        for row, other in zip(mine, theirs, strict=True)
        for name in row.keys() | other.keys()
        if not _close(row.get(name), other.get(name))
    ]


def _close(mine: Any, theirs: Any) -> bool:
    if isinstance(mine, float) and isinstance(theirs, float):
        return abs(mine - theirs) <= 1e-5
    if isinstance(mine, list) and isinstance(theirs, list):
        return len(mine) == len(theirs) and all(map(_close, mine, theirs))
    if isinstance(mine, dict) and isinstance(theirs, dict):
        return mine.keys() == theirs.keys() and all(_close(mine[key], theirs[key]) for key in mine)
    return bool(mine == theirs)


def finished(process: subprocess.Popen[str], code: int = 0) -> str:
    """Standard output (of a failure: standard error) of a command that ends with this code."""
    out, err = process.communicate(timeout=240)
    assert process.returncode == code, f"exit {process.returncode}\n{out}\n{err}"
    return out if code == 0 else err
