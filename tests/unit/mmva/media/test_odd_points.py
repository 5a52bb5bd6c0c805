"""The same picture or music in odd files has the same point, by the `compact` encoders and ridge regression on them."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from mmva.backbones import load_encoder, preset
from mmva.backbones.base import Encoder
from mmva.imemnet.generator.labels import draw_clips, draw_image_labels
from mmva.imemnet.generator.music import render_clip, song_style
from mmva.imemnet.generator.pictures import render_picture
from mmva.media.audio.decode import decode_audio
from mmva.media.images.decode import decode_image

from ...helpers.made_pictures import DISPLAY_P3, chunk, encoded, heic, png_with, profile_with
from ...helpers.made_sound import flac_of_unknown_length, pyav_bytes, soundfile_bytes, tagged

pytestmark = pytest.mark.slow
SAME = 0.02
SEED = 5
SHOWN = slice(None, None, 20)  # four of each
RATE = 48_000


@dataclass(frozen=True)
class Reader:
    """An encoder and what leads from its embeddings to points."""

    encoder: Encoder
    mean_D: np.ndarray
    weights_D2: np.ndarray
    bias_2: np.ndarray

    def points(self, items: list) -> np.ndarray:
        return (self.encoder.encode(items) - self.mean_D) @ self.weights_D2 + self.bias_2


def fitted(encoder: Encoder, items: list, va_N2: np.ndarray) -> Reader:
    """Ridge regression, its penalty as large as the mean of the embeddings' energy: as steady as a trained tower."""
    emb_ND = encoder.encode(items).astype(np.float64)
    mean_D, bias_2 = emb_ND.mean(axis=0), va_N2.mean(axis=0)
    centred_ND = emb_ND - mean_D
    kernel_NN = centred_ND @ centred_ND.T
    kernel_NN += np.trace(kernel_NN) / len(items) * np.eye(len(items))
    return Reader(encoder, mean_D, centred_ND.T @ np.linalg.solve(kernel_NN, va_N2 - bias_2), bias_2)


@pytest.fixture(scope="module")
def viewer() -> tuple[Reader, list[Image.Image]]:
    va_N2 = draw_image_labels(80, SEED)
    pictures = [decode_image(render_picture((v, a), SEED, number)) for number, (v, a) in enumerate(va_N2)]
    return fitted(load_encoder(preset("compact").specs["image"]), pictures, va_N2), pictures[SHOWN]


@pytest.fixture(scope="module")
def listener() -> tuple[Reader, list[np.ndarray]]:
    encoder = load_encoder(preset("compact").specs["music"])
    assert encoder.sample_rate is not None
    clips = draw_clips(80, SEED)
    sound = []
    for clip in clips:
        style = song_style(clip.song, clip.song_va, SEED)
        played = soundfile_bytes(render_clip(clip, style, SEED)[:, None], style.sample_rate, format="WAV")
        sound.append(decode_audio(played, RATE)[:, None])
    heard = [decode_audio(wav(samples_TC), encoder.sample_rate) for samples_TC in sound]
    return fitted(encoder, heard, np.array([clip.va for clip in clips])), sound[SHOWN]


def in_display_p3(image: Image.Image) -> bytes:
    """The same colours, written in the levels of a phone's screen."""
    profile = profile_with(DISPLAY_P3, 2.2)
    source, target = ImageCms.createProfile("sRGB"), ImageCms.ImageCmsProfile(io.BytesIO(profile))
    converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    assert converted is not None
    return encoded(converted, icc_profile=profile)


def tiff(image: Image.Image, *, planes: bool = False, white_is_zero: bool = False, floats: bool = False) -> bytes:
    pixels = np.asarray(image.convert("L") if white_is_zero or floats else image).astype(np.uint16) * 257
    buffer = io.BytesIO()
    if planes:
        tifffile.imwrite(buffer, np.moveaxis(pixels, 2, 0), photometric="rgb", planarconfig="separate")
    elif white_is_zero:
        tifffile.imwrite(buffer, 65_535 - pixels, photometric="miniswhite")
    else:
        levels = pixels.astype(np.float32) / 65_535
        levels[0, 0] = 12.0
        tifffile.imwrite(buffer, levels, photometric="minisblack")
    return buffer.getvalue()


