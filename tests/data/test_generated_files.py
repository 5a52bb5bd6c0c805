"""The generated folder is in the published layout: readable by the reader of the published files, warts included."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from PIL import Image

from mmva.imemnet.generator import generate
from mmva.imemnet.published import read_image_labels, read_music_labels


@pytest.fixture(scope="module")
def lookalike(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lookalike") / "out"
    generate(folder, images=110, clips=110, seed=5)
    return folder


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_columns_are_the_published_ones(lookalike: Path) -> None:
    assert (lookalike / "image_va.csv").read_text().splitlines()[0] == ",img,valence,arousal"
    assert (lookalike / "music_va.csv").read_text().splitlines()[0] == ",Clip ID,Valence,Arousal,Caption"


def test_every_row_has_its_file_and_every_file_its_row(lookalike: Path) -> None:
    for csv, column, folder in (("image_va.csv", "img", "images"), ("music_va.csv", "Clip ID", "audio")):
        ids = pd.read_csv(lookalike / csv, dtype={column: str})[column]
        files = [path.stem for path in (lookalike / folder).iterdir()]
        assert len(files) == 110
        assert set(ids) == set(files)
    assert {path.suffix for path in (lookalike / "images").iterdir()} == {".jpg", ".JPG"}
    assert {path.suffix for path in (lookalike / "audio").iterdir()} == {".wav", ".WAV"}


def test_reader_reports_exactly_the_warts_put_in(lookalike: Path) -> None:
    images, music = read_image_labels(lookalike / "image_va.csv"), read_music_labels(lookalike / "music_va.csv")
    assert [(problem.code, problem.dropped) for problem in images.problems] == [("ambiguous-id", 2)]
    assert sorted(problem.code for problem in music.problems) == ["label-over-by-a-hair", "unusable-caption"]
    assert (images.rows_in, len(images.rows), len(music.rows)) == (111, 109, 110)
    assert set(images.rows["source"]) == {"IAPS", "NAPS", "EMOTIC"}


def test_small_folders_have_no_warts(tmp_path: Path) -> None:
    generate(tmp_path / "small", images=5, clips=5)
    assert not read_image_labels(tmp_path / "small" / "image_va.csv").problems
    assert not read_music_labels(tmp_path / "small" / "music_va.csv").problems


def test_media_are_as_promised(lookalike: Path) -> None:
    rates = set()
    for path in (lookalike / "audio").iterdir():
        info = soundfile.info(path)
        rates.add(info.samplerate)
        assert (info.channels, info.subtype, info.duration) == (1, "PCM_16", 2.0)
    assert rates == {22_050, 44_100}
    for path in (lookalike / "images").iterdir():
        with Image.open(path) as image:
            assert image.mode == "RGB"
            assert image.format == "JPEG"
            assert all(256 <= side <= 320 for side in image.size)


def test_same_seed_same_bytes_and_items_do_not_depend_on_the_count(lookalike: Path, tmp_path: Path) -> None:
    whole = digests(lookalike)
    generate(tmp_path / "part", images=20, clips=20, seed=5)
    generate(tmp_path / "again", images=20, clips=20, seed=5)
    part = digests(tmp_path / "part")
    assert part == digests(tmp_path / "again")
    assert len(part) == 42
    assert all(whole[name] == digest for name, digest in part.items() if not name.endswith(".csv"))


def test_another_seed_gives_other_media(lookalike: Path, tmp_path: Path) -> None:
    generate(tmp_path / "other", images=3, clips=3, seed=6)
    assert not set(digests(lookalike).values()) & set(digests(tmp_path / "other").values())


def test_progress_counts_to_the_end(tmp_path: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    generate(tmp_path / "new", images=2, clips=3, progress=lambda *call: calls.append(call))
    assert calls == [(1, 2, "images"), (2, 2, "images"), (1, 3, "audio"), (2, 3, "audio"), (3, 3, "audio")]


def test_brightness_predicts_image_valence_but_not_all_of_it(lookalike: Path) -> None:
    rows = read_image_labels(lookalike / "image_va.csv").rows
    files = {path.stem: path for path in (lookalike / "images").iterdir()}
    looks = []
    for name in rows["id"]:
        with Image.open(files[name]) as image:
            looks.append(np.asarray(image.convert("HSV")).mean(axis=(0, 1))[1:] / 255)
    design = np.column_stack([np.ones(len(rows)), looks])
    labels = rows[["valence", "arousal"]].to_numpy()
    residual = labels - design @ np.linalg.lstsq(design, labels, rcond=None)[0]
    r2 = 1 - residual.var(axis=0) / labels.var(axis=0)
    assert (r2 > 0.3).all()
    assert (r2 < 0.95).all()


def test_a_clips_nearest_neighbour_in_sound_is_of_its_own_song(lookalike: Path) -> None:
    """What makes a split by clip leak: the song is recognised."""
    rows = read_music_labels(lookalike / "music_va.csv").rows
    files = {path.stem: path for path in (lookalike / "audio").iterdir()}
    spectra = []
    for name in rows["id"]:
        samples, rate = soundfile.read(files[name])
        power = np.abs(np.fft.rfft(samples[: 2 * rate])) ** 2
        spectra.append(np.log([band.sum() + 1e-9 for band in np.array_split(power[20:10_000], 60)]))
    distance = np.linalg.norm(np.array(spectra)[:, None] - np.array(spectra)[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    groups = rows["group"].to_numpy()
    assert np.mean(groups[distance.argmin(axis=1)] == groups) > 0.6
