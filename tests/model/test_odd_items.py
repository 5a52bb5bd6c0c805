"""One table of odd files through annotate, import, search and the service: the same point, or the same refusal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmva.engines.choice import pack_bundle
from mmva.errors import MediaError
from mmva.inference.config import default_preprocessing
from mmva.models.bundle import load_bundle, read_bundle_info
from mmva.zeroshot.query import query_point
from mmva_platform.annotation.catalog.catalog import open_catalog
from mmva_platform.annotation.plan.plan import ItemReader, ModelInfo
from mmva_platform.annotation.plan.planning import write_plan
from mmva_platform.annotation.plan.spool import spooled
from mmva_platform.annotation.run.annotator import Annotator
from mmva_platform.datasets.importing.inspection import check_decodes
from mmva_platform.settings import ServingSettings, Settings
from mmva_platform.storage import open_storage

from ..unit.helpers.made_pictures import DISPLAY_P3, chunk, encoded, heic, png_with, profile_with, scene
from ..unit.helpers.made_sound import (
    RATE,
    ape_tagged,
    flac_of_unknown_length,
    melody,
    pyav_bytes,
    soundfile_bytes,
    tagged,
)
from ..unit.helpers.published import lively_bundle
from .served import served_rows

pytestmark = pytest.mark.slow  # imports MLflow

SOUND = melody(2.5)
OPPOSITE = np.concatenate([SOUND, -SOUND], axis=1)
AXES = ("valence", "arousal")


def flac() -> bytes:
    return soundfile_bytes(SOUND, RATE, format="FLAC")


def ogg() -> bytes:
    return soundfile_bytes(SOUND, RATE, format="OGG")


# Name -> (bytes, code of the refusal or "" if it has a point). Names have the extension of another format where the
# content decides.
CASES: dict[str, tuple[Callable[[], bytes], str]] = {
    "tagged.flac": (lambda: tagged(flac()), ""),
    "tagged-ape.flac": (lambda: ape_tagged(flac()), ""),
    "no-length.flac": (lambda: flac_of_unknown_length(flac()), ""),
    "chained.ogg": (lambda: ogg() + ogg(), ""),
    "phone.webm": (lambda: pyav_bytes(SOUND, 48_000, "webm", "libopus"), ""),
    "mac.aiff": (lambda: soundfile_bytes(SOUND, RATE, format="AIFF"), ""),
    "big-endian.wav": (lambda: soundfile_bytes(SOUND, RATE, format="WAV", endian="BIG"), ""),
    "zeros.mp3": (lambda: bytes(2000) + soundfile_bytes(SOUND, RATE, format="MP3"), ""),
    "really-flac.mp3": (flac, ""),
    "cancels.wav": (lambda: soundfile_bytes(OPPOSITE, RATE, format="WAV"), "cancelling-channels"),
    "click.wav": (lambda: soundfile_bytes(SOUND[:1000], RATE, format="WAV"), "too-short"),
    "no-sound.wav": (lambda: b"RIFF\x24\0\0\0WAVEfmt ", "corrupt-audio"),
    "phone.heic": (lambda: heic(scene(256, 192), (128, 128)), ""),
    "web.avif": (lambda: encoded(scene(), "AVIF"), ""),
    "p3.png": (lambda: encoded(scene(), icc_profile=profile_with(DISPLAY_P3, 2.2)), ""),
    "chatty.png": (lambda: png_with(chunk(b"tEXt", b"x\0" + b"y" * 10**6) * 70), ""),
    "bad-crc.png": (lambda: png_with(chunk(b"tEXt", b"x\0y", damaged=True)), ""),
    "no-end.jpg": (lambda: encoded(scene(), "JPEG")[:-2], ""),
    "really-png.jpg": (lambda: encoded(scene()), ""),
    "half.jpg": (lambda: encoded(scene(), "JPEG", quality=95)[:1500], "corrupt-image"),
    "web-page.png": (lambda: b"<!doctype html><title>404</title>", "not-an-image"),
}
SOUNDS = {".flac", ".ogg", ".webm", ".aiff", ".wav", ".mp3"}


def modality_of(name: str) -> str:
    return "music" if Path(name).suffix in SOUNDS else "image"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The files, a model, and what an annotation of them says: a row, or the code of the refusal."""
    folder = tmp_path_factory.mktemp("odd")
    media, bundle = folder / "media", lively_bundle(folder / "bundle", 3, {})
    media.mkdir()
    for name, (make, _) in CASES.items():
        (media / name).write_bytes(make())
    settings = Settings(home=folder / "home", serving=ServingSettings(engine="torch", roots=(str(media),)))
    out, info = open_storage(folder / "out"), read_bundle_info(bundle)
    model, cut = ModelInfo(name="mmva", version=None, digest=info.digest), default_preprocessing(info.backbones)
    with spooled(open_catalog(str(media), settings.storage)) as spool:
        plan = write_plan(out, spool, model, cut, shard_items=64, roots=(str(media),), keep_windows=True)
    annotator, read = Annotator(pack_bundle(bundle), plan, out.uri, settings, batch_size=5), ItemReader(out, plan)
    found: dict[str, Any] = {}
    for shard in plan.shards:
        result = annotator(shard, read(shard))
        found |= {row["id"]: row for row in result.ok.to_pylist()}
        found |= {row["id"]: row["error"] for row in result.quarantined.to_pylist()}
    nothing = {"caption": None, "uri": None}
    uploads = [
        {"id": name, "modality": modality_of(name), "data": (media / name).read_bytes()} | nothing for name in CASES
    ]
    served = {row["id"]: row for row in served_rows(bundle, settings, uploads)}
    return {"media": media, "model": load_bundle(bundle), "annotated": found, "served": served}


def code_of(call: Callable[[], object]) -> str:
    try:
        call()
    except MediaError as error:
        return error.code
    return ""


@pytest.mark.parametrize("name", CASES)
def test_all_entries_agree(world: dict[str, Any], name: str) -> None:
    data, modality, code = (world["media"] / name).read_bytes(), modality_of(name), CASES[name][1]
    annotated = world["annotated"][name]
    assert code_of(lambda: check_decodes(modality, data)) == code
    model = world["model"]
    row = world["served"][name]
    if code:
        assert annotated == code
        assert code_of(lambda: query_point(model, modality, data)) == code
        assert row["error"]["code"] == code
        return
    point = [annotated[axis] for axis in AXES]
    assert query_point(model, modality, data).tolist() == pytest.approx(point, abs=1e-5)
    assert [row[axis] for axis in AXES] == pytest.approx(point, abs=1e-5)
