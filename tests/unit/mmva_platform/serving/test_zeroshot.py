"""Search, music prompts and summaries over HTTP, against an annotation that was published here."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mmva_platform.annotation.plan.plan import ModelInfo
from mmva_platform.search import AnnotationIndex
from mmva_platform.serving.context import Answers, ItemRequest
from mmva_platform.settings import Settings

from ...helpers.published import publish_points
from ...helpers.serving_world import MODEL, World, bearer, make_world, row_of

ITEMS = {
    "id": ["near", "far", "song"],
    "uri": ["/m/near.jpg", "/m/far.jpg", "/m/song.ogg"],
    "modality": ["image", "image", "music"],
    "valence": pa.array([0.25, 0.9, 0.3], pa.float32()),
    "arousal": pa.array([0.75, 0.1, 0.7], pa.float32()),
    "mood": ["tense", "calm", "tense"],
}
TENSE = {"valence": 0.25, "arousal": 0.75}


def index_of(model: ModelInfo) -> AnnotationIndex:
    return AnnotationIndex("/a", "run", model, pa.table(ITEMS))


async def with_curves(items: list[ItemRequest]) -> Answers:
    rows = [row_of(item) for item in items]
    for row in rows:
        if row["modality"] == "video":
            values = [0.1] * 10 + [0.9] * 10
            row["windows"] = [{"start_s": 1.5 * n, "valence": v, "arousal": 0.5} for n, v in enumerate(values)]
            row["duration_s"] = 31.5
    return Answers(MODEL, rows)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(
        tmp_path, with_curves, open_index=lambda _uri: index_of(MODEL), annotations={"photos": "/somewhere"}
    )


def post(world: World, path: str, body: dict[str, Any], name: str = "worker") -> Any:
    return world.client.post(path, headers=bearer(name), json=body)


def test_the_nearest_by_text_by_uri_and_by_point(world: World) -> None:
    for query in ({"text": "tense"}, {"uri": "/m/x.jpg"}, {"point": [0.25, 0.75]}):
        answer = post(world, "/v1/search", {"annotation": "photos", **query}).json()
        assert [hit["id"] for hit in answer["hits"]] == ["near", "song", "far"]
        assert answer["query"] == TENSE
        assert answer["model"] == MODEL.model_dump()


def test_filters_and_pages(world: World) -> None:
    base = {"annotation": "photos", "point": [0.25, 0.75]}
    for more, found in (
        ({"only": "music"}, ["song"]),
        ({"top": 1, "offset": 1}, ["song"]),
        ({"region": {"valence": [0.5, 1.0]}}, ["far"]),
    ):
        assert [hit["id"] for hit in post(world, "/v1/search", base | more).json()["hits"]] == found
    assert post(world, "/v1/search", base | {"region": {"valence": [1.0, 0.5]}}).status_code == 422


def test_what_is_like_an_item(tmp_path: Path) -> None:
    rows = [("a", "image", 0.1, 0.1), ("b", "image", 0.9, 0.9), ("c", "image", 0.2, 0.2), ("d", "music", 0.1, 0.2)]
    vectors = {"a": [1.0, 0.0], "b": [2.0, 0.1], "c": [-1.0, 0.0], "d": [1.0]}
    embeddings = {name: {"embedding": vector} for name, vector in vectors.items()}
    out = publish_points(tmp_path / "va", rows, embeddings=embeddings)
    world = make_world(
        tmp_path / "home",
        open_index=lambda uri: AnnotationIndex.open(uri, Settings()),
        annotations={"photos": str(out)},
    )
    like = {"annotation": "photos", "like": "a"}
    answer = post(world, "/v1/search", like).json()
    assert [hit["id"] for hit in answer["hits"]] == ["d", "c", "b"]
    assert answer["query"] == {"valence": pytest.approx(0.1), "arousal": pytest.approx(0.1)}
    answer = post(world, "/v1/search", like | {"by": "embedding"}).json()
    assert [(hit["id"], round(hit["score"], 2)) for hit in answer["hits"]] == [("b", 1.0), ("c", -1.0)]
    for more, status, named in (
        ({"by": "embedding", "only": "music"}, 400, "only with their own kind"),
        ({"like": "nobody"}, 404, "no item of this id"),
        ({"text": "calm"}, 422, "send exactly one of"),
        ({"like": None, "text": "calm", "by": "embedding"}, 422, "needs `like`"),
    ):
        answer = post(world, "/v1/search", like | more)
        assert answer.status_code == status
        assert named in answer.json()["error"]["message"]


def test_only_a_scan_of_embeddings_waits_for_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = publish_points(tmp_path / "va", [("a", "image", 0.1, 0.1), ("b", "image", 0.9, 0.9)])
    index = AnnotationIndex.open(str(out), Settings())
    world = make_world(tmp_path / "home", open_index=lambda _uri: index, annotations={"photos": str(out)})
    query = {"annotation": "photos", "like": "a", "by": "embedding"}
    asyncio.run(world.context.scanning.acquire())
    busy = post(world, "/v1/search", query)
    assert (busy.status_code, busy.json()["error"]["code"], busy.headers["Retry-After"]) == (503, "busy", "1")
    found = SimpleNamespace(nearest=lambda *_given: (np.array([1]), np.array([0.5])))
    monkeypatch.setattr(index, "vectors", lambda _kind, _wanted: found)
    assert [hit["score"] for hit in post(world, "/v1/search", query).json()["hits"]] == [0.5]


def test_by_an_upload(world: World) -> None:
    answer = world.client.post(
        "/v1/search/upload",
        headers=bearer("reader"),
        files={"file": ("a.jpg", b"pixels", "image/jpeg")},
        data={"query": '{"annotation": "photos", "top": 1}'},
    )
    assert [hit["id"] for hit in answer.json()["hits"]] == ["near"]


def test_a_query_is_one_thing_and_an_annotation_one_that_may_be_read(world: World) -> None:
    assert post(world, "/v1/search", {"annotation": "photos"}).status_code == 422
    assert post(world, "/v1/search", {"annotation": "photos", "text": "a", "point": [0, 0]}).status_code == 422
    assert post(world, "/v1/search", {"annotation": "/etc", "text": "a"}).status_code == 403
    answer = post(world, "/v1/search", {"annotation": "photos", "text": "bad"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "not-text")


def test_points_of_two_models_are_never_compared(tmp_path: Path) -> None:
    older = ModelInfo(name="mmva", version="2", digest="e" * 64)
    world = make_world(tmp_path, open_index=lambda _uri: index_of(older), annotations={"photos": "/somewhere"})
    answer = post(world, "/v1/search", {"annotation": "photos", "text": "tense"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "another-model")
    answer = post(world, "/v1/search", {"annotation": "photos", "point": [0.25, 0.75]})
    assert answer.json()["model"]["version"] == "2"


def test_a_prompt_for_a_picture(world: World) -> None:
    answer = post(world, "/v1/music-prompt", {"uri": "/m/x.jpg"}).json()
    assert answer["query"] == TENSE
    assert answer["prompt"] == answer["details"]["text"]
    assert answer["details"]["mode"] == "minor"


def test_a_summary_holds_the_change_and_suggests_music(world: World) -> None:
    answer = post(world, "/v1/summarize", {"uri": "/m/x.mp4", "seconds": 6, "annotation": "photos"}).json()
    (segment,) = answer["segments"]
    assert segment["start_s"] <= 14.25 <= segment["end_s"]  # where the curve leaps
    assert segment["change"] == pytest.approx(1.0)
    assert segment["music"]["id"] == "song"
    assert len(answer["curve"]) == 20
    upload = world.client.post(
        "/v1/summarize/upload", headers=bearer("worker"), files={"file": ("a.mp4", b"film", "video/mp4")}
    )
    assert upload.json()["segments"]
    assert post(world, "/v1/summarize", {}).status_code == 422
