"""A reverse proxy before an S3 server that makes seeded faults and tells a test when a request passes.

Signatures survive: the client signs for the proxy's host and port, and the Host header passes unchanged.
"""

from __future__ import annotations

import http.client
import random
import re
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import unquote

Fault = Literal["503", "429", "reset", "reset-body", "short-body", "delay", "lost-answer"]
FAULTS: tuple[Fault, ...] = ("503", "429", "reset", "reset-body", "short-body", "delay", "lost-answer")


@dataclass(frozen=True)
class Seen:
    """A request that came: its object as bucket/key, and the upstream's status (0: not forwarded)."""

    method: str
    path: str
    status: int
    fault: str | None


@dataclass
class Intercept:
    """Calls `action` once, around the `nth` request that matches; the client never hears an answer to it."""

    method: str
    pattern: str
    when: Literal["before", "after"]
    action: Callable[[], None]
    nth: int = 1


class FaultyStore(ThreadingHTTPServer):
    """The proxy; `endpoint` is what goes into the settings."""

    daemon_threads = True

    def __init__(self, upstream_port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream_port = upstream_port
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        self.seen: list[Seen] = []
        self.silent = False
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._intercepts: list[Intercept] = []
        self._random, self._rate = random.Random(0), 0.0
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def make_faults(self, seed: int, rate: float) -> None:
        """From now on let this share of the requests fail."""
        self._random, self._rate = random.Random(seed), rate

    def intercept(self, intercept: Intercept) -> None:
        """Wait for a request."""
        self._intercepts.append(intercept)

    def forget(self) -> None:
        """Back to a plain proxy that has seen nothing."""
        self._rate, self.silent = 0.0, False
        self._intercepts.clear()
        self.seen.clear()

    def made(self, pattern: str, method: str = "PUT") -> list[str]:
        """Objects that such requests reached with success, in order."""
        return [
            s.path for s in self.seen if s.method == method and 200 <= s.status < 300 and re.search(pattern, s.path)
        ]

    def draw(self) -> Fault | None:
        """The next request's fault."""
        with self._lock:
            return self._random.choice(FAULTS) if self._random.random() < self._rate else None

    def caught(self, method: str, path: str) -> Intercept | None:
        """The intercept that this request sets off."""
        with self._lock:
            for waiting in self._intercepts:
                if waiting.method == method and re.search(waiting.pattern, path):
                    waiting.nth -= 1
                    if waiting.nth == 0:
                        self._intercepts.remove(waiting)
                        return waiting
        return None

    def delay(self) -> None:
        """Half a second, or less at the end."""
        self._closing.wait(0.5)

    def wait_for_closing(self) -> None:
        """Never answer."""
        self._closing.wait()

    def stop(self) -> None:
        """End the server and its thread."""
        self._closing.set()
        self.shutdown()
        self.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: FaultyStore
    protocol_version = "HTTP/1.1"

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(self.path.partition("?")[0]).lstrip("/")
        caught = None if self.server.silent else self.server.caught(self.command, path)
        fault = None if caught is not None or self.server.silent else self.server.draw()
        if self.server.silent:
            self._note(path, 0, "silence")
            self.server.wait_for_closing()
            self._reset()
        elif caught is not None and caught.when == "before":
            self._note(path, 0, "intercepted")
            caught.action()
            self._reset()
        elif fault in {"503", "429"}:
            self._note(path, 0, fault)
            self._refuse(int(fault))
        elif fault == "reset":
            self._note(path, 0, fault)
            self._reset()
        else:
            self._pass_on(path, body, caught, fault)

    def _pass_on(self, path: str, body: bytes, caught: Intercept | None, fault: str | None) -> None:
        if fault == "delay":
            self.server.delay()
        try:
            status, headers, content = self._forward(body)
        except (OSError, http.client.HTTPException):
            self._note(path, 0, "upstream is away")
            self._reset()
            return
        self._note(path, status, fault)
        if caught is not None:
            caught.action()
        if caught is not None or fault == "lost-answer":
            self._reset()
        else:
            self._answer(status, headers, content, fault)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _handle

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.upstream_port, timeout=30)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in {"expect", "connection"}:
                    connection.putheader(name, value)
            connection.endheaders(body)
            reply = connection.getresponse()
            return reply.status, reply.getheaders(), reply.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, fault: str | None) -> None:
        self.send_response_only(status)
        length = str(len(content))
        for name, value in headers:
            if name.lower() == "content-length":
                length = value  # a HEAD's answer has a length and no body
            elif name.lower() not in {"transfer-encoding", "connection"}:
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if fault in {"short-body", "reset-body"} and self.command == "GET":
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            if fault == "reset-body":
                self._reset()
            return
        self.wfile.write(content)

    def _refuse(self, status: int) -> None:
        self.send_response_only(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _reset(self) -> None:
        """Drop the connection so that the client sees a reset."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _note(self, path: str, status: int, fault: str | None) -> None:
        self.server.seen.append(Seen(self.command, path, status, fault))

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:  # the client was killed
            self.close_connection = True

    def log_message(self, *_arguments: object) -> None:
        """Nothing: the test's output is the place for findings."""
