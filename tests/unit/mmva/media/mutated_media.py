"""Damages valid files of every format at random and decodes them: sound, pictures, or a MediaError within the limit.

    python -m tests.unit.mmva.media.mutated_media [MUTATIONS PER FORMAT] [SEED] [FORMAT...]

Each mutation has a seed of its own, printed with what it found: the same seed makes the same bytes.
"""

from __future__ import annotations

import faulthandler
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from mmva.errors import MediaError
from mmva.media.audio.decode import stream_audio
from mmva.media.content import modality_of_content
from mmva.media.images.decode import decode_image
from mmva.media.limits import Limits
from mmva.media.video import probe_video, stream_frames, stream_sound

from ...helpers import made_pictures as pictures
from ...helpers import made_sound as sound
from .test_video import video

LIMITS = Limits(max_bytes=2**24, max_pixels=4_000_000, max_duration_s=60)
LIMIT_S = 30.0  # of one mutation; what takes longer hangs


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """One to four of: bytes overwritten, bits flipped, a piece cut out, doubled, moved or filled, the end cut off."""
    damaged = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        at, length = (int(rng.integers(0, max(1, len(damaged)))) for _ in range(2))
        length = min(length, 1 << int(rng.integers(0, 12)))
        at = at % 256 if rng.random() < 0.4 else at  # headers decide most
        kind = int(rng.integers(0, 7))
        if kind == 0:
            damaged[at : at + length] = rng.bytes(len(damaged[at : at + length]))
        elif kind == 1 and at < len(damaged):
            damaged[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 2:
            del damaged[at : at + length]
        elif kind == 3:
            damaged[at:at] = damaged[at : at + length]
        elif kind == 4:
            damaged[at : at + length] = bytes([int(rng.choice([0, 0xFF, 0x7F, 0x80]))]) * len(damaged[at : at + length])
        elif kind == 5:
            del damaged[len(damaged) - length % max(1, len(damaged) // 2) :]
        else:
            damaged[at : at + 4] = int(rng.integers(0, 2**32)).to_bytes(4, str(rng.choice(["big", "little"])))
    return bytes(damaged)


def decode(modality: str, data: bytes) -> str:
    """What came out: "read", or the code of the refusal. Every other exception is a finding."""
    modality_of_content(data)
    try:
        if modality == "image":
            assert decode_image(data, LIMITS).mode == "RGB"
        elif modality == "music":
            for block_T in stream_audio(data, 16_000, LIMITS):
                assert np.isfinite(block_T).all()
        else:
            info = probe_video(data, LIMITS)
            assert all(picture.mode == "RGB" for _, picture in stream_frames(data, info, 2.0, 1.0, LIMITS))
            if info.sound:
                for block_T in stream_sound(data, 16_000, LIMITS):
                    assert np.isfinite(block_T).all()
    except MediaError as error:
        return error.code if _is_plain(str(error)) else f"ill-worded: {error}"
    return "read"


def _is_plain(message: str) -> bool:
    """Whether a message is one line without a decoder's numbers and addresses."""
    return not any(part in message for part in ("Errno", "\n", "<none>", " at 0x"))


def hunt(name: str, modality: str, data: bytes, count: int, seed: int) -> list[str]:
    """Mutations of one file; the findings, each with its seed. A hang ends the process with a traceback."""
    outcomes: Counter[str] = Counter()
    findings: list[str] = []
    slowest = (0.0, 0)
    assert decode(modality, data) == "read"  # undamaged; and what is imported at first use is
    for number in range(seed, seed + count):
        damaged = mutated(data, np.random.default_rng(number))
        faulthandler.dump_traceback_later(LIMIT_S, exit=True, file=sys.__stderr__ or 2)
        begun = time.monotonic()
        try:
            outcome = decode(modality, damaged)
            outcomes[outcome] += 1
            if outcome.startswith("ill-worded"):
                findings.append(f"{name}, seed {number}: {outcome}")
        except Exception as error:  # noqa: BLE001 - this is what is looked for
            findings.append(f"{name}, seed {number}: {type(error).__name__}: {error}")
        slowest = max(slowest, (time.monotonic() - begun, number))
    faulthandler.cancel_dump_traceback_later()
    said = ", ".join(f"{code} {times}" for code, times in outcomes.most_common())
    sys.stdout.write(
        f"{name}: seeds {seed} to {seed + count - 1}: {said}; {len(findings)} findings, "
        f"slowest {slowest[0]:.2f} s (seed {slowest[1]})\n"
    )
    sys.stdout.flush()
    return findings


def files() -> dict[str, tuple[str, Callable[[], bytes]]]:
    """A valid file of each format, by name, with its modality."""

    def picture(kind: str, **options: Any) -> tuple[str, Callable[[], bytes]]:
        return "image", lambda: pictures.encoded(pictures.scene(), kind, **options)

    def written(rate: int = sound.RATE, channels: int = 1, **options: str) -> tuple[str, Callable[[], bytes]]:
        return "music", lambda: sound.soundfile_bytes(
            sound.sine(seconds=0.5, rate=rate, channels=channels), rate, **options
        )

    def muxed(container: str, codec: str, rate: int = sound.RATE) -> tuple[str, Callable[[], bytes]]:
        return "music", lambda: sound.pyav_bytes(sound.sine(seconds=0.5, rate=rate), rate, container, codec)

    def film(container: str, codec: str, track: str) -> tuple[str, Callable[[], bytes]]:
        return "video", lambda: video(1.0, container, codec, track, fps=25)

    profile = pictures.profile_with(pictures.DISPLAY_P3, 2.2)
    return {
        "jpeg": picture("JPEG", icc_profile=profile),
        "jpeg progressive": picture("JPEG", progressive=True, restart_marker_rows=1),
        "png": picture("PNG", icc_profile=profile),
        "webp": picture("WEBP", icc_profile=profile),
        "gif": picture("GIF"),
        "bmp": picture("BMP"),
        "tiff": picture("TIFF", icc_profile=profile),
        "tiff lzw": picture("TIFF", compression="tiff_lzw"),
        "avif": picture("AVIF", icc_profile=profile),
        "heic": ("image", lambda: pictures.heic(pictures.scene(), (32, 32))),
        "wav": written(format="WAV"),
        "wav 5.1": written(channels=6, format="WAV"),
        "rifx": written(format="WAV", endian="BIG"),
        "rf64": written(format="RF64"),
        "flac": written(format="FLAC"),
        "flac of unknown length": ("music", lambda: sound.flac_of_unknown_length(written(format="FLAC")[1]())),
        "mp3": written(format="MP3"),
        "mp3 tagged": ("music", lambda: sound.tagged(written(format="MP3")[1]())),
        "ogg vorbis": written(format="OGG"),
        "ogg chained": (
            "music",
            lambda: written(format="OGG")[1]() + written(48_000, format="OGG", subtype="OPUS")[1](),
        ),
        "aiff": written(format="AIFF"),
        "m4a": muxed("ipod", "aac"),
        "aac": muxed("adts", "aac"),
        "wma": muxed("asf", "wmav2"),
        "webm sound": muxed("webm", "libopus", 48_000),
        "mp4": film("mp4", "mpeg4", "aac"),
        "matroska": film("matroska", "mpeg4", "aac"),
        "avi": film("avi", "mpeg4", "mp3"),
        "mpeg": film("mpeg", "mpeg1video", "mp2"),
        "mpegts": film("mpegts", "mpeg2video", "mp2"),
    }


def main(arguments: list[str]) -> int:
    """0 if nothing was found."""
    count, seed = (int(arguments[at]) if len(arguments) > at else usual for at, usual in ((0, 2000), (1, 0)))
    findings = []
    for name, (modality, make) in files().items():
        if len(arguments) <= 2 or name in arguments[2:]:
            findings += hunt(name, modality, make(), count, seed)
    sys.stdout.write("".join(f"{finding}\n" for finding in findings))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
