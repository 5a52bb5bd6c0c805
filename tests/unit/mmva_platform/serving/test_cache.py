"""What the server keeps of a published annotation, until another version of it is published."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mmva.errors import UsageError
from mmva_platform.annotation.plan.plan import plan_file
from mmva_platform.search import AnnotationIndex
from mmva_platform.search.explored import ExploredCatalog
from mmva_platform.serving.cache import AnnotationCache
from mmva_platform.settings import Settings

from ...helpers.published import publish_points, update_points
from ...helpers.serving_world import bearer, make_world

FIRST = [("a", "image", 0.1, 0.1), ("b", "image", 0.9, 0.9), ("c", "music", 0.2, 0.2)]
SECOND = [("a", "image", 0.1, 0.1), ("c", "music", 0.8, 0.8), ("d", "music", 0.12, 0.1)]


def test_it_is_made_once_a_version(tmp_path: Path) -> None:
    made: list[str] = []

    def make(uri: str) -> int:
        made.append(uri)
        return len(AnnotationIndex.open(uri, Settings()))

    kept, out = AnnotationCache(make, Settings()), tmp_path / "va"
    with pytest.raises(UsageError, match="no published annotations"):
        kept(str(out))
    publish_points(out, FIRST)
    made.clear()
    assert [kept(str(out)), kept(str(out)), kept(f"{out}/")] == [3, 3, 3]
    assert len(made) == 1
    (out / plan_file(1)).parent.mkdir()
    (out / plan_file(1)).touch()
    assert (kept(str(out)), len(made)) == (3, 1), "a version that is under way shows nothing new"
    (out / plan_file(1)).unlink()
    update_points(out, FIRST[:2])
    assert [kept(str(out)), kept(str(out))] == [2, 2]
    assert len(made) == 2
    assert len(kept._kept) == 1, "an earlier version does not keep its memory"


def test_opening_one_annotation_delays_no_other(tmp_path: Path) -> None:
    for name in ("quick", "slow"):
        publish_points(tmp_path / name, FIRST)
    begun, end, made = threading.Event(), threading.Event(), []

    def make(uri: str) -> str:
        made.append(uri)
        if uri.endswith("slow"):
            begun.set()
            assert end.wait(20)
        return uri

    cache = AnnotationCache(make, Settings())
    cache(str(tmp_path / "quick"))
    with ThreadPoolExecutor(3) as pool:
        slow = [pool.submit(cache, str(tmp_path / "slow")) for _ in range(2)]
        assert begun.wait(20)
        assert cache(str(tmp_path / "quick")).endswith("quick")
        end.set()
        assert [one.result() for one in slow] == [str(tmp_path / "slow")] * 2
    assert len(made) == 2


def test_what_could_not_be_made_is_tried_again(tmp_path: Path) -> None:
    publish_points(tmp_path / "va", FIRST)
    answers: list[Any] = [OSError("away"), "index"]

    def make(_uri: str) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    cache = AnnotationCache(make, Settings())
    with pytest.raises(OSError, match="away"):
        cache(str(tmp_path / "va"))
    assert cache(str(tmp_path / "va")) == "index"


def test_search_and_explorer_show_a_new_version_as_soon_as_it_is_published(tmp_path: Path) -> None:
    out, settings = publish_points(tmp_path / "va", FIRST), Settings()
    world = make_world(
        tmp_path / "home",
        open_index=AnnotationCache(lambda uri: ExploredCatalog.open(uri, settings), settings),
        annotations={"photos": str(out)},
    )

    def explored(path: str, **params: Any) -> Any:
        return world.client.get(f"/v1/explore/catalogs/photos{path}", headers=bearer("reader"), params=params)

    def shown() -> dict[str, Any]:
        query = {"annotation": "photos", "point": [0.1, 0.1]}
        found = world.client.post("/v1/search", headers=bearer("reader"), json=query).json()
        points = explored("/view").json()["points"]
        return {
            "hits": [hit["id"] for hit in found["hits"]],
            "points": dict(zip(points["id"], points["valence"], strict=True)),
            "counts": explored("").json()["by_modality"],
            "items": [explored("/item", id=name).status_code for name in "abcd"],
            "near": [hit["id"] for hit in explored("/item", id="a").json()["near"]["music"]],
        }

    assert shown() == {
        "hits": ["a", "c", "b"],
        "points": {"a": 0.1, "b": 0.9, "c": 0.2},
        "counts": {"image": 2, "music": 1},
        "items": [200, 200, 200, 404],
        "near": ["c"],
    }
    update_points(out, SECOND)
    assert shown() == {
        "hits": ["a", "d", "c"],
        "points": {"a": 0.1, "c": 0.8, "d": 0.12},
        "counts": {"image": 1, "music": 2},
        "items": [200, 404, 200, 200],
        "near": ["d", "c"],
    }


def test_a_new_version_frees_the_memory_of_the_one_before(tmp_path: Path) -> None:
    """At once: a garbage collector comes when objects are many, not when they are large."""
    out, settings = publish_points(tmp_path / "va", FIRST), Settings()
    cache = AnnotationCache(lambda uri: ExploredCatalog.open(uri, settings), settings)
    world = make_world(tmp_path / "home", open_index=cache, annotations={"photos": str(out)})

    def used() -> None:
        for path in ("", "/view?width=0.5", "/item?id=a", "/around?v=0.1&a=0.1", "/view.csv"):
            url = f"/v1/explore/catalogs/photos{path}"
            assert world.client.get(url, headers=bearer("reader")).status_code == 200, path

    used()
    before = weakref.ref(cache(str(out)))
    assert before() is not None
    update_points(out, SECOND)
    gc.collect()
    gc.disable()
    try:
        used()
        assert before() is None
    finally:
        gc.enable()
