"""Embeddings once per backbone, resumable, aligned with the labels. Encoders are `tiny`: random, but real networks."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from inline_pass import InlineCluster, install
from safetensors.torch import save

from mmva.backbones import load_encoder, preset
from mmva.engines.cuda import CudaEncoder
from mmva.errors import CheckFailed, OperationFailed, UsageError
from mmva.files import sha256_hex
from mmva.media.audio.decode import decode_audio
from mmva.media.images.decode import decode_image
from mmva.media.windows import HOP_S, WINDOW_S
from mmva.models.bundle import save_bundle
from mmva.models.model import MMVA
from mmva_platform.datasets.dataset import Dataset
from mmva_platform.datasets.embedding import worker as embedder
from mmva_platform.datasets.embedding.files import part_key
from mmva_platform.datasets.embedding.run import embed_dataset
from mmva_platform.datasets.embedding.worker import Part, embed_part
from mmva_platform.datasets.features import load_features
from mmva_platform.datasets.importing.run import import_dataset
from mmva_platform.datasets.schema import ShardInfo
from mmva_platform.settings import ClusterSettings, Settings
from mmva_platform.training.evaluation.evaluate import evaluate
from mmva_platform.workflows import backbones_of


@pytest.fixture(scope="module")
def imported(make_published: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imported")
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        import_dataset(make_published(folder).config(shard_rows=4), str(folder / "dataset"))
    return folder / "dataset"


@pytest.fixture
def dataset(imported: Path, tmp_path: Path, inline_cluster: InlineCluster) -> str:
    return str(shutil.copytree(imported, tmp_path / "dataset"))


def part_file(folder: Path, number: int) -> Path:
    (path,) = folder.glob(f"part-{number:05d}-*.parquet")
    return path


def test_features_are_those_of_each_item_alone(dataset: str, published: Any) -> None:
    embed_dataset(dataset, "tiny", batch_size=3)
    features = load_features(dataset, "tiny")
    assert {modality: len(rows) for modality, rows in features.items()} == {"image": 5, "music": 12, "caption": 9}
    encoders = {modality: load_encoder(spec) for modality, spec in preset("tiny").specs.items()}
    image = decode_image((published.media / "images" / "1001.JPG").read_bytes())
    clip = decode_audio((published.media / "audio" / "4-2.wav").read_bytes(), encoders["music"].sample_rate or 0)
    for modality, item_id, item in [
        ("image", "1001", image),
        ("music", "4-2", clip),
        ("caption", "4-2", "A calm tune of song 4 in part 2"),
    ]:
        rows = features[modality]
        row = list(rows.ids).index(item_id)
        np.testing.assert_allclose(rows.emb_ND[row], encoders[modality].encode([item])[0], atol=1e-5)
    row = list(features["caption"].ids).index("4-2")
    np.testing.assert_allclose(features["caption"].va_N2[row], [0.4, 0.6])
    assert features["caption"].group[row] == "4"


def test_splits_partition_the_rows(dataset: str) -> None:
    embed_dataset(dataset, "tiny")
    features = load_features(dataset, "tiny")
    for modality, rows in features.items():
        ids = [item_id for name in ("train", "val", "test") for item_id in features.split(name)[modality].ids]
        assert sorted(ids) == sorted(rows.ids)
        assert rows.emb_ND.dtype == np.float32
        assert rows.va_N2.dtype == np.float64
    assert all(features.split("val")[modality].split[0] == "val" for modality in ("image", "music"))


def test_what_exists_is_not_computed_again(dataset: str, inline_cluster: InlineCluster) -> None:
    first = embed_dataset(dataset, "tiny")
    assert embed_dataset(dataset, "tiny") == first
    assert inline_cluster.stages == ["embed"]


def test_only_what_is_missing_is_computed(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = embed_dataset(dataset, "tiny")
    folder = Path(sets["music"])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "embeddings.json").unlink()
    part_file(folder, 1).unlink()
    damaged = part_file(folder, 2)
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1  # within the embeddings
    damaged.write_bytes(data)
    written = []
    part_bytes = embedder.part_bytes

    def note(ids: Any, emb_ND: Any, key: Any) -> bytes:
        written.append(list(ids))
        return part_bytes(ids, emb_ND, key)

    monkeypatch.setattr(embedder, "part_bytes", note)
    embed_dataset(dataset, "tiny")
    assert [len(ids) for ids in written] == [4, 4], "the missing part and the damaged one"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_parts_of_another_dataset_do_not_count(dataset: str, published: Any, tmp_path: Path) -> None:
    out = str(tmp_path / "embeddings")
    sets = embed_dataset(dataset, "tiny", out)
    other = str(tmp_path / "other")
    import_dataset(published.config(shard_rows=4, seed=5), other)
    with pytest.raises(UsageError, match="holds embeddings of another dataset"):
        embed_dataset(other, "tiny", out)
    for folder in sets.values():
        (Path(folder) / "embeddings.json").unlink()
    folder = Path(embed_dataset(other, "tiny", out)["music"])
    names = [part["name"] for part in json.loads((folder / "embeddings.json").read_text())["parts"]]
    made_from = [part_key((folder / name).read_bytes())["shard_sha256"] for name in names]
    assert made_from == [shard.sha256 for shard in Dataset.open(other).shards if shard.modality == "music"]
    features = load_features(other, "tiny", embeddings=out)
    assert list(features.split("train")["image"].ids) != list(load_features_of(dataset).split("train")["image"].ids)


def load_features_of(dataset: str) -> Any:
    embed_dataset(dataset, "tiny")
    return load_features(dataset, "tiny")


def test_a_models_own_backbones_embed_a_new_dataset_for_its_evaluation(dataset: str, tmp_path: Path) -> None:
    """Two towers, of which one has a tuned backbone that no preset names; embeddings beside a read-only dataset."""
    specs = {modality: preset("tiny").specs[modality] for modality in ("image", "music")}  # type: ignore[index]
    network = load_encoder(specs["image"]).network
    name, weight = next(iter(network.named_parameters()))
    data = save({name: weight.detach() + torch.linspace(-1, 1, weight.numel()).reshape(weight.shape)})
    (tmp_path / "tuned.safetensors").write_bytes(data)
    specs["image"] = replace(specs["image"], tuned=str(tmp_path), tuned_sha256=sha256_hex(data))
    encoders = {modality: load_encoder(spec) for modality, spec in specs.items()}
    model = MMVA({modality: encoder.dim for modality, encoder in encoders.items()})
    model.attach_encoders(encoders)
    bundle, out = tmp_path / "bundle", str(tmp_path / "elsewhere")
    save_bundle(bundle, model, intervals={}, card="", provenance={})

    with pytest.raises(UsageError, match=f"mmva embed {dataset} --backbones MODEL"):
        evaluate(bundle, dataset, Settings())
    made = embed_dataset(dataset, backbones_of(str(bundle), Settings()), out)
    assert set(made) == {"image", "music"}
    assert made["image"].endswith(f"image-{encoders['image'].fingerprint[:16]}")
    found = evaluate(bundle, dataset, Settings(), embeddings=out)
    assert set(found.metrics) == {"image", "music"}
    with pytest.raises(UsageError, match="did you mean 'tiny'"):
        backbones_of("tinny", Settings())


def test_other_readers_find_plain_columns(dataset: str) -> None:
    folder = embed_dataset(dataset, "tiny")["image"]
    table = pq.read_table(part_file(Path(folder), 0))
    info = json.loads(Path(folder, "embeddings.json").read_text())
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), info["dim"])
    assert info["rows"] == sum(part["rows"] for part in info["parts"]) == 5
    assert Path(folder).name == f"image-{info['fingerprint'][:16]}"


@pytest.mark.parametrize("backbones", ["tiny", {"image": "0" * 64}])
def test_missing_embeddings_name_the_command(dataset: str, backbones: Any) -> None:
    with pytest.raises(UsageError, match=f"mmva embed {dataset} --backbones"):
        load_features(dataset, backbones)


def test_fingerprints_choose_the_sets(dataset: str) -> None:
    embed_dataset(dataset, "tiny")
    fingerprints = load_features(dataset, "tiny").fingerprints
    chosen = load_features(dataset, {"music": fingerprints["music"]})
    assert list(chosen) == ["music"]


def test_a_changed_part_is_refused(dataset: str) -> None:
    path = part_file(Path(embed_dataset(dataset, "tiny")["music"]), 0)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckFailed, match=path.name):
        load_features(dataset, "tiny")


def test_an_item_that_no_longer_decodes_is_named(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmva.errors import MediaError
    from mmva.inference import decode

    def refuse(*_: object, **__: object) -> None:
        raise MediaError("corrupt-image", "no")

    monkeypatch.setattr(decode, "decode_image", refuse)
    with pytest.raises(
        OperationFailed, match=r"image '100\d' in shards/image-0000\d-\w+\.parquet does not decode now, but did"
    ):
        embed_dataset(dataset, "tiny")


def test_an_unknown_preset_and_a_missing_dataset(dataset: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'tiny'"):
        embed_dataset(dataset, "tinny")
    shutil.rmtree(tmp_path / "dataset")
    with pytest.raises(UsageError, match="no dataset there"):
        embed_dataset(dataset, "tiny")


def test_long_music_is_the_mean_of_its_windows() -> None:
    encoder = load_encoder(preset("tiny").music)
    assert encoder.sample_rate is not None
    rng = np.random.default_rng(0)
    window, hop = (round(seconds * encoder.sample_rate) for seconds in (WINDOW_S, HOP_S))
    long = rng.normal(0, 0.1, window + hop).astype(np.float32)
    short = long[: encoder.sample_rate]
    files = []
    for samples in (long, short):
        buffer = io.BytesIO()
        soundfile.write(buffer, samples, encoder.sample_rate, format="WAV", subtype="FLOAT")
        files.append(buffer.getvalue())
    shard = ShardInfo(name="shards/music-00000.parquet", modality="music", rows=2, bytes=1, sha256="0" * 64)
    part = Part(preset("tiny").music, encoder.fingerprint, 0, shard, ("long", "short"))
    emb_ND = embed_part(part, encoder, files.__getitem__, 16)
    both = encoder.encode([long[:window], long[hop:]])
    np.testing.assert_allclose(emb_ND[0], both.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(emb_ND[1], encoder.encode([short])[0], atol=1e-5)


def test_two_runs_at_once_publish_one_set(
    dataset: str, inline_cluster: InlineCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one embeds in other batches, so that its parts may have other bytes, and publishes first."""
    waiting = [True]
    part_bytes = embedder.part_bytes

    def shifted(ids: Any, emb_ND: Any, key: Any) -> bytes:
        return part_bytes(ids, emb_ND + np.float32(1e-6), key)

    def other_run(name: str) -> None:
        if waiting and name.endswith("part-00000"):  # the last shard of each modality is first
            waiting.clear()
            with monkeypatch.context() as patch:
                patch.setattr(embedder, "part_bytes", shifted)
                patch.setattr(embedder, "_written", lambda *_: None)
                embed_dataset(dataset, "tiny")

    inline_cluster.before_shard = other_run
    sets = embed_dataset(dataset, "tiny")
    assert not waiting
    for modality, uri in sets.items():
        published = json.loads(Path(uri, "embeddings.json").read_text())["parts"]
        names = {path.name for path in Path(uri).glob("part-*")}
        assert names == {part["name"] for part in published}, modality
    assert set(load_features(dataset, "tiny")) == {"image", "music", "caption"}


