"""Pixels with more than 8 bits: correct how Pillow reads TIFF's planes and byte orders, and convert greys to 8 bits."""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from mmva.errors import MediaError

# TIFF tags (TIFF 6.0).
_BITS, _POLARITY, _PLANES, _SAMPLE_FORMAT = 258, 262, 284, 339
_WHITE_IS_ZERO, _SEPARATE, _UNSIGNED, _SIGNED = 0, 2, 1, 2
# White levels of 32-bit integers: the smallest one that no pixel exceeds is used.
_INTEGER_WHITES: Final = (255.0, 65_535.0, 2**31 - 1.0, 2**32 - 1.0)
# Floats are 0 to 1, or converted integers of 0 to 255 or 65,535. Few highlights exceed 1.
_FLOAT_WHITES: Final = (1.0, 255.0, 65_535.0)
_HIGHLIGHTS: Final = 0.01
# The brightest pixels of a plausible picture exceed this share of its white.
_PLAUSIBLE: Final = 1 / 16
# libtiff returns numbers in the machine's byte order, but Pillow swaps these again.
_NATIVE: Final = {"F;32BF": "F;32NF", "I;16BS": "I;16NS", "I;32BS": "I;32NS", "F;64BF": "F;64NF"}


def correct_tiles(image: Image.Image) -> None:
    """Correct how Pillow reads an opened TIFF with planes of 16 bits or with floats."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return
    tags = image.tag_v2
    deep = tags.get(_PLANES) == _SEPARATE and set(tags.get(_BITS, ())) == {16}
    order = "B" if tags.prefix == b"MM" else "L"
    corrected = []
    for tile in image.tile:
        arguments = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        mode = str(arguments[0])
        if tile.codec_name == "raw" and deep and mode in tuple("RGBACMYK"):
            if image.mode not in {"RGB", "RGBA"}:
                raise MediaError("unsupported-image", f"TIFF of separate planes of 16 bits in {image.mode}")
            mode = f"{mode};16{order}"
        elif tile.codec_name == "libtiff":
            mode = _NATIVE.get(mode, mode)
        corrected.append(tile._replace(args=(mode, *arguments[1:])))
    image.tile = corrected


def is_deep(image: Image.Image) -> bool:
    """Whether a decoded image has greys of 16 or 32 bits or floats."""
    return image.mode.startswith("I") or image.mode == "F"


def grey_levels(image: Image.Image, exponent: float | None = None) -> Image.Image:
    """Convert greys of 16 or 32 bits or floats to mode L, scaled by their white level; Pillow would clip them.

    `exponent` is applied to the levels in [0, 1], for instance of linear light. Raises MediaError "corrupt-image" for
    NaN or infinite pixels, and "unsupported-image" for floats with an unusual range.
    """
    grey_HW, white = _numbers_and_white(image)
    if not np.isfinite(grey_HW).all():
        raise MediaError("corrupt-image", "pixels that are NaN or infinite")
    if white is None:
        white = _white_of_floats(grey_HW) if image.mode == "F" else _smallest(float(grey_HW.max()), _INTEGER_WHITES)
    grey_HW *= 255 / white
    if _tag(image, _POLARITY) == _WHITE_IS_ZERO:
        np.subtract(255, grey_HW, out=grey_HW)
    np.clip(grey_HW, 0, 255, out=grey_HW)  # in place, because such images are large
    if exponent is not None:
        np.power(grey_HW, exponent, out=grey_HW)
        grey_HW *= 255 ** (1 - exponent)
    np.rint(grey_HW, out=grey_HW)
    return Image.fromarray(grey_HW.astype(np.uint8))


def _numbers_and_white(image: Image.Image) -> tuple[NDArray[np.float32], float | None]:
    """Pixels as float32, and their white level if the pixel type defines it."""
    if image.mode.startswith("I;16"):
        return np.array(image, np.float32), 65_535.0
    bits, sample_format = _tag(image, _BITS), _tag(image, _SAMPLE_FORMAT) or _UNSIGNED
    if image.mode == "I" and bits == 16 and sample_format == _SIGNED:
        return np.array(image, np.float32), 32_767.0
    if image.mode == "I" and bits == 32 and sample_format == _UNSIGNED:  # Pillow stores them as signed
        return np.asarray(image).view(np.uint32).astype(np.float32), None
    return np.array(image, np.float32), None


def _white_of_floats(grey_HW: NDArray[np.float32]) -> float:
    """The white level, ignoring the brightest hundredth: a few highlights above 1 do not mean a range of 0 to 255."""
    ordinary = float(np.quantile(grey_HW, 1 - _HIGHLIGHTS, method="lower"))
    white = _smallest(ordinary, _FLOAT_WHITES)
    if white > 1 and ordinary < _PLAUSIBLE * white:
        raise MediaError("unsupported-image", f"float pixels up to {ordinary:.3g}, neither 0 to 1 nor 0 to {white:g}")
    return white


def _smallest(brightest: float, whites: tuple[float, ...]) -> float:
    return next((white for white in whites if brightest <= white), brightest)


def _tag(image: Image.Image, number: int) -> int | None:
    """The first value of a TIFF tag."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return None
    value = image.tag_v2.get(number)
    value = value[0] if isinstance(value, tuple) and value else value
    return value if isinstance(value, int) else None
