"""Careful mode's child: one item after another, every step told to the parent; it may die of any of them.

It dies with its parent: Linux kills it, and elsewhere its stdin closes.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from mmva_platform.annotation.careful_frames import pack, read_table, send, table_bytes
from mmva_platform.annotation.plan import Plan
from mmva_platform.settings import Settings
from mmva_platform.storage import StorageUnavailable

_PR_SET_PDEATHSIG = 1


def write_arguments(
    place: Path, items: pa.Table, *, plan: Plan, bundle: Mapping[str, bytes], out: str, settings: Settings
) -> None:
    """Write what the child needs into a folder; called by the parent."""
    (place / "bundle").mkdir()
    for name, data in bundle.items():
        (place / "bundle" / name).write_bytes(data)
    (place / "plan.json").write_text(plan.model_dump_json())
    (place / "settings.json").write_text(settings.model_dump_json())
    (place / "out").write_text(out)
    (place / "items.arrow").write_bytes(table_bytes(items))


def serve(shard: str, first: int, pipe: BinaryIO, annotator: Any, items: pa.Table) -> None:
    """Annotate items one by one from `first` on, every step told to the parent."""
    for number in range(first, items.num_rows):
        send(pipe, "B", str(number).encode())
        try:
            result = annotator.annotate(shard, items.slice(number, 1))
        except StorageUnavailable as error:
            send(pipe, "A", str(error).encode())
            return
        send(pipe, "O", pack(result))


def main(arguments: Sequence[str]) -> None:
    """Folder, shard, first item, descriptor of the pipe, process id of the parent."""
    from mmva_platform.annotation.annotator import Annotator
    from mmva_platform.annotation.engines import load_model
    from mmva_platform.annotation.worker import Fetcher
    from mmva_platform.storage import open_storage

    place, shard, first = Path(arguments[0]), arguments[1], int(arguments[2])
    _die_with(int(arguments[4]))
    settings = Settings.model_validate_json((place / "settings.json").read_text())
    plan = Plan.model_validate_json((place / "plan.json").read_text())
    storage = open_storage((place / "out").read_text(), settings.storage)
    bundle = {path.name: path.read_bytes() for path in sorted((place / "bundle").iterdir())}
    items = read_table((place / "items.arrow").read_bytes())
    with open(int(arguments[3]), "wb") as pipe:  # noqa: PTH123 - a descriptor, not a path
        model = load_model(bundle, plan, storage, settings)
        fetch = Fetcher(settings.storage, plan.roots)
        annotator = Annotator(model, plan, fetch, on_progress=lambda stage: send(pipe, "S", stage.encode()))
        send(pipe, "R")
        serve(shard, first, pipe, annotator, items)


def _die_with(parent: int) -> None:
    """End when the parent does, also if it is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it went before the request was made
            os._exit(1)
    threading.Thread(target=_exit_at_end_of_stdin, daemon=True).start()


def _exit_at_end_of_stdin() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
