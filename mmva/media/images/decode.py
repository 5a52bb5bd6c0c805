"""Decode image bytes to upright RGB, as seen on white paper."""

import io
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from mmva.errors import MediaError
from mmva.media.formats import IMAGE_FORMATS, sniff
from mmva.media.guards import checked_format, refusals
from mmva.media.images.colors import gamma_exponent, to_srgb, with_gamma
from mmva.media.images.deep_pixels import correct_tiles, grey_levels, is_deep
from mmva.media.images.lost_end import decode_padded
from mmva.media.limits import Limits

# The input size of image encoders; the default in training and inference, which must decode alike.
SHORT_SIDE: Final = 224
_PNG_SIGNATURE_BYTES: Final = 8
# Chunks that affect the picture, besides the critical ones (capital first letter); APNG's separate the frames.
_PNG_SEEN: Final = frozenset({b"tRNS", b"iCCP", b"gAMA", b"sRGB", b"cHRM", b"cICP", b"eXIf", b"acTL", b"fcTL", b"fdAT"})


def decode_image(data: bytes, limits: Limits | None = None, at_least: int | None = SHORT_SIDE) -> Image.Image:
    """Decode the first frame of an image to mode RGB.

    Applies EXIF orientation, converts colour profiles to sRGB, puts transparent pixels on white, and converts CMYK,
    palette, 1-bit, 16-bit and float images to 8 bits. Checks format, size in bytes and width x height before it decodes
    any pixel.

    A larger JPEG is decoded at 1/2, 1/4 or 1/8 of its size, with a short side of at least `at_least` pixels (None: in
    full); other formats are decoded in full. Raises MediaError "empty-file", "too-many-bytes", "not-an-image",
    "unsupported-image", "too-many-pixels" or "corrupt-image".
    """
    limits = limits or Limits()
    if sniff(data) == "jpegxl":
        raise MediaError("unsupported-image", "JPEG XL is not supported; convert it to PNG or JPEG")
    kind = checked_format(data, limits, IMAGE_FORMATS, "not-an-image")
    if kind == "heif":
        from mmva.media.images.heif import decode_heif  # imports FFmpeg, which other pictures do not need

        return _to_rgb(decode_heif(data, limits))
    with _pillow_errors(kind):
        return _to_rgb(_upright(_loaded(data, kind, limits, at_least)))


def _loaded(data: bytes, kind: str, limits: Limits, at_least: int | None) -> Image.Image:
    """The decoded picture; the end of the file may be missing if all pixels are present."""

    def load(data: bytes) -> Image.Image:
        image = Image.open(io.BytesIO(data), formats=[kind.upper()])
        limits.check_pixels(*image.size)
        if at_least is not None and isinstance(image, ImageFile.ImageFile):
            image.draft(None, (at_least, at_least))
        correct_tiles(image)
        image.load()
        return image

    try:
        return load(_needed_png_chunks(data) if kind == "png" else data)
    except UnidentifiedImageError:
        raise
    except OSError:
        image = decode_padded(data, kind, load)
        if image is None:
            raise
        return image


@contextmanager
def _pillow_errors(kind: str) -> Iterator[None]:
    """Turn Pillow's errors into MediaErrors, and silence its warnings, which are about its own limit and metadata."""
    with refusals("corrupt-image", kind), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except Image.DecompressionBombError as error:
            raise MediaError("too-many-pixels", str(error)) from error
        except UnidentifiedImageError as error:
            reason = f"{kind} header that is damaged or unsupported"
            raise MediaError("corrupt-image", reason) from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # noqa: BLE001 - broken EXIF raises anything; the picture is still usable
        return image
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    profile, exponent = image.info.get("icc_profile"), gamma_exponent(image.info)
    if is_deep(image):
        image, exponent = grey_levels(image, exponent), None
    if image.mode == "La":  # premultiplied; Pillow cannot convert it to RGBA directly
        image = image.convert("LA")
    image = to_srgb(image, profile)
    image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if exponent is not None:
        image = with_gamma(image, exponent)
    return image if image.mode == "RGB" else _on_white(image)


def _on_white(image: Image.Image) -> Image.Image:
    paper = Image.new("RGB", image.size, "white")
    paper.paste(image, mask=image.getchannel("A"))
    return paper


def _needed_png_chunks(data: bytes) -> bytes:
    """Remove chunks that do not affect the picture (text, thumbnails, private notes) and damaged optional ones.

    Pillow refuses texts over 1 MB and wrong checksums in any chunk, but browsers show such pictures.
    """
    whole = memoryview(data)
    kept: list[tuple[int, int]] = []
    position = _PNG_SIGNATURE_BYTES
    while position + 12 <= len(data):
        name = data[position + 4 : position + 8]
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        checksum = int.from_bytes(data[end - 4 : end], "big")
        critical = name[0] & 0x20 == 0
        if critical or end > len(data) or (name in _PNG_SEEN and zlib.crc32(whole[position + 4 : end - 4]) == checksum):
            kept.append((position, end))
        position = end
        if name == b"IEND":
            break
    if sum(end - start for start, end in kept) + _PNG_SIGNATURE_BYTES >= position:
        return data
    return b"".join([whole[:_PNG_SIGNATURE_BYTES], *(whole[start:end] for start, end in kept)])
