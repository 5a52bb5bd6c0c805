"""The whole system, and what may befall it: nothing is lost and nothing is there twice, by what the data say."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from hosts import Host, until
from main_job import BROKEN, EPOCHS, RECIPE, Annotation
from serve_api import annotated
from services import MLFLOW, ask
from topology import Topology, ended
from world import differences

pytestmark = [pytest.mark.whole, pytest.mark.timeout(1200)]  # the first one waits for all of it to start
ACTOR = "ray::MapWorker(MapBatches(ShardActor))"
BEGUN = 4  # commits after which things happen: of some 26 shards


def test_the_main_job_ends_in_an_api_that_says_what_the_annotation_says(calm: Annotation, api_key: Path) -> None:
    calm.assert_whole()
    (version,) = json.loads(calm.topology.mmva("models", "list", "--json"))
    assert (version["version"], version["aliases"]) == (1, ["champion"])
    calm.topology.mmva("models", "audit")
    assert {row["modality"] for row in calm.rows()} == {"image", "music", "caption"}
    assert all(row["model_digest"] == version["model_digest"] for row in calm.rows())

    items = [{"id": row["id"], "uri": row["uri"]} for row in calm.rows()[::20]]
    broken = {"id": BROKEN[0], "uri": f"s3://media/catalog/{BROKEN[0]}"}
    *said, refused = annotated(calm.topology, api_key, *items, broken)
    assert refused["error"]["code"] == calm.rows("quarantined")[0]["error"]
    for mine, theirs in zip(calm.rows()[::20], said, strict=True):
        assert mine["id"] == theirs["id"]
        assert (mine["valence"], mine["arousal"]) == pytest.approx((theirs["valence"], theirs["arousal"]), abs=1e-5)


def begun(calm: Annotation, name: str, *options: str) -> tuple[Annotation, subprocess.Popen[str]]:
    """Another annotation of the catalog, on its way."""
    annotation = Annotation(calm.topology, name)
    job = calm.topology.submit(*options, *annotation.command)
    annotation.await_commits(BEGUN)
    return annotation, job


def assert_as_calm(annotation: Annotation, calm: Annotation) -> None:
    """Every item once, with the values of the run that nothing happened to."""
    annotation.assert_whole()
    assert differences(annotation.rows(), calm.rows()) == []


def test_a_worker_node_dies_during_annotation_and_its_shards_are_done_elsewhere(
    calm: Annotation, api_key: Path
) -> None:
    annotation, job = begun(calm, "lost-node")
    victim = max(calm.topology.workers, key=lambda host: len(host.processes(ACTOR)))
    victim.kill()
    before = annotation.committed_by(victim.name)
    ended(job)
    assert_as_calm(annotation, calm)
    assert annotation.committed_by(victim.name) == before  # all others were done elsewhere
    until(lambda: annotated(calm.topology, api_key, {"caption": "still there"}), "the API", 120.0)
    calm.topology.boot(victim.name)
    calm.topology.await_nodes(3)


def bytes_on(volume: Host) -> int:
    """What a volume server holds."""
    return sum(file.stat().st_size for file in (volume.folder / "volumes").glob("*.dat"))


def test_a_volume_server_dies_during_annotation_and_its_replicas_serve(calm: Annotation) -> None:
    annotation, job = begun(calm, "lost-volume")
    victim = max(calm.topology.volumes, key=bytes_on)
    assert bytes_on(victim) > 2**20
    victim.kill()
    ended(job)
    assert_as_calm(annotation, calm)  # read without that server
    calm.topology.mmva("data", "check", "s3://work/dataset")
    calm.topology.boot(victim.name)


def test_the_heads_network_is_cut_for_a_minute_and_the_same_command_completes_the_job(calm: Annotation) -> None:
    topology = calm.topology
    annotation, job = begun(calm, "cut-head", "--name", "cut-head")
    topology.head.cut()
    time.sleep(60)  # the minute
    topology.head.mend()
    topology.await_nodes(3)
    until(lambda: topology.status("cut-head") in {"SUCCEEDED", "FAILED"}, "the end of the job", 300.0)
    said, _ = job.communicate(timeout=60)
    assert job.returncode in {0, 1}, said
    topology.job(*annotation.command)
    assert_as_calm(annotation, calm)


def test_a_worker_node_dies_during_training_and_the_model_is_the_same(champion: Topology) -> None:
    job = champion.submit("train", *RECIPE, "--set", "name=lost-node")
    run = champion.root / "home" / "runs" / "lost-node"
    until(lambda: any(each.name > "checkpoint_000005" for each in run.glob("checkpoint_0*")), "five epochs", 120.0)
    victim = max(champion.workers, key=lambda host: len(host.processes("ray::RayTrainWorker")))
    victim.kill()
    assert max(each.name for each in run.glob("checkpoint_0*")) < f"checkpoint_{EPOCHS:06d}", (
        "it was to be caught on its way"
    )
    ended(job)
    assert_same_run(champion, "lost-node")
    champion.boot(victim.name)
    champion.await_nodes(3)


def test_mlflow_restarts_while_a_run_is_logged_and_the_run_is_there_once(champion: Topology) -> None:
    server = champion.hosts["mlflow"]
    job = champion.submit("train", *RECIPE, "--set", "name=lost-mlflow")
    until(lambda: runs_named(champion, "lost-mlflow"), "the run in MLflow", 200.0)
    (before,) = runs_named(champion, "lost-mlflow")
    server.kill()
    assert before["info"]["status"] == "RUNNING", "it was to be caught on its way"
    champion.boot("mlflow")
    ended(job)
    assert_same_run(champion, "lost-mlflow")
    assert [run["info"]["run_id"] for run in runs_named(champion, "lost-mlflow")] == [before["info"]["run_id"]]


def assert_same_run(topology: Topology, name: str) -> None:
    """A run that is, but for its name, the first one: every epoch once, the same weights, one version of it."""
    first, run = (topology.root / "home" / "runs" / each for each in ("first", name))
    assert (run / "bundle" / "model.safetensors").read_bytes() == (first / "bundle" / "model.safetensors").read_bytes()
    epochs = [row["epoch"] for row in json.loads((run / "history.json").read_text())]
    assert epochs == list(range(EPOCHS))
    finished = [each for each in runs_named(topology, name) if each["info"]["status"] == "FINISHED"]
    versions = json.loads(topology.mmva("models", "list", "--json"))
    assert len(finished) == 1
    assert [each["run_id"] for each in versions].count(finished[0]["info"]["run_id"]) == 1
    topology.mmva("models", "audit")


def runs_named(topology: Topology, name: str) -> list[dict[str, Any]]:
    """What MLflow has of a name."""
    body = {"experiment_ids": ["1"], "filter": f"attributes.run_name = '{name}'"}
    said = ask(topology.hosts["mlflow"], MLFLOW, "/api/2.0/mlflow/runs/search", body=body)
    runs: list[dict[str, Any]] = [] if said is None else json.loads(said).get("runs", [])
    return runs
