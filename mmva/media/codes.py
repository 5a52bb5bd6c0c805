"""The codes of all MediaErrors in decoding, by which users group quarantined items.

The meaning of a code never changes; a new cause gets a new code. Messages may change at any time.
"""

from typing import Final

MEDIA_ERROR_CODES: Final[dict[str, str]] = {
    "empty-file": "the file has no bytes",
    "too-many-bytes": "the file is larger than Limits.max_bytes",
    "not-an-image": "the bytes are not in a supported image format, regardless of the file's name",
    "corrupt-image": "an image that its decoder refuses: truncated, damaged, or a rare variant",
    "unsupported-image": "a known format or variant that is not supported: JPEG XL, some HEIC and TIFF",
    "too-many-pixels": "width x height in the header exceeds Limits.max_pixels; nothing was decoded",
    "not-audio": "the bytes are not in a supported audio format, regardless of the file's name",
    "corrupt-audio": "audio that its decoder refuses, in the header or later",
    "truncated-audio": "the header promises more sound than the file contains",
    "no-sound": "no audio stream, no channels or no samples",
    "too-long": "audio or video lasts longer than Limits.max_duration_s",
    "too-short": "audio lasts less than Limits.min_duration_s",
    "cancelling-channels": "the channels have sound, but their sum is silent: one is the other's inverse",
    "unsupported-audio": "an unknown codec, or a sample rate or a number of channels outside Limits",
    "non-finite-samples": "NaN or infinite samples",
    "samples-out-of-range": "samples far beyond full scale (Limits.max_peak): not audio in [-1, 1]",
    "not-video": "the bytes are not in a supported video format, regardless of the file's name",
    "corrupt-video": "a video whose container or pictures the decoder refuses",
    "truncated-video": "the header promises a longer video than the file contains",
    "unsupported-video": "pictures in a codec that the decoder does not know",
    "no-track": "a video file with neither pictures nor sound",
    "empty-caption": "no visible character is left after cleaning",
    "caption-too-long": "more text than Limits.max_caption_characters",
    "not-text": "the bytes of a caption are not UTF-8",
}
