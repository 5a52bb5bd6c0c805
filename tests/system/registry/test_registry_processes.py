"""Real processes on both back ends: one killed between log and alias, two that promote at once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from registry_cases import aliases, records

from mmva_platform.cli.context import DONE, SAID_NO
from mmva_platform.cli.main import run
from mmva_platform.settings import Settings
from mmva_platform.tracking.audit import audit

pytestmark = [pytest.mark.slow, pytest.mark.system]
JUDGED = """
from mmva_platform.tracking import promotion
from mmva_platform.tracking.gate.verdict import Finding
promotion.judge = lambda evidence: [Finding("made-up", "exam", 1.0, "-", passed=True)]
"""
KILLED = (
    JUDGED
    + """
import os, signal, sys
from mlflow import MlflowClient
MlflowClient.set_registered_model_alias = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
from mmva_platform.cli.main import run
sys.exit(run(sys.argv[1:]))
"""
)
# Both are judged before either records: each says that it is ready and waits for the other.
RACING = (
    JUDGED
    + """
import sys, time
from pathlib import Path
real = promotion.settle
def meet(*arguments):
    folder, me = Path(sys.argv[1]), sys.argv[-1]
    (folder / f"ready-{me}").touch()
    while len(list(folder.glob("ready-*"))) < 2:
        time.sleep(0.01)
    return real(*arguments)
promotion.settle = meet
from mmva_platform.cli.main import run
sys.exit(run(sys.argv[2:]))
"""
)


def arguments(settings: Settings, folder: Path, *command: str) -> list[str]:
    """Of the command line, for these settings."""
    file = folder / "settings.yaml"
    file.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    return ["--settings", str(file), "models", *command]


def test_one_that_was_killed_between_log_and_alias_is_finished_by_the_next_command(
    settings: Settings, registered: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    version = registered()
    command = arguments(settings, tmp_path, "promote", str(version), "--reason", "before the lights went out")
    done = subprocess.run([sys.executable, "-c", KILLED, *command], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    assert [each["candidate"] for each in records(settings)] == [version]
    assert aliases(settings) == {}
    assert run(arguments(settings, tmp_path, "list")) == DONE
    assert "(champion)" in capfd.readouterr().out
    assert aliases(settings) == {"champion": version}
    assert run(arguments(settings, tmp_path, "audit")) == DONE
    assert "before the lights went out" in capfd.readouterr().out


def test_of_two_processes_on_two_homes_one_wins_and_both_are_in_the_log(
    settings: Settings, registered: Callable[..., int], tmp_path: Path
) -> None:
    """On a server the two have homes of their own, as two machines do; all they share is the server and the store."""
    rivals = [registered(), registered()]
    started = []
    for version in rivals:
        (folder := tmp_path / f"host-{version}").mkdir()
        own = settings.model_copy(update={"home": folder / "home"}) if settings.tracking.uri else settings
        command = [sys.executable, "-c", RACING, str(tmp_path), *arguments(own, folder, "promote", str(version))]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    said = [process.communicate(timeout=120) for process in started]
    codes = [process.returncode for process in started]
    assert sorted(codes) == [DONE, SAID_NO], said
    winner, loser = rivals[codes.index(DONE)], rivals[codes.index(SAID_NO)]
    out, err = said[codes.index(SAID_NO)]
    assert f"promote version {loser} (no champion yet): refused" in out
    assert f"champion-unchanged alias: version {winner}, needs = none" in err
    assert aliases(settings) == {"champion": winner}
    assert [(each["candidate"], each["passed"]) for each in records(settings)] == [(winner, True), (loser, False)]
    assert audit(settings).agrees