PICTURES: dict[str, Callable[[Image.Image], bytes]] = {
    "HEIC of tiles": lambda image: heic(image, (128, 128)),
    "AVIF": lambda image: encoded(image, "AVIF", quality=100, subsampling="4:4:4"),
    "JPEG without its end": lambda image: encoded(image, "JPEG", quality=95)[:-2],
    "Display P3": in_display_p3,
    "PNG with a long text": lambda image: png_with(chunk(b"tEXt", b"x\0" + b"y" * 10**6) * 70, image),
    "TIFF of 16-bit planes": lambda image: tiff(image, planes=True),
}
GREY_PICTURES: dict[str, Callable[[Image.Image], bytes]] = {
    "TIFF whose white is zero": lambda image: tiff(image, white_is_zero=True),
    "TIFF of floats with a highlight": lambda image: tiff(image, floats=True),
}


@pytest.mark.parametrize("name", [*PICTURES, *GREY_PICTURES])
def test_the_same_picture_has_the_same_point(viewer: tuple[Reader, list[Image.Image]], name: str) -> None:
    reader, plain = viewer
    if name in GREY_PICTURES:
        plain = [image.convert("L").convert("RGB") for image in plain]
    odd = [decode_image((PICTURES | GREY_PICTURES)[name](image), at_least=None) for image in plain]
    assert distances(reader.points(odd), reader.points(plain)).max() < SAME


def wav(samples_TC: np.ndarray) -> bytes:
    return soundfile_bytes(samples_TC, RATE, format="WAV", subtype="FLOAT")


def flac(samples_TC: np.ndarray) -> bytes:
    return soundfile_bytes(samples_TC, RATE, format="FLAC")


def front_of_surround(samples_TC: np.ndarray) -> bytes:
    return flac(np.concatenate([samples_TC, samples_TC, np.zeros((len(samples_TC), 4), np.float32)], axis=1))


def ogg_in_two_links(samples_TC: np.ndarray) -> bytes:
    half = len(samples_TC) // 2
    return ogg(samples_TC[:half]) + ogg(samples_TC[half:])


def ogg(samples_TC: np.ndarray) -> bytes:
    return soundfile_bytes(samples_TC, RATE, format="OGG")


def mp3(samples_TC: np.ndarray) -> bytes:
    return soundfile_bytes(samples_TC, RATE, format="MP3")


# The odd file and its plain form, by the same codec: what a codec loses is not what is tested.
SOUNDS: dict[str, tuple[Callable[[np.ndarray], bytes], Callable[[np.ndarray], bytes]]] = {
    "FLAC of unknown length behind a tag": (lambda sound: tagged(flac_of_unknown_length(flac(sound))), wav),
    "front of 5.1": (front_of_surround, wav),
    "chained Ogg": (ogg_in_two_links, ogg),
    "WebM": (
        lambda sound: pyav_bytes(sound, RATE, "webm", "libopus"),
        lambda sound: pyav_bytes(sound, RATE, "ogg", "libopus"),
    ),
    "AIFF": (lambda sound: soundfile_bytes(sound, RATE, format="AIFF"), wav),
    "RIFX": (lambda sound: soundfile_bytes(sound, RATE, format="WAV", endian="BIG"), wav),
    "MP3 behind zeros": (lambda sound: bytes(2000) + mp3(sound), mp3),
}


@pytest.mark.parametrize("name", SOUNDS)
def test_the_same_music_has_the_same_point(listener: tuple[Reader, list[np.ndarray]], name: str) -> None:
    reader, sound = listener
    rate = reader.encoder.sample_rate
    assert rate is not None
    odd, plain = ([decode_audio(write(one), rate) for one in sound] for write in SOUNDS[name])
    assert distances(reader.points(odd), reader.points(plain)).max() < SAME


def test_other_pictures_and_other_music_have_other_points(
    viewer: tuple[Reader, list[Image.Image]], listener: tuple[Reader, list[np.ndarray]]
) -> None:
    """Else the tests above could not fail."""
    seen_N2 = viewer[0].points(viewer[1])
    heard_N2 = listener[0].points([decode_audio(wav(one), listener[0].encoder.sample_rate or 0) for one in listener[1]])
    for points_N2 in (seen_N2, heard_N2):
        assert distances(points_N2[1:], points_N2[:-1]).min() > SAME


def distances(a_N2: np.ndarray, b_N2: np.ndarray) -> np.ndarray:
    return np.linalg.norm(a_N2 - b_N2, axis=1)
