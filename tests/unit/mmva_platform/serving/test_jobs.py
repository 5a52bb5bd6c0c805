"""The queue of jobs, its lease and its runner: fair between keys, found again, never run twice."""

from __future__ import annotations

import dataclasses
import importlib
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mmva.errors import UsageError
from mmva.inference.config import Preprocessing
from mmva_platform.annotation.catalog.catalog import open_catalog
from mmva_platform.annotation.plan.plan import ModelInfo
from mmva_platform.annotation.table.commit import CommitRecord
from mmva_platform.serving.errors import ApiError
from mmva_platform.serving.jobs import progress as progress_module
from mmva_platform.serving.jobs.cluster import BulkCluster, Submitted, bulk_settings, settled_model, submission_of
from mmva_platform.serving.jobs.lease import TERM_S, Lease
from mmva_platform.serving.jobs.progress import ProgressReader, eta_s
from mmva_platform.serving.jobs.queue import Job, JobQueue, JobSpec, Start, count_states, next_job
from mmva_platform.serving.jobs.runner import JobRunner
from mmva_platform.settings import BulkSettings, ServingSettings, Settings, StorageSettings, load_config
from mmva_platform.storage import open_storage
from mmva_platform.submission.client import JobState

from ...helpers.planned import plan_of
from ...helpers.published import publish_points
from ...helpers.serving_world import make_world

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
URL = "/v1/annotation-jobs"


