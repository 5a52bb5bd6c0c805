"""The demo catalog: real photographs, decodable music in four formats, captions, and two files that are broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmva.errors import UsageError
from mmva.imemnet.generator.captions import LEXICON
from mmva_platform.quickstart import demo_catalog
from mmva_platform.quickstart.demo_catalog import CAPTIONS, build_demo_catalog, photographs
from mmva_platform.quickstart.demo_music import PIECES, RATE, Piece, render_piece


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The catalog with its first four pieces, one of each format."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_catalog, "PIECES", PIECES[:4])
        return build_demo_catalog(tmp_path_factory.mktemp("demo") / "catalog", seed=0)


def test_photographs_are_the_packages_own_and_one_is_broken(catalog: Path) -> None:
    broken = []
    for path in (catalog / "images").iterdir():
        try:
            with Image.open(path) as image:
                image.load()
        except OSError:
            broken.append(path.name)
    assert broken == ["broken-upload.jpg"]
    assert len(list((catalog / "images").iterdir())) == len(photographs()) + 1
    assert "grace_hopper.jpg" in {path.name for path in photographs()}


def test_photographs_are_not_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("skimage")
    monkeypatch.setattr("socket.socket.connect", lambda *_args: pytest.fail("went to the network"))
    assert len([path for path in photographs() if path.parent.parent.name == "skimage"]) >= 12


def test_music_decodes_in_four_formats_and_one_file_is_no_music(catalog: Path) -> None:
    files = sorted((catalog / "music").iterdir())
    assert {path.suffix for path in files} == {".flac", ".mp3", ".ogg", ".wav"}
    assert files.pop().read_bytes()[:2] == b"\xff\xd8"
    for path, piece in zip(files, PIECES, strict=False):
        samples, rate = soundfile.read(path)
        assert (rate, samples.shape[1]) == (RATE, 2)
        assert len(samples) / rate == pytest.approx(piece.seconds, abs=0.2)
        assert np.sqrt(np.mean(samples**2)) > 0.01


def test_a_piece_is_a_function_of_its_seed() -> None:
    piece = Piece("x.wav", "pluck", "dorian", 60, 3, 60, -20, 3)
    np.testing.assert_array_equal(render_piece(piece, 1), render_piece(piece, 1))
    assert not np.array_equal(render_piece(piece, 1), render_piece(piece, 2))


def test_captions_are_written_by_hand_not_by_the_generator(catalog: Path) -> None:
    texts = [path.read_text().strip() for path in sorted((catalog / "captions").iterdir())]
    assert texts == list(CAPTIONS)
    assert len(set(texts)) == 12
    words = {word.strip(".,;:").lower() for text in texts for word in text.split()}
    assert len(words & set(LEXICON)) <= 3


def test_an_occupied_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.jpg").write_bytes(b"x")
    with pytest.raises(UsageError, match="not an empty folder"):
        build_demo_catalog(tmp_path, seed=0)
