"""The front's own port: what is in work when it closes is answered, and a port that is taken is said in one line."""

from __future__ import annotations

import asyncio
import http.client
import socket
import threading
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from mmva.errors import UsageError
from mmva_platform.serving.listener import Listener, await_port

from .serving_world import bearer, make_world


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_a_request_in_work_is_answered_and_then_nobody_listens() -> None:
    port = free_port()
    asked, may_answer = asyncio.Event(), asyncio.Event()

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        asked.set()
        await may_answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await send({"type": "http.response.body", "body": b"done"})

    def ask() -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
            return bytes(answer.read())

    async def scene() -> bytes:
        listener = Listener(app, "127.0.0.1", port)
        request = asyncio.create_task(asyncio.to_thread(ask))
        await asked.wait()
        stopping = asyncio.create_task(listener.stop())
        await asyncio.sleep(0.3)  # for uvicorn to look at its flag, which it does every 0.1 s
        may_answer.set()
        await stopping
        return await request

    assert asyncio.run(scene()) == b"done"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_who_sends_far_too_much_hears_413_and_not_a_broken_connection(tmp_path: Path) -> None:
    world, port = make_world(tmp_path, max_body_mb=1), free_port()

    def post(connection: http.client.HTTPConnection, body: bytes) -> int:
        connection.request("POST", "/v1/annotate", body, bearer("worker") | {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        return answer.status

    def ask() -> list[int]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        statuses = [post(connection, body) for body in (bytes(20 * 2**20), b'{"items": [{"caption": "calm"}]}')]
        connection.close()
        return statuses

    async def scene() -> list[int]:
        listener = Listener(world.client.app, "127.0.0.1", port)
        statuses = await asyncio.to_thread(ask)
        await listener.stop()
        return statuses

    assert asyncio.run(scene()) == [413, 200]


def test_several_fronts_share_a_port() -> None:
    port = free_port()

    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        raise AssertionError

    async def scene() -> None:
        fronts = [Listener(app, "127.0.0.1", port) for _ in range(2)]
        await asyncio.sleep(0)
        for front in fronts:
            await front.stop()

    asyncio.run(scene())


def test_a_taken_port_is_waited_for_and_then_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"serving.port {port} on 127.0.0.1: Address already in use"):
            await_port("127.0.0.1", port, patience_s=0)
        threading.Timer(0.2, taken.close).start()
        await_port("127.0.0.1", port)
    with pytest.raises(UsageError, match=r"on 192\.0\.2\.1: "):
        await_port("192.0.2.1", port)
