"""The application around models that need no Ray: an echo that can be told to be slow, missing or full."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from starlette.testclient import TestClient

from mmva_platform.annotation.plan.plan import ModelInfo
from mmva_platform.monitoring.metrics import ApiMetrics
from mmva_platform.serving.app import create_app
from mmva_platform.serving.auth import Keyring
from mmva_platform.serving.context import Answers, Context, ItemRequest
from mmva_platform.serving.jobs.progress import ProgressReader
from mmva_platform.serving.jobs.queue import JobQueue
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


class Recorder:
    """Stands for ray.serve.metrics: values by name and tags."""

    def __init__(self) -> None:
        self.values: Counter[tuple[str, ...]] = Counter()
        self.Counter = self.Gauge = self._metric

    def _metric(self, name: str, _description: str, _tags: tuple[str, ...]) -> Any:
        def key(tags: dict[str, str] | None) -> tuple[str, ...]:
            return (name, *(tags or {}).values())

        def change(amount: float, tags: dict[str, str] | None = None) -> None:
            self.values[key(tags)] += amount  # type: ignore[assignment]

        def put(value: float, tags: dict[str, str] | None = None) -> None:
            self.values[key(tags)] = value  # type: ignore[assignment]

        return SimpleNamespace(inc=change, set=put)


@dataclass
class FakeModels:
    """Answers as ModelClient does."""

    annotate: Callable[[list[ItemRequest]], Awaitable[Answers]] = echo
    known: ModelInfo | None = MODEL
    asked: list[str] = field(default_factory=list)

    async def versions(self) -> list[dict[str, Any]]:
        return [{"version": 3}]


@dataclass
class World:
    """A client and what the application is built with."""

    client: TestClient
    models: FakeModels
    metrics: Recorder
    context: Context

    @property
    def jobs(self) -> JobQueue:
        return self.context.jobs


def make_world(
    home: Path,
    annotate: Callable[[list[ItemRequest]], Awaitable[Answers]] = echo,
    *,
    model: ModelInfo | None = MODEL,
    open_index: Callable[[str], Any] = str,
    report: Callable[[str], str] = lambda uri: f"<p>report of {uri}</p>",
    root_path: str = "",
    progress: Any = None,
    settings: Settings | None = None,
    **serving: Any,
) -> World:
    """The application on a home of its own."""
    base = settings or Settings(home=home)
    settings = base.model_copy(update={"serving": ServingSettings(**({"keys": key_settings()} | serving))})
    recorder, models = Recorder(), FakeModels(annotate, model)
    context = Context(
        settings=settings,
        keyring=Keyring(settings.serving.keys),
        models=models,  # type: ignore[arg-type]
        jobs=JobQueue(str(home / "jobs"), settings.serving, settings.storage),
        progress=progress or ProgressReader(settings),
        report=report,
        open_index=open_index,
        metrics=ApiMetrics(recorder),
    )
    client = TestClient(create_app(context), raise_server_exceptions=False, root_path=root_path)
    return World(client, models, recorder, context)


async def slow(items: list[ItemRequest]) -> Answers:
    """An answer that does not come in a test's time."""
    await asyncio.sleep(60)
    return await echo(items)
