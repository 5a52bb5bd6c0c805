"""HEIC, the picture format of phones: this module reads the boxes, and FFmpeg's HEVC decoder (LGPL) decodes the tiles.

We do not use pillow-heif: its wheels contain x265, so they are GPL-2.0. Supports single pictures and grids of tiles,
cropping, rotation, mirroring, and colour profiles. Refuses codecs other than HEVC, and HDR transfer curves and
overlays, which would look wrong.
"""

import struct
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, Final

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image

from mmva.errors import MediaError
from mmva.media.boxes import HeifFile, read_heif
from mmva.media.guards import refusals
from mmva.media.limits import Limits

# H.273: HDR transfer curves (PQ and HLG), and the matrix of ITU-R BT.709.
_HDR_CURVES: Final = frozenset({16, 18})
_BT709: Final = 1
# Properties (ISO/IEC 23008-12) that can be ignored, or are handled below.
_HARMLESS: Final = frozenset(
    {b"ispe", b"pixi", b"pasp", b"hvcC", b"colr", b"irot", b"imir", b"clap", b"clli", b"mdcv", b"cclv", b"amve"}
    | {b"rloc", b"auxC", b"udes", b"altt", b"aebr", b"wbbr", b"fobr", b"iscl", b"prdi", b"crtt", b"mdft"}
)  # fmt: skip
_QUARTER_TURNS: Final = (
    None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270,
)  # fmt: skip
_MIRRORS: Final = (Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.FLIP_LEFT_RIGHT)


def decode_heif(data: bytes, limits: Limits) -> Image.Image:
    """Decode the main picture to upright RGB, with its colour profile in `info["icc_profile"]`.

    Raises MediaError "corrupt-image", "unsupported-image" or "too-many-pixels".
    """
    with refusals("corrupt-image", "heif"):
        file = read_heif(data)
        kind = file.kind(file.primary)
        properties = file.properties(file.primary)
        _refuse_what_would_be_wrong(properties)
        image = _grid(file, limits) if kind == b"grid" else _tile(file, file.primary, limits)
        for name, body in properties:
            image = _transformed(image, name, body)
        profile = _profile(properties) or _profile(file.properties(file.tiles(file.primary)[0]))
        if profile is not None:
            image.info["icc_profile"] = profile
    return image


def _grid(file: HeifFile, limits: Limits) -> Image.Image:
    _, flags, rows, columns = (content := file.content(file.primary))[:4]
    rows, columns = rows + 1, columns + 1
    width, height = struct.unpack_from(">II" if flags & 1 else ">HH", content, 4)
    limits.check_pixels(width, height)
    tiles = file.tiles(file.primary)
    if len(tiles) != rows * columns or not width or not height:
        raise MediaError("corrupt-image", f"heif grid of {rows} x {columns} with {len(tiles)} tiles")
    # The picture is cropped from its tiles at the right and the bottom, by less than a tile.
    first = _tile(file, tiles[0], limits)
    across, down = first.width * columns, first.height * rows
    if not (across - first.width < width <= across and down - first.height < height <= down):
        raise MediaError("corrupt-image", f"heif grid whose tiles do not make {width} x {height} pixels")
    if across * down > 2 * limits.max_pixels:  # decoding cropped parts takes time too
        raise MediaError("too-many-pixels", f"tiles of {across} x {down} pixels for {width} x {height}")
    whole = Image.new("RGB", (width, height))
    for number, tile in enumerate(tiles):
        picture = first if number == 0 else _tile(file, tile, limits)
        if picture.size != first.size:
            raise MediaError("corrupt-image", "heif tiles of several sizes")
        whole.paste(picture, (number % columns * first.width, number // columns * first.height))
    return whole


def _tile(file: HeifFile, item: int, limits: Limits) -> Image.Image:
    """Decode one coded picture of the file."""
    kind, properties = file.kind(item), dict(reversed(file.properties(item)))
    if kind != b"hvc1" or b"hvcC" not in properties:
        raise MediaError("unsupported-image", f"heif data with a picture of type {kind.decode('latin-1')!r}; HEVC only")
    _refuse_what_would_be_wrong(file.properties(item))
    if b"ispe" in properties:
        width, height = struct.unpack_from(">II", properties[b"ispe"], 4)
        limits.check_pixels(width, height)
    frame = next(_frames(properties[b"hvcC"], file.content(item), limits), None)
    if frame is None:
        raise MediaError("corrupt-image", "heif data without a picture")
    limits.check_pixels(frame.width, frame.height)
    matrix, full = _matrix_and_range(file.properties(item) + file.properties(file.primary))
    rgb_HWC = frame.to_ndarray(format="rgb24", src_colorspace=matrix, src_color_range=full)
    return Image.fromarray(np.ascontiguousarray(rgb_HWC))


def _frames(configuration: bytes, content: bytes, limits: Limits) -> Iterator[Any]:
    context: Any = av.CodecContext.create("hevc", "r")
    context.extradata = configuration
    context.thread_count = 1  # each actor has one CPU
    # FFmpeg adds a border of 128 pixels before this check; the frame is checked again later.
    context.options = {"max_pixels": str(limits.max_pixels + 2**22)}
    yield from context.decode(av.Packet(content))
    yield from context.decode(None)


def _matrix_and_range(properties: list[tuple[bytes, bytes]]) -> tuple[Colorspace | None, ColorRange | None]:
    """The file's YCbCr matrix and range; None if only the stream contains them."""
    for name, body in properties:
        if name == b"colr" and body[:4] == b"nclx" and len(body) >= 11:
            matrix = Colorspace.ITU709 if int.from_bytes(body[8:10], "big") == _BT709 else Colorspace.ITU601
            return matrix, ColorRange.JPEG if body[10] & 0x80 else ColorRange.MPEG
    return None, None


def _refuse_what_would_be_wrong(properties: list[tuple[bytes, bytes]]) -> None:
    for name, body in properties:
        if name not in _HARMLESS:
            raise MediaError("unsupported-image", f"heif picture with the property {name.decode('latin-1')!r}")
        if name == b"colr" and body[:4] == b"nclx" and int.from_bytes(body[6:8], "big") in _HDR_CURVES:
            raise MediaError("unsupported-image", "heif picture of high dynamic range (PQ or HLG)")


def _profile(properties: list[tuple[bytes, bytes]]) -> bytes | None:
    found = (body[4:] for name, body in properties if name == b"colr" and body[:4] in {b"prof", b"rICC"})
    return next(found, None)


def _transformed(image: Image.Image, name: bytes, body: bytes) -> Image.Image:
    if name == b"irot":
        turn = _QUARTER_TURNS[body[0] & 0b11]
        return image if turn is None else image.transpose(turn)
    if name == b"imir":
        return image.transpose(_MIRRORS[body[0] & 1])
    return _cropped(image, body) if name == b"clap" else image


def _cropped(image: Image.Image, body: bytes) -> Image.Image:
    """Crop to the clean aperture: a size, and its centre's distance from the picture's centre."""
    width, height, right, down = (
        Fraction(above, below) for above, below in zip(*[iter(struct.unpack_from(">8i", body))] * 2, strict=True)
    )
    left, top = (image.width - width) / 2 + right, (image.height - height) / 2 + down
    box = (round(left), round(top), round(left + width), round(top + height))
    if not (0 <= box[0] < box[2] <= image.width and 0 <= box[1] < box[3] <= image.height):
        raise MediaError("corrupt-image", "heif picture with a crop outside of it")
    return image.crop(box)
