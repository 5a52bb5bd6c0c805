"""Every cause for refusing an item in decoding: the codes by which people group a quarantine.

A code never changes its meaning; a new cause gets a new code. Messages may change at any time.
"""

from typing import Final

MEDIA_ERROR_CODES: Final[dict[str, str]] = {
    "empty-file": "the file has no bytes",
    "too-many-bytes": "the file is larger than Limits.max_bytes",
    "not-an-image": "the bytes are not one of the image formats read here, whatever the file's name says",
    "corrupt-image": "an image that its decoder refuses: truncated, damaged, or of a rare variant",
    "unsupported-image": "a known format that is not read, or not in this variant: JPEG XL, some HEIC and TIFF",
    "too-many-pixels": "width x height in the header passes Limits.max_pixels; nothing was decoded",
    "not-audio": "the bytes are not one of the audio formats read here, whatever the file's name says",
    "corrupt-audio": "audio that its decoder refuses, at its header or on the way",
    "truncated-audio": "the header promises more sound than the file holds",
    "no-sound": "no audio stream, no channels or no samples",
    "too-long": "audio or video lasts longer than Limits.max_duration_s",
    "too-short": "audio lasts less than Limits.min_duration_s",
    "cancelling-channels": "the channels hold sound, and their sum is silent: one is the other's inverse",
    "unsupported-audio": "an unknown codec, or a sample rate or a number of channels outside Limits",
    "non-finite-samples": "NaN or infinite samples",
    "samples-out-of-range": "samples far beyond full scale (Limits.max_peak): not audio in [-1, 1]",
    "not-video": "the bytes are not one of the video formats read here, whatever the file's name says",
    "corrupt-video": "a video whose container or pictures its decoder refuses",
    "truncated-video": "the header promises a longer video than the file holds",
    "unsupported-video": "pictures in a codec that the decoder does not know",
    "no-track": "a video file with neither pictures nor sound",
    "empty-caption": "no visible character is left after cleaning",
    "caption-too-long": "more text than Limits.max_caption_characters",
    "not-text": "the bytes of a caption are not UTF-8",
}
