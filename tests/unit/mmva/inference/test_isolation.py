"""Single items in a process that dies, hangs or raises: exactly those items are given up."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mmva.errors import MediaError, OperationFailed
from mmva.inference.isolation import Isolated, report_step

pytestmark = pytest.mark.slow  # each child starts a Python


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch, repository: Path) -> None:
    """The child imports this file by its name."""
    monkeypatch.syspath_prepend(str(repository))


def make(place: Path | None = None) -> Callable[[str], Any]:
    """A function that does what its item says."""
    if place is not None:
        place.joinpath(str(os.getpid())).touch()

    def function(item: str) -> Any:
        what, _, argument = item.partition(" ")
        report_step("infer" if what != "stall" else "fetch")
        if what == "die" or (what == "die-once" and not Path(argument).exists()):
            Path(argument or os.devnull).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if what in {"hang", "stall"}:
            time.sleep(60)
        if what in ERRORS:
            raise ERRORS[what]
        if what in {"steps", "load"}:
            slowly(what)
        return os.getpid() if what == "pid" else item.upper()

    return function


ERRORS = {
    "raise": MediaError("corrupt-image", "no picture", stage="decode"),
    "timeout": TimeoutError("the function's own"),
}


def slowly(what: str) -> None:
    """Longer than an item may take without a step."""
    if what == "load":
        report_step("load")
        time.sleep(2.5)
    else:
        for _ in range(8):
            time.sleep(0.3)
            report_step("decode")


def test_exactly_the_items_that_kill_or_hang_are_given_up(tmp_path: Path) -> None:
    found = []
    with Isolated(partial(make, tmp_path), item_timeout_s=1.5, load_timeout_s=60) as isolated:
        for item in ("calm", "die", "gay", "hang", "raise", "sad", f"die-once {tmp_path}/once"):
            try:
                found.append(isolated(item))
            except MediaError as error:
                found.append((error.code, error.stage))
    assert found[:-1] == [
        "CALM",
        ("killed-worker", "infer"),
        "GAY",
        ("timed-out", "infer"),
        ("corrupt-image", "decode"),
        "SAD",
    ]
    assert found[-1].startswith("DIE-ONCE"), "one death may be bad luck"
    # One child at the start, and one more after each of four deaths and a hang, but not after an error.
    assert len([path for path in tmp_path.iterdir() if path.name.isdigit()]) == 5


def test_steps_renew_the_limit_and_loading_has_its_own_limit() -> None:
    with Isolated(make, item_timeout_s=1.5, load_timeout_s=60) as isolated:
        assert isolated("steps") == "STEPS"
        assert isolated("load") == "LOAD"


def test_an_error_of_the_function_is_not_taken_for_a_hang() -> None:
    with Isolated(make, item_timeout_s=5, load_timeout_s=60) as isolated:
        pid = isolated("pid")
        with pytest.raises(TimeoutError, match="the function's own"):
            isolated("timeout")
        assert isolated("pid") == pid


def broken() -> Callable[[str], Any]:
    os._exit(1)


def slow() -> Callable[[str], Any]:
    time.sleep(60)
    return str


def refused() -> Callable[[str], Any]:
    raise OperationFailed("no such backbone")


@pytest.mark.parametrize(
    ("made", "message"),
    [(broken, "dies while it loads"), (slow, "does not load in 1.5 s"), (refused, "no such backbone")],
)
def test_what_cannot_be_loaded_is_no_items_fault(made: Any, message: str) -> None:
    with Isolated(made, item_timeout_s=60, load_timeout_s=1.5 if made is slow else 60) as isolated:
        with pytest.raises(OperationFailed, match=message):
            isolated("calm")
        assert isolated._process is None


def test_storage_that_gives_no_answer_is_no_items_fault() -> None:
    with (
        Isolated(make, item_timeout_s=1.5, load_timeout_s=60) as isolated,
        pytest.raises(OperationFailed, match="no answer while fetching"),
    ):
        isolated("stall")


PARENT = """
import sys, time
sys.path.insert(0, {repository!r})
from mmva.inference.isolation import Isolated
from tests.unit.mmva.inference.test_isolation import make

if __name__ == "__main__":
    isolated = Isolated(make, 60, 60)
    print(isolated("pid"), flush=True)
    isolated("hang")
"""


def test_the_child_dies_with_its_parent(tmp_path: Path, repository: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(repository=str(repository)))
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and Path(f"/proc/{child}").exists():
        time.sleep(0.1)
    assert not Path(f"/proc/{child}").exists()
