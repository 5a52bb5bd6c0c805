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
from seaweed import ACCESS, SECRET, Seaweed

REPOSITORY = Path(__file__).resolve().parents[3]
BUCKET = "bucket"
PICTURES, CAPTIONS = 40, 20
# The command line has no option for the shards' size; a small catalog must have several.
MAIN = """
from functools import partial
from mmva_platform.annotation import run
from mmva_platform.cli.main import main
run.annotate = partial(run.annotate, shard_items=8)
main()
"""


class World:
    """A store with a catalog, and the command that a person would type.

    Attributes:
        weed: The server.
        store: The proxy that everything goes through.
        out: Where this test's annotation stands.
    """

    def __init__(self, weed: Seaweed, store: FaultyStore, bundle: Path, folder: Path) -> None:
        self.weed, self.store, self.bundle, self.folder = weed, store, bundle, folder
        self.client = weed.client()
        self.catalog = f"s3://{BUCKET}/catalog"
        self.out = f"s3://{BUCKET}/out-{uuid.uuid4().hex[:8]}"
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
            "cluster": {"num_cpus": 3, "object_store_mb": 128, "stall_timeout_s": 120},
        }
        file.write_text(json.dumps(content))
        return file

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Begin an `mmva` command."""
        environment = os.environ | {
            "AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_EC2_METADATA_DISABLED": "true",
            "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'platform'}",
        }  # fmt: skip
        return subprocess.Popen(
            [sys.executable, "-c", MAIN, "--settings", str(self.settings()), *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=self.folder,
        )  # fmt: skip

    def annotation(self, *options: str, model: Path | None = None, catalog: str | None = None) -> subprocess.Popen[str]:
        """Begin an `mmva annotate`."""
        return self.start(
            "annotate", catalog or self.catalog, "--model", str(model or self.bundle), "--out", self.out,
            "--workers", "2", "--json", *options,
        )  # fmt: skip

    def annotate(self, **options: Any) -> dict[str, Any]:
        """Run an `mmva annotate` to its good end; its summary."""
        return json.loads(finished(self.annotation(**options)))

    def verify(self) -> dict[str, Any]:
        """What `mmva annotations verify` finds; it must be nothing."""
        report = json.loads(finished(self.start("annotations", "verify", self.out, "--json")))
        assert report["ok"], report["problems"]
        return report

    def objects(self, folder: str = "") -> list[str]:
        """Objects of the output, asked of the server itself."""
        prefix = f"{self.out.removeprefix(f's3://{BUCKET}/')}/"
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix + folder)
        return [item["Key"].removeprefix(prefix) for page in pages for item in page.get("Contents", [])]

    def rows(self) -> list[dict[str, Any]]:
        """Annotations by id, without what differs from run to run."""
        import pyarrow.parquet as pq

        prefix = self.out.removeprefix(f"s3://{BUCKET}/")
        manifest = json.loads(self.client.get_object(Bucket=BUCKET, Key=f"{prefix}/MANIFEST.json")["Body"].read())
        rows = []
        for shard in manifest["shards"]:
            if shard["data"]:
                data = self.client.get_object(Bucket=BUCKET, Key=f"{prefix}/{shard['data']['path']}")["Body"].read()
                rows += pq.read_table(io.BytesIO(data)).drop_columns(["run_id", "annotated_at"]).to_pylist()
        return sorted(rows, key=lambda row: row["id"])


def finished(process: subprocess.Popen[str], code: int = 0) -> str:
    """Standard output (of a failure: standard error) of a command that ends with this code."""
    out, err = process.communicate(timeout=240)
    assert process.returncode == code, f"exit {process.returncode}\n{out}\n{err}"
    return out if code == 0 else err
