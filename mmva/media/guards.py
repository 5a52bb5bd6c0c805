"""Checks before decoding (size and real format), and conversion of a decoder's errors to MediaErrors."""

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Final

from mmva.errors import MediaError
from mmva.media.formats import sniff
from mmva.media.limits import Limits

# By class name of FFmpeg's error, so that PyAV is not imported for pictures.
_FFMPEG_REASONS: Final = {
    "InvalidDataError": "it is damaged or not of this format",
    "EOFError": "it ends too early",
    "PatchWelcomeError": "it uses a feature that is not supported",
}
_ADDRESS: Final = re.compile(r"<_io\.BytesIO object at 0x[0-9a-f]+>")


def checked_format(data: bytes, limits: Limits, accepted: Collection[str], refusal: str) -> str:
    """Format of the bytes. Raises MediaError "empty-file", "too-many-bytes", or `refusal` if it is not `accepted`."""
    if not data:
        raise MediaError("empty-file", "the file has no bytes")
    if len(data) > limits.max_bytes:
        raise MediaError("too-many-bytes", f"{len(data):,} bytes, over the limit of {limits.max_bytes:,}")
    kind = sniff(data)
    if kind is None or kind not in accepted:
        raise MediaError(refusal, f"{kind or 'unrecognised'} data; supported: {', '.join(accepted)}")
    return kind


@contextmanager
def refusals(code: str, kind: str) -> Iterator[None]:
    """Turn any exception of a third-party decoder into a MediaError with this code.

    Put only the decoder's calls inside: our own bugs must keep their traceback.
    """
    try:
        yield
    except MediaError:
        raise
    except Exception as error:  # hostile bytes raise anything: OSError, struct.error, SyntaxError, ZeroDivisionError...
        raise MediaError(code, f"{kind} data that cannot be decoded: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """One line, without error numbers and addresses in memory."""
    if type(error).__module__.startswith("av."):
        known = _FFMPEG_REASONS.get(type(error).__name__)
        return known or str(getattr(error, "strerror", None) or "it is invalid").rstrip(".").lower()
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return " ".join(_ADDRESS.sub("", text).split()) or type(error).__name__
