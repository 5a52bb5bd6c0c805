"""Pictures in odd files: the pixels are those of the plain file, or the refusal has a code of its own."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from mmva.errors import MediaError
from mmva.media.content import modality_of_content
from mmva.media.images.colors import to_srgb
from mmva.media.images.decode import decode_image
from mmva.media.limits import Limits

from ...helpers.made_pictures import (
    ADOBE_RGB,
    DISPLAY_P3,
    box,
    chunk,
    encoded,
    grey_profile,
    heic,
    png_with,
    profile_with,
    scene,
    srgb_levels,
    srgb_profile,
    to_linear_srgb_33,
)

SCENE = scene()
PIXELS = np.asarray(SCENE)
GREY = np.tile(np.linspace(0, 255, 96).astype(np.uint8), (64, 1))


def largest_difference(data: bytes, wanted: Any) -> int:
    wanted_HWC = np.asarray(wanted)
    found_HWC = np.asarray(decode_image(data, at_least=None))
    if wanted_HWC.ndim == 2:
        wanted_HWC = np.repeat(wanted_HWC[:, :, None], 3, axis=2)
    assert found_HWC.shape == wanted_HWC.shape
    return int(np.abs(found_HWC.astype(int) - wanted_HWC.astype(int)).max())


def refusal(data: bytes, **limits: int) -> str:
    with pytest.raises(MediaError) as caught:
        decode_image(data, Limits(**limits))
    assert "\n" not in str(caught.value)
    assert "Errno" not in str(caught.value)
    assert "0x" not in str(caught.value)
    return caught.value.code


# Colour.


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "AVIF"])
@pytest.mark.parametrize(("primaries", "gamma"), [(DISPLAY_P3, 2.2), (ADOBE_RGB, 2.19921875)], ids=["P3", "Adobe"])
def test_a_profile_is_converted_to_srgb(kind: str, primaries: list[tuple[float, float]], gamma: float) -> None:
    best: dict[str, dict[str, object]] = {
        "JPEG": {"quality": 100, "subsampling": 0},
        "WEBP": {"lossless": True},
        "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    }
    data = encoded(SCENE, kind, icc_profile=profile_with(primaries, gamma), **best.get(kind, {}))
    linear_HWC = (PIXELS / 255) ** gamma @ to_linear_srgb_33(primaries).T
    assert np.abs(srgb_levels(linear_HWC) - PIXELS).max() > 20  # else the profile would not matter
    wanted_HWC = np.rint(srgb_levels(linear_HWC))
    if kind in best and kind != "WEBP":  # the codec's noise is enlarged where the curve is steep
        assert np.abs(np.asarray(decode_image(data)) - wanted_HWC).mean() < 1.5
    else:
        assert largest_difference(data, wanted_HWC) <= 3


@pytest.mark.parametrize("mode", ["RGBA", "P", "RGB-key"])
def test_a_profile_and_transparency_go_together(mode: str) -> None:
    profile = profile_with(DISPLAY_P3, 2.2)
    image = Image.new("RGBA", (8, 8), (200, 60, 40, 128))
    if mode == "P":
        image = Image.new("P", (8, 8), 1)
        image.putpalette([9, 9, 9, 200, 60, 40])
    if mode == "RGB-key":
        image = Image.new("RGB", (8, 8), (200, 60, 40))
    options: dict[str, Any] = {"transparency": (1, 2, 3)} if mode == "RGB-key" else {}
    colour_3 = srgb_levels((np.array([200, 60, 40]) / 255) ** 2.2 @ to_linear_srgb_33(DISPLAY_P3).T)
    alpha = 128 / 255 if mode == "RGBA" else 1
    wanted = np.full((8, 8, 3), np.rint(alpha * colour_3 + (1 - alpha) * 255))
    assert largest_difference(encoded(image, icc_profile=profile, **options), wanted) <= 3


def test_a_grey_profile_is_converted_too() -> None:
    wanted = srgb_levels((GREY / 255) ** 1.0)
    assert largest_difference(encoded(Image.fromarray(GREY), icc_profile=grey_profile(1.0)), np.rint(wanted)) <= 2
    deep = encoded(Image.fromarray(GREY.astype(np.uint16) * 257), icc_profile=grey_profile(1.0))
    assert largest_difference(deep, np.rint(wanted)) <= 2


def test_srgb_and_profiles_that_do_not_apply_leave_the_pixels_alone() -> None:
    damaged = profile_with(DISPLAY_P3, 2.2)[:200]
    for profile in (srgb_profile(), damaged, grey_profile(1.8), b"no profile", bytes(4000)):
        assert largest_difference(encoded(SCENE, icc_profile=profile), SCENE) == 0
        assert to_srgb(SCENE, profile) is SCENE  # nothing is computed for them either


@pytest.mark.parametrize("gamma", [1.0, 1 / 1.8])
@pytest.mark.parametrize("deep", [False, True])
def test_png_gamma_is_brought_to_that_of_screens(gamma: float, *, deep: bool) -> None:
    image = Image.fromarray(GREY.astype(np.uint16) * 257) if deep else SCENE
    wanted = 255 * (np.asarray(GREY if deep else PIXELS) / 255) ** (1 / (2.2 * gamma))
    data = png_with(chunk(b"gAMA", struct.pack(">I", round(gamma * 100_000))), image)
    assert largest_difference(data, np.rint(wanted)) <= 1


@pytest.mark.parametrize("written", [45_455, 0, 7, 2**31 - 1])
def test_usual_and_senseless_gamma_change_nothing(written: int) -> None:
    assert largest_difference(png_with(chunk(b"gAMA", struct.pack(">I", written))), SCENE) == 0


def test_srgb_chunk_overrides_gamma() -> None:
    chunks = chunk(b"sRGB", b"\0") + chunk(b"gAMA", struct.pack(">I", 100_000))
    assert largest_difference(png_with(chunks), SCENE) == 0


# Metadata and lost ends.

LONG = zlib.compress(b"prompt, " * 300_000)
TEXTS = {
    "zTXt of 2 MB": chunk(b"zTXt", b"workflow\0\0" + LONG),
    "iTXt of 2 MB": chunk(b"iTXt", b"workflow\0\1\0\0\0" + LONG),
    "tEXt of 70 MB in pieces": chunk(b"tEXt", b"parameters\0" + b"x" * 1_000_000) * 70,
    "damaged text": chunk(b"tEXt", b"Comment\0hello", damaged=True),
    "text that is no zlib": chunk(b"zTXt", b"Comment\0\0" + b"\xff" * 50),
    "damaged time": chunk(b"tIME", bytes(7), damaged=True),
    "damaged profile": chunk(b"iCCP", b"x\0\0" + zlib.compress(b"no profile"), damaged=True),
    "damaged gamma": chunk(b"gAMA", struct.pack(">I", 100_000), damaged=True),
    "private chunk": chunk(b"prVt", bytes(100), damaged=True),
    "damaged EXIF": chunk(b"eXIf", b"MM\0*\0\0\0\x08\xff\xff" + bytes(30), damaged=True),
}


@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize("name", TEXTS)
def test_metadata_does_not_cost_a_png(name: str, *, at_end: bool) -> None:
    assert largest_difference(png_with(TEXTS[name], at_end=at_end), SCENE) == 0


def test_damaged_pixels_of_a_png_are_refused() -> None:
    data = bytearray(encoded(scene(200, 200)))
    at = data.index(b"IDAT")
    data[at + 60] ^= 0x55
    assert refusal(bytes(data)) == "corrupt-image"


def test_metadata_that_matters_survives() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(SCENE.transpose(Image.Transpose.ROTATE_90), exif=exif)
    place = data.index(b"IDAT") - 4
    assert largest_difference(data[:place] + TEXTS["zTXt of 2 MB"] + data[place:], SCENE) == 0


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (160, 128, 3), np.uint8))


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}], ids=str
)
@pytest.mark.parametrize("cut", [1, 2])
def test_a_jpeg_without_its_end_marker_is_whole(options: dict[str, Any], cut: int) -> None:
    data = encoded(NOISE, "JPEG", **options)
    assert largest_difference(data[:-cut], decode_image(data, at_least=None)) == 0


@pytest.mark.parametrize("cut", [3, 10, 60])
def test_a_jpeg_that_lacks_under_two_percent_of_its_pixels_is_read(cut: int) -> None:
    data = encoded(NOISE, "JPEG")
    whole, cut_off = (np.asarray(decode_image(part, at_least=None)) for part in (data, data[:-cut]))
    assert (whole != cut_off).any(axis=2).mean() <= 0.02


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}], ids=str)
def test_a_jpeg_that_lacks_more_is_refused_at_every_length(options: dict[str, Any]) -> None:
    """Cut between the scans of a progressive JPEG, a blurred whole is left, which is not the picture either."""
    data = encoded(NOISE, "JPEG", **options)
    scans = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"]
    restarts = [at for at in range(int(0.9 * len(data))) if data[at] == 0xFF and 0xD0 <= data[at + 1] <= 0xD7]
    cuts = {*range(700, int(0.96 * len(data)), 997), *(at - 1 for at in scans), *scans[1:], *restarts}
    for cut in sorted(cuts):
        assert refusal(data[:cut]) == "corrupt-image"


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PNG"])
def test_other_pictures_without_their_last_byte_are_whole(kind: str) -> None:
    data = encoded(SCENE, kind)
    found, wanted = (np.asarray(decode_image(part)).astype(int) for part in (data[:-1], data))
    assert (found != wanted).any(axis=2).mean() <= 0.02


# TIFF.

RGB16 = PIXELS.astype(np.uint16) * 257
GREY16 = GREY.astype(np.uint16) * 257
FLOAT = GREY.astype(np.float32) / 255
SPIKED = FLOAT.copy()
SPIKED[0, 0] = 40.0
PLANES = np.moveaxis(RGB16, 2, 0)
ALPHA = np.dstack([RGB16, np.full_like(GREY16, 65_535)])
TIFFS: dict[str, tuple[np.ndarray, dict[str, Any], np.ndarray]] = {
    "rgb of 16 bits": (RGB16, {"photometric": "rgb"}, PIXELS),
    "planes of 16 bits": (PLANES, {"photometric": "rgb", "planarconfig": "separate"}, PIXELS),
    "planes of 8 bits": (np.moveaxis(PIXELS, 2, 0), {"photometric": "rgb", "planarconfig": "separate"}, PIXELS),
    "planes in tiles": (PLANES, {"photometric": "rgb", "planarconfig": "separate", "tile": (16, 16)}, PIXELS),
    "planes with alpha": (
        np.moveaxis(ALPHA, 2, 0),
        {"photometric": "rgb", "planarconfig": "separate", "extrasamples": ["unassalpha"]},
        PIXELS,
    ),
    "white is zero, 8 bits": (255 - GREY, {"photometric": "miniswhite"}, GREY),
    "white is zero, 16 bits": (65_535 - GREY16, {"photometric": "miniswhite"}, GREY),
    "white is zero, floats": (1 - FLOAT, {"photometric": "miniswhite"}, GREY),
    "16 bits": (GREY16, {"photometric": "minisblack"}, GREY),
    "signed 16 bits": ((GREY16 // 2).astype(np.int16), {"photometric": "minisblack"}, GREY),
    "32 bits": (GREY16.astype(np.uint32) * 65_537, {"photometric": "minisblack"}, GREY),
    "floats": (FLOAT, {"photometric": "minisblack"}, GREY),
    "floats with a highlight": (SPIKED, {"photometric": "minisblack"}, np.where(SPIKED > 1, 255, GREY)),
    "floats of 0 to 255": (GREY.astype(np.float32), {"photometric": "minisblack"}, GREY),
    "floats of 0 to 65,535": (GREY16.astype(np.float32), {"photometric": "minisblack"}, GREY),
    "doubles": (FLOAT.astype(np.float64), {"photometric": "minisblack"}, GREY),
    "floats of colour": (PIXELS.astype(np.float32) / 255, {"photometric": "rgb"}, PIXELS),
}
# What Pillow reads in one byte order or not at all: refused, never shown wrongly.
UNREAD = {"white is zero, 16 bits", "32 bits", "doubles", "floats of colour"}


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("name", TIFFS)
def test_tiff_numbers_are_read_rightly_or_refused(name: str, order: str, compression: str | None) -> None:
    pixels, options, wanted = TIFFS[name]
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, byteorder=order, compression=compression, **options)
    if name in UNREAD and (order == ">" or name in {"doubles", "floats of colour"}):
        assert refusal(buffer.getvalue()) == "corrupt-image"
    else:
        assert largest_difference(buffer.getvalue(), wanted) <= 1


def test_floats_of_no_usual_range_are_refused() -> None:
    assert refusal(encoded(Image.fromarray(FLOAT * 3), "TIFF")) == "unsupported-image"


# HEIC, AVIF, JPEG XL.

ROTATED = {1: Image.Transpose.ROTATE_90, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_270}


@pytest.mark.parametrize("tile", [None, (32, 32), (64, 48)])
def test_heic_has_the_pixels_of_the_picture(tile: tuple[int, int] | None) -> None:
    data = heic(SCENE, tile)
    assert largest_difference(data, SCENE) <= 3  # of YCbCr and back
    assert modality_of_content(data) == "image"
    assert refusal(data, max_pixels=96 * 64 - 1) == "too-many-pixels"


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("tile", [None, (32, 32)])
def test_heic_is_turned_mirrored_and_cropped_in_the_order_of_the_file(turns: int, tile: tuple[int, int] | None) -> None:
    crop = box(b"clap", struct.pack(">8i", 61, 1, 40, 1, -13, 2, 4, 1))
    mirror, turn = box(b"imir", b"\1"), box(b"irot", bytes([turns]))
    left, top = round((96 - 61) / 2 - 13 / 2), (64 - 40) // 2 + 4
    cropped = SCENE.crop((left, top, left + 61, top + 40))
    flip = Image.Transpose.FLIP_LEFT_RIGHT
    assert largest_difference(heic(SCENE, tile, [turn]), SCENE.transpose(ROTATED[turns])) <= 3
    assert largest_difference(heic(SCENE, tile, [crop, turn]), cropped.transpose(ROTATED[turns])) <= 3
    wanted = SCENE.transpose(ROTATED[turns]).transpose(flip)
    assert largest_difference(heic(SCENE, tile, [turn, mirror]), wanted) <= 3


def test_heic_with_the_profile_of_a_phone_is_converted() -> None:
    profile = box(b"colr", b"prof", profile_with(DISPLAY_P3, 2.2))
    linear_HWC = (PIXELS / 255) ** 2.2 @ to_linear_srgb_33(DISPLAY_P3).T
    for tile in (None, (32, 32)):
        found_HWC = np.asarray(decode_image(heic(SCENE, tile, [profile])))
        assert np.abs(found_HWC - srgb_levels(linear_HWC)).mean() < 1.5


@pytest.mark.parametrize(
    "data",
    [
        heic(SCENE, properties=[box(b"colr", b"nclx", struct.pack(">HHHB", 9, 16, 9, 0x80))]),
        heic(SCENE, properties=[box(b"lsel", bytes(2))]),
        heic(SCENE, kind=b"av01"),
        b"\xff\x0a" + bytes(100),
        b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(100),
    ],
    ids=["HDR", "unknown property", "another codec", "JPEG XL", "JPEG XL in boxes"],
)
def test_what_would_be_shown_wrongly_is_refused_by_name(data: bytes) -> None:
    assert refusal(data) == "unsupported-image"
    assert modality_of_content(data) == "image"


def test_a_small_heic_cannot_ask_for_much_work() -> None:
    """A grid of 1 x 64 pixels whose one tile is larger than the limit; an item of many overlapping pieces."""
    data = heic(SCENE, (96, 64))
    assert largest_difference(data, SCENE) <= 3
    grid = struct.pack(">BBBBHH", 0, 0, 0, 0, 96, 64)
    narrow = data.replace(grid, struct.pack(">BBBBHH", 0, 0, 0, 0, 1, 1))
    assert decode_image(narrow).size == (1, 1)
    assert refusal(narrow, max_pixels=96 * 64 // 2 - 1) == "too-many-pixels"
    at = data.index(b"iloc") + 8 + 2 + 2 + 6
    length = struct.unpack_from(">I", data, at + 6)[0]
    longer = data[: at + 6] + struct.pack(">I", length + len(data)) + data[at + 10 :]
    assert refusal(longer) == "corrupt-image"


@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.9])
def test_truncated_heic_is_corrupt(share: float) -> None:
    data = heic(SCENE, (32, 32))
    assert refusal(data[: round(share * len(data))]) == "corrupt-image"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "AVIF", "GIF", "BMP"])
def test_pictures_are_told_by_their_bytes(kind: str) -> None:
    assert modality_of_content(encoded(SCENE, kind)) == "image"
