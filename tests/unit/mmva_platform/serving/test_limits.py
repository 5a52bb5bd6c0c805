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

from mmva.errors import CheckFailed
from mmva_platform.serving.auth import Needs, refuse_open_routes
from mmva_platform.serving.context import Answers, ItemRequest
from mmva_platform.serving.errors import ApiError
from mmva_platform.serving.jobs.queue import JobSpec
from mmva_platform.serving.limits import Threads
from mmva_platform.serving.routes import ROUTERS
from mmva_platform.storage import StorageUnavailable

from ...helpers.serving_world import KEYS, MODEL, World, bearer, echo, make_world, slow

PUBLIC = {"/healthz", "/readyz", "/"}
ITEMS = {"items": [{"caption": "a calm piano"}]}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


def all_routes() -> Iterator[tuple[str, str, str | None]]:
    """Method, path and scope of every route there is."""
    for route in (route for router in ROUTERS for route in router.routes):
        assert isinstance(route, APIRoute)
        scopes = [dep.call.scope for dep in route.dependant.dependencies if isinstance(dep.call, Needs)]
        for method in route.methods:
            yield method, route.path.format(job_id="0" * 16, name="x"), scopes[0] if scopes else None


def send(world: World, method: str, path: str, headers: dict[str, str]) -> Any:
    body: dict[str, Any] = {"json": ITEMS} if method == "POST" else {}
    if path.endswith("/upload"):
        body = {"files": {"file": ("a.jpg", b"x", "image/jpeg")}}
    return world.client.request(method, path, headers=headers, **body)


def test_every_route_wants_a_key_of_its_scope(world: World) -> None:
    routes = list(all_routes())
    assert {path for _, path, scope in routes if scope is None} == PUBLIC
    assert len(routes) >= 25
    assert world.client.get("/static/explorer.css").status_code == 200
    for path in ("/docs/swagger-ui.css", "/staticx", "/static"):
        assert world.client.get(path).status_code == 401
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


def test_only_an_authorised_answer_names_the_model(world: World) -> None:
    for answer in (
        world.client.get("/v1/models", headers=bearer("reader")),
        world.client.post("/v1/annotate", headers=bearer("worker"), json=ITEMS),
        world.client.post("/v1/annotate", headers=bearer("worker"), content=b"{", params={"a": 1}),
    ):
        assert answer.headers["X-MMVA-Model"] == "mmva/3"
        assert answer.headers["X-MMVA-Model-Digest"] == MODEL.digest
    for path in ("/v1/models", "/healthz", "/readyz", "/", "/nothing"):
        assert not {name for name in world.client.get(path).headers if name.startswith("x-mmva")}, path


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/", "/static/main.js", "/v1/models", "/docs"])
def test_head_is_get_without_a_body(world: World, path: str) -> None:
    headers = bearer("reader")
    head, get = world.client.head(path, headers=headers), world.client.get(path, headers=headers)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == get.headers["content-length"]


def test_a_prefix_changes_nothing_but_the_paths(tmp_path: Path) -> None:
    client = make_world(tmp_path, root_path="/shared/mmva", roots=(str(tmp_path),), out_roots=(str(tmp_path),)).client
    for path in ("/healthz", "/readyz", "/", "/static/main.js"):
        assert client.get(f"/shared/mmva{path}").status_code == 200, path
    assert client.get("/shared/mmva/v1/models").status_code == 401
    assert client.post("/shared/mmva/v1/annotate", headers=bearer("worker"), json=ITEMS).status_code == 200
    job = {"catalog": str(tmp_path), "out": str(tmp_path / "out")}
    made = client.post("/shared/mmva/v1/annotation-jobs", headers=bearer("worker"), json=job)
    assert made.headers["Location"] == f"/shared/mmva/v1/annotation-jobs/{made.json()['id']}"
    files = {"file": ("a.jpg", b"x", "image/jpeg")}
    assert client.post("/shared/mmva/v1/annotate/upload", headers=bearer("worker"), files=files).status_code == 200


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


def ask(world: World, receive: Any, head: list[tuple[bytes, bytes]] | None = None) -> int:
    """Status of a POST whose body comes from `receive`; 0 without an answer."""
    sent: list[Any] = []

    async def keep(message: Any) -> None:
        sent.append(message)

    head = [(b"authorization", b"Bearer worker-key"), (b"content-type", b"application/json"), *(head or [])]
    scope = {
        "type": "http", "method": "POST", "path": "/v1/annotate", "raw_path": b"/v1/annotate", "query_string": b"",
        "headers": head, "root_path": "", "scheme": "http", "http_version": "1.1", "server": ("x", 1), "client": None,
    }  # fmt: skip
    asyncio.run(world.client.app(scope, receive, keep))
    return int(sent[0]["status"]) if sent else 0


def test_a_body_that_does_not_come_is_408(tmp_path: Path) -> None:
    async def receive() -> Any:
        await asyncio.sleep(60)

    assert ask(make_world(tmp_path, body_timeout_s=0.05), receive) == 408


def test_a_client_that_hangs_up_in_the_middle_of_a_body_is_499(world: World, caplog: pytest.LogCaptureFixture) -> None:
    pieces = [{"type": "http.request", "body": b'{"items"', "more_body": True}, {"type": "http.disconnect"}]

    async def receive() -> Any:
        return pieces.pop(0)

    assert ask(world, receive) == 499
    assert not caplog.records


