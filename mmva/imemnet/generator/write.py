"""Write the look-alike to a folder, in the exact layout of the published IMEMNet-C.

It has defects of the published files, which the import reports: with 100 images or more, one id is on two rows with
different labels; with 100 clips or more, one arousal label is slightly above 1.0 and one caption is empty.
"""

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import soundfile

from mmva.errors import UsageError
from mmva.imemnet.generator.captions import write_caption
from mmva.imemnet.generator.labels import Clip, FloatArray, draw_clips, draw_image_labels, image_id
from mmva.imemnet.generator.music import Style, render_clip, song_style
from mmva.imemnet.generator.pictures import render_picture

Progress = Callable[[int, int, str], None]
WARTS_FROM = 100
_TWICE = 3  # index of an IAPS image; IAPS ids are not unique in the published file
_UNCAPTIONED = 29
_A_HAIR = 1.003
_CAPITAL_EVERY = 12  # every 12th file has its extension in capitals


def generate(out: Path, *, images: int, clips: int, seed: int = 0, progress: Progress | None = None) -> None:
    """Write image_va.csv, music_va.csv, images/*.jpg and audio/*.wav; the same seed gives the same bytes.

    `out` must be new or empty; the CSVs are written last. An item does not depend on the number of items. `progress`
    is called with (done, total, "images" or "audio") after each file. Raises UsageError for counts below 1, a seed
    below 0, or a folder that is not empty.
    """
    out = Path(out)
    _check(out, images, clips, seed)
    report = progress or (lambda _done, _total, _what: None)
    va_N2 = draw_image_labels(images, seed)
    ids = [image_id(seed, index) for index in range(images)]
    _write_pictures(out / "images", ids, va_N2, seed, report)
    captions = _write_audio(out / "audio", drawn := draw_clips(clips, seed), seed, report)
    _write_csv(out / "image_va.csv", ("", "img", "valence", "arousal"), _image_rows(ids, va_N2))
    header = ("", "Clip ID", "Valence", "Arousal", "Caption")
    _write_csv(out / "music_va.csv", header, _music_rows(drawn, captions))


def _check(out: Path, images: int, clips: int, seed: int) -> None:
    if images < 1 or clips < 1 or seed < 0:
        raise UsageError(f"images and clips must be at least 1 and seed at least 0, got {images}, {clips}, {seed}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is not an empty folder; give a new or empty one")


def _write_pictures(folder: Path, ids: Sequence[str], va_N2: FloatArray, seed: int, report: Progress) -> None:
    folder.mkdir(parents=True)
    for index, (name, (v, a)) in enumerate(zip(ids, va_N2, strict=True)):
        extension = "JPG" if index % _CAPITAL_EVERY == _CAPITAL_EVERY - 1 else "jpg"
        (folder / f"{name}.{extension}").write_bytes(render_picture((float(v), float(a)), seed, index))
        report(index + 1, len(ids), "images")


def _write_audio(folder: Path, clips: Sequence[Clip], seed: int, report: Progress) -> list[str]:
    """Write the clips as 16-bit mono WAV, and return their captions."""
    folder.mkdir(parents=True)
    style_of = lru_cache(maxsize=1)(lambda song, va: song_style(song, va, seed))
    captions: list[str] = []
    for index, clip in enumerate(clips):
        style: Style = style_of(clip.song, clip.song_va)
        buffer = io.BytesIO()
        samples = render_clip(clip, style, seed)
        soundfile.write(buffer, samples, style.sample_rate, format="WAV", subtype="PCM_16")
        extension = "WAV" if clip.song % _CAPITAL_EVERY == 0 else "wav"
        (folder / f"{clip.id}.{extension}").write_bytes(buffer.getvalue())
        captions.append(write_caption(clip, style, seed))
        report(index + 1, len(clips), "audio")
    return captions


def _image_rows(ids: Sequence[str], va_N2: FloatArray) -> list[tuple[object, ...]]:
    rows = [(name, float(v), float(a)) for name, (v, a) in zip(ids, va_N2, strict=True)]
    if len(rows) >= WARTS_FROM:
        name, v, a = rows[_TWICE]
        rows.append((name, 1.0 - v, a))
    return [(number, *row) for number, row in enumerate(rows)]


def _music_rows(clips: Sequence[Clip], captions: Sequence[str]) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    highest = max(range(len(clips)), key=lambda index: clips[index].va[1])
    for number, (clip, caption) in enumerate(zip(clips, captions, strict=True)):
        v, a = clip.va
        if len(clips) >= WARTS_FROM:
            a = _A_HAIR if number == highest else a
            caption = "" if number == _UNCAPTIONED else caption  # noqa: PLW2901 - a defect on purpose
        rows.append((number, clip.id, v, a, caption))
    return rows


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