class FakeCluster(BulkCluster):
    """Submissions that a test ends."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.states: dict[str, Submitted] = {}
        self.stopped: list[str] = []

    def submit(self, job: Job, submission_id: str) -> None:
        self.jobs[submission_id] = job
        self.states[submission_id] = Submitted("running")

    def state(self, submission_id: str) -> Submitted:
        return self.states.get(submission_id, Submitted("lost"))

    def stop(self, submission_id: str) -> None:
        self.stopped.append(submission_id)

    def end(self, state: Any = "succeeded", message: str = "") -> None:
        """The last submission ends."""
        self.states[list(self.states)[-1]] = Submitted(state, message)

    @property
    def outs(self) -> list[str]:
        return [job.spec.out.rpartition("/")[2] for job in self.jobs.values()]


class Bench:
    """A queue, a clock, a cluster, and a runner."""

    def __init__(self, place: Path, most: int = 1, cluster: FakeCluster | None = None, **serving: Any) -> None:
        self.storage = open_storage(str(place))
        self.queue = JobQueue(str(place), ServingSettings(**serving), StorageSettings())
        self.cluster = cluster or FakeCluster()
        self.now, self.done = 0.0, 0
        self.most = most
        self.runner = self.new_runner()

    def new_runner(self) -> JobRunner:
        lease = Lease(self.storage, clock=lambda: self.now)
        return JobRunner(self.queue, lease, self.cluster, lambda _job: self.done, self.most)

    def submit(self, out: str, by: str = "a") -> Job:
        return self.queue.submit(JobSpec(catalog="/c", out=f"/outs/{out}", model="models:/mmva/1"), by)[0]

    def step(self) -> None:
        self.runner.step()


def test_a_job_runs_to_its_end(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    job = bench.submit("1")
    assert job.state == "queued"
    bench.step()
    assert bench.queue.get(job.id).state == "running"
    bench.cluster.end()
    bench.step()
    assert bench.queue.get(job.id).state == "done"
    assert bench.submit("1").state == "done"
    bench.step()
    assert len(bench.cluster.jobs) == 1


def test_a_failure_says_why_and_the_same_job_again_goes_on(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    job = bench.submit("1")
    bench.step()
    bench.cluster.end("failed", "storage is away")
    bench.step()
    failed = bench.queue.get(job.id)
    assert (failed.state, failed.message) == ("failed", "storage is away")
    assert bench.submit("1").state == "queued"
    bench.step()
    assert len(bench.cluster.jobs) == 2


def test_a_cancelled_job_is_stopped_and_its_turn_goes_to_the_next(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    first, second = bench.submit("1"), bench.submit("2")
    bench.step()
    assert bench.queue.cancel(first.id).state == "cancelled"
    assert bench.queue.cancel(first.id).state == "cancelled"
    bench.step()
    assert bench.cluster.stopped == [next(iter(bench.cluster.jobs))]
    assert bench.cluster.outs == ["1", "2"]
    assert count_states(bench.queue.jobs()) == {"queued": 0, "running": 1, "done": 0, "failed": 0, "cancelled": 1}
    bench.queue.cancel(second.id)
    bench.queue.cancel(bench.submit("3").id)
    bench.step()
    assert bench.cluster.outs == ["1", "2"]


def test_a_new_runner_finds_what_runs_and_leaves_it_running(tmp_path: Path) -> None:
    bench = Bench(tmp_path, most=2)
    bench.submit("1")
    bench.step()
    bench.submit("2")
    bench.runner.stop()
    assert bench.cluster.stopped == []
    bench.runner = bench.new_runner()
    bench.step()
    assert bench.cluster.outs == ["1", "2"]
    bench.cluster.end()
    bench.step()
    assert [job.state for job in bench.queue.jobs()] == ["running", "done"]


def test_two_runners_never_run_one_job_twice(tmp_path: Path) -> None:
    bench = Bench(tmp_path, most=3)
    second = bench.new_runner()
    for out in "123":
        bench.submit(out)
    for _ in range(5):
        bench.step()
        second.step()
        bench.now += 5.0
    assert bench.cluster.outs == ["1", "2", "3"]
    assert {job.start.fruitless for job in bench.queue.jobs() if job.start} == {0}


def test_a_runner_that_died_is_replaced_after_a_term_and_one_that_ended_at_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.step()
    later = bench.new_runner()
    bench.submit("1")
    later.step()
    bench.now += TERM_S / 2
    later.step()
    assert bench.cluster.outs == []
    bench.now += TERM_S
    later.step()
    assert bench.cluster.outs == ["1"]
    bench.step()  # the first one lives on, and sees that it has lost the lease
    bench.submit("2")
    bench.cluster.end()
    bench.step()
    assert bench.cluster.outs == ["1"]
    later.stop()
    bench.step()
    assert bench.cluster.outs == ["1", "2"]


def test_a_runner_that_lost_its_lease_in_the_middle_of_a_step_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path)
    bench.step()
    later, put = bench.new_runner(), bench.queue.put
    later.step()  # sees the lease, and from now on its term

    def slowly(job: Job) -> bool:
        monkeypatch.undo()  # only the first runner is slow
        stored = put(job)
        bench.now += TERM_S
        later.step()
        return stored

    bench.submit("1")
    bench.now += TERM_S / 4  # too early to renew it
    monkeypatch.setattr(bench.queue, "put", slowly)
    bench.step()
    assert len(bench.cluster.jobs) == 1  # by the other one
    [job] = bench.queue.jobs()
    assert job.start is not None
    assert list(bench.cluster.jobs) == [job.start.submission_id]


def test_a_lease_is_one_files_race_and_leaves_few_files(tmp_path: Path) -> None:
    storage, now = open_storage(str(tmp_path)), [0.0]
    leases = [Lease(storage, clock=lambda: now[0]) for _ in range(8)]
    for _ in range(20):
        assert sum(lease.held() for lease in leases) == 1
        now[0] += 6.0
    assert len(list(storage.list("lease/"))) <= 2


def test_a_job_that_makes_progress_may_be_restarted_for_ever(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    job = bench.submit("1")
    for restart in range(12):
        bench.done = 100 * restart
        bench.step()
        bench.cluster.end("lost")
    assert bench.queue.get(job.id).state == "running"
    assert len(bench.cluster.jobs) == 12


def test_a_job_that_gets_nowhere_is_given_up(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    job = bench.submit("1")
    bench.done = 7
    for _ in range(20):
        bench.step()
        if bench.cluster.states:
            bench.cluster.end("lost")
    assert len(bench.cluster.jobs) == 5
    found = bench.queue.get(job.id)
    assert (found.state, found.message) == ("failed", "started 5 times without progress at 7 committed shards")


def test_foreign_and_newer_files_are_left_alone(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    job = bench.submit("1")
    (tmp_path / "stray.json").write_text("{}")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "0001.json").write_text("hello")
    (tmp_path / ("f" * 16)).mkdir()
    (tmp_path / ("f" * 16) / "0001.json").write_text('{"what": "submitted"}')
    newer = (tmp_path / job.id / "0001.json").read_text().replace("{", '{"colour": "of a later release",', 1)
    (tmp_path / job.id / "0001.json").write_text(newer)
    (tmp_path / job.id / "0002.json").write_text('{"state": "paused"}')
    fresh = Bench(tmp_path)
    assert [one.id for one in fresh.queue.jobs()] == [job.id]
    fresh.step()
    assert fresh.cluster.outs == ["1"]
    assert fresh.queue.get(job.id).number == 3


def test_keys_take_turns(tmp_path: Path) -> None:
    bench = Bench(tmp_path, most=1)
    for out in ("a1", "a2", "a3", "b1", "b2", "c1"):
        bench.submit(out, out[0])
    for _ in range(6):
        bench.step()
        bench.cluster.end()
    assert bench.cluster.outs == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_a_key_with_a_running_job_waits_for_one_without() -> None:
    def job(name: str, owner: str, state: Any = "queued", started: bool = False) -> Job:
        spec = JobSpec(catalog="/c", out=f"/{name}", model="m")
        start = Start(at=NOON, submission_id=name, shards_done=0) if started else None
        return Job(
            id=name, number=1, spec=spec, owner=owner, submitted_at=NOON, changed_at=NOON, state=state, start=start
        )

    jobs = [job("1", "a", "running", started=True), job("2", "a"), job("3", "b", "done", started=True), job("4", "b")]
    assert next_job(jobs) == jobs[3]
    assert next_job([jobs[2]]) is None


def test_limits_of_the_queue(tmp_path: Path) -> None:
    bench = Bench(tmp_path, max_queued_jobs=3, max_queued_jobs_per_key=2)
    bench.submit("1")
    bench.submit("2")
    with pytest.raises(ApiError, match="2 jobs of this key") as refused:
        bench.submit("3")
    assert (refused.value.status_code, refused.value.headers) == (429, {"Retry-After": "60"})
    bench.submit("3", "b")
    with pytest.raises(ApiError, match="3 jobs are waiting"):
        bench.submit("4", "c")


def test_one_output_belongs_to_one_job(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.submit("1")
    with pytest.raises(ApiError, match="another job writes there") as refused:
        bench.queue.submit(JobSpec(catalog="/other", out="/outs/1/", model="models:/mmva/1"), "a")
    assert refused.value.status_code == 409


@pytest.mark.parametrize("out", ["a/1", "a/1/commits", "a", "a/1/x/y"])
def test_outputs_in_or_around_another_are_refused(tmp_path: Path, out: str) -> None:
    bench = Bench(tmp_path, annotations={"photos": "/outs/photos"})
    bench.submit("a/1")
    if out == "a/1":
        assert bench.submit("a/10").state == "queued"  # a name that begins alike is no folder in it
        with pytest.raises(ApiError, match="belongs to another job"):
            bench.submit("photos/deep")
        return
    with pytest.raises(ApiError, match="belongs to another job") as refused:
        bench.submit(out, "b")
    assert refused.value.status_code == 409


def test_nested_outputs_submitted_at_the_same_moment_do_not_both_run(tmp_path: Path) -> None:
    bench = Bench(tmp_path, most=5)
    outer = bench.submit("a")
    inner = Job(
        id="f" * 16, number=1, spec=outer.spec.model_copy(update={"out": "/outs/a/b"}), owner="b",
        submitted_at=outer.submitted_at + timedelta(seconds=1), changed_at=outer.changed_at,
    )  # fmt: skip
    assert bench.queue.put(inner)
    bench.step()
    assert bench.cluster.outs == ["a"]
    assert bench.queue.get(inner.id).message == "the output is inside or around /outs/a"


def test_a_state_is_one_request_and_a_list_does_not_read_files_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    names = [bench.submit(str(number)).id for number in range(6)]
    requests: list[str] = []
    storage = bench.queue._storage
    read, listed = storage.read, storage.list
    storage.read = lambda path, most=None: requests.append(path) or read(path, most)  # type: ignore[assignment, method-assign, func-returns-value]
    storage.list = lambda prefix="": requests.append(f"list {prefix}") or listed(prefix)  # type: ignore[method-assign, func-returns-value]
    bench.queue.get(names[0])
    assert requests == [f"list {names[0]}/"]
    bench.queue.jobs()
    assert requests == [f"list {names[0]}/", "list "]


class TestProgress:
    """How far a job is."""

    @pytest.fixture
    def job(self, tmp_path: Path) -> Job:
        publish_points(tmp_path / "va", [(f"{n}", "image", 0.1, 0.1) for n in range(6)], shard_items=2)
        return Job(
            id="a" * 16, number=1, spec=JobSpec(catalog="/c", out=str(tmp_path / "va"), model="m"), owner="a",
            submitted_at=NOON, changed_at=NOON, state="done",
        )  # fmt: skip

    def test_a_published_run_is_read_once(self, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
        now, looks = [0.0], []
        reader = ProgressReader(Settings(), clock=lambda: now[0])
        look = progress_module.status
        monkeypatch.setattr(progress_module, "status", lambda *given: looks.append(1) or look(*given))
        first = reader(job)
        assert first is not None
        assert (first["shards_done"], first["items_done"], first["published"]) == (3, 6, True)
        now[0] += 100
        assert reader(job) == first
        assert len(looks) == 1

    def test_a_job_that_has_ended_is_looked_at_again_at_once(self, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
        reader, look = ProgressReader(Settings(), clock=lambda: 0.0), progress_module.status
        now = {"published": False}
        monkeypatch.setattr(progress_module, "status", lambda *given: dataclasses.replace(look(*given), **now))
        running = job.model_copy(update={"state": "running", "start": Start(at=NOON, submission_id="s", shards_done=0)})
        seen = []
        for published, asked in ((False, running), (True, running), (True, job)):
            now["published"] = published
            seen.append((reader(asked) or {})["published"])
        assert seen == [False, False, True]  # two looks at a running job at the same moment are one

    def test_a_commit_is_read_once(self, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
        status_module = importlib.import_module(
            "mmva_platform.annotation.table.status"
        )  # the package has a function so named
        known: dict[str, CommitRecord] = {}
        first, asked = status_module.status(job.spec.out, Settings(), 0, known), []
        read = status_module.read_commits
        monkeypatch.setattr(status_module, "read_commits", lambda *given: asked.extend(given[2]) or read(*given))
        assert status_module.status(job.spec.out, Settings(), 0, known) == first
        assert (len(known), asked) == (3, [])

    def test_a_job_never_waits_for_another_one(self, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
        begun, end = threading.Event(), threading.Event()
        other = job.model_copy(update={"spec": job.spec.model_copy(update={"out": f"{job.spec.out}-slow"})})
        reader, look = ProgressReader(Settings()), progress_module.status

        def slowly(out: str, *more: Any) -> Any:
            if out.endswith("-slow"):
                begun.set()
                assert end.wait(20)
                raise UsageError("no plan yet")
            return look(out, *more)

        monkeypatch.setattr(progress_module, "status", slowly)
        thread = threading.Thread(target=reader, args=(other,))
        thread.start()
        assert begun.wait(20)
        assert reader(job) is not None
        end.set()
        thread.join()

    def test_the_time_left_is_by_the_pace_since_the_start(self) -> None:
        start = Start(at=NOON, submission_id="s", shards_done=10)
        assert eta_s(start, 10, 5, NOON + timedelta(seconds=20)) is None
        assert eta_s(start, 14, 6, NOON + timedelta(seconds=20)) == 30.0


class TestCluster:
    """A job as Ray's job server sees it."""

    @pytest.fixture
    def job(self) -> Job:
        spec = JobSpec(catalog="/c", out="/o", model="models:/mmva/1")
        return Job(id="a" * 16, number=2, spec=spec, owner="a", submitted_at=NOON, changed_at=NOON)

    def test_it_has_its_own_resources_and_yields_to_requests(self, job: Job, tmp_path: Path) -> None:
        bulk = BulkSettings(address="http://bulk:8265", driver_cpus=1, nice=7, secrets=("AWS_PROFILE",), max_cpus=64)
        serving = ServingSettings(bulk=bulk, roots=("/media",), keys=())
        made = submission_of(job, "mmva-x-2", Settings(home=tmp_path, serving=serving), tmp_path)
        variables = made.runtime_env["env_vars"]
        assert made.submission_id == "mmva-x-2"
        assert made.resources == {"entrypoint_num_cpus": 1}
        assert variables["MMVA_NICE"] == "7"
        assert made.runtime_env["worker_process_setup_hook"] == "mmva_platform.cluster.lower_priority"
        assert variables["AWS_PROFILE"] == "${AWS_PROFILE}"
        assert made.entrypoint.startswith(
            "nice -n 7 python -m mmva_platform.cli --settings .mmva-settings.yaml annotate /c"
        )
        assert "--model models:/mmva/1 --out /o --engine auto" in made.entrypoint
        settings = load_config(Settings, made.package.added[".mmva-settings.yaml"])
        assert settings.annotation.roots == ("/media",)
        assert settings.cluster.max_cpus == 64
        assert settings.serving.keys == ()

    def test_a_job_does_not_get_the_keys_of_the_api(self, tmp_path: Path) -> None:
        world = make_world(tmp_path, roots=("/media",))
        text = bulk_settings(world.context.settings).model_dump_json()
        assert not any(key.sha256 in text for key in world.context.settings.serving.keys)

    @pytest.mark.parametrize(
        ("status", "code", "expected"),
        [
            ("RUNNING", None, Submitted("running")),
            ("PENDING", None, Submitted("running")),
            ("SUCCEEDED", 0, Submitted("succeeded")),
            ("FAILED", 1, Submitted("failed", "no such model")),
            ("FAILED", 3, Submitted("failed", "no such model")),
            ("FAILED", -9, Submitted("lost")),
            ("FAILED", None, Submitted("lost")),
            ("STOPPED", None, Submitted("failed", "stopped on the cluster")),
        ],
    )
    def test_what_became_of_it(self, tmp_path: Path, status: str, code: int | None, expected: Submitted) -> None:
        class Server:
            def list(self) -> list[JobState]:
                return [JobState("x", status, "", None, code, "")]

            def logs(self, _job: str) -> str:
                return "starting\nmmva: no such model\n\n"

        cluster = BulkCluster(Settings(home=tmp_path), "gcs:1")
        cluster._connected = Server()  # type: ignore[assignment]
        assert cluster.state("x") == expected
        assert cluster.state("y") == Submitted("lost")


def test_a_cluster_that_did_not_answer_is_connected_to_again(tmp_path: Path) -> None:
    class Gone:
        def list(self) -> list[JobState]:
            raise OSError("another head has taken over")

    cluster = BulkCluster(Settings(home=tmp_path), "gcs:1")
    cluster._connected = Gone()  # type: ignore[assignment]
    with pytest.raises(OSError, match="another head"):
        cluster.state("x")
    assert cluster._connected is None


def test_a_job_whose_champion_moved_goes_on_with_its_own_model(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "words.txt").write_text("calm")
    spec = JobSpec(catalog=str(tmp_path / "c"), out=str(tmp_path / "out"), model="models:/mmva@champion")
    assert settled_model(spec, settings) == "models:/mmva@champion"
    cut = Preprocessing(fingerprints={}, window_s=3.0, hop_s=1.5, short_side=224)
    model = ModelInfo(name="mmva", version="7", digest="d" * 64)
    plan_of(open_storage(spec.out), open_catalog(spec.catalog, settings.storage), model, cut, 64)
    assert settled_model(spec, settings) == "models:/mmva/7"
