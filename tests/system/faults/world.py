"""What a fault test works with: a store, a catalog, and `mmva` as a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
from faulty_store import FaultyStore
from one_process import Call, Running
from places import S3Place
from ray_head import RayHead
from seaweed import ACCESS, SECRET, Seaweed

from mmva_platform.annotation import VerifyReport, verify
from mmva_platform.settings import Settings, StorageSettings

REPOSITORY = Path(__file__).resolve().parents[3]
BUCKET = "bucket"
PICTURES, CAPTIONS = 40, 20
BROKEN = ["picture-000.jpg", "picture-001.jpg", "words-000.txt"]  # 5 % of the catalog
NAMES = {f"picture-{n:03d}.jpg" for n in range(PICTURES)} | {f"words-{n:03d}.txt" for n in range(CAPTIONS)}
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
        place: The same, asked of the server itself, past the proxy.
        summary: What the command said when it was annotated; of the fixture `whole` only.
    """

    def __init__(self, weed: Seaweed, store: FaultyStore, head: RayHead, bundle: Path, folder: Path) -> None:
        self.weed, self.store, self.head, self.bundle, self.folder = weed, store, head, bundle, folder
        self.client = weed.client()
        self.catalog = f"s3://{BUCKET}/catalog"
        self.prefix = f"out-{uuid.uuid4().hex[:8]}"
        self.out = f"s3://{BUCKET}/{self.prefix}"
        self.place = S3Place(weed, BUCKET, self.prefix)
        self.summary: dict[str, Any] = {}
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

    def update(self, *options: str) -> subprocess.Popen[str]:
        """Begin an `mmva annotations update` of the same prefix."""
        return self.start("annotations", "update", self.out, "--workers", "2", "--json", *options)

    def resume(self) -> None:
        """Finish what is under way, in a process without Ray."""
        settings = Settings(storage=StorageSettings(s3_endpoint=self.store.endpoint), home=self.folder / "home")
        said = Running(Call("resume", (self.out,), self.out), settings, self.folder / "said").end()
        assert "error" not in said, said

    def verify(self) -> VerifyReport:
        """What `verify` finds, in this process; it must be nothing."""
        with pytest.MonkeyPatch.context() as patch:
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_EC2_METADATA_DISABLED"):
                patch.setenv(name, environment()[name])
            report = verify(self.out, Settings(storage=StorageSettings(s3_endpoint=self.weed.endpoint)))
        assert not report.problems
        return report

    def verify_whole(self) -> None:
        """Every item of the standard catalog once, the broken ones in quarantine; by `verify`, and by polars."""
        report = self.verify()
        found = (report.items, report.annotated, report.quarantined)
        assert found == (PICTURES + CAPTIONS, PICTURES + CAPTIONS - len(BROKEN), len(BROKEN))
        rows = self.place.rows()
        assert [row["id"] for row in rows["quarantined"]] == BROKEN
        assert {row["id"] for row in rows["ok"]} == NAMES - set(BROKEN)

    def objects(self, folder: str = "") -> list[str]:
        """Objects of the output, asked of the server itself."""
        return self.place.objects(folder)

    def rows(self, status: str = "ok") -> list[dict[str, Any]]:
        """What is published, by id, without what differs from run to run; as polars reads it."""
        return self.place.rows()[status]

    def own_catalog(self) -> str:
        """A copy of the catalog that a test may change."""
        place = f"{self.prefix}-catalog"
        for name in sorted(NAMES):
            body = self.client.get_object(Bucket=BUCKET, Key=f"catalog/{name}")["Body"].read()
            self.client.put_object(Bucket=BUCKET, Key=f"{place}/{name}", Body=body)
        return place


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
    try:
        out, err = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        process.kill()  # or the tests after this one would find it
        raise
    assert process.returncode == code, f"exit {process.returncode}\n{out}\n{err}"
    return out if code == 0 else err
