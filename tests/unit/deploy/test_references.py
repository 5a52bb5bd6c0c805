"""deploy/kubernetes: every name that one manifest needs exists in another one, or in the walk-through.

And KubeRay's own schemas, where KUBERAY_CRDS names a folder that has them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from mmva_platform.settings import Settings, validate

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "deploy" / "kubernetes"
GUIDE = (ROOT / "docs" / "operations.md").read_text().partition("### Kubernetes, step by step")[2].partition("\n## ")[0]
DOCUMENTS: list[dict[str, Any]] = [
    document
    for file in sorted(FOLDER.glob("*.yaml"))
    for document in yaml.safe_load_all(file.read_text())
    if document["kind"] != "Kustomization"
]
BY_KUBERAY = {"mmva", "mmva-serve"}  # tokens, in secrets named as the clusters


def found(key: str, inside: Any) -> Iterator[Any]:
    """Values of a key at any depth."""
    if isinstance(inside, dict):
        for name, value in inside.items():
            if name == key:
                yield value
            yield from found(key, value)
    elif isinstance(inside, list):
        for value in inside:
            yield from found(key, value)


def names_of(kind: str) -> set[str]:
    return {document["metadata"]["name"] for document in DOCUMENTS if document["kind"] == kind}


def settings_of(kind: str) -> Settings:
    """The settings of the API, or of the jobs."""
    if kind == "api":
        [service] = [document for document in DOCUMENTS if document["kind"] == "RayService"]
        [app] = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
        return validate(Settings, app["args"], kind)
    [config] = [document for document in DOCUMENTS if document["kind"] == "ConfigMap"]
    return validate(Settings, yaml.safe_load(config["data"]["settings.yaml"]), kind)


def test_every_secret_is_made_by_the_walk_through_or_by_kuberay() -> None:
    needed = {*found("secretName", DOCUMENTS), *(one["name"] for one in found("secretKeyRef", DOCUMENTS))}
    made = set(re.findall(r"kubectl -n mmva create secret generic (\S+)", GUIDE))
    assert needed - made <= BY_KUBERAY
    assert made <= needed
    for name in {*needed} & made:
        [command] = re.findall(rf"create secret generic {name} (.+)", GUIDE)
        made_keys = set(re.findall(r"--from-literal=(\w+)=|--from-file=(\S+)", command))
        keys = {one["key"] for one in found("secretKeyRef", DOCUMENTS) if one["name"] == name}
        assert keys <= {literal or file for literal, file in made_keys}, name
    assert settings_of("api").serving.keys_file == Path("/etc/mmva/keys.yaml")


def test_claims_config_maps_accounts_and_clusters_exist() -> None:
    templates = set(found("name", [document["spec"]["volumeClaimTemplates"] for document in DOCUMENTS
                                   if document["kind"] == "StatefulSet"]))  # fmt: skip
    assert set(found("claimName", DOCUMENTS)) <= names_of("PersistentVolumeClaim") | templates
    assert {one["name"] for one in found("configMap", DOCUMENTS)} <= names_of("ConfigMap")
    assert set(found("serviceAccountName", DOCUMENTS)) <= names_of("ServiceAccount")
    assert {one["ray.io/cluster"] for one in found("clusterSelector", DOCUMENTS)} <= names_of("RayCluster")


def test_every_mount_has_its_volume() -> None:
    for document in DOCUMENTS:
        for pod in [one for one in found("spec", document) if "containers" in one]:
            volumes = {volume["name"] for volume in pod.get("volumes", [])} | {
                claim["metadata"]["name"] for claim in document["spec"].get("volumeClaimTemplates", [])
            }
            assert {mount["name"] for mount in found("volumeMounts", pod) for mount in mount} <= volumes


def test_labels_of_callers_nodes_and_namespaces_are_in_the_walk_through() -> None:
    labels = {**{key: value for one in found("nodeSelector", DOCUMENTS) for key, value in one.items()}}
    for selector in found("namespaceSelector", DOCUMENTS):
        labels |= selector["matchLabels"]
    for key, value in labels.items():
        if key != "kubernetes.io/metadata.name":  # set by Kubernetes itself
            assert f"{key}={value}" in GUIDE, key
    for namespace in ("kuberay-operator", "monitoring"):
        assert namespace in GUIDE


def test_a_policy_selects_pods_that_exist_and_their_ports() -> None:
    pod_labels = [
        one["metadata"]["labels"] for one in [*found("template", DOCUMENTS), *found("submitterPodTemplate", DOCUMENTS)]
    ]
    known = {(key, value) for labels in pod_labels for key, value in labels.items()}
    ports = {port["containerPort"] for group in found("ports", DOCUMENTS) for port in group if "containerPort" in port}
    for policy in (document for document in DOCUMENTS if document["kind"] == "NetworkPolicy"):
        for selector in found("podSelector", policy):
            assert {*selector.get("matchLabels", {}).items()} <= known, policy["metadata"]["name"]
        for rule in policy["spec"].get("ingress", []):
            assert {port["port"] for port in rule.get("ports", [])} <= ports, policy["metadata"]["name"]


def test_every_pod_behind_the_apis_service_may_be_reached() -> None:
    """KubeRay puts the head into it as well, unless it is told not to."""
    [service] = [document["spec"] for document in DOCUMENTS if document["kind"] == "RayService"]
    [policy] = [
        one["spec"] for one in DOCUMENTS if one["kind"] == "NetworkPolicy" and one["metadata"]["name"] == "serve"
    ]
    groups = service["rayClusterConfig"]["workerGroupSpecs"]
    if not service.get("excludeHeadPodFromServeSvc"):
        groups = [*groups, service["rayClusterConfig"]["headGroupSpec"]]
    for group in groups:
        assert policy["podSelector"]["matchLabels"].items() <= group["template"]["metadata"]["labels"].items()


def test_mlflow_answers_to_every_name_that_it_is_asked_by() -> None:
    [arguments] = [
        container["args"] for group in found("containers", DOCUMENTS) for container in group
        if container["name"] == "mlflow"
    ]  # fmt: skip
    [allowed] = [word.partition("=")[2].split(",") for word in arguments if word.startswith("--allowed-hosts=")]
    uris = {settings_of(kind).tracking.uri for kind in ("api", "jobs")} | {
        one["value"] for group in found("env", DOCUMENTS) for one in group if one["name"] == "MLFLOW_TRACKING_URI"
    }
    uris.update(re.findall(r"MLFLOW_TRACKING_URI=(\S+)", GUIDE))
    assert len(uris) > 1
    assert {str(uri).removeprefix("http://") for uri in uris} <= {*allowed}


def test_the_api_starts_before_the_first_champion_and_its_jobs_run_elsewhere() -> None:
    api, jobs = settings_of("api"), settings_of("jobs")
    assert api.serving.wait_for_model
    address = re.fullmatch(r"http://(\w+)-head-svc\.mmva\.svc:8265", str(api.serving.bulk.address))
    assert address
    assert address[1] in names_of("RayCluster")
    [cluster] = [document for document in DOCUMENTS if document["kind"] == "RayCluster"]
    mounts = {mount["mountPath"]: mount["name"] for group in found("volumeMounts", cluster) for mount in group}
    volumes = {one["name"]: one for group in found("volumes", cluster) for one in group}
    for home in (jobs.home, api.serving.bulk.home):  # a folder that all nodes see
        assert "persistentVolumeClaim" in volumes[mounts[str(home)]]
    variables = {one["name"]: one.get("value") for group in found("env", cluster) for one in group}
    assert Path(variables["MMVA_SETTINGS"]).parent.as_posix() in mounts


def test_jobs_may_use_every_group_at_its_largest() -> None:
    [cluster] = [document for document in DOCUMENTS if document["kind"] == "RayCluster"]
    most = {"cpus": 0, "gpus": 0}
    for group in cluster["spec"]["workerGroupSpecs"]:
        told = group["rayStartParams"]
        gpus = group["maxReplicas"] * int(told.get("num-gpus", 0))
        most["gpus"] += gpus
        most["cpus"] += 0 if gpus else group["maxReplicas"] * int(told["num-cpus"])
    for settings in (settings_of("jobs").cluster, settings_of("api").serving.bulk):
        assert settings.max_cpus == most["cpus"]
    assert settings_of("jobs").cluster.max_gpus == most["gpus"]


def test_every_step_names_files_that_exist_and_every_manifest_is_in_a_step() -> None:
    named = set(re.findall(r"-[fk] (deploy/kubernetes\S*)", GUIDE))
    assert all((ROOT / name).exists() for name in named)
    listed = set(yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]) | {"kustomization.yaml"}
    assert {file.name for file in FOLDER.glob("*.yaml")} == listed | {
        Path(name).name for name in named if ".yaml" in name
    }


@pytest.mark.skipif("KUBERAY_CRDS" not in os.environ, reason="KUBERAY_CRDS: KubeRay's definitions, from its chart")
@pytest.mark.parametrize("kind", ["RayCluster", "RayService", "RayJob"])
def test_kuberays_own_schemas(kind: str) -> None:
    [file] = Path(os.environ["KUBERAY_CRDS"]).glob(f"*_{kind.lower()}s.yaml")
    versions = next(iter(yaml.load_all(file.read_text(), yaml.CSafeLoader)))["spec"]["versions"]
    [schema] = [one["schema"]["openAPIV3Schema"] for one in versions if one["name"] == "v1"]
    validator = jsonschema.Draft202012Validator(closed(schema))
    for document in (one for one in DOCUMENTS if one["kind"] == kind):
        assert [f"{error.json_path}: {error.message[:200]}" for error in validator.iter_errors(document)] == []


def closed(schema: Any) -> Any:
    """A schema that refuses unknown fields, and takes Kubernetes' numbers that are texts."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    result = {key: closed(value) for key, value in schema.items() if key not in {"format", "default"}}
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    return result
