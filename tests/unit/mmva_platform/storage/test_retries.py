"""What S3Storage tries again, against a server that sends prepared bytes: no mock of the library under it."""

from __future__ import annotations

import itertools
import socketserver
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mmva_platform.settings import StorageSettings
from mmva_platform.storage import (
    Entry,
    Storage,
    StorageDenied,
    StorageError,
    StorageNotFound,
    StorageUnavailable,
    open_storage,
    s3,
)

RESET = b"reset"
SILENCE = b"silence"


def answer(status: str, body: bytes = b"", headers: str = "", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Length: {size}\r\nConnection: close\r\n{headers}\r\n".encode() + body


def failure(status: str, code: str) -> bytes:
    return answer(status, f"<Error><Code>{code}</Code><Message>m</Message></Error>".encode())


class ScriptedServer(socketserver.ThreadingTCPServer):
    """Answers one request a connection, in the script's order; its last answer is for all that follow."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ScriptedHandler)
        self.script: list[bytes] = []
        self.requests: list[str] = []
        self.closing = threading.Event()


class ScriptedHandler(socketserver.StreamRequestHandler):
    server: ScriptedServer

    def handle(self) -> None:
        head: list[bytes] = []
        while (line := self.rfile.readline().strip()) or not head:
            head.append(line)
        length = next((int(line.split(b":")[1]) for line in head if line.lower().startswith(b"content-length")), 0)
        if any(line.lower() == b"expect: 100-continue" for line in head):
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.rfile.read(length)
        self.server.requests.append(head[0].decode())
        script = self.server.script
        reply = script.pop(0) if len(script) > 1 else script[0]
        if reply == SILENCE:
            self.server.closing.wait()
        elif reply != RESET:
            self.wfile.write(reply)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that would have been made."""
    made: list[float] = []
    monkeypatch.setattr("time.sleep", made.append)
    return made


@pytest.fixture
def storage(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    settings = StorageSettings(
        s3_endpoint=f"http://127.0.0.1:{server.server_address[1]}",
        max_attempts=3, connect_timeout_s=1, read_timeout_s=0.3,
    )  # fmt: skip
    return open_storage("s3://bucket/root", settings)


PAGE = b"""<ListBucketResult><IsTruncated>false</IsTruncated>
<Contents><Key>root/a</Key><Size>3</Size></Contents></ListBucketResult>"""
TRANSIENT = {
    "a bare 429": answer("429 Too Many Requests"),
    "503 SlowDown": failure("503 Service Unavailable", "SlowDown"),
    "a bare 503": answer("503 Service Unavailable"),
    "500 InternalError": failure("500 Internal Server Error", "InternalError"),
    "502 of a proxy": answer("502 Bad Gateway", b"<html>Bad Gateway</html>"),
    "400 RequestTimeout": failure("400 Bad Request", "RequestTimeout"),
    "a connection closed without an answer": RESET,
    "no answer in time": SILENCE,
    "a short body": answer("200 OK", b"<ListBu", length=len(PAGE)),
}
OPERATIONS: dict[str, tuple[Callable[[Storage], Any], bytes, Any]] = {
    "read": (lambda storage: storage.read("a"), answer("200 OK", b"whole"), b"whole"),
    "write": (lambda storage: storage.write("a", b"1"), answer("200 OK"), None),
    "put_if_absent": (lambda storage: storage.put_if_absent("a", b"1"), answer("200 OK"), True),
    "list": (lambda storage: list(storage.list()), answer("200 OK", PAGE), [Entry("a", 3, None)]),
    "size": (lambda storage: storage.size("a"), answer("200 OK", length=5), 5),
}
# The fault would be in a body, and these answers have none.
NO_BODY = {
    ("a short body", "write"), ("a short body", "put_if_absent"), ("a short body", "size"),
    ("400 RequestTimeout", "size"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "operation"), [pair for pair in itertools.product(TRANSIENT, OPERATIONS) if pair not in NO_BODY]
)
def test_a_transient_failure_is_tried_again(
    server: ScriptedServer, storage: Storage, pauses: list[float], operation: str, fault: str
) -> None:
    run, good, result = OPERATIONS[operation]
    server.script = [TRANSIENT[fault], TRANSIENT[fault], good]
    assert run(storage) == result
    assert len(server.requests) == 3
    assert len(pauses) == 2


@pytest.mark.parametrize("fault", TRANSIENT)
def test_what_stays_is_unavailable_after_all_attempts(
    server: ScriptedServer, storage: Storage, pauses: list[float], fault: str
) -> None:
    server.script = [TRANSIENT[fault]]
    with pytest.raises(StorageUnavailable, match=r"s3://bucket/root/a: .*\(3 attempts\)"):
        storage.read("a")
    assert len(server.requests) == 3
    assert len(pauses) == 2


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (failure("403 Forbidden", "AccessDenied"), StorageDenied),
        (failure("403 Forbidden", "SignatureDoesNotMatch"), StorageDenied),
        (failure("404 Not Found", "NoSuchKey"), StorageNotFound),
        (failure("404 Not Found", "NoSuchBucket"), StorageNotFound),
        (failure("400 Bad Request", "InvalidRequest"), StorageError),
    ],
)
def test_what_no_retry_cures_is_asked_once(
    server: ScriptedServer, storage: Storage, pauses: list[float], reply: bytes, kind: type[StorageError]
) -> None:
    server.script = [reply]
    with pytest.raises(kind, match="s3://bucket/root/a") as error:
        storage.read("a")
    assert type(error.value) is kind
    assert len(server.requests) == 1
    assert pauses == []


def test_a_put_whose_answer_was_lost_meets_its_own_object(
    server: ScriptedServer, storage: Storage, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mark:
        hex = "mine"

    monkeypatch.setattr("uuid.uuid4", Mark)
    taken = failure("412 Precondition Failed", "PreconditionFailed")
    server.script = [RESET, taken, answer("200 OK", headers="x-amz-meta-mmva-writer: mine\r\n")]
    assert storage.put_if_absent("a", b"1")
    server.script = [RESET, taken, answer("200 OK", headers="x-amz-meta-mmva-writer: theirs\r\n")]
    assert not storage.put_if_absent("a", b"1")
    assert [request.split()[0] for request in server.requests] == ["PUT", "PUT", "HEAD"] * 2


def test_pauses_grow_have_jitter_and_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", lambda _low, high: high)
    assert [s3.back_off_s(attempt, throttled=False) for attempt in (1, 2, 3, 10)] == [0.1, 0.2, 0.4, 20.0]
    assert [s3.back_off_s(attempt, throttled=True) for attempt in (1, 2, 3, 10)] == [1.0, 2.0, 4.0, 20.0]
    monkeypatch.undo()
    assert len({s3.back_off_s(3, throttled=False) for _ in range(10)}) == 10
