"""deploy/local.sh's servers with jobs on them, as on a cluster: `mmva jobs ...`, and equally plain `ray job submit`.

Tokens are on, media and results lie in object storage, runs in MLflow on PostgreSQL, numbers in Prometheus.
"""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from documented import run_page
from local_stack import LocalStack
from PIL import Image
from registry_cases import make_result
from slow_pictures import SIZE, slow_path

from mmva_platform.annotation import open_annotation
from mmva_platform.annotation.table.delta import latest_version
from mmva_platform.settings import Settings, StorageSettings, TrackingSettings
from mmva_platform.storage import Storage, open_storage
from mmva_platform.tracking.registry import register
from mmva_platform.tracking.runs import log_training_run

pytestmark = pytest.mark.system

PICTURES = 100
DECODING_S = 0.3  # a shard of four is under way for over a second: a stop comes into the middle of the run
COMMITS = "_mmva/000000/commits/"
SECRET = "a-password-that-nobody-may-read"


@pytest.fixture(scope="module")
def stack(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    ours = os.pathsep.join(map(str, (repository, repository / "platform")))
    path = slow_path(tmp_path_factory.mktemp("slow") / "path", DECODING_S, ours)
    servers = LocalStack({"CLUSTER_PASSWORD": SECRET, "PYTHONPATH": path})
    servers.start()
    yield servers
    servers.stop()


@pytest.fixture(scope="module")
def catalog(stack: LocalStack) -> str:
    """Pictures that take their time, all different by what stands behind their end; one is broken."""
    media = storage(stack, "s3://media/catalog")
    buffer = io.BytesIO()
    Image.new("RGB", SIZE, (200, 120, 90)).save(buffer, "PNG")
    for index in range(PICTURES):
        media.write(f"{index:04d}.png", buffer.getvalue() + str(index).encode())
    media.write("broken.jpg", b"\xff\xd8\xff not a picture")
    return media.uri


def storage(stack: LocalStack, uri: str) -> Storage:
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_EC2_METADATA_DISABLED")
    os.environ.update({name: stack.environment[name] for name in names})
    return open_storage(uri, StorageSettings(s3_endpoint=f"http://127.0.0.1:{stack.ports['S3_PORT']}"))


@pytest.fixture(scope="module", autouse=True)
def plain_job(
    stack: LocalStack, tiny_bundle: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """`ray job submit` by itself and where it writes; it runs beside the others, who wait for their own jobs."""
    folder = tmp_path_factory.mktemp("plain")
    (folder / "catalog").mkdir()
    (folder / "catalog" / "a.txt").write_text("calm piano")
    command = [
        *(Path(sys.executable).with_name("ray"), "job", "submit", "--working-dir", repository / "jobs", "--"),
        *("env", f"PYTHONPATH={repository}{os.pathsep}{repository / 'platform'}", "python", "annotate.py"),
        *("--home", folder / "home", "--set", f"catalog={folder / 'catalog'}", "--set", f"model={tiny_bundle}"),
        *("--set", f"out={folder / 'out'}", "--set", "engine=torch"),
    ]
    with subprocess.Popen(
        [str(word) for word in command], env=stack.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    ) as process:  # fmt: skip
        yield process, folder / "out"
        process.kill()


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def annotation(out: str, catalog: str, model: Path, *options: str) -> tuple[object, ...]:
    return ("annotate", catalog, "--model", model, "--out", out, "--engine", "torch", "--shard-items", "4", *options)


def test_stop_drains_the_shards_under_way_and_the_same_job_goes_on(
    stack: LocalStack, repository: Path, tiny_bundle: Path, catalog: str
) -> None:
    submit = ("jobs", "submit", "--working-dir", repository, "--exclude", "tests/")
    secret = ("--secret", "MLFLOW_TRACKING_PASSWORD=CLUSTER_PASSWORD")
    place = storage(stack, "s3://work/annotations/drained")
    verb = annotation(place.uri, catalog, tiny_bundle)

    def count(folder: str) -> int:
        return sum(1 for _ in place.list(folder))

    # The client ends, the job does not.
    stack.mmva(*submit, *secret, "--no-wait", "--name", "drained", *verb, "--workers", "1")
    deadline = time.monotonic() + 300
    while not re.search(r'items_total{[^}]*modality="image"', stack.read("METRICS_PORT", "/metrics")):
        assert time.monotonic() < deadline, stack.mmva("jobs", "logs", "drained")
        time.sleep(0.2)  # until a deadline, not for a time
    told = stack.read("METRICS_PORT", "/metrics")
    state = json.loads(stack.mmva("jobs", "stop", "drained", "--json"))
    logs = stack.mmva("jobs", "logs", "drained")
    assert state["status"] == "STOPPED"
    assert "stopped on request after" in logs
    assert 0 < count(COMMITS) < PICTURES // 4
    assert latest_version(place) is None
    for metric in ("items_total", "commit_seconds_bucket", "shards_left", "last_commit_time_seconds", "model_info"):
        assert f"ray_mmva_annotate_{metric}{{" in told

    said = stack.mmva(*submit, *secret, *verb, "--workers", "3")
    assert f"{PICTURES} annotated" in said
    made = open_annotation(place)
    assert (made.count("ok"), made.count("quarantined")) == (PICTURES, 1)
    commits = [json.loads(place.read(entry.path)) for entry in place.list(COMMITS)]
    assert {commit["attempt"] for commit in commits} == {1}  # no shard was begun twice
    jobs = json.loads(stack.mmva("jobs", "list", "--json"))
    assert {job["id"]: job["status"] for job in jobs}["drained"] == "STOPPED"
    assert "SUCCEEDED" in [job["status"] for job in jobs]
    records = [place.read(entry.path).decode() for entry in place.list() if entry.path.endswith(".json")]
    assert SECRET not in "".join([logs, said, told, json.dumps(jobs), *records])


def test_the_plain_way_is_as_good(plain_job: tuple[subprocess.Popen[str], Path]) -> None:
    process, out = plain_job
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert open_annotation(str(out)).count("ok") == 1


def test_the_page_to_start_from_is_true(stack: LocalStack, tmp_path: Path) -> None:
    photos = storage(stack, "s3://media/photos")
    for number in range(3):
        buffer = io.BytesIO()
        Image.new("RGB", (40 + number, 30), (90 * number, 80, 60)).save(buffer, "PNG")
        photos.write(f"{number}.png", buffer.getvalue())
    (tmp_path / "notes.txt").write_text("the folder that is sent with a job")
    ours = {
        "deploy/local.sh start ~/mmva-stack\nsource ~/mmva-stack/env\n": "",
        "deploy/local.sh stop ~/mmva-stack\n": "",
    }
    said = run_page("docs/start/cluster.md", tmp_path, replaced=ours, environment=stack.environment)
    assert f'tracking.uri = "http://127.0.0.1:{stack.ports["MLFLOW_PORT"]}"' in said
    assert "3 items: 3 annotated" in said
    assert "nothing has changed since version 0" in said
    made = open_annotation(storage(stack, "s3://work/annotations/photos"))
    assert (made.version, made.count("ok")) == (0, 3)


def test_without_the_token_nothing_is_told(stack: LocalStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stack.environment, "RAY_AUTH_TOKEN", "0" * 64)
    assert "does not accept this token" in stack.mmva("jobs", "list", code=2)


def test_runs_and_numbers_have_their_places(stack: LocalStack) -> None:
    assert stack.status() == dict.fromkeys(["storage", "postgres", "mlflow", "ray", "api", "prometheus"], "up")
    targets = json.loads(stack.read("PROMETHEUS_PORT", "/api/v1/targets"))["data"]["activeTargets"]
    assert {(target["labels"]["job"], target["health"]) for target in targets} == {("ray", "up")}
    of_the_api = {"ray_mmva_jobs", "ray_serve_num_http_requests_total"}
    wanted = of_the_api | {"ray_mmva_annotate_items_total", "ray_node_mem_used"}
    deadline = time.monotonic() + 120
    while missing := wanted - set(json.loads(stack.read("PROMETHEUS_PORT", "/api/v1/label/__name__/values"))["data"]):
        assert time.monotonic() < deadline, missing
        time.sleep(0.5)  # until a deadline, not for a time
    rules = json.loads(stack.read("PROMETHEUS_PORT", "/api/v1/rules"))["data"]["groups"]
    assert {group["name"] for group in rules} == {"annotation", "api", "cluster"}


def test_the_api_waits_for_a_champion_and_answers_with_it(stack: LocalStack, catalog: str, tmp_path: Path) -> None:
    key = stack.environment["MMVA_API_KEY"]
    items = {"items": [{"id": "a", "caption": "calm piano"}, {"id": "b", "uri": f"{catalog}/0000.png"}]}
    assert stack.ask("/v1/annotate", items)[0] == 401
    assert stack.ask("/readyz")[0] == 503
    status, said = stack.ask("/v1/annotate", items, key=key)
    assert (status, said["error"]["code"]) == (503, "model-unavailable")
    assert stack.ask("/v1/models", key=key)[1]["versions"] == []  # MLflow answers, out of PostgreSQL

    storage(stack, "s3://media")  # sets the credentials
    tracking = TrackingSettings(uri=f"http://127.0.0.1:{stack.ports['MLFLOW_PORT']}")
    settings = Settings(home=tmp_path / "home", tracking=tracking)
    register(log_training_run(make_result(tmp_path, name="first"), settings, predictions={}), settings)
    stack.mmva("models", "promote", "1", "--force", "--reason", "made up: its dataset is nowhere")
    deadline = time.monotonic() + 180
    while stack.ask("/readyz")[0] != 200:
        assert time.monotonic() < deadline, (stack.folder / "logs" / "api.log").read_text()
        time.sleep(0.2)  # until a deadline, not for a time
    status, said = stack.ask("/v1/annotate", items, key=key)
    assert status == 200, said
    assert [(row["id"], row["modality"]) for row in said["items"]] == [("a", "caption"), ("b", "image")]
    assert all(0 <= row["valence"] <= 1 for row in said["items"])


def test_the_doctor_finds_nothing_wrong_with_it(stack: LocalStack) -> None:
    found = json.loads(stack.mmva("doctor", "--storage", "s3://work/outputs", "--json"))
    verdicts = {finding["check"]: finding["verdict"] for finding in found}
    services = ("storage", "clock", "cluster", "token", "tracking")
    assert {service: verdicts[service] for service in services} == dict.fromkeys(services, "ok"), found


def test_a_part_that_died_is_seen_and_started_again_and_strangers_are_left_alone(stack: LocalStack) -> None:
    os.kill(stack.pid("prometheus"), signal.SIGKILL)
    while stack.status()["prometheus"] == "up":
        time.sleep(0.05)  # until it is gone; the kernel decides when
    others = {part: stack.pid(part) for part in ("storage", "postgres", "mlflow", "ray", "api")}
    # Its number may be anybody's by now: ours must not end who has it.
    (stack.folder / "pids" / "prometheus").write_text(f"{os.getpid()} 1\n")
    assert stack.status()["prometheus"] == "down"
    stack.start()
    assert stack.status()["prometheus"] == "up"
    assert {part: stack.pid(part) for part in others} == others
