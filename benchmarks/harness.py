"""What the benchmarks share: whole processes with their time, CPU and memory, trees of other commits, bundles."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from mmva.backbones.presets import Preset

ROOT = Path(__file__).resolve().parents[1]
WATCH_S = 0.5
STOP_S = 30.0


@dataclass(frozen=True)
class Command:
    """A command line and the variables that it gets on top of this process's environment."""

    arguments: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """All variables of the command."""
        return os.environ | self.variables


def mmva(*arguments: str | Path, home: Path, tree: Path = ROOT, settings: Path | None = None) -> Command:
    """`mmva` of a source tree, with this interpreter.

    Args:
        arguments: The verb and its options.
        home: Folder for caches. Give each variant its own, and share it across rounds: calibrations are kept there.
        tree: Checkout whose code runs.
        settings: YAML file of settings.
    """
    options = ["--home", home, *(["--settings", settings] if settings else [])]
    path = os.pathsep.join(filter(None, [str(tree), str(tree / "platform"), os.environ.get("PYTHONPATH", "")]))
    parts = [sys.executable, "-m", "mmva_platform.cli", *options, *arguments]
    return Command(tuple(map(str, parts)), {"PYTHONPATH": path})


@dataclass
class Measured:
    """One whole process: wall time, CPU time of its tree in s, largest resident set of driver and any worker in MB."""

    seconds: float
    cpu_s: float
    peak_mb: dict[str, float] = field(default_factory=dict)


def measured(command: Command | Sequence[str | Path], timeout_s: float | None = None) -> Measured:
    """Run a command to its end.

    Raises:
        SystemExit: If it fails; with the end of its standard error.
        subprocess.TimeoutExpired: If it is not done in time. It was ended then, with all processes that it started.
    """
    if not isinstance(command, Command):
        command = Command(tuple(map(str, command)))
    begun = time.monotonic()
    with tempfile.TemporaryFile("w+") as errors, started(command, errors) as process, watched(process.pid) as watch:
        code = process.wait(timeout_s)
        seconds = time.monotonic() - begun
        if code:
            errors.seek(0)
            raise SystemExit(f"{' '.join(command.arguments)}: exit {code}\n{errors.read()[-2000:]}")
    return Measured(seconds, sum(watch.cpu_s.values()), watch.peak_mb)


@contextmanager
def started(command: Command, errors: IO[str] | None = None) -> Iterator[subprocess.Popen[Any]]:
    """A process that does not outlive the block, nor does anything that it started; its output is dropped."""
    process = subprocess.Popen(command.arguments, env=command.environment, stdout=subprocess.DEVNULL, stderr=errors)
    try:
        yield process
    finally:
        if process.poll() is None:
            end_tree(process)


def end_tree(process: subprocess.Popen[Any], number: int = signal.SIGTERM) -> None:
    """Send a signal to a process that was started here; return when it and all that it started are gone."""
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    process.kill()
    process.wait()
    _, left = psutil.wait_procs(children, timeout=STOP_S)
    for child in left:
        with suppress(psutil.Error):
            child.kill()


@dataclass
class Watch:
    """CPU seconds by process, and the largest resident sets in MB."""

    cpu_s: dict[int, float] = field(default_factory=dict)
    peak_mb: dict[str, float] = field(default_factory=dict)

    def look(self, root: psutil.Process) -> None:
        """Look at every process of a tree; the last look at one that ends stands for it."""
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.Error):
                times = process.cpu_times()
                self.cpu_s[process.pid] = times.user + times.system
                kind = "driver" if process == root else "worker" if is_ray_worker(process) else None
                if kind:
                    self.peak_mb[kind] = max(self.peak_mb.get(kind, 0.0), process.memory_info().rss / 2**20)


def is_ray_worker(process: psutil.Process) -> bool:
    """Whether a process is a worker of Ray that has work."""
    title = " ".join(process.cmdline()[:1])
    return title.startswith("ray::") and not title.startswith("ray::IDLE")


@contextmanager
def watched(pid: int) -> Iterator[Watch]:
    """Look at a process and all that it started, twice a second."""
    watch, stop = Watch(), threading.Event()

    def sample() -> None:
        with suppress(psutil.Error):
            root = psutil.Process(pid)
            while not stop.wait(WATCH_S):
                watch.look(root)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        stop.set()
        thread.join()


@dataclass(frozen=True)
class Line:
    """seconds = fixed + items * each; `cpu_each` is the same slope of CPU time."""

    fixed: float
    each: float
    cpu_each: float

    @classmethod
    def through(cls, small: tuple[int, Measured], large: tuple[int, Measured]) -> Line:
        """The line through two sizes."""
        (n1, a), (n2, b) = small, large
        each = (b.seconds - a.seconds) / (n2 - n1)
        return cls(a.seconds - n1 * each, each, (b.cpu_s - a.cpu_s) / (n2 - n1))

    @property
    def rate(self) -> float:
        """Items a second in the steady state."""
        return 1 / self.each


@contextmanager
def other_commit(commit: str) -> Iterator[Path]:
    """A temporary git worktree of another commit."""
    with tempfile.TemporaryDirectory(prefix="mmva-commit-") as name:
        tree = Path(name) / "tree"
        git("worktree", "add", "--detach", str(tree), commit)
        try:
            yield tree
        finally:
            git("worktree", "remove", "--force", str(tree))


def git(*arguments: str) -> str:
    """The output of a git command in this checkout; SystemExit with git's own line if it fails."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


def make_bundle(folder: Path, backbones: str | Preset = "compact") -> Path:
    """An untrained model over a preset's encoders: speed does not depend on what the towers have learnt."""
    if not folder.exists():
        from mmva.backbones import load_encoder, preset
        from mmva.models.bundle import save_bundle
        from mmva.models.model import MMVA

        chosen = preset(backbones) if isinstance(backbones, str) else backbones
        encoders = {modality: load_encoder(spec) for modality, spec in chosen.specs.items()}
        model = MMVA({modality: encoder.dim for modality, encoder in encoders.items()})
        model.attach_encoders(encoders)
        save_bundle(folder, model, intervals={}, card="untrained", provenance={})
    return folder


@contextmanager
def workspace(folder: Path | None, *, empty: bool = False) -> Iterator[Path]:
    """The given folder, which is kept, or a temporary one. SIGTERM then ends the benchmark as Ctrl-C does.

    Args:
        folder: The folder; None for a temporary one.
        empty: Whether to refuse a folder that holds something.

    Raises:
        SystemExit: If it does.
    """
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="mmva-benchmark-") as name:
        path = (folder or Path(name)).resolve()
        path.mkdir(parents=True, exist_ok=True)
        if empty and any(path.iterdir()):
            raise SystemExit(f"{path}: not empty; name another --workdir, or empty it")
        yield path
