"""Before any route: keys and scopes on every one of them, sizes, types, time, and what is too much."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter
from fastapi.routing import APIRoute

from mmva_platform.serving.access import Needs
from mmva_platform.serving.app import refuse_open_routes
from mmva_platform.serving.services import Answers, ItemRequest

from .serving_world import KEYS, MODEL, World, bearer, echo, make_world, slow

PUBLIC = {"/healthz", "/readyz", "/", "/static/explorer.css"}
ITEMS = {"items": [{"caption": "a calm piano"}]}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


def all_routes(world: World) -> Iterator[tuple[str, str, str | None]]:
    """Method, path and scope of every route there is."""
    for route in world.routes:
        assert isinstance(route, APIRoute)
        scopes = [dep.call.scope for dep in route.dependant.dependencies if isinstance(dep.call, Needs)]
        name = "explorer.css" if route.path.startswith("/static") else "favicon.png"
        for method in route.methods:
            yield method, route.path.format(job_id="0" * 16, name=name), scopes[0] if scopes else None


def send(world: World, method: str, path: str, headers: dict[str, str]) -> Any:
    body = {"json": ITEMS} if method == "POST" else {}
    return world.client.request(method, path, headers=headers, **body)


def test_every_route_wants_a_key_of_its_scope(world: World) -> None:
    routes = list(all_routes(world))
    assert {path for _, path, scope in routes if scope is None} == PUBLIC
    assert len(routes) >= 22
    for method, path, scope in routes:
        if scope is None:
            assert send(world, method, path, {}).status_code == 200
            continue
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer "}, {"Authorization": "x"}):
            answer = send(world, method, path, headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized"), path
        for name, scopes in KEYS.items():
            answer = send(world, method, path, bearer(name))
            may = scope in scopes or "admin" in scopes
            assert (answer.status_code == 403 and answer.json()["error"]["code"] == "forbidden") != may, (path, name)
            assert answer.status_code not in {401, 500}, path


def test_what_is_no_route_is_no_way_in_either(world: World) -> None:
    assert world.client.get("/nothing").status_code == 401
    assert world.client.get("/nothing", headers=bearer("boss")).status_code == 404
    assert world.client.put("/v1/annotate", headers=bearer("boss")).json()["error"]["code"] == "method-not-allowed"


def test_a_route_without_a_scope_stops_the_start() -> None:
    router = APIRouter()

    @router.get("/open")
    def forgotten() -> None: ...

    with pytest.raises(AssertionError, match="/open names no scope"):
        refuse_open_routes([router])


def test_a_browser_may_read_with_basic_and_never_write(world: World) -> None:
    basic = {"Authorization": "Basic " + base64.b64encode(b"me:worker-key").decode()}
    assert world.client.get("/v1/models", headers=basic).status_code == 200
    assert world.client.post("/v1/annotate", headers=basic, json=ITEMS).status_code == 401
    assert "Basic" in world.client.get("/docs").headers["WWW-Authenticate"]
    assert world.client.get("/v1/models", headers={"Authorization": "Basic ="}).status_code == 401


def test_every_answer_names_the_model(world: World) -> None:
    for answer in (
        world.client.get("/healthz"),
        world.client.get("/v1/models"),
        world.client.post("/v1/annotate", headers=bearer("worker"), json=ITEMS),
        world.client.post("/v1/annotate", headers=bearer("worker"), content=b"{", params={"a": 1}),
    ):
        assert answer.headers["X-MMVA-Model"] == "mmva/3"
        assert answer.headers["X-MMVA-Model-Digest"] == MODEL.digest


@pytest.mark.parametrize("kind", ["text/plain", "", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_a_body_of_another_type_is_415(world: World, kind: str) -> None:
    headers = bearer("worker") | {"Content-Type": kind}
    answer = world.client.post("/v1/annotation-jobs", headers=headers, content=b"{}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported-media-type")


def test_a_large_body_is_413_with_a_length_and_without(tmp_path: Path) -> None:
    world = make_world(tmp_path, max_body_mb=1)
    headers = bearer("worker") | {"Content-Type": "application/json"}
    large = json.dumps({"items": [{"caption": "x" * 2**20}]}).encode()

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(large), 2**16):
            yield large[start : start + 2**16]

    for content in (large, pieces()):
        answer = world.client.post("/v1/annotate", headers=headers, content=content)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body-too-large")


def test_a_body_that_does_not_come_is_408(tmp_path: Path) -> None:
    world = make_world(tmp_path, body_timeout_s=0.05)
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(60)

    async def keep(message: Any) -> None:
        sent.append(message)

    head = [(b"authorization", b"Bearer worker-key"), (b"content-type", b"application/json")]
    scope = {
        "type": "http", "method": "POST", "path": "/v1/annotate", "raw_path": b"/v1/annotate", "query_string": b"",
        "headers": head, "root_path": "", "scheme": "http", "http_version": "1.1", "server": ("x", 1), "client": None,
    }  # fmt: skip
    asyncio.run(world.client.app(scope, receive, keep))
    assert sent[0]["status"] == 408


def test_what_takes_too_long_is_503_and_not_a_hang(tmp_path: Path) -> None:
    world = make_world(tmp_path, slow, request_timeout_s=0.1)
    answer = world.client.post("/v1/annotate", headers=bearer("worker"), json=ITEMS)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "busy")
    assert int(answer.headers["Retry-After"]) >= 1


def test_too_much_is_told_at_once_and_each_key_has_its_share(tmp_path: Path) -> None:
    may_answer, seen = threading.Event(), threading.Semaphore(0)

    async def held(items: list[ItemRequest]) -> Answers:
        seen.release()
        await asyncio.to_thread(may_answer.wait, 10)
        return await echo(items)

    world = make_world(tmp_path, held, max_in_flight=4, max_in_flight_per_key=3, batch_size=4)
    codes: list[int] = []

    def post(name: str, count: int) -> Any:
        items = {"items": [{"caption": str(number)} for number in range(count)]}
        return world.client.post("/v1/annotate", headers=bearer(name), json=items)

    with world.client:  # one event loop for all of them
        thread = threading.Thread(target=lambda: codes.append(post("worker", 2).status_code))
        thread.start()
        assert seen.acquire(timeout=10)
        refused = post("worker", 2)
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
        busy = post("other", 3)
        assert (busy.status_code, busy.headers["Retry-After"], busy.json()["error"]["code"]) == (503, "1", "busy")
        assert world.client.get("/healthz").status_code == 200
        may_answer.set()
        thread.join()
        assert codes == [200]
        assert post("worker", 3).status_code == 200
    text = world.client.get("/metrics", headers=bearer("reader")).text
    assert 'mmva_shed_total{replica="test",what="key"} 1.0' in text
    assert 'mmva_items_in_flight{replica="test"} 0.0' in text


def test_readiness_is_that_a_model_answers(tmp_path: Path) -> None:
    world = make_world(tmp_path, model=None)
    assert world.client.get("/healthz").status_code == 200
    answer = world.client.get("/readyz")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")


def test_the_documentation_needs_no_other_host(world: World) -> None:
    page = world.client.get("/docs", headers=bearer("reader")).text
    assert "http://" not in page
    assert "https://" not in page
    for name in ("swagger-ui-bundle.js", "swagger-ui.css"):
        assert f"/docs/{name}" in page
        assert len(world.client.get(f"/docs/{name}", headers=bearer("reader")).content) > 100_000
    assert world.client.get("/docs/other", headers=bearer("reader")).status_code == 404
