"""Alert rules, dashboards and runbooks fit together and name metrics that exist; logs carry what they are about."""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import shutil
import subprocess
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmva_platform.monitoring import RunMetrics, bound
from mmva_platform.monitoring.logs import JsonFormatter
from mmva_platform.monitoring.metrics import ApiMetrics

ROOT = Path(__file__).resolve().parents[4]
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
def test_promtool(promtool: str, arguments: list[str], tmp_path: Path) -> None:
    folder = shutil.copytree(PROMETHEUS, tmp_path / "prometheus")
    done = subprocess.run([promtool, *arguments], cwd=folder, capture_output=True, text=True, check=False)
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


class TestNames:
    """Every name and label that alerts, their tests, dashboards and pages use is one that somebody tells."""

    def test_alerts_and_dashboards(self, ours: dict[str, set[str]]) -> None:
        asked = {name for text in expressions() for name in metrics_of(text)}
        assert asked <= set(ours) | rays_own() | {"up"}
        assert {name for name in asked if name.startswith("ray_mmva_") and "annotate" not in name}
        assert {name for name in asked if name.startswith("ray_mmva_annotate_")}

    def test_series_of_the_alerts_tests(self, ours: dict[str, set[str]]) -> None:
        for test in yaml.safe_load((PROMETHEUS / "alerts.test.yaml").read_text())["tests"]:
            for series in (entry["series"] for entry in test["input_series"]):
                [name] = metrics_of(series)
                assert name in set(ours) | rays_own() | {"up"}, name
                if name in ours:
                    assert set(re.findall(r"(\w+)=", series)) <= ours[name], series

    def test_labels_that_are_asked_for(self, ours: dict[str, set[str]]) -> None:
        for text in expressions():
            known = [ours[name] for name in metrics_of(text) if name in ours]
            groups = [label.strip() for inside in re.findall(r"\bby \(([^)]*)\)", text) for label in inside.split(",")]
            matched = [
                label for inside in re.findall(r"{([^}]*)}", text) for label in re.findall(r"(\w+)\s*[=!]", inside)
            ]
            assert all({*groups, *matched} <= labels for labels in known), text

    def test_pages(self, ours: dict[str, set[str]]) -> None:
        for page in (ROOT / "docs").rglob("*.md"):
            named = set(re.findall(r"`(ray_mmva_\w+)`", page.read_text()))
            assert named <= set(ours), page.name

    def test_a_name_that_nobody_tells_is_seen(self) -> None:
        assert metrics_of('sum by (le) (rate(mmva_no_such{route!="/metrics"}[5m])) > 0.5 unless time() - up') == {
            "mmva_no_such", "up",
        }  # fmt: skip


@pytest.fixture(scope="module")
def ours() -> dict[str, set[str]]:
    """Series that the API and the runs export, with their labels."""
    told: dict[str, set[str]] = {}

    def recorder(kind: str) -> Callable[..., Any]:
        def make(name: str, _description: str, *arguments: Any) -> Any:
            told.update(series(kind, f"ray_{name}", set(arguments[-1])))
            return types.SimpleNamespace(set=lambda *_: None)

        return make

    serve_tags = {"deployment", "replica", "application"}
    kinds = {kind: recorder(kind.lower()) for kind in ("Counter", "Gauge", "Histogram")}
    ApiMetrics(types.SimpleNamespace(**kinds))
    told.update({name: labels | serve_tags for name, labels in told.items()})

    with pytest.MonkeyPatch.context() as patch:
        for kind in ("Counter", "Gauge", "Histogram"):
            patch.setattr(f"ray.util.metrics.{kind}", recorder(kind.lower()))
        RunMetrics("r", {"name": "mmva", "version": "1", "digest": "d"}, 1, 0)
    return told


def series(kind: str, name: str, labels: set[str]) -> dict[str, set[str]]:
    """What Prometheus makes of a metric."""
    if kind == "histogram":
        return {f"{name}_bucket": labels | {"le"}, f"{name}_sum": labels, f"{name}_count": labels}
    return {f"{name}_total" if kind == "counter" else name: labels}


def metrics_of(expression: str) -> set[str]:
    """Names of the series in a PromQL expression: what is no function, label, variable or word of the language."""
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|\b(by|on|without|ignoring) \([^)]*\)|\$\w+", " ", expression)
    words = re.findall(r"\b[a-zA-Z_]\w*\b(?!\s*\()", bare)
    return set(words) - {"and", "or", "unless", "by", "bool", "sum", "max", "count"}


def rays_own() -> set[str]:
    """Names in Ray's own sources; importing them takes longer than all of this file."""
    package = Path(str(importlib.util.find_spec("ray").submodule_search_locations[0]))
    gauges = (package / "dashboard" / "modules" / "reporter" / "reporter_agent.py").read_text()
    panels = (package / "dashboard" / "modules" / "metrics" / "dashboards" / "default_dashboard_panels.py").read_text()
    names = {f"ray_{name}" for name in re.findall(r'^    "(\w+)": Gauge\(', gauges, re.MULTILINE)}
    serve = (package / "dashboard" / "modules" / "metrics" / "dashboards" / "serve_dashboard_panels.py").read_text()
    return names | set(re.findall(r"\b(?:ray|autoscaler)_\w+", panels + serve))


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
