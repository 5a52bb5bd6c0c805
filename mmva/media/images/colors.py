"""Convert a file's colours (ICC profile, PNG gamma) to sRGB, on which encoders were trained."""

import io
from functools import lru_cache
from typing import Any, Final

import numpy as np
from PIL import Image, ImageCms

# Pillow's mode for a profile's colour space.
_MODES: Final = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
# Of 255; a profile that changes no colour by more is treated as sRGB.
_SAME: Final = 3
_SRGB_GAMMA: Final = 1 / 2.2
# Plausible values of a PNG's gamma; others are mistakes.
_GAMMAS: Final = (0.1, 5.0)


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert an image to sRGB, mode RGB or RGBA, by its profile.

    Returns it unchanged without a profile, or if that is damaged or for other channels: the picture is still usable.
    """
    if not profile:
        return image
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    plain = {"P": "RGB", "PA": "RGB", "RGBA": "RGB", "RGBX": "RGB", "LA": "L", "1": "L"}.get(image.mode, image.mode)
    transform = _transform(profile, plain)
    if transform is None:
        return image
    converted = ImageCms.applyTransform(image if image.mode == plain else image.convert(plain), transform)
    assert converted is not None
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def gamma_exponent(info: dict[Any, Any]) -> float | None:
    """Exponent that converts a PNG's levels in [0, 1] to sRGB; None if a profile applies, or no change is needed."""
    gamma = info.get("gamma")
    if not isinstance(gamma, float) or "srgb" in info or info.get("icc_profile"):
        return None
    if not _GAMMAS[0] <= gamma <= _GAMMAS[1] or abs(gamma / _SRGB_GAMMA - 1) < 0.05:
        return None
    return _SRGB_GAMMA / gamma


def with_gamma(image: Image.Image, exponent: float) -> Image.Image:
    """Raise the levels of an RGB, RGBA or L image to a power; alpha does not change."""
    levels = [round(255 * (level / 255) ** exponent) for level in range(256)]
    colours = len(image.getbands()) - image.mode.endswith("A")
    return image.point(levels * colours + list(range(256)) * (len(image.getbands()) - colours))


@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform from the profile to sRGB; None if it changes nothing or is not possible."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if _MODES.get(source.profile.xcolor_space) != mode:
            return None
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            # The optimization loses dark levels of greys.
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION | (ImageCms.Flags.NOOPTIMIZE if mode == "L" else 0),
        )
        return None if mode != "CMYK" and _changes_nothing(transform, mode) else transform
    except Exception:  # noqa: BLE001 - broken profiles raise anything; the picture itself is sound
        return None


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    steps = np.linspace(0, 255, 16, dtype=np.uint8)
    grid_NC = np.stack(np.meshgrid(*[steps] * (3 if mode == "RGB" else 1)), axis=-1)
    grid_HWC = grid_NC.reshape(16, -1, 3) if mode == "RGB" else grid_NC.reshape(1, -1)
    grid = Image.fromarray(grid_HWC)
    converted = ImageCms.applyTransform(grid, transform)
    assert converted is not None
    difference = np.asarray(converted).astype(int) - np.asarray(grid.convert("RGB")).astype(int)
    return int(np.abs(difference).max()) <= _SAME
