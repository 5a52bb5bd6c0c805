"""What an import sees of each media file, which is read, hashed and decoded once, and of content that occurs twice."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

import numpy as np

from mmva.errors import MediaError
from mmva.media.formats import sniff
from mmva.modalities import AXES, Modality
from mmva_platform.datasets.candidates import Candidate
from mmva_platform.datasets.report import Finding
from mmva_platform.storage import StorageNotFound

# The same bytes under two ids are one item if their labels agree to this; otherwise their label is unknown.
DUPLICATE_TOLERANCE: Final = 0.05
MISSING_FILE: Final = "missing-file"


@dataclass(frozen=True)
class Inspected:
    """What was seen of a candidate: its digest and format, or the error that drops it."""

    candidate: Candidate
    sha256: str
    media_format: str
    code: str = ""
    detail: str = ""

    def row(self, split: str) -> dict[str, Any]:
        """The row of LABELS_SCHEMA, in this split."""
        names = ("id", "source", "modality", "group", *AXES, "caption")
        return {
            **{name: getattr(self.candidate, name) for name in names},
            "split": split,
            "media_format": self.media_format,
            "sha256": self.sha256,
        }


def check_decodes(modality: Modality, data: bytes) -> None:
    """Decode media to the end and forget the result.

    Raises:
        MediaError: If that fails.
    """
    if modality == "image":
        from mmva.media.images import decode_image

        decode_image(data)
    else:
        from mmva.media.audio import probe_audio, stream_audio

        for _ in stream_audio(data, probe_audio(data).sample_rate):  # at its own rate: nothing is resampled
            pass


def inspect(
    candidate: Candidate, read: Callable[[], bytes], check: Callable[[bytes], object]
) -> tuple[Inspected, bytes]:
    """Hash and decode the file of a candidate.

    Args:
        candidate: Of an import.
        read: Gives the bytes of its file.
        check: Decodes them; raises MediaError if that fails.

    Returns:
        What was seen, and the bytes of the file.

    Raises:
        StorageError: If the file cannot be read for another reason than that it is missing.
    """
    try:
        data = read()
    except StorageNotFound as error:
        if error.environment:
            raise
        return Inspected(candidate, "", "", MISSING_FILE, f"{candidate.path} vanished during the import"), b""
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        check(data)
    except MediaError as error:
        return Inspected(candidate, sha256, "", error.code, f"{candidate.path}: {error}"), data
    return Inspected(candidate, sha256, sniff(data) or ""), data


def settle(inspected: Sequence[Inspected]) -> tuple[list[Inspected], list[Finding]]:
    """Decide what stays: what decodes, and of each content within a modality one, or none if its labels disagree.

    Returns:
        The kept ones, sorted by modality and id, and a finding for each of the others.
    """
    kept: list[Inspected] = []
    findings = [_finding(entry, entry.code, entry.detail) for entry in inspected if entry.code]
    for group in _same_content([entry for entry in inspected if not entry.code]):
        first, *others = group
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
    return sorted(kept, key=_by_id), sorted(findings, key=lambda found: (found.modality, found.id, found.code))


def _same_content(inspected: Sequence[Inspected]) -> Iterator[list[Inspected]]:
    def content(entry: Inspected) -> tuple[str, str]:
        return entry.candidate.modality, entry.sha256

    for _, group in groupby(sorted(inspected, key=lambda entry: (*content(entry), entry.candidate.id)), key=content):
        yield list(group)


def _by_id(entry: Inspected) -> tuple[str, str]:
    return entry.candidate.modality, entry.candidate.id


def _finding(entry: Inspected, code: str, detail: str) -> Finding:
    return Finding(entry.candidate.modality, code, entry.candidate.id, detail, dropped=1)
