"""Decoding in child processes: an item that kills or hangs its decoder costs itself, and nobody waits for its child."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile
from PIL import Image

from mmva.errors import MediaError
from mmva.inference.config import Preprocessing
from mmva.inference.decoders import DecodeJob, DecoderPool, DecodeSpec, TooLongError
from mmva.media.limits import Limits

pytestmark = pytest.mark.slow  # each child starts a Python
KILLS, HANGS = (61, 67), (71, 73)
POISON = f"""
import os, signal, time
from PIL import ImageFile
original = ImageFile.ImageFile.load
def load(self):
    if self.size == {KILLS}:
        os.kill(os.getpid(), signal.SIGKILL)
    if self.size == {HANGS}:
        time.sleep(3600)
    return original(self)
ImageFile.ImageFile.load = load
"""
SPEC = DecodeSpec(("image", "music"), 16_000, Preprocessing(fingerprints={}, window_s=3.0, hop_s=1.5, short_side=32),
                  Limits())  # fmt: skip


def picture(size: tuple[int, int] = (64, 48)) -> DecodeJob:
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 90, 10)).save(buffer, "PNG")
    return DecodeJob(SPEC, "image", buffer.getvalue())


def music(seconds: float, most: int | None = None) -> DecodeJob:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.sin(np.arange(int(16_000 * seconds)) * 0.05) / 2, 16_000, format="WAV")
    return DecodeJob(SPEC, "music", buffer.getvalue(), most)


@pytest.fixture
def poisoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Path) -> None:
    """Children die of a picture of one size and hang at one of another, as in a native library."""
    (tmp_path / "sitecustomize.py").write_text(POISON)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{repository}:{repository / 'platform'}")


def test_units_are_those_of_the_decoder_and_long_items_are_streamed(repository: Path) -> None:
    pool = DecoderPool(1, item_timeout_s=20)
    (unit,) = pool.decode(picture())
    assert (unit.track, unit.content.size) == ("image", (64, 48))
    own = list(SPEC.decoder().units("music", music(30).data))
    streamed = list(pool.stream(music(30)))
    assert [one.start_s for one in streamed] == [one.start_s for one in own]
    assert all(np.array_equal(one.content, other.content) for one, other in zip(streamed, own, strict=True))
    with pytest.raises(TooLongError):
        pool.decode(music(30, most=2**20))
    with pytest.raises(MediaError) as refused:
        pool.decode(DecodeJob(SPEC, "image", b"no picture"))
    assert refused.value.code == "not-an-image"
    assert len(pool.decode(music(6))) == len(list(SPEC.decoder().units("music", music(6).data)))
    (child,) = [one for one in psutil.Process().children() if "spawn_main" in " ".join(one.cmdline())]
    pool.close()
    assert not psutil.pid_exists(child.pid)


@pytest.mark.usefixtures("poisoned")
def test_hostile_items_are_errors_at_once_and_others_do_not_notice() -> None:
    pool = DecoderPool(2, item_timeout_s=2.0)
    pool.decode(picture())
    with ThreadPoolExecutor(4) as threads:
        hanging = threads.submit(pool.decode, picture(HANGS))
        for _ in range(3):
            with pytest.raises(MediaError) as killed:
                pool.decode(picture(KILLS))
            assert killed.value.code == "killed-worker"
            assert len(pool.decode(picture())) == 1
        error = hanging.exception(timeout=30)
    assert isinstance(error, MediaError)
    assert error.code == "timed-out"
    assert len(pool.decode(picture())) == 1
    pool.close()
