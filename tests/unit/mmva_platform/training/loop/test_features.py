"""Features mode refuses what does not fit, before it reads anything, and names the way out."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmva.errors import UsageError
from mmva_platform.training.loop.features import check_memory, free_memory

MIB = 2**20
NEEDED = {"image": 400 * MIB, "music": 300 * MIB, "caption": 100 * MIB}


def test_what_fits_passes() -> None:
    check_memory(NEEDED, store_bytes=1000 * MIB, free_bytes=1400 * MIB)
    check_memory(NEEDED, store_bytes=1000 * MIB, free_bytes=None)


def test_too_small_a_store_names_the_setting_and_media_mode() -> None:
    with pytest.raises(UsageError) as error:
        check_memory(NEEDED, store_bytes=512 * MIB, free_bytes=None)
    text = str(error.value)
    assert "920 MiB of embeddings" in text
    assert "cluster.object_store_mb to at least 920" in text
    assert "mode=media" in text


def test_too_little_memory_says_how_much() -> None:
    with pytest.raises(UsageError) as error:
        check_memory(NEEDED, store_bytes=2000 * MIB, free_bytes=1300 * MIB)
    assert "1,320 MiB to load them, but this machine has 1,300 MiB free" in str(error.value)
    assert "mode=media" in str(error.value)


def test_free_memory_is_the_groups_if_that_is_less(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:   8000 kB\n")
    assert free_memory(tmp_path) == 8000 * 1024
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.current").write_text("1000\n")
    (group / "memory.max").write_text("max\n")
    assert free_memory(tmp_path) == 8000 * 1024
    (group / "memory.max").write_text("5000\n")
    assert free_memory(tmp_path) == 4000
    assert free_memory(tmp_path / "nowhere") is None
