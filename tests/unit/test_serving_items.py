"""POST /v1/annotate: items in their order, each with its point or error; replicas that die, suspects, the shadow."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mmva.errors import OperationFailed
from mmva_platform.serving.front import OverloadedError, ReplicaLostError
from mmva_platform.serving.services import Answers, ApiError, ItemRequest
from mmva_platform.serving.suspects import Suspects

from .made_pictures import encoded, scene
from .made_sound import RATE, pyav_bytes, sine, soundfile_bytes
from .serving_world import MODEL, World, bearer, echo, make_world, row_of


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
        "/v1/annotate", headers=bearer("worker"), files=files, data={"caption": ["calm", "loud"]}
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
    answer = make_world(tmp_path).client.post("/v1/annotate", headers=bearer("worker"), files=files)
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
        (b'{"items": [{"caption": "\\ud800"}]}', "body"),
        (b"\xff\xfe", "body"),
        (b"[" * 100_000, "body"),
    ],
)
def test_a_body_that_is_not_as_described_is_422_and_says_where(tmp_path: Path, body: bytes, place: str) -> None:
    headers = bearer("worker") | {"Content-Type": "application/json"}
    answer = make_world(tmp_path).client.post("/v1/annotate", headers=headers, content=body)
    assert answer.status_code == 422
    assert answer.json()["error"]["message"].startswith(place)


def test_more_items_than_a_request_may_hold_are_413(tmp_path: Path) -> None:
    world = make_world(tmp_path, max_items=2)
    assert post(world, ["a", "b", "c"]).status_code == 413
    files = [("file", (f"{number}.jpg", b"x", "image/jpeg")) for number in range(3)]
    answer = world.client.post("/v1/annotate", headers=bearer("worker"), files=files)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too-many-items")


def test_a_form_with_something_else_is_refused(tmp_path: Path) -> None:
    client = make_world(tmp_path).client
    answer = client.post("/v1/annotate", headers=bearer("worker"), files={"other": b"x"})
    assert answer.status_code == 422
    broken = bearer("worker") | {"Content-Type": "multipart/form-data; boundary=x"}
    assert client.post("/v1/annotate", headers=broken, content=b"--y\r\nnothing").status_code in {400, 422}


@pytest.mark.parametrize(
    ("error", "code"),
    [(ReplicaLostError(), "busy"), (OverloadedError(), "busy"), (OperationFailed("gone"), "model-unavailable")],
)
def test_replicas_that_do_not_answer_are_503_with_a_time(tmp_path: Path, error: Exception, code: str) -> None:
    async def fails(_items: list[ItemRequest]) -> Answers:
        raise error

    answer = post(make_world(tmp_path, fails), ["calm"])
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, code)
    assert int(answer.headers["Retry-After"]) >= 1


def test_an_item_that_kills_replicas_is_found_and_costs_no_second_one(tmp_path: Path) -> None:
    lives: list[list[str]] = []

    def captions(items: Sequence[ItemRequest]) -> list[str]:
        return [str(item["caption"]) for item in items]

    async def annotate(items: list[ItemRequest]) -> Answers:
        lives.append(captions(items))
        if "killer" in captions(items):
            raise ReplicaLostError
        return await echo(items)

    async def carefully(items: list[ItemRequest]) -> Answers:
        problem = {"code": "killed-worker", "stage": "decode", "message": "died"}
        rows = [row_of(item) for item in items]
        for row, text in zip(rows, captions(items), strict=True):
            if text == "killer":
                row |= {"status": "error", "error": problem}
        return Answers(MODEL, rows)

    world = make_world(tmp_path, annotate, carefully=carefully)
    assert post(world, ["calm", "killer"]).status_code == 503
    again = post(world, ["calm", "killer", "new"]).json()["items"]
    assert [row.get("error", {}).get("code") for row in again] == [None, "killed-worker", None]
    lives.clear()
    third = post(world, ["killer", "calm"]).json()["items"]
    assert [(row["id"], row["status"]) for row in third] == [("n0", "error"), ("n1", "ok")]
    assert lives == [["calm"]]
    assert "mmva_replicas_lost_total" in world.client.get("/metrics", headers=bearer("reader")).text


def test_a_trial_outlives_its_request_and_who_asks_again_joins_it(tmp_path: Path) -> None:
    trials: list[list[str]] = []
    end = asyncio.Event()

    async def annotate(items: list[ItemRequest]) -> Answers:
        raise ReplicaLostError

    async def carefully(items: list[ItemRequest]) -> Answers:
        trials.append([item["id"] for item in items])
        await end.wait()
        return await echo(items)

    def named(*names: str) -> list[ItemRequest]:
        return [ItemRequest(id=f"{name}2", uri=None, modality="caption", caption=name, data=None) for name in names]

    async def ask() -> Answers:
        front = make_world(tmp_path, annotate, carefully=carefully, max_in_flight=3).front
        for suspects in (named("a", "b", "c"), named("d", "e")):
            with pytest.raises(ApiError, match="a model process ended"):
                await front.annotate(suspects)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(front.annotate([{**item, "id": "first"} for item in named("a", "b")]), 0.01)
        joined = asyncio.create_task(front.annotate(named("c", "b", "b")))
        await asyncio.sleep(0)  # its turn
        with pytest.raises(ApiError, match="too many items are tried apart"):
            await asyncio.wait_for(front.annotate(named("d")), 5)
        end.set()
        return await joined

    rows = asyncio.run(ask()).rows
    assert trials == [["first", "first"], ["c2"]]
    assert [row["id"] for row in rows] == ["c2", "b2", "b2"]
    assert [row["sha256"] for row in rows] == [hashlib.sha256(name).hexdigest() for name in (b"c", b"b", b"b")]


def test_suspicion_and_verdicts_end() -> None:
    now = [0.0]
    suspects = Suspects(lambda: now[0])
    item = ItemRequest(id="a", uri=None, modality="image", caption=None, data=b"x")
    other = item | {"id": "b"}
    suspects.suspect([item])
    assert suspects.suspected(other)
    assert not suspects.suspected(item | {"data": b"y"})
    suspects.judge([item], [{"id": "a", "status": "error", "error": {"code": "timed-out"}}])
    assert not suspects.suspected(item)
    assert suspects.verdict(other) == {"id": "b", "status": "error", "error": {"code": "timed-out"}}
    now[0] = 10_000.0
    assert suspects.verdict(other) is None


def test_the_challenger_sees_a_share_and_nobody_waits_for_it(tmp_path: Path) -> None:
    seen: list[int] = []

    async def compare(items: list[ItemRequest], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        await asyncio.sleep(0)
        seen.append(len(items))
        assert [row["status"] for row in rows] == ["ok"] * len(items)
        return [{"modality": "caption", "valence_difference": -0.03, "arousal_difference": None} for _ in items]

    world = make_world(tmp_path, compare=compare, shadow_share=1.0)
    with world.client:
        post(world, ["calm", "loud"])
        text = world.client.get("/metrics", headers=bearer("reader")).text
    assert seen == [2]
    assert 'mmva_shadowed_items_total{replica="test",result="compared"} 2.0' in text
    assert 'mmva_shadow_difference_sum{axis="valence",modality="caption",replica="test"} 0.06' in text
    never = make_world(tmp_path, compare=compare, shadow_share=0.0)
    with never.client:
        post(never, ["calm"])
    assert seen == [2]
