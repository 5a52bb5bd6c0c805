from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable

import pytest
from rich.console import Console

from mmva_platform import progress as module
from mmva_platform.progress import first_line, progress


def test_a_terminal_gets_a_bar() -> None:
    out = io.StringIO()
    with progress("embed image", 4, Console(file=out, force_terminal=True, width=100)) as advance:
        advance()
        advance(3)
    assert "embed image" in out.getvalue()
    assert "4/4" in out.getvalue()


def test_elsewhere_lines_come_every_few_seconds(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([100.0, 101.0, 106.0, 107.0, 110.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    out = io.StringIO()
    with caplog.at_level(logging.INFO, "mmva_platform"), progress("embed", 30, Console(file=out)) as advance:
        for _ in range(3):
            advance(10)
    assert caplog.messages == ["embed: 20 of 30, 3.3/s", "embed: 30 of 30 done in 10.0 s"]
    assert out.getvalue() == ""


def test_an_error_inside_is_not_reported_as_done(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mmva_platform")
    with pytest.raises(KeyError), progress("embed", 30, Console(file=io.StringIO())):
        raise KeyError
    assert caplog.messages == []


def _bar() -> None:
    with progress("embed", 1, Console(file=io.StringIO(), force_terminal=True)):
        pass


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda: None, ["starts"]),
        (lambda: logging.getLogger("mmva_platform.bulk").info("a line"), ["a line"]),
        (_bar, []),
    ],
    ids=["silence", "a line", "a bar"],
)
def test_the_first_line_comes_only_after_silence(
    caplog: pytest.LogCaptureFixture, act: Callable[[], None], said: list[str]
) -> None:
    caplog.set_level(logging.INFO, "mmva_platform")
    with first_line("starts", after_s=0.05):
        act()
        deadline = time.monotonic() + (5 if said == ["starts"] else 0.2)
        while caplog.messages != ["starts"] and time.monotonic() < deadline:
            time.sleep(0.01)
    assert caplog.messages == said


def test_a_quick_command_has_no_first_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mmva_platform")
    with first_line("starts", after_s=0.05):
        pass
    time.sleep(0.1)
    assert caplog.messages == []
