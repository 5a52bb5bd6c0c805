"""Choosing an engine: by measured speed among the faithful, kept in a cache, obeyed and checked by workers."""

from __future__ import annotations

import io
import json
import logging
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from mmva.engines.calibration import Measured, fastest, made_up_items, measure
from mmva.engines.choice import calibrate_bundle, choose_engines, load_predictor, pack_bundle, sample_rate_of
from mmva.errors import CheckFailed, OperationFailed, UsageError
from mmva.inference.config import EngineInfo, check_engine_name, default_preprocessing
from mmva.inference.pipeline import Pipeline
from mmva.inference.tables import matrix
from mmva_platform.datasets.embedding.worker import EncoderLoader
from mmva_platform.settings import Settings
from mmva_platform.storage import open_storage


class Clock:
    """A timer that only fake engines advance."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class FakeEngine:
    def __init__(self, clock: Clock, seconds: float, error: float = 0.0) -> None:
        self.clock, self.seconds, self.error = clock, seconds, error

    def encode(self, items, batch_size=16):
        self.clock.now += self.seconds
        return np.asarray(items, np.float32) + np.float32(self.error)


def measured(**seconds_and_error: tuple[float, float]) -> dict[str, Measured]:
    clock = Clock()
    fakes = {name: FakeEngine(clock, *given) for name, given in seconds_and_error.items()}
    return measure(fakes, [[1.0, 2.0], [2.0, -1.0]], lambda emb_N2: emb_N2, timer=clock)


def test_auto_takes_the_fastest():
    figures = measured(torch=(4.0, 0.0), slow=(8.0, 0.0), fast=(2.0, 1e-5))
    assert figures["torch"].items_per_s == 4
    assert fastest(figures) == "fast"


@pytest.mark.parametrize("error", [2e-3, 0.5, np.nan])
def test_auto_refuses_what_differs(error):
    figures = measured(torch=(4.0, 0.0), wrong=(1.0, error), right=(2.0, 1e-5))
    assert not figures["wrong"].faithful
    assert fastest(figures) == "right"


def test_a_low_cosine_alone_is_refused():
    assert not Measured(items_per_s=1, max_va_difference=0, min_cosine=0.9998).faithful
    assert Measured(items_per_s=1, max_va_difference=1e-3, min_cosine=0.9999).faithful


@pytest.fixture(scope="module")
def measured_home(tiny_bundle, tmp_path_factory):
    """A home whose cache holds the engines of images: exporting and measuring them takes longer than all else here."""
    home = tmp_path_factory.mktemp("measured")
    settings = Settings(home=home)
    place = SimpleNamespace(settings=settings, storage=open_storage(str(home / "out"), settings.storage))
    choose(tiny_bundle, place, "onnx", "image")
    return home


@pytest.fixture
def place(measured_home, tmp_path):
    settings = Settings(home=tmp_path / "home")
    shutil.copytree(measured_home / "cache", settings.home / "cache")
    return SimpleNamespace(settings=settings, storage=open_storage(str(tmp_path / "out"), settings.storage))


def choose(tiny_bundle: Path, place, wanted: str, *modalities: str, load=None, **options):
    cache, load = place.settings.home / "cache" / "engines", load or EncoderLoader.of(place.settings)
    return choose_engines(
        pack_bundle(tiny_bundle), wanted, modalities, place.storage, cache=cache, load=load, **options
    )


def model_of(tiny_bundle: Path, place, chosen):
    return load_predictor(pack_bundle(tiny_bundle), chosen, place.storage, EncoderLoader.of(place.settings))


def embedded(model, modality: str, items: list) -> np.ndarray:
    return model.encoder(modality).encode(items)


def no_loading(*_):
    pytest.fail("an encoder was loaded")


def test_onnx_is_put_into_the_run_and_used_from_there(tiny_bundle, place):
    chosen = choose(tiny_bundle, place, "onnx", "image", "caption")
    assert set(chosen) == {"image", "caption"}
    image = chosen["image"]
    assert image.file == f"engines/image-{image.sha256[:16]}.onnx"
    assert image.min_cosine > 0.9999
    items = made_up_items("image", None)
    reference = model_of(tiny_bundle, place, {}).embed("image", items)
    model = model_of(tiny_bundle, place, chosen)
    np.testing.assert_allclose(model.embed("image", items), reference, atol=1e-5)


def test_a_tampered_network_is_refused(tiny_bundle, place):
    chosen = choose(tiny_bundle, place, "onnx", "image")
    data = place.storage.read(chosen["image"].file)
    place.storage.write(chosen["image"].file, data[:-1] + bytes([data[-1] ^ 1]))
    model = model_of(tiny_bundle, place, chosen)
    with pytest.raises(CheckFailed, match="changed since it was planned"):
        model.embed("image", [Image.new("RGB", (64, 64))])


def test_a_network_outside_the_run_is_refused(tiny_bundle, place):
    chosen = choose(tiny_bundle, place, "onnx", "image")
    elsewhere = {"image": chosen["image"].model_copy(update={"file": "../elsewhere.onnx"})}
    model = model_of(tiny_bundle, place, elsewhere)
    with pytest.raises(CheckFailed, match="has no exported network"):
        model.encoder("image")


def test_another_backbones_network_is_refused(tiny_bundle, place):
    chosen = choose(tiny_bundle, place, "onnx", "image", "caption")
    sha256 = chosen["caption"].sha256
    swapped = chosen["image"].model_copy(update={"sha256": sha256, "file": f"engines/image-{sha256[:16]}.onnx"})
    place.storage.put_if_absent(swapped.file, place.storage.read(chosen["caption"].file))
    model = model_of(tiny_bundle, place, {"image": swapped})
    with pytest.raises(CheckFailed, match="the towers were trained on"):
        model.encoder("image")


def test_a_second_choice_loads_no_encoder(tiny_bundle, place):
    first = choose(tiny_bundle, place, "auto", "image")
    assert choose(tiny_bundle, place, "auto", "image", load=no_loading) == first


def test_a_damaged_cache_is_measured_again(tiny_bundle, place):
    first = choose(tiny_bundle, place, "onnx", "image")
    (network,) = (place.settings.home / "cache" / "engines").glob("*.onnx")
    network.write_bytes(b"damaged")
    assert choose(tiny_bundle, place, "onnx", "image")["image"].min_cosine == pytest.approx(first["image"].min_cosine)
    assert network.read_bytes() != b"damaged"


def test_explicit_torch_is_never_measured(tiny_bundle, place):
    chosen = choose(tiny_bundle, place, "torch", "image", "music", load=no_loading)
    assert {info.name for info in chosen.values()} == {"torch"}


def test_cuda_is_taken_at_its_word_and_refused_by_a_worker_without_a_gpu(tiny_bundle, place, monkeypatch):
    chosen = choose(tiny_bundle, place, "cuda-bf16", "image", load=no_loading)
    assert (chosen["image"].on_gpu, chosen["image"].max_va_difference, chosen["image"].file) == (True, None, None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    model = model_of(tiny_bundle, place, chosen)
    with pytest.raises(OperationFailed, match="torch sees no GPU on this worker; choose --engine auto"):
        model.encoder("image")


def test_auto_takes_the_gpu_that_the_workers_have(tiny_bundle, place):
    chosen = choose(tiny_bundle, place, "auto", "image", "music", load=no_loading, gpu=True)
    assert {name: engine.name for name, engine in chosen.items()} == {"image": "cuda", "music": "cuda"}


def test_bf16_is_refused_by_a_worker_whose_processor_lacks_it(tiny_bundle, place, monkeypatch):
    """The processor that chose the engine need not be the one that runs it."""
    monkeypatch.setattr("mmva.engines.bf16.has_bf16", lambda device="cpu": False)
    model = model_of(tiny_bundle, place, {"image": EngineInfo(name="torch-bf16")})
    with pytest.raises(OperationFailed, match="engine torch-bf16: this worker's processor has no bfloat16"):
        model.encoder("image")


def test_a_calibration_may_come_from_another_machine(tiny_bundle, place, tmp_path):
    """What a task on a worker returns is enough; this process loads no encoder."""
    shutil.rmtree(place.settings.home / "cache")
    load = EncoderLoader.of(place.settings)
    found = calibrate_bundle(pack_bundle(tiny_bundle), "image", tmp_path / "worker", load)
    found = pickle.loads(pickle.dumps(found))
    chosen = choose(tiny_bundle, place, "onnx", "image", load=no_loading, measure=lambda _modality: found)
    assert place.storage.exists(chosen["image"].file)
    assert chosen["image"].items_per_s == {n: round(m.items_per_s, 1) for n, m in found[0].engines.items()}


@pytest.mark.parametrize(
    ("recorded", "rate"), [({"sample_rate": 16_000}, 16_000), ({"sampling_rate": 24_000}, 24_000), (None, None)]
)
def test_the_rate_of_music_is_known_without_its_encoder(recorded, rate):
    """What the families write into a bundle."""
    preprocessing = {} if recorded is None else {"music": recorded}
    assert sample_rate_of(SimpleNamespace(preprocessing=preprocessing, dims=dict.fromkeys(preprocessing, 8))) == rate


def test_a_bundle_that_records_no_rate_is_refused():
    with pytest.raises(CheckFailed, match="the bundle has no sample rate"):
        sample_rate_of(SimpleNamespace(preprocessing={"music": {}}, dims={"music": 8}))


@pytest.mark.gpu
@pytest.mark.parametrize("modality", ["image", "music", "caption"])
def test_cuda_gives_what_torch_gives(tiny_bundle, place, modality):
    torch_model = model_of(tiny_bundle, place, {})
    items = made_up_items(modality, torch_model.encoder(modality).sample_rate)
    chosen = choose(tiny_bundle, place, "cuda", modality)
    encoder = model_of(tiny_bundle, place, chosen).encoder(modality)
    np.testing.assert_allclose(encoder.encode(items), embedded(torch_model, modality, items), atol=1e-4)
    first, second = (encoder.launch([encoder.prepare(item) for item in items]) for _ in range(2))
    np.testing.assert_array_equal(encoder.collect(second), encoder.collect(first))


@pytest.mark.gpu
def test_the_pipeline_on_a_gpu_gives_what_torch_gives(tiny_bundle, place):
    def fetch(uri, _size, _most):
        buffer = io.BytesIO()
        made_up_items("image", None)[int(uri) % 8].save(buffer, "PNG")
        return buffer.getvalue()

    items = pa.table(
        {"id": [str(n) for n in range(50)], "uri": [str(n) for n in range(50)], "modality": ["image"] * 50}
    )
    found = []
    for name, threads in (("torch", 0), ("cuda", 4)):
        model = model_of(tiny_bundle, place, choose(tiny_bundle, place, name, "image"))
        cut = default_preprocessing(model.backbones)
        pipeline = Pipeline(model.dims, model.encoder, cut, fetch, batch_size=3, decode_threads=threads)
        found.append(matrix(pipeline.embed(items).rows["embedding"]))
    np.testing.assert_allclose(found[1], found[0], atol=1e-4)


def rewrite_cache(place, change) -> None:
    (path,) = (place.settings.home / "cache" / "engines").glob("*.json")
    values = json.loads(path.read_text())
    change(values["engines"])
    path.write_text(json.dumps(values))


def test_an_explicit_engine_that_does_not_exist_is_refused_and_auto_does_without(tiny_bundle, place):
    choose(tiny_bundle, place, "auto", "image")

    def only_torch(found):
        for name in set(found) - {"torch"}:
            del found[name]

    rewrite_cache(place, only_torch)
    with pytest.raises(UsageError, match="'onnx' is not available for image"):
        choose(tiny_bundle, place, "onnx", "image")
    assert choose(tiny_bundle, place, "auto", "image")["image"].name == "torch"


def test_an_explicit_engine_outside_the_limits_is_used_with_a_warning(tiny_bundle, place, caplog):
    choose(tiny_bundle, place, "auto", "image")
    rewrite_cache(place, lambda found: found["onnx"].update(min_cosine=0.99, max_va_difference=0.25))
    with caplog.at_level(logging.WARNING):
        chosen = choose(tiny_bundle, place, "onnx", "image")["image"]
    assert (chosen.name, chosen.max_va_difference) == ("onnx", 0.25)
    assert "0.25 in VA values" in caplog.text
    assert "0.99000" in caplog.text


def test_an_unknown_engine_is_named(tiny_bundle, place):
    with pytest.raises(UsageError, match="engine 'tensorrt' is unknown; choose one of auto, torch"):
        choose(tiny_bundle, place, "tensorrt", "image")


def test_a_name_is_checked_without_a_model():
    assert [check_engine_name(name) for name in ("auto", "cuda-bf16")] == ["auto", "cuda-bf16"]
    with pytest.raises(UsageError, match="engine 'onx' is unknown; choose one of auto, torch"):
        check_engine_name("onx")
