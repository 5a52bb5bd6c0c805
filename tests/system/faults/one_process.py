"""Annotation in processes that kill or stop themselves after one of their writes; their bulk passes run within them.

They are forked from a server that has imported everything, so that one takes half a second and a test can kill after
every write. A process killed before its next write leaves the same as one killed after the last write.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
from seaweed import ACCESS, SECRET

# mmva before transformers: it makes imports of a broken torchaudio harmless.
_PRELOAD = [
    "one_process", "inline_pass", "torch", "scipy.special", "pyarrow.parquet", "deltalake", "boto3", "ray.cloudpickle",
    "ray.util.metrics", "mmva.backbones", "mmva.models.bundle", "mmva.engines.choice", "mmva.inference.pipeline",
    "mmva_platform.annotation", "mmva_platform.annotation.run.worker", "mmva_platform.tracking.resolve",
    "mmva_platform.cluster", "mmva_platform.progress", "mmva_platform.monitoring", "mmva_platform.draining",
    "transformers.models.clip.modeling_clip", "transformers.models.roberta.modeling_roberta",
]  # fmt: skip
_ENVIRONMENT = {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_EC2_METADATA_DISABLED": "true"}
_LIMIT_S = 120.0


@dataclass(frozen=True)
class Call:
    """A call of mmva_platform.annotation for an output.

    Attributes:
        verb: annotate, update, retry, resume.
        words: Positional arguments before the settings.
        out: The output, whose writes count.
        options: Keyword arguments.
    """

    verb: str
    words: tuple[str, ...]
    out: str
    options: dict[str, Any] = field(default_factory=dict)


class Running:
    """A call in a process of its own, which sends itself `end` after so many writes if `writes` is given."""

    def __init__(
        self, call: Call, settings: Any, folder: Path, writes: int | None = None, end: int = signal.SIGKILL
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        number = sum(1 for _ in folder.glob("said-*"))
        self._said, self._log = folder / f"said-{number}.json", folder / f"writes-{number}"
        self._said.touch()
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOAD)
        self._process: BaseProcess = context.Process(
            target=_run, args=(call, settings, str(self._said), str(self._log), (writes, end))
        )
        self._process.start()

    def end(self) -> dict[str, Any]:
        """What it returned: the summary, or {"error": its class, "message": ...}; {} if it was killed."""
        self._process.join(_LIMIT_S)
        code = self._process.exitcode
        if code is None:
            self._process.kill()
        assert code in {0, -signal.SIGKILL}, f"exit {code}: {self._said.read_text()}"
        said: dict[str, Any] = json.loads(self._said.read_text() or "{}")
        assert bool(said) == (code == 0)
        return said

    def wait_until_stopped(self) -> None:
        """Return when it has sent itself SIGSTOP."""
        assert self._process.pid is not None
        process, deadline = psutil.Process(self._process.pid), time.monotonic() + _LIMIT_S
        while process.status() != psutil.STATUS_STOPPED:
            assert time.monotonic() < deadline
            time.sleep(0.02)  # until a deadline, not for a time

    def go_on(self) -> dict[str, Any]:
        """Let a stopped one continue; see `end`."""
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGCONT)
        return self.end()

    @property
    def writes(self) -> list[str]:
        """What it wrote, in order, relative to the output."""
        return self._log.read_text().splitlines()


def _run(call: Call, settings: Any, said: str, log: str, end: tuple[int | None, int]) -> None:
    os.environ.update(_ENVIRONMENT)
    import pytest
    from inline_pass import install_annotation

    from mmva.errors import CheckFailed, OperationFailed, UsageError
    from mmva_platform import annotation
    from mmva_platform.annotation.table import delta as table
    from mmva_platform.storage.local import LocalStorage
    from mmva_platform.storage.s3 import S3Storage

    patch = pytest.MonkeyPatch()
    install_annotation(patch)
    with Path(log).open("a") as file:
        counted = _Counted(file.fileno(), *end)
        for storage in (LocalStorage, S3Storage):
            for name in ("write", "put_if_absent", "delete"):
                patch.setattr(storage, name, counted.method(getattr(storage, name), call.out))
        # deltalake writes to the table's log by itself: nothing of ours is closer to that write.
        patch.setattr(table, "_commit", counted.commit(table._commit))
        try:
            found = getattr(annotation, call.verb)(*call.words, settings, **call.options).to_json()
        except (CheckFailed, OperationFailed, UsageError) as error:
            found = {"error": type(error).__name__, "message": str(error)}
    Path(said).write_text(json.dumps(found, default=str))


class _Counted:
    """Notes each write, and sends this process a signal after the nth."""

    def __init__(self, log: int, limit: int | None, end: int) -> None:
        self._log, self._limit, self._end, self._count = log, limit, end, 0

    def method(self, original: Callable[..., Any], out: str) -> Callable[..., Any]:
        def counted(storage: Any, path: str, *arguments: Any) -> Any:
            done = original(storage, path, *arguments)
            if storage.uri.startswith(out):
                self._wrote(storage.join(path).removeprefix(f"{out}/"))
            return done

        return counted

    def commit(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> None:
            original(*arguments)
            self._wrote("_delta_log/")

        return counted

    def _wrote(self, path: str) -> None:
        os.write(self._log, f"{path}\n".encode())
        self._count += 1
        if self._count == self._limit:
            os.kill(os.getpid(), self._end)
