"""One SeaweedFS with a proxy before it and one Ray head for all fault tests, and `mmva` as a process."""

from __future__ import annotations

import io
import json
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from faulty_store import FaultyStore
from made import Made
from PIL import Image
from places import FolderPlace, S3Place
from ray_head import RayHead
from seaweed import Seaweed
from world import BROKEN, BUCKET, CAPTIONS, PICTURES, World, environment, finished


def picture(seed: int) -> bytes:
    """A small JPEG."""
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 40, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def weed(group_end: ExitStack, tmp_path_factory: pytest.TempPathFactory) -> Seaweed:
    """A server with a catalog of pictures and captions, of which the BROKEN ones cannot be annotated."""
    server = Seaweed(tmp_path_factory.mktemp("weed"))
    group_end.callback(server.stop)
    server.start()
    client = server.client()
    client.create_bucket(Bucket=BUCKET)
    for number in range(PICTURES):
        name = f"picture-{number:03d}.jpg"
        body = picture(number)[:200] if name in BROKEN else picture(number)
        client.put_object(Bucket=BUCKET, Key=f"catalog/{name}", Body=body)
    for number in range(CAPTIONS):
        name = f"words-{number:03d}.txt"
        text = " " if name in BROKEN else f"The {number}th song."
        client.put_object(Bucket=BUCKET, Key=f"catalog/{name}", Body=text.encode())
    return server


@pytest.fixture(scope="session")
def store(weed: Seaweed, group_end: ExitStack) -> FaultyStore:
    """The proxy before the server."""
    proxy = FaultyStore(weed.port)
    group_end.callback(proxy.stop)
    return proxy


@pytest.fixture(scope="session")
def head(group_end: ExitStack) -> RayHead:
    """The Ray that all commands run on; it outlives the killed ones."""
    ray = RayHead(environment())
    group_end.callback(ray.stop)
    return ray


@pytest.fixture
def world(weed: Seaweed, store: FaultyStore, head: RayHead, tiny_bundle: Path, tmp_path: Path) -> World:
    """A world whose output is empty."""
    store.forget()
    return World(weed, store, head, tiny_bundle, tmp_path)


@pytest.fixture(scope="session")
def whole(
    weed: Seaweed, store: FaultyStore, head: RayHead, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> World:
    """A world whose output was annotated without any fault, for comparison; who uses it leaves it whole."""
    store.forget()
    world = World(weed, store, head, tiny_bundle, tmp_path_factory.mktemp("whole"))
    world.summary = json.loads(finished(world.annotation()))
    return world


@pytest.fixture(scope="session", params=["folder", "seaweed"])
def made(request: pytest.FixtureRequest, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    if request.param == "folder":
        return Made(FolderPlace(folder / "out" / "base"), folder, tiny_bundle)
    weed: Seaweed = request.getfixturevalue("weed")
    return Made(S3Place(weed, BUCKET, f"{folder.name}/base"), folder, tiny_bundle)
