"""Image bytes to upright RGB, as a person would see the picture on white paper."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from mmva.errors import MediaError
from mmva.media.formats import IMAGE_FORMATS
from mmva.media.guards import checked_format, refusals
from mmva.media.limits import Limits

# Pixels that image encoders take. Training and service decode alike, so it is the default of both.
SHORT_SIDE: Final = 224
# White levels of integer and float images by depth: the smallest that holds every pixel is taken.
_WHITE_LEVELS = (1.0, 255.0, 65_535.0, 2**31 - 1.0, 2**32 - 1.0)


def decode_image(data: bytes, limits: Limits | None = None, at_least: int | None = SHORT_SIDE) -> Image.Image:
    """Decode the first frame of an image to mode RGB.

    EXIF orientation is applied, transparency is laid on white, CMYK, palette, 1-bit, 16-bit and float images are
    brought to 8 bits. Format, size in bytes and width x height are checked before any pixel is decoded.

    Args:
        data: The encoded file.
        limits: Limits of an item; the defaults if None.
        at_least: Short side in pixels that the caller needs. A larger JPEG is then decoded at 1/2, 1/4 or 1/8 of its
            size, never below this; other formats, and None, are decoded in full.

    Raises:
        MediaError: "empty-file", "too-many-bytes", "not-an-image", "too-many-pixels" or "corrupt-image".
    """
    limits = limits or Limits()
    kind = checked_format(data, limits, IMAGE_FORMATS, "not-an-image")
    with _pillow_at_work(kind), Image.open(io.BytesIO(data), formats=[kind.upper()]) as image:
        width, height = image.size
        if width * height > limits.max_pixels:
            raise MediaError("too-many-pixels", f"{width} x {height} pixels, over the limit of {limits.max_pixels:,}")
        if at_least is not None and isinstance(image, ImageFile.ImageFile):
            image.draft(None, (at_least, at_least))
        image.load()
        return _to_rgb(_upright(image))


@contextmanager
def _pillow_at_work(kind: str) -> Iterator[None]:
    """Pillow's errors as MediaErrors; its warnings kept to itself.

    Our own limit rules, not Pillow's global one, and damaged metadata is no reason to refuse a picture.
    """
    with refusals("corrupt-image", kind), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except Image.DecompressionBombError as error:
            raise MediaError("too-many-pixels", str(error)) from error
        except UnidentifiedImageError as error:
            raise MediaError(
                "corrupt-image", f"{kind} header that is damaged, or of a variant not read here"
            ) from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # noqa: BLE001 - broken EXIF raises anything; the picture itself is sound
        return image
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep_pixels(image)
    if image.mode == "La":  # premultiplied, and without a conversion of its own to RGBA
        image = image.convert("LA")
    if image.has_transparency_data:
        return _on_white(image.convert("RGBA"))
    return image.convert("RGB")


def _from_deep_pixels(image: Image.Image) -> Image.Image:
    """Greyscale of 16 or 32 bits or floats, scaled from its own white level to 8 bits; Pillow would clip it."""
    grey_HW = np.array(image, np.float32)
    if not np.isfinite(grey_HW).all():
        raise MediaError("corrupt-image", "pixels that are NaN or infinite")
    brightest = 65_535.0 if image.mode.startswith("I;16") else float(grey_HW.max())
    first = 0 if image.mode == "F" else 1
    grey_HW *= 255 / next((level for level in _WHITE_LEVELS[first:] if brightest <= level), brightest)
    np.rint(np.clip(grey_HW, 0, 255, out=grey_HW), out=grey_HW)  # in place: such images are large
    return Image.fromarray(grey_HW.astype(np.uint8)).convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    paper = Image.new("RGB", image.size, "white")
    paper.paste(image, mask=image.getchannel("A"))
    return paper
