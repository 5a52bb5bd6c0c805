"""`mmva annotate` of images in an S3 store at a distance against the same images on the local disk.

    python benchmarks/annotate_s3.py [--workdir DIR] [--items 1600 6400] [--rounds 3] [--delay-ms 50]

The store is SeaweedFS on this machine. A proxy answers each GET later by the delay. Three variants in turns, equal
but for where the images are; outputs are on the local disk:
  local     a folder
  S3        through a proxy without a delay: shows the CPU that store, proxy and S3 client take from the run
  S3, far   through a proxy with the delay
Each runs at two sizes; the rate is the slope between them. Store and proxies share the cores with the run, so their
CPU time for an image stands in the table, too.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from harness import ROOT, Line, make_bundle, measured, mmva, workspace
from latency_proxy import latency_proxy
from made_media import make_pictures
from report import Report

BUCKET = "media"
WARM_UP = 64  # images
WANTED = {"images/s, S3 far / local": "at least .9"}


@dataclass(frozen=True)
class Variant:
    """Where the images are.

    Attributes:
        name: For the table.
        place: URI or folder of the images of each size, without the size.
        settings: Settings file that names the endpoint; None for the local disk.
    """

    name: str
    place: str
    settings: Path | None


def start_store(stack: ExitStack, workdir: Path) -> Any:
    """SeaweedFS, as the fault tests start it; ended with the stack. Its credentials are in this environment then."""
    sys.path.append(str(ROOT / "tests" / "system" / "faults"))
    from seaweed import ACCESS, SECRET, Seaweed

    store = Seaweed(workdir / "seaweedfs")
    stack.callback(store.stop)
    store.start()
    os.environ |= {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_EC2_METADATA_DISABLED": "true"}
    return store


def upload(store: Any, folder: Path) -> None:
    """Put a folder's files below its name, past any proxy."""
    client = store.client()
    if BUCKET not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket=BUCKET)

    def put(file: Path) -> None:
        client.put_object(Bucket=BUCKET, Key=f"{folder.name}/{file.name}", Body=file.read_bytes())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, sorted(folder.iterdir())))


def settings_file(path: Path, port: int) -> Path:
    """Settings with a local endpoint."""
    path.write_text(f"storage:\n  s3_endpoint: http://127.0.0.1:{port}\n  s3_region: us-east-1\n")
    return path


class Bench:
    """The variants over one work folder."""

    def __init__(self, workdir: Path, servers: Sequence[psutil.Process]) -> None:
        self.workdir, self.servers = workdir, servers
        self.bundle = make_bundle(workdir / "bundle")

    def annotate(self, variant: Variant, items: int) -> tuple[Any, float]:
        """One process, and the CPU time of store and proxies meanwhile."""
        out = self.workdir / "out"
        shutil.rmtree(out, ignore_errors=True)
        media = f"{variant.place}{items}"
        options = ("annotate", media, "--model", self.bundle, "--out", out, "--engine", "onnx")
        home = self.workdir / f"home-{variant.name.replace(' ', '-')}"
        before = self._server_cpu_s()
        found = measured(mmva(*options, home=home, settings=variant.settings))
        return found, self._server_cpu_s() - before

    def _server_cpu_s(self) -> float:
        return sum(sum(server.cpu_times()[:2]) for server in self.servers)

    def round(self, variants: Sequence[Variant], sizes: Sequence[int]) -> dict[str, float]:
        """What one round shows."""
        rates, fixed, servers = {}, {}, {}
        for variant in variants:
            (small, idle), (large, busy) = (self.annotate(variant, items) for items in sizes)
            line = Line.through((sizes[0], small), (sizes[1], large))
            rates[variant.name], fixed[variant.name] = line.rate, line.fixed
            servers[variant.name] = (busy - idle) / (sizes[1] - sizes[0])
        return {
            **{f"images/s, {name}": rates[name] for name in sorted(rates)},
            "images/s, S3 far / local": rates["S3 far"] / rates["local"],
            "images/s, S3 far / S3": rates["S3 far"] / rates["S3"],
            "images/s, S3 / local": rates["S3"] / rates["local"],
            "fixed s, S3 far - local": fixed["S3 far"] - fixed["local"],
            "CPU ms of store and proxy an image": 1000 * servers["S3 far"],
        }


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, help="kept, results.json too; a temporary folder by default")
    parser.add_argument("--items", type=int, nargs=2, default=(1600, 6400))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--delay-ms", type=float, default=50.0)
    arguments = parser.parse_args()
    with workspace(arguments.workdir) as workdir, ExitStack() as stack:
        report = Report(
            "annotate_s3", items=arguments.items, rounds=arguments.rounds, **{"delay ms": arguments.delay_ms}
        )
        store = start_store(stack, workdir)
        for items in (WARM_UP, *arguments.items):
            upload(store, make_pictures(workdir / f"images-{items}", items))
        near, near_process = stack.enter_context(latency_proxy(store.port, 0))
        far, far_process = stack.enter_context(latency_proxy(store.port, arguments.delay_ms))
        remote = f"s3://{BUCKET}/images-"
        variants = [
            Variant("local", f"{workdir}/images-", None),
            Variant("S3", remote, settings_file(workdir / "near.yaml", near)),
            Variant("S3 far", remote, settings_file(workdir / "far.yaml", far)),
        ]
        bench = Bench(workdir, [psutil.Process(each.pid) for each in (store.process, near_process, far_process)])
        for variant in variants:
            bench.annotate(variant, WARM_UP)
        rows = []
        for _ in range(arguments.rounds):
            rows.append(bench.round(variants, arguments.items))
            variants.append(variants.pop(0))
        report.add_rounds(rows, WANTED)
        report.show(workdir / "results.json")


if __name__ == "__main__":
    main()
