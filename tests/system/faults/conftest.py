"""One SeaweedFS with a proxy before it for a module of fault tests, and `mmva` as a process."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from faulty_store import FaultyStore
from PIL import Image
from seaweed import Seaweed
from world import BUCKET, CAPTIONS, PICTURES, World


def picture(seed: int) -> bytes:
    """A small JPEG."""
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 40, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """A server with a catalog of pictures and captions; one of each cannot be annotated."""
    server = Seaweed(tmp_path_factory.mktemp("weed"))
    server.start()
    client = server.client()
    client.create_bucket(Bucket=BUCKET)
    for number in range(PICTURES):
        body = picture(number) if number else picture(number)[:200]
        client.put_object(Bucket=BUCKET, Key=f"catalog/picture-{number:03d}.jpg", Body=body)
    for number in range(CAPTIONS):
        text = f"The {number}th song." if number else " "
        client.put_object(Bucket=BUCKET, Key=f"catalog/words-{number:03d}.txt", Body=text.encode())
    yield server
    server.stop()


@pytest.fixture(scope="module")
def store(weed: Seaweed) -> Iterator[FaultyStore]:
    """The proxy before the server."""
    proxy = FaultyStore(weed.port)
    yield proxy
    proxy.stop()


@pytest.fixture
def make_world(weed: Seaweed, store: FaultyStore, tiny_bundle: Path, tmp_path: Path) -> Callable[[], World]:
    """Worlds with outputs of their own."""
    store.forget()
    return lambda: World(weed, store, tiny_bundle, tmp_path)


@pytest.fixture
def world(make_world: Callable[[], World]) -> World:
    """A world whose output is empty."""
    return make_world()
