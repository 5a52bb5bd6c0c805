"""The queue of jobs: a log in storage, fair between keys, found again by whoever comes next."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mmva.inference.config import Preprocessing
from mmva_platform.annotation.catalog import open_catalog
from mmva_platform.annotation.plan import ModelInfo
from mmva_platform.serving.jobs import Event, Job, JobQueue, JobSpec, next_job
from mmva_platform.serving.progress_of_jobs import eta_s
from mmva_platform.serving.runner import JobRunner, ProcessLostError, _settled_model
from mmva_platform.serving.services import ApiError
from mmva_platform.settings import ServingSettings, Settings, StorageSettings
from mmva_platform.storage import open_storage

from .planned import plan_of
from .serving_world import World, bearer, make_world

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
URL = "/v1/annotation-jobs"


class FakeProcess:
    """A job's process that a test ends."""

    def __init__(self, spec: JobSpec) -> None:
        self.spec, self.outcome, self.killed = spec, (False, None), False  # type: tuple[bool, str | None]
        self.lost = False

    def result(self) -> tuple[bool, str | None]:
        if self.lost:
            raise ProcessLostError
        return self.outcome

    def kill(self) -> None:
        self.killed = True


class Bench:
    """A queue and a runner of fake processes."""

    def __init__(self, place: Path, most: int = 1, **serving: Any) -> None:
        self.place, self.most = place, most
        self.queue = JobQueue(str(place), ServingSettings(**serving), StorageSettings())
        self.processes: list[FakeProcess] = []
        self.runner = self.new_runner()

    def new_runner(self) -> JobRunner:
        return JobRunner(self.queue, self.launch, lambda _job: 0, self.most)

    def launch(self, spec: JobSpec) -> FakeProcess:
        self.processes.append(FakeProcess(spec))
        return self.processes[-1]

    def submit(self, out: str, by: str = "a") -> Job:
        return self.queue.submit(JobSpec(catalog="/c", out=f"/outs/{out}", model="models:/mmva/1"), by)[0]

    @property
    def outs(self) -> list[str]:
        return [process.spec.out.rpartition("/")[2] for process in self.processes]


def test_a_job_runs_to_its_end(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    job = bench.submit("1")
    assert job.state == "queued"
    bench.runner.step()
    assert bench.queue.get(job.id).state == "running"
    bench.processes[0].outcome = (True, None)
    bench.runner.step()
    assert bench.queue.get(job.id).state == "done"
    assert bench.submit("1").state == "done"
    bench.runner.step()
    assert len(bench.processes) == 1


def test_a_failure_says_why_and_the_same_job_again_goes_on(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    job = bench.submit("1")
    bench.runner.step()
    bench.processes[0].outcome = (True, "storage is away")
    bench.runner.step()
    failed = bench.queue.get(job.id)
    assert (failed.state, failed.last.message) == ("failed", "storage is away")
    assert bench.submit("1").state == "queued"
    bench.runner.step()
    assert len(bench.processes) == 2


def test_a_cancelled_job_is_killed_and_its_turn_goes_to_the_next(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    first, second = bench.submit("1"), bench.submit("2")
    bench.runner.step()
    assert bench.queue.cancel(first.id, "a").state == "cancelled"
    assert bench.queue.cancel(first.id, "a").events[-1].what == "cancelled"
    bench.runner.step()
    assert bench.processes[0].killed
    assert bench.outs == ["1", "2"]
    assert bench.queue.states() == {"queued": 0, "running": 1, "done": 0, "failed": 0, "cancelled": 1}
    bench.queue.cancel(second.id, "a")
    waiting = bench.submit("3")
    bench.queue.cancel(waiting.id, "a")
    bench.runner.step()
    assert bench.outs == ["1", "2"]


def test_another_runner_finds_what_was_running_and_what_waits(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.submit("1")
    bench.runner.step()
    bench.submit("2")
    bench.runner.stop()
    assert bench.processes[0].killed
    later = Bench(tmp_path, most=2)
    later.runner.step()
    assert later.outs == ["1", "2"]
    assert [job.state for job in later.queue.jobs()] == ["running", "running"]


def test_a_process_that_dies_is_started_again_and_not_for_ever(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    job = bench.submit("1")
    for _ in range(20):
        bench.runner.step()
        if bench.processes:
            bench.processes[-1].lost = True
    assert len(bench.processes) == 5
    found = bench.queue.get(job.id)
    assert (found.state, found.last.message) == ("failed", "started 5 times and never came to an end")


def test_keys_take_turns(tmp_path: Path) -> None:
    bench = Bench(tmp_path, most=1)
    for out in ("a1", "a2", "a3", "b1", "b2", "c1"):
        bench.submit(out, out[0])
    for _ in range(6):
        bench.runner.step()
        bench.processes[-1].outcome = (True, None)
        bench.runner.step()
    assert bench.outs == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_a_key_with_a_running_job_waits_for_one_without() -> None:
    def job(name: str, owner: str, *whats: str) -> Job:
        spec = JobSpec(catalog="/c", out=f"/{name}", model="m")
        events = [Event(what="submitted", at=NOON, by=owner, spec=spec)]
        events += [Event(what=what, at=NOON + timedelta(seconds=1)) for what in whats]  # type: ignore[arg-type]
        return Job(name, tuple(events))

    jobs = [job("1", "a", "started"), job("2", "a"), job("3", "b", "started", "finished"), job("4", "b")]
    assert next_job(jobs, ["1"]) == jobs[3]
    assert next_job(jobs, []) == jobs[0]  # cut short by a restart
    assert next_job([jobs[2]], []) is None


def test_limits_of_the_queue(tmp_path: Path) -> None:
    bench = Bench(tmp_path, max_queued_jobs=3, max_queued_jobs_per_key=2)
    bench.submit("1")
    bench.submit("2")
    with pytest.raises(ApiError, match="2 jobs of this key") as refused:
        bench.submit("3")
    assert (refused.value.status_code, refused.value.headers) == (429, {"Retry-After": "60"})
    bench.submit("3", "b")
    with pytest.raises(ApiError, match="3 jobs wait"):
        bench.submit("4", "c")


def test_one_output_belongs_to_one_job(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.submit("1")
    with pytest.raises(ApiError, match="another job writes there") as refused:
        bench.queue.submit(JobSpec(catalog="/other", out="/outs/1/", model="models:/mmva/1"), "a")
    assert refused.value.status_code == 409


def test_a_job_whose_champion_moved_goes_on_with_its_own_model(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "words.txt").write_text("calm")
    spec = JobSpec(catalog=str(tmp_path / "c"), out=str(tmp_path / "out"), model="models:/mmva@champion")
    assert _settled_model(spec, settings) == "models:/mmva@champion"
    cut = Preprocessing(fingerprints={}, window_s=3.0, hop_s=1.5, short_side=224)
    model = ModelInfo(name="mmva", version="7", digest="d" * 64)
    plan_of(open_storage(spec.out), open_catalog(spec.catalog, settings.storage), model, cut, 64)
    assert _settled_model(spec, settings) == "models:/mmva/7"


def test_the_time_left_is_by_the_pace_since_the_start() -> None:
    start = Event(what="started", at=NOON, shards_done=10)
    assert eta_s(start, 10, 5, NOON + timedelta(seconds=20)) is None
    assert eta_s(start, 14, 6, NOON + timedelta(seconds=20)) == 30.0


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
