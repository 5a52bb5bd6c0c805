"""Inspects the media files of an import: reads, hashes and decodes each once, and finds repeated content."""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final, NamedTuple

import numpy as np
import soundfile
from numpy.typing import NDArray

from mmva.errors import MediaError
from mmva.files import sha256_hex
from mmva.media.audio.decode import probe_audio, stream_audio
from mmva.media.formats import sniff
from mmva.media.images.decode import decode_image
from mmva.modalities import AXES, Modality
from mmva_platform.datasets.importing.candidates import Candidate
from mmva_platform.datasets.importing.report import Finding
from mmva_platform.storage import StorageNotFound

# The same bytes under two ids are one item if their labels differ by at most this; otherwise no label is trusted.
DUPLICATE_TOLERANCE: Final = 0.05
MISSING_FILE: Final = "missing-file"
_SHORT_S: Final = 0.05  # may be missing from the last clip of a song, because codecs trim


@dataclass(frozen=True)
class Inspected:
    """A candidate with its digest and format, or with the error that drops it."""

    candidate: Candidate
    sha256: str
    media_format: str
    code: str = ""
    detail: str = ""

    def row(self, split: str) -> dict[str, Any]:
        """The row of LABELS_SCHEMA, in this split."""
        names = ("id", "source", "modality", "group", *AXES, "valence_sd", "arousal_sd", "caption")
        values = {name: getattr(self.candidate, name) for name in names}
        values |= {name: None for name in ("valence_sd", "arousal_sd") if math.isnan(values[name])}
        return values | {"split": split, "media_format": self.media_format, "sha256": self.sha256}


def check_decodes(modality: Modality, data: bytes) -> None:
    """Decode media to the end and discard the result. Raises MediaError if that fails."""
    if modality == "image":
        decode_image(data)
    else:
        for _ in stream_audio(data, probe_audio(data).sample_rate):  # at its own rate: nothing is resampled
            pass


class Part(NamedTuple):
    """The bytes of a file, and the part of it that an item is, in seconds; 0 to 0 for the whole file."""

    data: bytes
    start_s: float
    end_s: float


class MediaChecker:
    """Decodes items of one modality to the end, and cuts clips out of songs; caches the last decoded song."""

    def __init__(self, modality: Modality) -> None:
        self._modality = modality
        self._song: tuple[bytes, NDArray[np.int16], int] = (b"", np.zeros(0, np.int16), 1)

    def __call__(self, part: Part) -> bytes | None:
        """The clip as a WAV file; None if the item is the whole file.

        Raises MediaError if the file does not decode, or the song is shorter than the clip's end.
        """
        if part.end_s <= part.start_s:
            check_decodes(self._modality, part.data)
            return None
        if part.data != self._song[0]:
            self._song = _decoded_song(part.data)
        _, samples_T, rate = self._song
        if len(samples_T) < (part.end_s - _SHORT_S) * rate:
            raise MediaError("too-short", f"{len(samples_T) / rate:.2f} s; the clip ends at {part.end_s:g} s")
        return wav_bytes(samples_T[round(part.start_s * rate) : round(part.end_s * rate)], rate)


def _decoded_song(data: bytes) -> tuple[bytes, NDArray[np.int16], int]:
    rate = probe_audio(data).sample_rate  # at its own rate: nothing is resampled
    blocks = [np.round(np.clip(block_T, -1, 1) * 32_767).astype(np.int16) for block_T in stream_audio(data, rate)]
    return data, np.concatenate(blocks), rate


def wav_bytes(samples_T: NDArray[np.int16], rate: int) -> bytes:
    """A WAV file of one channel."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples_T, rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def inspect_sentence(candidate: Candidate) -> Inspected:
    """Inspect a sentence, which was cleaned when its table was read; the digest is that of its text."""
    return Inspected(candidate, sha256_hex(candidate.caption.encode()), "")


def inspect(
    candidate: Candidate, read: Callable[[], bytes], check: Callable[[Part], bytes | None]
) -> tuple[Inspected, bytes]:
    """Hash and decode the file of a candidate; returns the result, and the bytes of the file or of the clip.

    `check`: see MediaChecker. Raises StorageError if the file exists but cannot be read.
    """
    try:
        data = read()
    except StorageNotFound as error:
        if error.environment:
            raise
        return Inspected(candidate, "", "", MISSING_FILE, f"{candidate.path} vanished during the import"), b""
    try:
        clip = check(Part(data, candidate.start_s, candidate.end_s))
    except MediaError as error:
        sha256 = sha256_hex(data)
        return Inspected(candidate, sha256, "", error.code, f"{candidate.path}: {error}"), data
    data = data if clip is None else clip
    return Inspected(candidate, sha256_hex(data), sniff(data) or ""), data


def settle(inspected: Sequence[Inspected]) -> tuple[list[Inspected], list[Finding]]:
    """Keep rows that decode: one for each content within a modality, or none if the labels of a content disagree.

    Returns the kept rows, sorted by their place in the dataset, and a finding for each of the others.
    """
    kept: list[Inspected] = []
    findings = [_finding(entry, entry.code, entry.detail) for entry in inspected if entry.code]
    decoded = [entry for entry in inspected if not entry.code]
    decoded.sort(key=lambda entry: (entry.candidate.modality, entry.sha256, entry.candidate.id))
    for _, same_content in groupby(decoded, key=lambda entry: (entry.candidate.modality, entry.sha256)):
        first, *others = group = list(same_content)
        va_N2 = np.array([(entry.candidate.valence, entry.candidate.arousal) for entry in group])
        spread = float(np.ptp(va_N2, axis=0).max())
        if spread <= DUPLICATE_TOLERANCE:
            kept.append(first)
            detail = f"same content as {first.candidate.id!r}"
            findings += [_finding(entry, "duplicate-content", detail) for entry in others]
        else:
            ids = ", ".join(repr(entry.candidate.id) for entry in group)
            detail = f"{ids} have the same content, their labels are {spread:.3f} apart"
            findings += [_finding(entry, "contradicting-duplicate", detail) for entry in group]
    findings.sort(key=lambda found: (found.modality, found.id, found.code))
    return sorted(kept, key=lambda entry: entry.candidate.place), findings


def _finding(entry: Inspected, code: str, detail: str) -> Finding:
    candidate = entry.candidate
    return Finding(candidate.modality, code, candidate.id, detail, dropped=1, source=candidate.collection)
