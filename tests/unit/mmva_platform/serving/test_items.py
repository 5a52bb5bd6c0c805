"""POST /v1/annotate: items in their order, each with its point or error; replicas that are full or missing."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError

from mmva.errors import OperationFailed
from mmva_platform.monitoring.metrics import ApiMetrics
from mmva_platform.serving.client import ModelClient

from ...helpers.made_pictures import encoded, scene
from ...helpers.made_sound import RATE, pyav_bytes, sine, soundfile_bytes
from ...helpers.serving_world import MODEL, Recorder, World, bearer, make_world


def post(world: World, captions: Sequence[str], **body: Any) -> Any:
    items = {"items": [{"id": f"n{number}", "caption": text} for number, text in enumerate(captions)], **body}
    return world.client.post("/v1/annotate", headers=bearer("worker"), json=items)


def test_every_item_gets_its_row_and_one_bad_item_costs_itself_only(tmp_path: Path) -> None:
    answer = post(make_world(tmp_path, batch_size=2), ["calm", "bad", "loud", "fast", "slow"])
    assert answer.status_code == 200
    body = answer.json()
    assert body["model"] == MODEL.model_dump()
    assert [(row["id"], row["status"]) for row in body["items"]] == [
        ("n0", "ok"), ("n1", "error"), ("n2", "ok"), ("n3", "ok"), ("n4", "ok")
    ]  # fmt: skip
    assert body["items"][1]["error"] == {"code": "not-text", "stage": "decode", "message": "bad"}
    assert body["items"][2]["sha256"] == hashlib.sha256(b"loud").hexdigest()
    assert {row["model_version"] for row in body["items"]} == {"3"}
    assert "embedding" not in body["items"][0]


def test_embeddings_on_request(tmp_path: Path) -> None:
    assert post(make_world(tmp_path), ["calm"], embeddings=True).json()["items"][0]["embedding"] == [1.0, 2.0]


def test_a_form_of_uploads_and_captions(tmp_path: Path) -> None:
    files = [
        ("file", ("a.jpg", b"one", "image/jpeg")),
        ("file", ("b", b"two", "audio/ogg")),
        ("file", ("c.xyz", b"three", "application/octet-stream")),
    ]
    answer = make_world(tmp_path).client.post(
        "/v1/annotate/upload", headers=bearer("worker"), files=files, data={"caption": ["calm", "loud"]}
    )
    rows = answer.json()["items"]
    assert sorted((row["id"], row["modality"]) for row in rows if row["modality"] != "caption") == [
        ("a.jpg", "image"), ("b", "music"), ("c.xyz", None)
    ]  # fmt: skip
    digests = {row["id"]: row["sha256"] for row in rows}
    assert digests["b"] == hashlib.sha256(b"two").hexdigest()
    assert sum(row["modality"] == "caption" for row in rows) == 2


def test_an_upload_is_what_its_bytes_are_whatever_its_name_says(tmp_path: Path) -> None:
    """A browser's recorder, a picture from a message, a renamed song; only a text is told by its name."""
    jpeg = encoded(scene(), "JPEG")
    webm = pyav_bytes(sine(rate=48_000), 48_000, "webm", "libopus")
    flac = soundfile_bytes(sine(), RATE, format="FLAC")
    files = [
        ("file", ("blob", webm, "audio/webm")),
        ("file", ("clip.webm", webm, "video/webm")),
        ("file", ("no-name", jpeg, "application/octet-stream")),
        ("file", ("song.mp3", jpeg, "audio/mpeg")),
        ("file", ("photo.jpg", flac, "image/jpeg")),
        ("file", ("note.txt", b"calm", "text/plain")),
    ]
    answer = make_world(tmp_path).client.post("/v1/annotate/upload", headers=bearer("worker"), files=files)
    assert [(row["id"], row["modality"]) for row in answer.json()["items"]] == [
        ("blob", "music"), ("clip.webm", "music"), ("no-name", "image"), ("song.mp3", "image"), ("photo.jpg", "music"),
        ("note.txt", "caption"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b"{", "body"),
        (b"[]", "body"),
        (b'{"items": []}', "items"),
        (b'{"items": [{"uri": 3}]}', "items.0.uri"),
        (b'{"items": [{"url": "x"}]}', "items.0.url"),
        (b'{"items": [{"caption": "x", "modality": "smell"}]}', "items.0.modality"),
        (b'{"items": [{"caption": "\\ud800"}]}', "items.0.caption"),
        (b"\xff\xfe", "body"),
        (b"[" * 100_000, "body"),
    ],
)
def test_a_body_that_is_not_as_described_is_422_and_says_where(tmp_path: Path, body: bytes, place: str) -> None:
    headers = bearer("worker") | {"Content-Type": "application/json"}
    answer = make_world(tmp_path).client.post("/v1/annotate", headers=headers, content=body)
    assert answer.status_code in {400, 422}
    assert place in answer.json()["error"]["message"]


def test_more_items_than_a_request_may_hold_are_413(tmp_path: Path) -> None:
    world = make_world(tmp_path, max_items=2)
    assert post(world, ["a", "b", "c"]).status_code == 413
    files = [("file", (f"{number}.jpg", b"x", "image/jpeg")) for number in range(3)]
    answer = world.client.post("/v1/annotate/upload", headers=bearer("worker"), files=files)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too-many-items")


def test_a_form_with_something_else_is_refused(tmp_path: Path) -> None:
    client = make_world(tmp_path).client
    answer = client.post("/v1/annotate/upload", headers=bearer("worker"), files={"other": b"x"})
    assert answer.status_code == 422
    broken = bearer("worker") | {"Content-Type": "multipart/form-data; boundary=x"}
    assert client.post("/v1/annotate/upload", headers=broken, content=b"--y\r\nnothing").status_code in {400, 422}


class Handle:
    """Stands for a Serve handle of the model's replicas."""

    def __init__(self, answer: Any) -> None:
        self.current = self.annotate = self.versions = SimpleNamespace(remote=self._remote)
        self._answer = answer

    async def _remote(self, *_arguments: Any) -> Any:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RayActorError(), "busy"),
        (BackPressureError(1, 1), "busy"),
        (OperationFailed("gone"), "model-unavailable"),
    ],
)
def test_replicas_that_do_not_answer_are_503_with_a_time(tmp_path: Path, error: Exception, code: str) -> None:
    client = ModelClient(Handle(error), ApiMetrics(Recorder()))
    answer = post(make_world(tmp_path, client.annotate), ["calm"])
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, code)
    assert int(answer.headers["Retry-After"]) >= 1


def test_the_model_is_known_until_no_replica_is_left() -> None:
    async def looks() -> list[Any]:
        handle = Handle(MODEL)
        client = ModelClient(handle, ApiMetrics(Recorder()))
        known = [client.known]
        for answer in (MODEL, BackPressureError(1, 1), RayActorError(), None):
            handle._answer = answer
            await client.refresh()
            known.append(client.known)
        return known

    assert asyncio.run(looks()) == [None, MODEL, MODEL, None, None]  # a full replica is still one