def test_bytes_in_flight_are_bounded_and_not_requests_alone(tmp_path: Path) -> None:
    world = make_world(tmp_path, max_body_mb=1, max_in_flight_mb=2)
    statuses: list[int] = []

    async def both() -> None:
        held = asyncio.Event()

        async def never() -> Any:
            held.set()
            await asyncio.sleep(60)

        async def one(receive: Any) -> None:
            async def keep(message: Any) -> None:
                if message["type"] == "http.response.start":
                    statuses.append(message["status"])

            head = [(b"authorization", b"Bearer worker-key"), (b"content-type", b"application/json"),
                    (b"content-length", str(2**20).encode())]  # fmt: skip
            scope = {
                "type": "http", "method": "POST", "path": "/v1/annotate", "query_string": b"", "headers": head,
                "root_path": "", "scheme": "http", "http_version": "1.1", "server": ("x", 1), "client": None,
            }  # fmt: skip
            await world.client.app(scope, receive, keep)

        waiting = [asyncio.create_task(one(never)) for _ in range(2)]
        await held.wait()
        await asyncio.sleep(0)
        await one(never)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(both())
    assert statuses == [503]
    assert world.metrics.values["mmva_shed", "bytes"] == 1


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
    assert world.metrics.values["mmva_shed", "key"] == 1
    assert world.metrics.values["mmva_items_in_flight",] == 0


def test_readiness_is_that_a_model_answers(tmp_path: Path) -> None:
    world = make_world(tmp_path, model=None)
    assert world.client.get("/healthz").status_code == 200
    answer = world.client.get("/readyz")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")


def test_a_flood_of_probes_asks_no_replica(tmp_path: Path) -> None:
    asked: list[str] = []

    async def counted(items: list[ItemRequest]) -> Answers:
        asked.append("annotate")
        return await echo(items)

    world = make_world(tmp_path, counted, max_in_flight=1)
    assert {world.client.get("/readyz").status_code for _ in range(50)} == {200}
    assert asked == []


def test_slow_storage_on_one_kind_of_route_delays_no_other(tmp_path: Path) -> None:
    may_end, begun, statuses = threading.Event(), threading.Semaphore(0), []

    def slowly(_uri: str) -> str:
        begun.release()
        may_end.wait(60)
        return "<p>"

    world = make_world(tmp_path, report=slowly, out_roots=(str(tmp_path),))
    world.jobs.is_published = lambda _job: True  # type: ignore[method-assign]
    job, _ = world.jobs.submit(JobSpec(catalog="/c", out=str(tmp_path / "o"), model="models:/m/1"), "worker")

    def ask() -> None:
        report = world.client.get(f"/v1/annotation-jobs/{job.id}/report", headers=bearer("reader"))
        statuses.append(report.status_code)

    before = {*threading.enumerate()}  # pools of other tests among them
    with world.client:
        threads = [threading.Thread(target=ask) for _ in range(24)]
        for thread in threads:
            thread.start()
        assert begun.acquire(timeout=60)
        assert begun.acquire(timeout=60)
        for path in ("/v1/annotation-jobs", f"/v1/annotation-jobs/{job.id}", "/", "/v1/models", "/v1/explore"):
            assert world.client.get(path, headers=bearer("reader")).status_code == 200, path
        assert not begun.acquire(blocking=False)  # two threads make reports; the others wait, or were refused
        ours = [thread for thread in {*threading.enumerate()} - before if thread.name.startswith("mmva-")]
        assert len(ours) <= 2 + 4
        may_end.set()
        for thread in threads:
            thread.join()
    assert set(statuses) <= {200, 503}
    assert statuses.count(200) >= 2


def test_a_call_that_is_given_up_counts_until_its_thread_ends() -> None:
    end = threading.Event()

    async def run() -> None:
        threads = Threads("tests", 1, waiting=1)
        calls = [asyncio.create_task(threads(end.wait, 10)) for _ in range(2)]
        await asyncio.sleep(0.05)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        waiting = asyncio.create_task(threads(end.wait, 10))  # the one that had not begun made room
        await asyncio.sleep(0)
        with pytest.raises(ApiError, match="too many requests wait for tests"):
            await threads(end.wait, 10)
        end.set()
        assert await waiting

    asyncio.run(run())


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(CheckFailed("a file is damaged"), 500, "damaged"), (StorageUnavailable("gone"), 503, "unavailable")],
)
def test_damage_is_an_error_of_the_server(tmp_path: Path, error: Exception, status: int, code: str) -> None:
    def fails(_uri: str) -> Any:
        raise error

    world = make_world(tmp_path, open_index=fails, annotations={"photos": "/x"})
    answer = world.client.post(
        "/v1/search", headers=bearer("reader"), json={"annotation": "photos", "point": [0.5, 0.5]}
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_the_documentation_needs_no_other_host(world: World) -> None:
    page = world.client.get("/docs", headers=bearer("reader")).text
    assert "http://" not in page
    assert "https://" not in page
    for name in ("swagger-ui-bundle.js", "swagger-ui.css"):
        assert f'"docs/{name}"' in page
        assert len(world.client.get(f"/docs/{name}", headers=bearer("reader")).content) > 100_000
    assert world.client.get("/docs/other", headers=bearer("reader")).status_code == 404
