"""Pictures of known pixels in odd files: HEIC in tiles, PNG with any chunk, TIFF of any type of number."""

from __future__ import annotations

import io
import struct
import zlib
from fractions import Fraction
from functools import lru_cache

import av
import numpy as np
from PIL import Image, ImageCms

_PARAMETER_SETS = (32, 33, 34)  # H.265, table 7-1
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def scene(width: int = 96, height: int = 64) -> Image.Image:
    """Smooth in both directions, with colours that differ in every corner."""
    x_W, y_H = np.linspace(0, 1, width), np.linspace(0, 1, height)
    red_HW, green_HW = np.meshgrid(x_W, y_H)
    pixels_HWC = np.stack([red_HW, green_HW, 1 - (red_HW + green_HW) / 2], axis=2)
    return Image.fromarray(np.rint(40 + 180 * pixels_HWC).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, content: bytes, *, damaged: bool = False) -> bytes:
    crc = zlib.crc32(name + content) ^ (1 if damaged else 0)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)


def png_with(chunks: bytes, image: Image.Image | None = None, *, at_end: bool = False, **options: object) -> bytes:
    """A PNG with these chunks behind its header, or before its end."""
    data = encoded(image or scene(), **options)
    place = len(data) - 12 if at_end else len(SIGNATURE) + 25
    return data[:place] + chunks + data[place:]


def profile_with(primaries: list[tuple[float, float]], gamma: float) -> bytes:
    """An ICC profile of version 2 of RGB with these chromaticities, white D65, and one gamma for all."""
    matrix_33 = _primaries_to_d50(primaries)
    tags = {
        b"desc": b"desc\0\0\0\0\0\0\0\x05made\0" + bytes(79),
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": b"XYZ \0\0\0\0" + _fixed(0.9642, 1.0, 0.8249),
        **{name: b"XYZ \0\0\0\0" + _fixed(*column) for name, column in zip(_COLUMNS, matrix_33.T, strict=True)},
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), b"curv\0\0\0\0\0\0\0\x01" + struct.pack(">H", round(gamma * 256))),
    }
    return _profile(b"RGB ", tags)


def grey_profile(gamma: float) -> bytes:
    curve = b"curv\0\0\0\0\0\0\0\x01" + struct.pack(">H", round(gamma * 256))
    white = b"XYZ \0\0\0\0" + _fixed(0.9642, 1.0, 0.8249)
    return _profile(b"GRAY", {b"desc": b"desc\0\0\0\0\0\0\0\x05made\0" + bytes(79), b"wtpt": white, b"kTRC": curve})


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


_COLUMNS = (b"rXYZ", b"gXYZ", b"bXYZ")
DISPLAY_P3 = [(0.680, 0.320), (0.265, 0.690), (0.150, 0.060)]
ADOBE_RGB = [(0.64, 0.33), (0.21, 0.71), (0.15, 0.06)]
SRGB = [(0.64, 0.33), (0.30, 0.60), (0.15, 0.06)]


def to_linear_srgb_33(primaries: list[tuple[float, float]]) -> np.ndarray:
    """From linear light of these primaries to that of sRGB, both with white D65."""
    return np.linalg.inv(_primaries_to_xyz(SRGB)) @ _primaries_to_xyz(primaries)


