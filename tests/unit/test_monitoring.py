"""Alert rules, dashboards and runbooks fit together and name metrics that exist; logs carry what they are about."""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmva_platform.monitoring import bound
from mmva_platform.monitoring.logs import JsonFormatter

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARDS = sorted((ROOT / "deploy" / "dashboards").glob("*.json"))


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> Iterator[str]:
    yield from (rule["expr"] for rule in alerts())
    for file in DASHBOARDS:
        for panel in json.loads(file.read_text())["panels"]:
            yield from (target["expr"] for target in panel["targets"])


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.fail("promtool is missing: apt-get install prometheus")
    return found


@pytest.mark.parametrize("arguments", [
    ["check", "config", "prometheus.yaml"], ["check", "rules", "--lint-fatal", "alerts.yaml"],
    ["test", "rules", "alerts.test.yaml"],
], ids=["config", "rules", "alerts fire and rest"])  # fmt: skip
def test_promtool(promtool: str, arguments: list[str]) -> None:
    done = subprocess.run([promtool, *arguments], cwd=PROMETHEUS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_test_and_a_runbook_and_no_runbook_is_left_over() -> None:
    tested = {
        case["alertname"]
        for test in yaml.safe_load((PROMETHEUS / "alerts.test.yaml").read_text())["tests"]
        for case in test["alert_rule_test"]
        if case.get("exp_alerts")
    }
    names = {rule["alert"] for rule in alerts()}
    assert tested == names
    assert {file.stem for file in (ROOT / "docs" / "runbooks").glob("*.md")} == names
    for rule in alerts():
        page = ROOT / rule["annotations"]["runbook"]
        assert page.stem == rule["alert"]
        assert page.read_text().startswith(f"# {rule['alert']}\n")


def test_dashboards_are_whole_and_their_queries_are_promql(promtool: str, tmp_path: Path) -> None:
    rules = []
    for file in DASHBOARDS:
        board = json.loads(file.read_text())
        assert board["title"].startswith("MMVA")
        names = {variable["name"] for variable in board["templating"]["list"]}
        for panel in board["panels"]:
            assert panel["targets"], panel["title"]
            for target in panel["targets"]:
                used = set(re.findall(r"\$(\w+)", target["expr"]))
                assert used <= names, panel["title"]
                rules.append({"record": f"panel:{len(rules)}", "expr": re.sub(r"\$\w+", ".*", target["expr"])})
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run(
        [promtool, "check", "rules", tmp_path / "rules.yaml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_alerts_and_dashboards_ask_of_runs_is_what_runs_tell() -> None:
    source = (ROOT / "platform" / "mmva_platform" / "monitoring" / "metrics.py").read_text()
    kinds = {"Counter": ["_total"], "Gauge": [""], "Histogram": ["_bucket", "_sum", "_count"]}
    told = {
        f"ray_mmva_annotate_{name}{suffix}"
        for kind, name in re.findall(r'(Counter|Gauge|Histogram)\(f"\{prefix\}_(\w+)"', source)
        for suffix in kinds[kind]
    }
    asked = {name for text in expressions() for name in re.findall(r"ray_mmva_annotate_\w+", text)}
    assert asked
    assert asked <= told


def test_json_logs_carry_run_shard_and_attempt() -> None:
    record = logging.LogRecord("mmva_platform.x", logging.WARNING, __file__, 1, "storage is %s", ("away",), None)
    with bound(run="r1"), bound(shard="000007", attempt=2):
        inside = json.loads(JsonFormatter().format(record))
    outside = json.loads(JsonFormatter().format(record))
    assert (inside["run"], inside["shard"], inside["attempt"]) == ("r1", "000007", 2)
    assert (inside["level"], inside["message"]) == ("warning", "storage is away")
    assert "shard" not in outside


def test_a_traceback_stays_in_its_line() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        record = logging.LogRecord(
            "x", logging.ERROR, __file__, 1, "broken", (), (ValueError, error, error.__traceback__)
        )
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert "two\nlines" in json.loads(line)["traceback"]
