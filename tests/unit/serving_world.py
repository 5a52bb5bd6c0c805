"""The application around models that need no Ray: an echo that can be told to be slow, dead or full."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from mmva_platform.annotation.plan import ModelInfo
from mmva_platform.serving.app import create_app
from mmva_platform.serving.front import Front
from mmva_platform.serving.jobs import JobQueue
from mmva_platform.serving.keys import Keyring
from mmva_platform.serving.metrics import Metrics
from mmva_platform.serving.services import Answers, ItemRequest, Services
from mmva_platform.settings import KeySettings, ServingSettings, Settings

MODEL = ModelInfo(name="mmva", version="3", digest="d" * 64)
KEYS = {"reader": ("read",), "worker": ("read", "annotate"), "other": ("read", "annotate"), "boss": ("admin",)}


def key_settings() -> tuple[KeySettings, ...]:
    """A key for each name; the key is the name and "-key"."""
    return tuple(
        KeySettings(name=name, sha256=hashlib.sha256(f"{name}-key".encode()).hexdigest(), scopes=scopes)
        for name, scopes in KEYS.items()
    )


def bearer(name: str) -> dict[str, str]:
    """Headers of a key."""
    return {"Authorization": f"Bearer {name}-key"}


def row_of(item: ItemRequest, model: ModelInfo = MODEL) -> dict[str, Any]:
    """A point that tells which bytes it is of; "bad" in a caption is an error of that item."""
    stamp = {"model_version": model.version, "model_digest": model.digest}
    if "bad" in (item["caption"] or ""):
        problem = {"code": "not-text", "stage": "decode", "message": "bad"}
        return {"id": item["id"], "status": "error", "modality": item["modality"], "error": problem, **stamp}
    data = item["data"] or (item["caption"] or item["uri"] or "").encode()
    return {
        "id": item["id"],
        "status": "ok",
        "modality": item["modality"],
        "valence": 0.25,
        "arousal": 0.75,
        "sha256": hashlib.sha256(data).hexdigest(),
        "windows": None,
        "duration_s": None,
        "embedding": [1.0, 2.0],
        **stamp,
    }


async def echo(items: Sequence[ItemRequest]) -> Answers:
    """Rows of items."""
    return Answers(MODEL, [row_of(item) for item in items])


@dataclass
class World:
    """A client and what stands behind it."""

    client: TestClient
    front: Front
    metrics: Metrics
    jobs: JobQueue
    settings: Settings
    routes: list[Any]


def make_world(
    home: Path,
    annotate: Callable[[list[ItemRequest]], Awaitable[Answers]] = echo,
    *,
    carefully: Callable[[list[ItemRequest]], Awaitable[Answers]] = echo,
    compare: Callable[..., Awaitable[Any]] | None = None,
    model: ModelInfo | None = MODEL,
    open_index: Callable[[str], Any] = str,
    **serving: Any,
) -> World:
    """The application on a home of its own."""
    settings = Settings(home=home, serving=ServingSettings(**({"keys": key_settings()} | serving)))
    metrics = Metrics("test")

    async def current() -> ModelInfo | None:
        return model

    async def versions() -> list[dict[str, Any]]:
        return [{"version": 3}]

    front = Front(annotate, carefully, current, versions, settings=settings.serving, metrics=metrics, compare=compare)
    front.known = model
    jobs = JobQueue(str(home / "jobs"), settings.serving, settings.storage)
    services = Services(
        settings=settings,
        keyring=Keyring(settings.serving.keys),
        models=front,
        jobs=jobs,
        report=lambda uri: f"<p>report of {uri}</p>",
        open_index=open_index,
    )
    app = create_app(services, metrics, lambda: front.known)
    client = TestClient(app, raise_server_exceptions=False)
    routes = [route for router in app._app.state.routers for route in router.routes]
    return World(client, front, metrics, jobs, settings, routes)


async def slow(items: list[ItemRequest]) -> Answers:
    """An answer that does not come in a test's time."""
    await asyncio.sleep(60)
    return await echo(items)
