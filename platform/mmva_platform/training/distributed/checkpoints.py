"""Checkpoints on any storage: named by position, written with a digest, checked when read.

Ray Train deletes old ones. A checkpoint is complete once its SHA256SUMS exists and agrees. A damaged one is skipped
with a warning, and the one before it is used. torch's safe loader reads them: no code in them can run.
"""

from __future__ import annotations

import hashlib
import io
import logging
import pickle
import re
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import torch

from mmva.errors import CheckFailed

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem
    from ray.train import Checkpoint

    from mmva_platform.training.loop.state import World

log = logging.getLogger(__name__)
_NAME = re.compile(r"checkpoint_\d{6}-\d{9}-[0-9a-f]{6}")
_STATE: Final = "state.pt"
_SUMS: Final = "SHA256SUMS"


def checkpoint_name(position: Mapping[str, int]) -> str:
    """Folder of a new checkpoint: epochs done, steps done of the next, and a token that makes it unique."""
    return f"checkpoint_{position['epoch']:06d}-{position['done']:09d}-{secrets.token_hex(3)}"


def write_checkpoint(checkpoint: Checkpoint, content: Mapping[str, Any]) -> Checkpoint:
    """Write a state (see TrainState.state_dict) to the checkpoint's folder, its digest last."""
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    data = buffer.getvalue()
    checkpoint.filesystem.create_dir(checkpoint.path, recursive=True)
    sums = f"{hashlib.sha256(data).hexdigest()}  {_STATE}\n".encode()
    for name, each in ((_STATE, data), (_SUMS, sums)):
        with checkpoint.filesystem.open_output_stream(f"{checkpoint.path}/{name}") as file:
            file.write(each)
    return checkpoint


def read_checkpoint(files: FileSystem, folder: str) -> dict[str, Any]:
    """A checkpoint's content, on the CPU. Raises CheckFailed if it is missing or damaged."""
    try:
        sums, data = (_read(files, f"{folder}/{name}") for name in (_SUMS, _STATE))
        intact = sums.decode().split()[:1] == [hashlib.sha256(data).hexdigest()]
        content: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True) if intact else {}
    except (OSError, UnicodeDecodeError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise CheckFailed(f"{folder}: cannot be loaded ({type(error).__name__})") from error
    if not intact:
        raise CheckFailed(f"{folder}: is damaged: its digest differs from {_SUMS}")
    return content


def checkpoint_folders(files: FileSystem, run: str) -> list[str]:
    """A run's checkpoints, oldest first, damaged ones included."""
    from pyarrow.fs import FileSelector

    found = files.get_file_info(FileSelector(run, allow_not_found=True))
    return sorted(each.path for each in found if _NAME.fullmatch(each.base_name))


def newest_checkpoint(files: FileSystem, run: str) -> tuple[str, dict[str, Any]] | None:
    """Folder and content of a run's newest intact checkpoint; None if there is none."""
    folders = checkpoint_folders(files, run)
    for folder in reversed(folders):
        try:
            return folder, read_checkpoint(files, folder)
        except CheckFailed as error:
            log.warning("checkpoint: %s; using the one before it", error)
    if folders:
        log.warning("checkpoint: all %d are damaged; the run starts from the beginning", len(folders))
    return None


def agreed_checkpoint(files: FileSystem, run: str, world: World) -> dict[str, Any] | None:
    """The content of the newest intact checkpoint, which rank 0 chooses, so that all ranks load the same one."""
    found = newest_checkpoint(files, run) if world.rank == 0 else None
    folder = world.first(None if found is None else found[0])
    if folder is None:
        return None
    return found[1] if found is not None else read_checkpoint(files, folder)


def _read(files: FileSystem, path: str) -> bytes:
    with files.open_input_stream(path) as file:
        data: bytes = file.read()
    return data
