"""No file of deploy/ lies there unchecked: each has a test that names it, or reads its whole folder."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
DEPLOY, TESTS = ROOT / "deploy", ROOT / "tests"
COMPOSE, KUBERNETES = "unit/deploy/test_compose.py", "unit/deploy/test_kubernetes.py"
MONITORING = "unit/mmva_platform/monitoring/test_monitoring.py"
SECURITY = "unit/test_security.py"
# File -> the test that checks it; a folder's are listed one by one, so that a new one is looked at.
CHECKED = {
    "local.sh": "system/local_stack.py",  # run, with everything that it starts, by system/test_job_submission.py
    "compose.yaml": COMPOSE,
    "compose-settings.yaml": COMPOSE,
    "api.yaml": COMPOSE,
    "serve.yaml": "unit/mmva_platform/serving/test_deploy.py",
    "docker/Dockerfile": "unit/deploy/test_docker.py",
    "prometheus/prometheus.yaml": MONITORING,
    "prometheus/alerts.yaml": MONITORING,
    "prometheus/alerts.test.yaml": MONITORING,
    **{f"prometheus/targets/{name}.json": COMPOSE for name in ("ray", "storage")},
    **{f"dashboards/{name}.json": MONITORING for name in ("annotation", "api", "cluster")},
    **{
        f"iam/{name}.json": SECURITY
        for name in ("annotate", "embed", "evaluate", "ingest", "mlflow", "ray-head", "report", "serve", "train")
    },
    **{
        f"kubernetes/{name}.yaml": KUBERNETES
        for name in (
            "accounts", "cronjob-update", "kustomization", "mlflow", "namespace", "network-policies", "podmonitor",
            "postgres", "quotas", "raycluster", "rayjob-annotate", "rayjob-train", "rayservice", "settings",
        )
    },
}  # fmt: skip


def test_every_file_is_in_the_table() -> None:
    there = {file.relative_to(DEPLOY).as_posix() for file in DEPLOY.rglob("*") if file.is_file()}
    assert there - {f"secrets/{file.name}" for file in (DEPLOY / "secrets").glob("*")} == set(CHECKED)


@pytest.mark.parametrize("file", CHECKED)
def test_its_test_names_it_or_reads_its_folder(file: str) -> None:
    path, test = DEPLOY / file, (TESTS / CHECKED[file]).read_text()
    assert path.name in test or (f'"{path.parent.name}"' in test and f'.glob("*{path.suffix}")' in test)
