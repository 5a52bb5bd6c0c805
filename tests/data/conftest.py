"""A tiny data set in the published layout, with one of every defect, and a stand-in for the cluster."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from inline_pass import InlineCluster, install
from PIL import Image

from mmva_platform.datasets.importing.run import ImportConfig
from mmva_platform.datasets.sources.config import ImemnetSource


@dataclass(frozen=True)
class Published:
    """Where the label files and the media are."""

    images_csv: Path
    music_csv: Path
    media: Path

    def config(self, **changes: Any) -> ImportConfig:
        files = {"images_csv": str(self.images_csv), "music_csv": str(self.music_csv), "media": str(self.media)}
        own = {name: changes.pop(name) for name in tuple(changes) if name in ImemnetSource.model_fields}
        return ImportConfig(sources=(ImemnetSource(**{**files, **own}),), **changes)


# Image ids by what is wrong with them; the others are sound.
IMAGES = {
    "1000": (0.1, 0.9),
    "1001": (0.2, 0.8),  # .JPG
    "1002": (0.3, 0.7),
    "1003": (0.4, 0.6),
    "1004": (0.5, 0.5),  # truncated
    "1005": (0.6, 0.4),  # no file
    "1006": (0.41, 0.6),  # the bytes of 1003, nearly its label
    "1007": (0.9, 0.1),
    "1008": (0.1, 0.1),  # the bytes of 1007, another label
    "1009": (1.003, 0.5),  # over by a hair
}
SONGS, CLIPS = ("2", "3", "4", "5"), (1, 2, 3)
SONG_WITHOUT_CAPTIONS = "3"


def make_published_set(tmp_path: Path) -> Published:
    """Ten labeled images, an ambiguous id on two rows, and twelve clips of four songs."""
    rng = np.random.default_rng(0)
    media = tmp_path / "media"
    (media / "images").mkdir(parents=True)
    (media / "audio").mkdir()
    for image_id in IMAGES:
        suffix = ".JPG" if image_id == "1001" else ".jpg"
        pixels = rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(media / "images" / f"{image_id}{suffix}", format="JPEG")
    images = media / "images"
    (images / "1004.jpg").write_bytes((images / "1004.jpg").read_bytes()[:600])
    (images / "1005.jpg").unlink()
    shutil.copyfile(images / "1003.jpg", images / "1006.jpg")
    shutil.copyfile(images / "1007.jpg", images / "1008.jpg")
    image_rows = [*((i, v, a) for i, (v, a) in IMAGES.items()), ("2000", 0.1, 0.1), ("2000", 0.9, 0.1)]
    _write_csv(tmp_path / "image_va.csv", ",img,valence,arousal", image_rows)
    music_rows = []
    for number, song in enumerate(SONGS):
        for clip in CLIPS:
            soundfile.write(media / "audio" / f"{song}-{clip}.wav", rng.normal(0, 0.1, 8000), 8000)
            caption = "" if song == SONG_WITHOUT_CAPTIONS else f"A calm tune of song {song} in part {clip}"
            music_rows.append((f"{song}-{clip}", 0.2 * number, 0.3 * clip, caption))
    _write_csv(tmp_path / "music_va.csv", ",Clip ID,Valence,Arousal,Caption", music_rows)
    return Published(tmp_path / "image_va.csv", tmp_path / "music_va.csv", media)


@pytest.fixture
def published(tmp_path: Path) -> Published:
    """See make_published_set."""
    return make_published_set(tmp_path)


@pytest.fixture(scope="session")
def make_published() -> Callable[[Path], Published]:
    """For fixtures of a module."""
    return make_published_set


def _write_csv(path: Path, header: str, rows: Sequence[Sequence[object]]) -> None:
    lines = [",".join(str(cell) for cell in (number, *row)) for number, row in enumerate(rows)]
    path.write_text("\n".join([header, *lines, ""]))


@pytest.fixture
def inline_cluster(monkeypatch: pytest.MonkeyPatch) -> InlineCluster:
    """Runs the real workers in this process, last shard first, under the rules of bulk.run_pass."""
    return install(monkeypatch)
