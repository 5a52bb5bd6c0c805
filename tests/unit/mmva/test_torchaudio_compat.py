"""torchaudio beside any torch: the stand-in where the extension cannot load, and nowhere else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mmva import _torchaudio_compat as compat


def run(code: str) -> str:
    """Standard output of a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_mmva_brings_nothing_heavy_in():
    heavy = "{'torch', 'torchaudio', 'transformers', 'ray', 'mlflow'}"
    assert run(f"import mmva, mmva.backbones, sys; print(sorted({heavy} & set(sys.modules)))") == "[]"


@pytest.mark.slow
def test_transformers_and_torchaudio_import_and_transform():
    code = """
import mmva, transformers, torchaudio, torch
from transformers import Wav2Vec2FeatureExtractor
print(tuple(torchaudio.transforms.MelSpectrogram(16000, n_fft=512, n_mels=40)(torch.zeros(16000)).shape)[0])
"""
    assert run(code) == "40"


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Package folders of torch and torchaudio as the finder would report them."""
    folders = {name: tmp_path / name for name in ("torch", "torchaudio")}
    for folder in folders.values():
        (folder / "lib").mkdir(parents=True)
    monkeypatch.setattr(compat, "_package_dir", folders.get)
    for name in ("torchaudio", compat._LOADER):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    yield folders
    sys.modules.pop(compat._LOADER, None)


def extension(folder: Path, content: bytes) -> None:
    (folder / "lib" / "_torchaudio.abi3.so").write_bytes(content)


def align() -> None:
    """What torchaudio decorates."""


def test_stand_in_beside_a_cpu_torch(packages):
    extension(packages["torchaudio"], b"ELF libc10_cuda.so")
    assert compat.ensure_torchaudio_importable()
    stand_in = sys.modules[compat._LOADER]
    assert not stand_in._IS_TORCHAUDIO_EXT_AVAILABLE
    stand_in._check_cuda_version()
    with pytest.raises(RuntimeError, match="align needs torchaudio's compiled extension"):
        stand_in.fail_if_no_align(align)()
    assert not compat.ensure_torchaudio_importable(), "once is enough"


def test_no_stand_in_when_torch_has_cuda(packages):
    extension(packages["torchaudio"], b"ELF libc10_cuda.so")
    (packages["torch"] / "lib" / "libc10_cuda.so").touch()
    assert not compat.ensure_torchaudio_importable()
    assert compat._LOADER not in sys.modules


def test_no_stand_in_when_the_extension_wants_no_cuda(packages):
    extension(packages["torchaudio"], b"ELF libc10.so")
    assert not compat.ensure_torchaudio_importable()


@pytest.mark.parametrize("absent", ["torch", "torchaudio"])
def test_no_stand_in_without_both_packages(packages, absent):
    extension(packages["torchaudio"], b"ELF libc10_cuda.so")
    packages.pop(absent)
    assert not compat.ensure_torchaudio_importable()


def test_no_stand_in_on_other_systems(packages, monkeypatch):
    extension(packages["torchaudio"], b"ELF libc10_cuda.so")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not compat.ensure_torchaudio_importable()