@pytest.mark.parametrize(
    ("engine", "gpus", "share"), [("auto", 0, 0), ("auto", 1, 0.25), ("torch", 1, 0), ("cuda", 0, 0.25)]
)
def test_workers_hold_their_share_of_a_gpu(
    dataset: str, inline_cluster: InlineCluster, engine: Any, gpus: int, share: float
) -> None:
    """Also of GPUs that an autoscaler has yet to start."""
    inline_cluster.gpus = gpus
    if engine == "cuda":
        with pytest.raises(OperationFailed, match="torch sees no GPU on this worker"):
            embed_dataset(dataset, "tiny", engine=engine)
    else:
        embed_dataset(dataset, "tiny", engine=engine)
    assert [resources.gpus for resources in inline_cluster.resources if resources] == [share]


def test_a_cluster_that_may_start_gpu_nodes_is_asked_for_them(dataset: str, inline_cluster: InlineCluster) -> None:
    embed_dataset(dataset, "tiny", settings=Settings(cluster=ClusterSettings(max_gpus=2)))
    assert [resources.gpus for resources in inline_cluster.resources if resources] == [0.25]


def test_an_encoder_goes_to_the_gpu_that_torch_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load_encoder(preset("tiny").image)
    moved = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(type(encoder), "to", lambda self, device: moved.append(device) or self)
    assert isinstance(embedder.on_gpu(encoder, required=False), CudaEncoder)
    assert moved == ["cuda"]


@pytest.mark.gpu
def test_a_gpu_gives_the_embeddings_of_the_cpu(dataset: str, tmp_path: Path) -> None:
    embed_dataset(dataset, "tiny", engine="torch")
    embed_dataset(dataset, "tiny", str(tmp_path / "cuda"), engine="cuda", batch_size=64)
    cpu, cuda = load_features(dataset, "tiny"), load_features(dataset, "tiny", embeddings=str(tmp_path / "cuda"))
    for modality, rows in cpu.items():
        np.testing.assert_allclose(cuda[modality].emb_ND, rows.emb_ND, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "said"), [({"engine": "gpu"}, "'gpu' is unknown"), ({"batch_size": 0}, "at least 1")]
)
def test_wrong_options_fail_before_anything_is_read(tmp_path: Path, options: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        embed_dataset(str(tmp_path / "none"), "tiny", **options)
