"""Valid files of every format, damaged at random: see mutated_media.py, which makes more of them."""

from __future__ import annotations

import os

import pytest

from .mutated_media import files, hunt

FILES = files()
COUNT = int(os.environ.get("MMVA_MUTATIONS", "100"))


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_damage_gives_content_or_a_media_error_in_time(name: str) -> None:
    modality, make = FILES[name]
    assert hunt(name, modality, make(), COUNT, seed=0) == []
