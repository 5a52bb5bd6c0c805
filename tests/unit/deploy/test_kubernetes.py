"""deploy/kubernetes, offline: Kubernetes' schemas for its own kinds, our rules for Ray's, and what must fit together.

There is no cluster here: nothing of this shows that KubeRay accepts the files, only that they say what they should.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from mmva_platform.cli.main import run

KUBERNETES = "1.33"
FOLDER = Path(__file__).resolve().parents[3] / "deploy" / "kubernetes"
FILES = sorted(FOLDER.glob("*.yaml"))


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    for file in FILES:
        for document in yaml.safe_load_all(file.read_text()):
            yield file.name, document


def of_kind(*kinds: str) -> list[dict[str, Any]]:
    found = [document for _, document in documents() if document["kind"] in kinds]
    assert found, kinds
    return found


def ray_specs() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every RayCluster specification, also those inside other kinds."""
    for document in of_kind("RayCluster", "RayService"):
        yield document["metadata"]["name"], document["spec"].get("rayClusterConfig", document["spec"])


def groups(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    for _, document in documents():
        name = document["metadata"].get("name", "") if "metadata" in document else ""
        if document["kind"] in {"Deployment", "StatefulSet"}:
            yield name, document["spec"]["template"]["spec"]
        elif document["kind"] == "RayJob":
            yield name, document["spec"]["submitterPodTemplate"]["spec"]
        elif document["kind"] == "CronJob":
            yield name, document["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    for name, spec in ray_specs():
        yield from ((name, group["template"]["spec"]) for group in groups(spec))


CORE = [
    (name, document)
    for name, document in documents()
    if document["kind"] not in {"RayCluster", "RayJob", "RayService", "Kustomization", "PodMonitor"}
]


@pytest.mark.parametrize(
    ("file", "document"), CORE, ids=[f"{name}-{d['kind']}-{d['metadata']['name']}" for name, d in CORE]
)
def test_kubernetes_own_kinds_are_valid(file: str, document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_pod_templates_of_rays_kinds_are_valid_pods() -> None:
    for name, pod in pods():
        document = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": pod}
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_rays_kinds_have_what_kuberay_requires() -> None:
    for name, spec in ray_specs():
        assert spec["rayVersion"] == metadata.version("ray"), name
        assert spec["authOptions"] == {"mode": "token"}, name
        assert spec["enableInTreeAutoscaling"], name
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0", f"{name}: work on the head"
        assert all(isinstance(value, str) for group in groups(spec) for value in group["rayStartParams"].values()), name
        for group in spec["workerGroupSpecs"]:
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"], group["groupName"]
    for job in of_kind("RayJob"):
        assert job["apiVersion"] == "ray.io/v1"
        assert job["spec"]["clusterSelector"]["ray.io/cluster"] in [
            c["metadata"]["name"] for c in of_kind("RayCluster")
        ]
        assert job["spec"]["submissionMode"] == "K8sJobMode"
        yaml.safe_load(job["spec"]["runtimeEnvYAML"])


def test_what_ray_is_told_is_what_kubernetes_gives() -> None:
    for name, spec in ray_specs():
        for group in spec["workerGroupSpecs"]:
            [container] = group["template"]["spec"]["containers"]
            requests, told = container["resources"]["requests"], group["rayStartParams"]
            assert told["num-cpus"] == requests["cpu"], (name, group["groupName"])
            assert told.get("num-gpus", "0") == requests.get("nvidia.com/gpu", "0"), (name, group["groupName"])
            assert ("-gpu" in container["image"]) == ("num-gpus" in told), container["image"]


def test_the_quota_holds_every_group_at_its_largest() -> None:
    [quota] = of_kind("ResourceQuota")
    cpus = gpus = memory = count = 0
    for _, spec in ray_specs():
        for group in groups(spec):
            requests = group["template"]["spec"]["containers"][0]["resources"]["requests"]
            most = group.get("maxReplicas", 1)
            cpus += most * int(requests["cpu"])
            gpus += most * int(requests.get("nvidia.com/gpu", 0))
            memory += most * int(requests["memory"].removesuffix("Gi"))
            count += most
    hard = quota["spec"]["hard"]
    assert cpus + 4 <= int(hard["requests.cpu"])
    assert gpus <= int(hard["requests.nvidia.com/gpu"])
    assert memory + 8 <= int(hard["requests.memory"].removesuffix("Gi"))
    assert count + 6 <= int(hard["pods"])


def test_pods_are_restricted_as_their_namespace_demands() -> None:
    [namespace] = of_kind("Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for name, pod in pods():
        assert pod["securityContext"]["runAsNonRoot"], name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not any("hostPath" in volume for volume in pod.get("volumes", [])), name
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name
            assert {"requests", "limits"} <= container["resources"].keys(), name
    for _, spec in ray_specs():
        assert spec["autoscalerOptions"]["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_one_image_of_this_version() -> None:
    project = re.search(r'^version = "(.+)"', (FOLDER.parents[1] / "pyproject.toml").read_text(), re.MULTILINE)
    assert project
    wanted = {f"mmva-platform:{project[1]}-ray{metadata.version('ray')}-{kind}" for kind in ("cpu", "gpu")}
    images = {container["image"] for _, pod in pods() for container in pod["containers"]}
    assert images == wanted | {"postgres:15-bookworm"}


def test_secrets_are_references() -> None:
    for _, pod in pods():
        for container in pod["containers"]:
            for variable in container.get("env", []):
                if re.search("PASSWORD$|TOKEN|URI|KEY|SECRET", variable["name"]):
                    from_secret = "valueFrom" in variable
                    assert from_secret or variable["name"] == "MLFLOW_TRACKING_URI", variable
    assert not [document for _, document in documents() if document["kind"] == "Secret"]


def test_every_pod_is_under_a_policy_and_nothing_is_open() -> None:
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in of_kind("NetworkPolicy")}
    assert policies["deny-all"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for name, policy in policies.items():
        assert all(rule.get("from") for rule in policy.get("ingress", [])), name
        assert all(rule.get("to") for rule in policy.get("egress", [])), name
        for rule in policy.get("egress", []):
            for place in rule["to"]:
                if "ipBlock" in place:
                    assert "169.254.169.254/32" in place["ipBlock"]["except"], name
    labelled = {
        document["spec"]["template"]["metadata"]["labels"]["app"] for document in of_kind("Deployment", "StatefulSet")
    }
    assert labelled <= {policy["podSelector"].get("matchLabels", {}).get("app") for policy in policies.values()}


def test_accounts_exist_and_the_list_is_whole() -> None:
    accounts = {account["metadata"]["name"] for account in of_kind("ServiceAccount")}
    assert {pod["serviceAccountName"] for _, pod in pods() if "serviceAccountName" in pod} == accounts
    [kustomization] = of_kind("Kustomization")
    jobs = {"rayjob-train.yaml", "rayjob-annotate.yaml", "cronjob-update.yaml", "podmonitor.yaml", "kustomization.yaml"}
    assert all("newTag" not in image for image in kustomization["images"])  # it would take the GPU image's tag away
    assert {*kustomization["resources"]} | jobs == {file.name for file in FILES}


def test_jobs_call_verbs_that_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").touch()
    for job in of_kind("RayJob"):
        words = shlex.split(job["spec"]["entrypoint"])
        assert words[:3] == ["python", "-m", "mmva_platform.cli"]
        assert run(["jobs", "submit", "--dry-run", "--working-dir", str(tmp_path), *words[3:]]) == 0, (
            capsys.readouterr()
        )
    [update] = of_kind("CronJob")
    [container] = update["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    words = [word for word in container["command"] if word != "mmva"]
    assert run([*words[:2], "--dry-run", "--working-dir", str(tmp_path), *words[2:]]) == 0, capsys.readouterr()
    address = {one["name"]: one.get("value") for one in container["env"]}["RAY_API_SERVER_ADDRESS"]
    assert address == f"http://{of_kind('RayCluster')[0]['metadata']['name']}-head-svc:8265"
