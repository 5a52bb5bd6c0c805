"""Captions, formats, and the list of codes."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmva.errors import MediaError
from mmva.media.captions import clean_caption
from mmva.media.formats import AUDIO_FORMATS, EXTENSIONS, IMAGE_FORMATS, VIDEO_FORMATS, modality_of, sniff
from mmva.media.limits import Limits


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  a sad\r\n\tpiano  tune ", "a sad piano tune"),
        ("caf\u0065\u0301".encode(), "café"),
        (b"\xef\xbb\xbfcalm", "calm"),
        ("nul\0 and \x1b[31mescape", "nul and [31mescape"),
        ("lone \ud800 surrogate", "lone surrogate"),
        ("non\u00a0breaking\u2028line", "non breaking line"),
        ("👩\u200d🎤 sings", "👩\u200d🎤 sings"),
    ],
)
def test_captions_are_cleaned(text: str | bytes, expected: str) -> None:
    assert clean_caption(text) == expected


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "empty-caption"),
        (b"", "empty-caption"),
        (" \n\0\u200b\ufeff", "empty-caption"),
        (b"\xff\xfe\x00", "not-text"),
        (b"x" * 10_000_000, "caption-too-long"),
        ("x" * 20_001, "caption-too-long"),
        (("é" * 20_001).encode(), "caption-too-long"),
    ],
)
def test_captions_that_cannot_be_used(text: str | bytes, code: str) -> None:
    with pytest.raises(MediaError) as caught:
        clean_caption(text)
    assert caught.value.code == code


def test_the_limit_counts_characters() -> None:
    assert len(clean_caption(("é" * 10).encode(), Limits(max_caption_characters=10))) == 10


@given(st.one_of(st.text(st.characters(), max_size=60), st.binary(max_size=60)))
def test_any_caption_is_clean_text_or_refused(text: str | bytes) -> None:
    try:
        cleaned = clean_caption(text)
    except MediaError:
        return
    assert cleaned.encode("utf-8").decode("utf-8") == cleaned == unicodedata.normalize("NFC", cleaned)
    assert cleaned == " ".join(cleaned.split())
    assert clean_caption(cleaned) == cleaned


@pytest.mark.parametrize(
    ("uri", "modality"),
    [
        ("s3://bucket/a/b.JPG", "image"),
        ("photo.tiff", "image"),
        ("file:///music/Track 1.Opus", "music"),
        ("x.m4a", "music"),
        ("x.AIF", "music"),
        ("x.aiff", "music"),
        ("x.wma", "music"),
        ("x.avif", "image"),
        ("x.m4v", "video"),
        ("x.mpg", "video"),
        ("x.mpeg", "video"),
        ("x.ts", "video"),
        ("x.HEIC", "image"),
        ("x.jfif", "image"),
        ("x.jpe", "image"),
        ("x.jxl", "image"),
        ("x.m4b", "music"),
        ("x.mka", "music"),
        ("x.wave", "music"),
        ("x.webm", "video"),
        ("x.3gp", "video"),
        ("clip.MOV", "video"),
        ("s3://bucket/film.mkv", "video"),
        ("note.txt", "caption"),
        ("C:\\music\\a.wav", "music"),
        ("folder.png/readme", None),
        (".jpg", None),
        ("wav", None),
        ("a.exe", None),
        ("", None),
    ],
)
def test_modality_of_a_name(uri: str, modality: str | None) -> None:
    assert modality_of(uri) == modality


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\xff\xd8\xff\xe0", "jpeg"),
        (b"RIFF\0\0\0\0WEBP", "webp"),
        (b"RIFF\0\0\0\0WAVE", "wav"),
        (b"RIFF\0\0\0\0AVI ", "avi"),
        (b"RIFF\0\0\0\0CDXA", None),
        (b"RIFX\0\0\0\0WAVE", "wav"),
        (b"BW64\0\0\0\0WAVE", "wav"),
        (b"RIFX\0\0\0\0WEBP", None),
        (b"\xff\x0a\0\0", "jpegxl"),
        (b"ID3\x04\0\0\0\0\0\x0a" + bytes(10) + b"OggS", "ogg"),
        (b"ID3\x04\0\0\0\0\0\x0a" + bytes(10) + b"\xff\xd8\xff", "mp3"),
        (bytes(500) + b"fLaC", "flac"),
        (bytes(500) + b"\xff\xd8\xff", None),
        (bytes(500) + b"\xff\xfb\x90\x64", None),
        (b"some junk" + (b"\xff\xfb\x90\x64" + bytes(413)) * 3, "mp3"),
        (b"some junk" + (b"\xff\xfb\x90\x64" + bytes(413)) * 2, None),
        (b"\x1a\x45\xdf\xa3\x93", "matroska"),
        (b"\0\0\0\x08wide\0\0", "mp4"),
        (b"\0\0\0\x20ftypM4A ", "mp4"),
        (b"\0\0\0\x20ftypavif", "avif"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", "avif"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "heif"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"avif" * 9, "heif"),
        (b"FORM\0\0\0\0AIFF", "aiff"),
        (b"FORM\0\0\0\0AIFC", "aiff"),
        (b"FORM\0\0\0\0ILBM", None),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
        (b"\0\0\1\xba\x44", "mpeg"),
        ((b"G" + bytes(187)) * 3, "mpegts"),
        (bytes(4) + (b"G" + bytes(191)) * 3, "mpegts"),
        ((b"G" + bytes(187)) * 2 + bytes(188), None),
        (b"G" * 100, None),
        (b"ID3\x04\0\0\0\0\0\x0a" + bytes(10) + b"\xff\xf1\x50\x80", "aac"),
        (b"ID3\x04\0\0\0\0\0\x0a" + bytes(10) + b"fLaC", "flac"),
        (b"ID3\x04\0\0\0\0\0\x0a" + bytes(10) + b"\xff\xfb\x90\x64", "mp3"),
        (b"ID3\x04\0\0\0\0\0\x0a" + bytes(20) + b"\xff\xfb\x90\x64", "mp3"),
        (b"ID3\x04\0\0\x7f\x7f\x7f\x7f" + bytes(20), "mp3"),
        (b"\xff\xfb\x90\x64", "mp3"),
        (b"\xff\xf1\x50\x80", "aac"),
        (b"\xff\xff\xff\xff", None),
        (b"ID3\x04", "mp3"),
        (b"", None),
        (b"hello", None),
    ],
)
def test_sniff(data: bytes, kind: str | None) -> None:
    assert sniff(data) == kind


@given(st.binary(max_size=40))
def test_sniff_knows_a_format_or_says_none(data: bytes) -> None:
    assert sniff(data) in {*IMAGE_FORMATS, *AUDIO_FORMATS, *VIDEO_FORMATS, "jpegxl", None}


def test_extensions_belong_to_one_modality() -> None:
    names = [name for group in EXTENSIONS.values() for name in group]
    assert len(names) == len(set(names))


def test_the_documented_codes_are_those_that_can_be_raised(repository: Path) -> None:
    sources = "".join(path.read_text() for path in sorted((repository / "mmva" / "media").rglob("*.py")))
    raised = set(re.findall(r'(?:MediaError|refusals)\(\s*"([a-z-]+)"', sources))
    raised |= set(re.findall(r'checked_format\([^)]*"([a-z-]+)"\)', sources))
    table = (repository / "docs" / "troubleshooting.md").read_text().partition("## Why an item is in quarantine")[2]
    documented = {
        code for cell in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for code in re.findall("[a-z-]+", cell)
    }
    of_other_stages = {"not-found", "access-denied", "unreadable", "outside-roots", "no-media", "no-tower"}
    assert documented - raised == of_other_stages | {"killed-worker", "timed-out"}
    assert raised <= documented
