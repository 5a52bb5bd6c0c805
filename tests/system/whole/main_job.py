"""The main job, each step submitted: import, embed, train, evaluate, promote; what is annotated, and what is left."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from delta_rows import read_table, s3_options
from hosts import until
from PIL import Image
from services import S3
from topology import Topology

DATASET: Final = "s3://work/dataset"
CATALOG: Final = "s3://media/catalog"
PICTURES, CLIPS, CAPTIONS = 90, 6, 6
BROKEN: Final = ("broken.jpg", "empty.txt")
COMMITS: Final = "_mmva/000000/commits/"
ITEMS: Final = PICTURES + CLIPS + CAPTIONS + len(BROKEN)
EPOCHS: Final = 300
RECIPE: Final = (
    *("--config", "jobs/recipes/tiny.yaml", "--set", f"dataset={DATASET}", "--set", f"epochs={EPOCHS}"),
    *("--set", "checkpoint.every_s=0", "--set", "workers=2"),
)
# The towers see random backbones and sixty pictures: whether the gate lets them pass is luck, and tested elsewhere.
FORCED: Final = ("--force", "--reason", "random backbones learn next to nothing")


def champion_from_files(topology: Topology) -> None:
    """From published files to a champion, as a person would do it."""
    files = topology.root / "published"
    topology.mmva("data", "generate", files, "--images", 60, "--clips", 60)
    tables = ("--images-csv", files / "image_va.csv", "--music-csv", files / "music_va.csv")
    topology.job("data", "import", *tables, "--media", files, "--out", DATASET)
    topology.job("embed", DATASET, "--backbones", "tiny")
    topology.job("train", *RECIPE, "--set", "name=first")
    topology.job("evaluate", "models:/mmva/1", DATASET, "--no-clip-split")
    topology.job("models", "promote", "1", *FORCED)


def put_catalog(topology: Topology) -> None:
    """Large pictures, so that each takes some time, different by what stands behind their end; some music and words."""
    bodies = {BROKEN[0]: b"\xff\xd8\xff not a picture", BROKEN[1]: b" "}
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    Image.fromarray(pixels).resize((2000, 2000)).save(buffer, "PNG")
    for number in range(PICTURES):
        bodies[f"picture-{number:03d}.png"] = buffer.getvalue() + str(number).encode()
    for number, file in enumerate(sorted((topology.root / "published").rglob("*.[wW][aA][vV]"))[:CLIPS]):
        bodies[f"clip-{number}.wav"] = file.read_bytes()
    for number in range(CAPTIONS):
        bodies[f"words-{number}.txt"] = f"The {number}th song, sad and slow.".encode()
    client = topology.s3()
    for name, body in bodies.items():
        client.put_object(Bucket="media", Key=f"catalog/{name}", Body=body)


@dataclass(frozen=True)
class Annotation:
    """One annotation of the catalog in object storage.

    Attributes:
        topology: Where it runs.
        name: What it is called; it stands in s3://work/NAME.
    """

    topology: Topology
    name: str

    @property
    def uri(self) -> str:
        """Its place."""
        return f"s3://work/{self.name}"

    @property
    def command(self) -> tuple[object, ...]:
        """What a person types after `mmva jobs submit`; the same again goes on."""
        options = ("--engine", "torch", "--shard-items", 4, "--workers", 3)
        return ("annotate", CATALOG, "--model", "models:/mmva@champion", "--out", self.uri, *options)

    def objects(self, folder: str) -> list[str]:
        """Keys below a folder of it."""
        prefix = f"{self.name}/{folder}"
        pages = self.topology.s3().get_paginator("list_objects_v2").paginate(Bucket="work", Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def read(self, key: str) -> bytes:
        """An object."""
        data: bytes = self.topology.s3().get_object(Bucket="work", Key=key)["Body"].read()
        return data

    def await_commits(self, count: int) -> None:
        """Wait until it is so far, and no further than half way."""
        until(lambda: len(self.objects(COMMITS)) >= count, f"{count} commits of {self.name}", 120.0)
        assert not self.objects("_delta_log/"), "too late"

    def committed_by(self, host: str) -> list[str]:
        """Shards that workers on this host have committed."""
        records = [json.loads(self.read(key)) for key in self.objects(COMMITS)]
        return sorted(record["shard"] for record in records if record["worker"].partition(":")[0] == host)

    def rows(self, status: str = "ok") -> list[dict[str, Any]]:
        """What is published, by id, without what differs from run to run; as polars reads it."""
        options = s3_options(f"http://{self.topology.hosts['storage'].address}:{S3}")
        return read_table(self.uri, lambda path: self.read(f"{self.name}/{path}"), options)[status]

    def assert_whole(self) -> None:
        """Every item of the catalog exactly once, to the last byte, as `mmva annotations verify` finds it."""
        report = json.loads(self.topology.mmva("annotations", "verify", self.uri, "--json"))
        assert report["ok"], report["problems"]
        assert (report["items"], report["quarantined"]) == (ITEMS, len(BROKEN))
        assert [row["id"] for row in self.rows("quarantined")] == list(BROKEN)
        ids = [row["id"] for row in self.rows()]
        assert len(ids) == len(set(ids)) == ITEMS - len(BROKEN)
