"""Routes of the queue of jobs: who may see and start what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmva_platform.serving.jobs.queue import JobSpec

from ...helpers.serving_world import World, bearer, make_world

URL = "/v1/annotation-jobs"


@pytest.fixture
def world(tmp_path: Path) -> World:
    (tmp_path / "media").mkdir()
    return make_world(tmp_path, roots=(str(tmp_path / "media"),), out_roots=(str(tmp_path / "outs"),))


def test_jobs_over_http(world: World, tmp_path: Path) -> None:
    body = {"catalog": str(tmp_path / "media"), "out": str(tmp_path / "outs" / "1")}
    made = world.client.post(URL, headers=bearer("worker"), json=body)
    assert (made.status_code, made.json()["state"], made.json()["owner"]) == (202, "queued", "worker")
    assert made.json()["model"] == "models:/mmva@champion"
    place = made.headers["Location"]
    assert world.client.post(URL, headers=bearer("other"), json=body).status_code == 200
    assert [job["id"] for job in world.client.get(URL, headers=bearer("reader")).json()["jobs"]] == [made.json()["id"]]
    assert world.client.get(place, headers=bearer("reader")).json()["progress"] is None
    report = world.client.get(f"{place}/report", headers=bearer("reader"))
    assert (report.status_code, report.json()["error"]["code"]) == (409, "not-published")
    assert world.client.delete(place, headers=bearer("other")).status_code == 403
    assert world.client.delete(place, headers=bearer("boss")).json()["state"] == "cancelled"
    assert world.client.get(f"{URL}/{'0' * 16}", headers=bearer("reader")).status_code == 404
    assert world.client.get(f"{URL}/../../etc", headers=bearer("reader")).status_code == 404


def test_lists_are_paged(world: World, tmp_path: Path) -> None:
    for number in range(7):
        spec = JobSpec(catalog="/c", out=str(tmp_path / "outs" / str(number)), model="models:/m/1")
        world.jobs.submit(spec, "worker")

    def page(**params: Any) -> tuple[list[str], int]:
        answer = world.client.get(URL, headers=bearer("reader"), params=params).json()
        return [job["out"].rpartition("/")[2] for job in answer["jobs"]], answer["total"]

    assert page(limit=3) == (["6", "5", "4"], 7)
    assert page(limit=3, offset=6) == (["0"], 7)
    assert world.client.get(URL, headers=bearer("reader"), params={"limit": 1000}).status_code == 422


@pytest.mark.parametrize(
    ("catalog", "out", "status"),
    [
        ("/etc", "outs/1", 403),
        ("media/../../etc", "outs/1", 403),
        ("file:///etc", "outs/1", 403),
        ("http://169.254.169.254/latest", "outs/1", 400),
        ("s3://other/bucket", "outs/1", 403),
        ("media", "/elsewhere", 403),
        ("media", "outs/../media", 403),
        ("media", "s3://bucket/../x", 400),
    ],
)
def test_catalogs_and_outputs_stay_below_their_roots(
    world: World, tmp_path: Path, catalog: str, out: str, status: int
) -> None:
    def absolute(place: str) -> str:
        return place if place.startswith("/") or "://" in place else f"{tmp_path}/{place}"

    body = {"catalog": absolute(catalog), "out": absolute(out)}
    assert world.client.post(URL, headers=bearer("worker"), json=body).status_code == status


@pytest.mark.parametrize("model", ["/tmp/bundle", "runs:/1/model", "models:/mmva", "models:/../x@y"])
def test_a_job_takes_registered_models_only(world: World, tmp_path: Path, model: str) -> None:
    body = {"catalog": str(tmp_path / "media"), "out": str(tmp_path / "outs" / "1"), "model": model}
    assert world.client.post(URL, headers=bearer("worker"), json=body).status_code == 422
