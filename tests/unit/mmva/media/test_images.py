from __future__ import annotations

import io
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmva.errors import MediaError
from mmva.media.images.decode import decode_image
from mmva.media.limits import Limits

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def quarters() -> Image.Image:
    """40 x 20 pixels: red, green over blue, white."""
    image = Image.new("RGB", (40, 20), RED)
    image.paste(GREEN, (20, 0, 40, 10))
    image.paste(BLUE, (0, 10, 20, 20))
    image.paste(WHITE, (20, 10, 40, 20))
    return image


def near(pixel: tuple[int, ...], expected: tuple[int, ...], tolerance: int = 3) -> bool:
    return len(pixel) == len(expected) and max(abs(a - b) for a, b in zip(pixel, expected, strict=True)) <= tolerance


def png(width: int, height: int, depth: int = 8, colour_type: int = 2, body: bytes = b"") -> bytes:
    """A PNG whose header says what it is told to say."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_every_format_gives_the_same_picture(kind: str) -> None:
    best: dict[str, dict[str, object]] = {
        "JPEG": {"quality": 100, "subsampling": 0},
        "WEBP": {"lossless": True},
        "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    }
    decoded = decode_image(encoded(quarters(), kind, **best.get(kind, {})))
    assert (decoded.mode, decoded.size) == ("RGB", (40, 20))
    corners = [decoded.getpixel(xy) for xy in ((5, 5), (35, 5), (5, 15), (35, 15))]
    assert all(near(pixel, wanted) for pixel, wanted in zip(corners, (RED, GREEN, BLUE, WHITE), strict=True))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_stands_the_picture_upright(orientation: int) -> None:
    """A camera's sensor data for each orientation is the inverse transform of the upright picture."""
    upright = quarters()
    transpose = Image.Transpose
    stored_as = {
        1: [],
        2: [transpose.FLIP_LEFT_RIGHT],
        3: [transpose.ROTATE_180],
        4: [transpose.FLIP_TOP_BOTTOM],
        5: [transpose.TRANSPOSE],
        6: [transpose.ROTATE_90],
        7: [transpose.TRANSVERSE],
        8: [transpose.ROTATE_270],
    }
    stored = upright.copy()
    for operation in stored_as[orientation]:
        stored = stored.transpose(operation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_image(encoded(stored, exif=exif))
    assert np.array_equal(np.asarray(decoded), np.asarray(upright))


def test_avif_of_a_phone_is_upright_and_laid_on_white() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    best: dict[str, object] = {"quality": 100, "subsampling": "4:4:4"}
    decoded = decode_image(encoded(quarters().transpose(Image.Transpose.ROTATE_90), "AVIF", exif=exif, **best))
    assert near(decoded.getpixel((5, 5)), RED)
    assert near(decoded.getpixel((5, 15)), BLUE)
    assert near(
        decode_image(encoded(Image.new("RGBA", (16, 16), (255, 0, 0, 128)), "AVIF")).getpixel((8, 8)),
        (255, 127, 127),
        8,
    )
    assert refusal(encoded(quarters(), "AVIF"), max_pixels=799) == "too-many-pixels"


def test_broken_exif_does_not_cost_the_picture() -> None:
    data = encoded(quarters(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + os.urandom(40))
    assert decode_image(data).size == (40, 20)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB-key"])
def test_transparency_is_laid_on_white(mode: str) -> None:
    if mode == "P":
        image = Image.new("P", (4, 4), 1)
        image.putpalette([10, 10, 10, 200, 0, 0])
        data = encoded(image, "GIF", transparency=1)
    elif mode == "RGB-key":
        data = encoded(Image.new("RGB", (4, 4), (10, 20, 30)), transparency=(10, 20, 30))
    else:
        data = encoded(Image.new(mode, (4, 4), (0,) * len(Image.new(mode, (1, 1)).getbands())))
    assert decode_image(data).getpixel((2, 2)) == WHITE


def test_half_transparent_red_is_pink() -> None:
    assert near(decode_image(encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 128)))).getpixel((1, 1)), (255, 127, 127))


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    for kind in ("GIF", "WEBP", "PNG", "TIFF", "AVIF"):
        decoded = decode_image(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
        assert near(decoded.getpixel((4, 4)), RED, 8)


def test_cmyk_and_grey_and_bilevel() -> None:
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    for kind in ("JPEG", "TIFF"):
        assert near(decode_image(encoded(cmyk, kind)).getpixel((8, 8)), RED, 8)
    assert decode_image(encoded(Image.new("L", (4, 4), 77))).getpixel((0, 0)) == (77, 77, 77)
    assert decode_image(encoded(Image.new("1", (4, 4), 1))).getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_clipped(kind: str) -> None:
    ramp_HW = np.tile(np.linspace(0, 65_535, 256).astype(np.uint16), (4, 1))
    decoded = np.asarray(decode_image(encoded(Image.fromarray(ramp_HW), kind)))
    assert np.abs(decoded[0, :, 0].astype(int) - np.arange(256)).max() <= 1


@pytest.mark.parametrize("white", [1.0, 255.0])
def test_float_pixels_are_scaled_from_their_white(white: float) -> None:
    ramp_HW = np.tile(np.linspace(0, white, 256, dtype=np.float32), (4, 1))
    decoded = np.asarray(decode_image(encoded(Image.fromarray(ramp_HW), "TIFF")))
    assert np.abs(decoded[0, :, 0].astype(int) - np.arange(256)).max() <= 1


@pytest.mark.parametrize(
    ("size", "at_least"), [((2000, 1500), 224), ((500, 300), 224), ((300, 900), 75), ((64, 64), 64)]
)
def test_at_least_decodes_a_jpeg_smaller_but_never_too_small(size: tuple[int, int], at_least: int) -> None:
    data = encoded(Image.effect_noise(size, 50).convert("RGB"), "JPEG")
    decoded = decode_image(data, at_least=at_least)
    assert min(decoded.size) >= at_least
    assert decoded.width / decoded.height == pytest.approx(size[0] / size[1], rel=0.02)
    assert min(size) < 2 * at_least or decoded.width <= size[0] / 2
    assert decode_image(data, at_least=None).size == size


def test_size_is_refused_from_the_header_before_decoding() -> None:
    """60,000 x 60,000 promised by a file of 80 bytes: no pixel is decoded, no warning, Pillow's limit untouched."""
    before = Image.MAX_IMAGE_PIXELS
    for width, height in ((12_000, 12_000), (60_000, 60_000)):  # below and above what makes Pillow itself refuse
        assert refusal(png(width, height)) == "too-many-pixels"
    assert refusal(encoded(quarters()), max_pixels=799) == "too-many-pixels"
    assert decode_image(encoded(quarters()), Limits(max_pixels=800)).size == (40, 20)
    assert before == Image.MAX_IMAGE_PIXELS


def test_warning_filters_are_left_as_they_were() -> None:
    before = list(warnings.filters)
    decode_image(encoded(quarters()))
    refusal(png(60_000, 60_000))
    assert warnings.filters == before


def refusal(data: bytes, **limits: int) -> str:
    with pytest.raises(MediaError) as caught:
        decode_image(data, Limits(**limits))
    assert caught.value.stage == "decode"
    assert "\n" not in str(caught.value)
    return caught.value.code


NOISE = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty-file"),
        (b"\0", "not-an-image"),
        (b"just text, renamed to .jpg", "not-an-image"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "not-an-image"),
        (b"\0\0\0\x18ftypheic" + bytes(100), "corrupt-image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not-an-image"),
        (b"\x89PNG\r\n\x1a\n", "corrupt-image"),
        (b"\xff\xd8\xff" + bytes(50), "corrupt-image"),
        (png(100, 100), "corrupt-image"),
        (png(0, 100), "corrupt-image"),
        (encoded(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF"), "corrupt-image"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_cause(data: bytes, code: str) -> None:
    assert refusal(data) == code


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_truncated_images_are_corrupt(kind: str) -> None:
    data = encoded(Image.fromarray(NOISE), kind)
    for share in (0.3, 0.6, 0.9):
        assert refusal(data[: int(share * len(data))]) == "corrupt-image"


def test_bytes_limit() -> None:
    data = encoded(quarters())
    assert refusal(data, max_bytes=len(data) - 1) == "too-many-bytes"


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"]), st.data())
def test_damage_anywhere_gives_a_picture_or_a_media_error(kind: str, draw: st.DataObject) -> None:
    data = bytearray(encoded(quarters(), kind))
    for _ in range(draw.draw(st.integers(1, 4))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    try:
        decoded = decode_image(bytes(data), Limits(max_pixels=1_000_000))
    except MediaError:
        return
    assert decoded.mode == "RGB"