def srgb_levels(linear: np.ndarray) -> np.ndarray:
    """sRGB's curve (IEC 61966-2-1), to 0..255."""
    light = np.clip(linear, 0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def _primaries_to_xyz(primaries: list[tuple[float, float]]) -> np.ndarray:
    columns_33 = np.array([(x / y, 1, (1 - x - y) / y) for x, y in primaries]).T
    white_3 = np.array([0.3127 / 0.3290, 1, (1 - 0.3127 - 0.3290) / 0.3290])
    return columns_33 * np.linalg.solve(columns_33, white_3)


def _primaries_to_d50(primaries: list[tuple[float, float]]) -> np.ndarray:
    """Adapted by Bradford's matrix, as ICC asks for."""
    cone_33 = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    d65_3 = cone_33 @ np.array([0.3127 / 0.3290, 1, (1 - 0.3127 - 0.3290) / 0.3290])
    d50_3 = cone_33 @ np.array([0.9642, 1.0, 0.8249])
    return np.linalg.inv(cone_33) @ np.diag(d50_3 / d65_3) @ cone_33 @ _primaries_to_xyz(primaries)


def _fixed(*numbers: float) -> bytes:
    return struct.pack(f">{len(numbers)}i", *(round(number * 65_536) for number in numbers))


def _profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    padded = {name: content + bytes(-len(content) % 4) for name, content in tags.items()}
    offset, table, body = 128 + 4 + 12 * len(padded), b"", b""
    for name, content in padded.items():
        table += name + struct.pack(">II", offset + len(body), len(content))
        body += content
    header = bytes(4) + b"lcms\x02\x40\0\0mntr" + space + b"XYZ " + bytes(12) + b"acsp" + bytes(28)
    header += _fixed(0.9642, 1.0, 0.8249)
    whole = header + bytes(128 - len(header)) + struct.pack(">I", len(padded)) + table + body
    return struct.pack(">I", len(whole)) + whole[4:]


def box(name: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I", 8 + len(body)) + name + body


def heic(
    image: Image.Image,
    tile: tuple[int, int] | None = None,
    properties: list[bytes] | None = None,
    *,
    kind: bytes = b"hvc1",
    brand: bytes = b"heic",
) -> bytes:
    """HEIC without loss, of one picture or of a grid of tiles, with more properties of the main picture.

    Tiles at the edges are filled up, as phones do. Items: 1 to N the tiles, 100 the grid.
    """
    size = tile or image.size
    columns, rows = -(-image.width // size[0]), -(-image.height // size[1])
    whole = Image.new("RGB", (columns * size[0], rows * size[1]))
    whole.paste(image)
    places = [(x * size[0], y * size[1]) for y in range(rows) for x in range(columns)]
    coded = [_hevc(whole.crop((x, y, x + size[0], y + size[1])).tobytes(), size) for x, y in places]
    grid = struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, *image.size)
    items = list(range(1, len(coded) + 1))
    main = 100 if tile else 1
    boxes = [box(b"hvcC", coded[0][0]), box(b"ispe", bytes(4), struct.pack(">II", *size)), *(properties or [])]
    own = list(range(3, len(boxes) + 1))
    associated = {**{item: [1, 2] for item in items}, **({main: own} if tile else {main: [1, 2, *own]})}

    def meta(first: int) -> bytes:
        kinds = [(item, kind) for item in items] + ([(main, b"grid")] if tile else [])
        infos = [box(b"infe", b"\2\0\0\0", struct.pack(">HH", item, 0), name, b"\0") for item, name in kinds]
        places = b""
        offset = first
        for item, (_, content) in zip(items, coded, strict=True):
            places += struct.pack(">HHHHII", item, 0, 0, 1, offset, len(content))
            offset += len(content)
        if tile:
            places += struct.pack(">HHHHII", main, 1, 0, 1, 0, len(grid))
        links = [(item, bytes([len(numbers), *numbers])) for item, numbers in associated.items()]
        return box(
            b"meta",
            bytes(4),
            box(b"hdlr", bytes(8), b"pict", bytes(13)),
            box(b"pitm", bytes(4), struct.pack(">H", main)),
            box(b"iloc", b"\1\0\0\0\x44\0", struct.pack(">H", len(kinds)), places),
            box(b"iinf", bytes(4), struct.pack(">H", len(kinds)), *infos),
            box(
                b"iref", bytes(4),
                box(b"dimg", struct.pack(f">HH{len(items)}H", main, len(items), *items)) if tile else b"",
            ),
            box(b"idat", grid),
            box(
                b"iprp", box(b"ipco", *boxes),
                box(b"ipma", bytes(4), struct.pack(">I", len(links)), *(struct.pack(">H", i) + n for i, n in links)),
            ),
        )  # fmt: skip

    start = box(b"ftyp", brand, bytes(4), b"mif1heic")
    first = len(start) + len(meta(0)) + 8
    return start + meta(first) + box(b"mdat", *(content for _, content in coded))


@lru_cache(maxsize=256)
def _hevc(pixels: bytes, size: tuple[int, int]) -> tuple[bytes, bytes]:
    """Decoder configuration and one coded picture, without loss but for the change of colour space."""
    encoder = av.CodecContext.create("libx265", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = *size, "yuv444p", Fraction(1)
    parameters = "lossless=1:range=full:colormatrix=smpte170m:log-level=none:info=0:pools=none:frame-threads=1"
    encoder.options = {"preset": "ultrafast", "x265-params": parameters}
    image = Image.frombytes("RGB", size, pixels)
    frame = av.VideoFrame.from_image(image).reformat(format="yuv444p", dst_colorspace=5, dst_color_range=2)
    stream = b"".join(map(bytes, [*encoder.encode(frame), *encoder.encode(None)]))
    units = [unit.rstrip(b"\0") for unit in stream.split(b"\0\0\1") if unit.rstrip(b"\0")]
    sets = [unit for unit in units if unit[0] >> 1 in _PARAMETER_SETS]
    arrays = b"".join(bytes([unit[0] >> 1]) + struct.pack(">HH", 1, len(unit)) + unit for unit in sets)
    content = b"".join(struct.pack(">I", len(unit)) + unit for unit in units if unit not in sets)
    return b"\1" + bytes(20) + b"\x0f" + bytes([len(sets)]) + arrays, content
