"""The same twenty items through every path from bytes to points: they agree to 1e-5, with curves and embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import soundfile
from PIL import Image

from mmva.backbones import BackboneSpec, load_encoder
from mmva.engines.choice import load_predictor, pack_bundle, sample_rate_of
from mmva.inference.config import default_preprocessing
from mmva.inference.heads import predict
from mmva.inference.pipeline import Pipeline
from mmva.inference.stages import DecodeStage
from mmva.models.bundle import load_bundle, read_bundle_info
from mmva.zeroshot.query import query_point
from mmva_platform.annotation.catalog.catalog import open_catalog
from mmva_platform.annotation.media import Fetcher
from mmva_platform.annotation.plan.plan import ItemReader, ModelInfo
from mmva_platform.annotation.plan.planning import write_plan
from mmva_platform.annotation.plan.spool import spooled
from mmva_platform.annotation.run.annotator import Annotator
from mmva_platform.datasets.embedding.worker import EncoderLoader, Part, embed_part
from mmva_platform.datasets.schema import ShardInfo
from mmva_platform.settings import ServingSettings, Settings
from mmva_platform.storage import open_storage
from mmva_platform.tracking.model import save_model
from mmva_platform.tracking.store import quiet

from ..unit.helpers.made_video import write_video
from ..unit.helpers.published import lively_bundle
from .served import served_rows

pytestmark = pytest.mark.slow  # imports MLflow

INTERVALS = {name: {"valence": 0.1, "arousal": 0.2} for name in ("image", "music", "caption")}
SCENES: list[Any] = [(3.0, (200, 40, 30), 0.6), (2.5, (20, 60, 220), 0.05), (4.0, (240, 240, 90), 0.3)]
AXES = ["valence", "arousal"]


def picture(size: tuple[int, int], seed: int) -> Image.Image:
    """Coarse blocks under fine noise: resampling and colour conversion both show."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    noise = rng.normal(0, 12, (size[1], size[0], 3))
    return Image.fromarray(np.clip(np.asarray(coarse, np.float64) + noise, 0, 255).astype(np.uint8))


