"""Clean the text of captions."""

import unicodedata

from mmva.errors import MediaError
from mmva.media.limits import Limits

# Controls, lone surrogates and unassigned code points are dropped. Format characters (Cf) are kept: joiners are part
# of emoji and of the spelling in several scripts.
_DROPPED_CATEGORIES = frozenset({"Cc", "Cs", "Cn"})
_BYTE_ORDER_MARK = "\ufeff"
_MAX_BYTES_A_CHARACTER = 4


def clean_caption(text: str | bytes, limits: Limits | None = None) -> str:
    """Text in NFC without control characters, with each run of whitespace as one space.

    Bytes are read as UTF-8, with or without a byte order mark. Raises MediaError "not-text", "caption-too-long" or
    "empty-caption".
    """
    limit = (limits or Limits()).max_caption_characters
    if len(text) > limit * (_MAX_BYTES_A_CHARACTER if isinstance(text, bytes) else 1):
        raise MediaError("caption-too-long", f"caption of {len(text)}, over the limit of {limit} characters")
    decoded = _decode(text) if isinstance(text, bytes) else text
    if len(decoded) > limit:
        raise MediaError("caption-too-long", f"caption of {len(decoded)}, over the limit of {limit} characters")
    folded = " ".join(decoded.replace(_BYTE_ORDER_MARK, "").split())
    kept = "".join(c for c in folded if unicodedata.category(c) not in _DROPPED_CATEGORIES)
    # Dropping controls can join two spaces. NFC comes last, so that no later step can undo it.
    cleaned = unicodedata.normalize("NFC", " ".join(kept.split()))
    if not any(unicodedata.category(c) not in {"Cf", "Zs"} for c in cleaned):
        raise MediaError("empty-caption", "caption has no visible characters")
    return cleaned


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MediaError("not-text", f"caption is not UTF-8: byte {error.start} cannot be read") from error