def sound(seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    time_T = np.arange(round(seconds * rate)) / rate
    tone_T = 0.4 * np.sin(2 * np.pi * 220 * time_T ** (1.1 + 0.1 * np.sin(time_T / 9))) * (0.2 + (time_T % 7) / 9)
    return np.stack([tone_T * (1 - 0.5 * channel) for channel in range(channels)], axis=1).astype(np.float32)


def write_media(folder: Path) -> dict[str, str]:
    """Twenty files; name -> modality."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    images: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "large.jpg": (picture((2400, 1600), 0), {"quality": 90}),
        "large.png": (picture((1500, 1100), 1), {}),
        "cmyk.jpg": (picture((600, 500), 2).convert("CMYK"), {}),
        "turned.jpg": (picture((800, 300), 3), {"exif": exif}),
        "palette.gif": (picture((300, 300), 4).convert("P"), {}),
        "web.webp": (picture((500, 400), 6), {"quality": 80}),
        "narrow.png": (picture((9, 130), 7), {}),
    }
    for name, (image, options) in images.items():
        image.save(folder / name, **options)
    transparent = picture((400, 300), 5).convert("RGBA")
    transparent.putalpha(Image.linear_gradient("L").resize((400, 300)))
    transparent.save(folder / "transparent.png")
    Image.fromarray((np.arange(120 * 160, dtype=np.uint16) * 3).reshape(120, 160)).save(folder / "deep.png")
    soundfile.write(folder / "short.wav", sound(1.2, 16_000), 16_000)
    soundfile.write(folder / "stereo.flac", sound(2.8, 44_100, 2), 44_100)
    soundfile.write(folder / "medium.ogg", sound(8.0, 48_000), 48_000)
    soundfile.write(folder / "coded.mp3", sound(10.3, 44_100), 44_100)
    soundfile.write(folder / "long.wav", sound(40.0, 22_050, 2), 22_050)
    (folder / "plain.txt").write_text("A calm piece for solo piano.")
    (folder / "marks.txt").write_bytes("\ufeff  Trauer \u0301 und\tHoffnung,\n心 🎵  ".encode())
    (folder / "long.txt").write_text("wild drums and screaming guitars " * 60)
    write_video(folder / "both.mp4", SCENES)
    write_video(folder / "mute.avi", SCENES, sound=False)
    write_video(folder / "dark.mkv", SCENES, pictures=False)
    kinds = {"txt": "caption", "mp4": "video", "avi": "video", "mkv": "video"}
    kinds |= dict.fromkeys(("wav", "flac", "ogg", "mp3"), "music")
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) == 20
    return {name: kinds.get(name.rpartition(".")[2], "image") for name in names}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Media, a model, and what an annotation of them says (fp32 torch)."""
    folder = tmp_path_factory.mktemp("one")
    media, bundle = folder / "media", lively_bundle(folder / "bundle", 3, INTERVALS)
    media.mkdir()
    kinds = write_media(media)
    settings = Settings(home=folder / "home", serving=ServingSettings(engine="torch", roots=(str(media),)))
    out = open_storage(folder / "out")
    info = read_bundle_info(bundle)
    model, cut = ModelInfo(name="mmva", version=None, digest=info.digest), default_preprocessing(info.backbones)
    with spooled(open_catalog(str(media), settings.storage)) as spool:
        plan = write_plan(out, spool, model, cut, shard_items=64, roots=(str(media),), keep_windows=True)
    annotator, read = Annotator(pack_bundle(bundle), plan, out.uri, settings, batch_size=5), ItemReader(out, plan)
    results = [annotator(shard, read(shard)) for shard in plan.shards]
    assert sum(result.quarantined.num_rows for result in results) == 0
    rows = {
        row["id"]: row | {"embedding": stored["embedding"]}
        for result in results
        for row, stored in zip(result.ok.to_pylist(), result.embeddings.to_pylist(), strict=True)
    }
    assert [stored for result in results for stored in result.embeddings["id"].to_pylist()] == list(rows)
    assert sorted(rows) == sorted(kinds)
    assert len({tuple(row[axis] for axis in AXES) for row in rows.values()}) == 20, "points must differ to compare them"
    return {"media": media, "bundle": bundle, "kinds": kinds, "settings": settings, "rows": rows, "folder": folder}


def agree(found: dict[str, Any], expected: dict[str, Any], *parts: str) -> None:
    """Points within 1e-5, and whatever else there is."""
    for axis in AXES:
        assert found[axis] == pytest.approx(expected[axis], abs=1e-5), expected["id"]
    for part in parts:
        if part == "windows" and expected["windows"]:
            for key in ("start_s", *AXES):
                ours, theirs = ([point[key] for point in row["windows"]] for row in (found, expected))
                assert ours == pytest.approx(theirs, abs=1e-5), (expected["id"], key)
        else:
            assert np.shape(found[part]) == np.shape(expected[part])
            assert found[part] == pytest.approx(expected[part], abs=1e-5), (expected["id"], part)


def test_an_annotation_has_curves_of_long_items_only(world: dict[str, Any]) -> None:
    long = {name for name, row in world["rows"].items() if row["windows"]}
    assert long == {"medium.ogg", "coded.mp3", "long.wav", "both.mp4", "mute.avi", "dark.mkv"}
    assert len(world["rows"]["long.wav"]["windows"]) > 20


def test_the_service_agrees(world: dict[str, Any]) -> None:
    requests: list[Any] = []
    for number, (name, kind) in enumerate(world["kinds"].items()):
        path: Path = world["media"] / name
        upload = number % 2 == 0
        request = {"id": name, "modality": kind, "caption": None, "uri": None, "data": None}
        requests.append(request | ({"data": path.read_bytes()} if upload else {"uri": str(path)}))
    for row in served_rows(world["bundle"], world["settings"], requests):
        expected = world["rows"][row["id"]]
        agree(row, expected, "windows", "embedding")
        assert row["sha256"] == expected["sha256"]
        if row["modality"] != "video":
            assert row["interval"]["valence"] == pytest.approx((expected["valence_low"], expected["valence_high"]))


def test_the_registered_model_agrees(world: dict[str, Any]) -> None:
    import mlflow

    with quiet():
        save_model(world["folder"] / "mlflow", world["bundle"])
        loaded = mlflow.pyfunc.load_model(str(world["folder"] / "mlflow"))
    names = list(world["kinds"])
    found = loaded.predict(
        pd.DataFrame({"modality": world["kinds"].values(), "uri": [str(world["media"] / name) for name in names]})
    )
    assert found["error"].isna().all()
    for name, row in zip(names, found.to_dict("records"), strict=True):
        expected = world["rows"][name]
        agree(row, expected)
        for bound in ("valence_low", "valence_high", "arousal_low", "arousal_high"):
            assert row[bound] == pytest.approx(expected[bound] if expected[bound] is not None else np.nan, nan_ok=True)


def test_a_query_agrees(world: dict[str, Any]) -> None:
    model = load_bundle(world["bundle"])
    for name, kind in world["kinds"].items():
        if kind != "video":
            valence, arousal = query_point(model, kind, (world["media"] / name).read_bytes())
            agree({"valence": valence, "arousal": arousal}, world["rows"][name])


def test_embed_and_evaluation_agree(world: dict[str, Any]) -> None:
    """Evaluation runs torch's towers over the embeddings that `mmva embed` stores."""
    model = load_bundle(world["bundle"], load_encoders=False)
    for kind in ("image", "music", "caption"):
        names = [name for name, modality in world["kinds"].items() if modality == kind]
        files = [(world["media"] / name).read_bytes() for name in names]
        spec = BackboneSpec.from_json(model.backbones[kind]["spec"])
        shard = ShardInfo(name=f"shards/{kind}", modality=kind, rows=len(names), bytes=1, sha256="0" * 64)
        texts = tuple(file.decode() for file in files) if kind == "caption" else ()
        part = Part(spec, model.backbones[kind]["fingerprint"], 0, shard, tuple(names), texts)
        emb_ND = embed_part(part, load_encoder(spec), files.__getitem__ if kind != "caption" else None, 3)
        va_N2 = model.predict_embeddings(kind, emb_ND)
        for name, emb_D, va_2 in zip(names, emb_ND, va_N2, strict=True):
            found = dict(zip(AXES, va_2.tolist(), strict=True)) | {"embedding": emb_D.tolist()}
            agree(found, world["rows"][name], "embedding")


@pytest.mark.parametrize("threads", [0, 2])
def test_two_stages_agree(world: dict[str, Any], threads: int) -> None:
    bundle, settings = pack_bundle(world["bundle"]), world["settings"]
    info = read_bundle_info(world["bundle"])
    cut, fetch = default_preprocessing(info.backbones), Fetcher(settings.storage)
    names, kinds = list(world["kinds"]), list(world["kinds"].values())
    items = pa.table({"id": names, "uri": [str(world["media"] / name) for name in names], "modality": kinds})
    decoded = DecodeStage(info.dims, sample_rate_of(info), cut, fetch, most_bytes=2**22)(items)
    assert decoded["sha256"].null_count > 0, "the bound leaves something to the second stage"
    model = load_predictor(bundle, {}, open_storage(world["folder"]), EncoderLoader.of(settings))
    pipeline = Pipeline(model.dims, model.encoder, cut, fetch, decode_threads=threads)
    for row in predict(model, pipeline.embed_decoded(decoded)).rows.to_pylist():
        agree(row, world["rows"][row["id"]], "windows", "embedding")
