"""The `paper` preset from an object store that stands in for the hub, offline: embed, train, annotate.

The three architectures are the paper's at about a tenth of their weights, random, in the layout that the hub has them
in; their digests take the place of the real ones'. No result is claimed: it shows that the real ones would run.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmva.backbones import Preset, preset
from mmva_platform.settings import ClusterSettings, Settings, StorageSettings, validate
from mmva_platform.storage import open_storage

pytestmark = [pytest.mark.system, pytest.mark.slow]
WIDTH = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 8}
# Parameters of the real ones, of which these are to be about a tenth.
REAL = {"image": 87.8e6, "music": 94.4e6, "caption": 124.6e6}


def save_clip(folder: Path) -> Any:
    """The whole CLIP, as the hub's repository holds it; only its vision tower is read."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    vision = {**WIDTH, "num_hidden_layers": 10, "image_size": 224, "patch_size": 32, "projection_dim": 512}
    text = {**WIDTH, "hidden_size": 64, "num_hidden_layers": 1, "vocab_size": 50}
    text |= {"projection_dim": 512, "bos_token_id": 0, "eos_token_id": 1}
    model = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=512))
    model.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224}).save_pretrained(folder)
    return model.vision_model


def save_mert(folder: Path) -> Any:
    """HuBERT's weights under MERT's own model type, at 24 kHz."""
    from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

    config = HubertConfig(**WIDTH, num_hidden_layers=10, conv_dim=(128,) * 7, num_conv_pos_embedding_groups=16)
    model = HubertModel(config)
    model.save_pretrained(folder)
    values = json.loads((folder / "config.json").read_text())
    values |= {"model_type": "mert_model", "feature_extractor_cqt": False, "deepnorm": False}
    (folder / "config.json").write_text(json.dumps(values))
    Wav2Vec2FeatureExtractor(sampling_rate=24_000, do_normalize=True).save_pretrained(folder)
    return model


def save_roberta(folder: Path) -> Any:
    """A byte-level BPE tokenizer, as RoBERTa's is, learned on a few words."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaConfig, RobertaModel, RobertaTokenizerFast

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(["A calm tune", "a loud and fast one", "bright drums"], 400, special_tokens=special)
    folder.mkdir(parents=True)
    bpe.save_model(str(folder))
    model = RobertaModel(RobertaConfig(**WIDTH, num_hidden_layers=14, vocab_size=4000, max_position_embeddings=514))
    model.save_pretrained(folder)
    RobertaTokenizerFast.from_pretrained(folder).save_pretrained(folder)
    return model


def test_the_paper_preset_trains_and_annotates_from_a_mirror(s3_endpoint: str, tmp_path: Path) -> None:
    """In a process with a Ray of its own: workers of the session's know nothing of these credentials."""
    command = [sys.executable, __file__, s3_endpoint, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {"image": 2, "music": 2, "caption": 1}


def walk_through(store: str, tmp_path: Path) -> dict[str, int]:
    """Mirror, import, embed, train, annotate; rows annotated by modality."""
    import torch

    from mmva.backbones.sources import weight_files, weights_digest
    from mmva.imemnet.generator import generate

    sys.path.insert(0, str(Path(__file__).parents[1]))  # where pytest finds it; this is the script of a process
    from inline_pass import install

    from mmva_platform.annotation import annotate, open_annotation
    from mmva_platform.datasets.embedding.run import embed_dataset
    from mmva_platform.datasets.importing.run import ImportConfig, import_dataset
    from mmva_platform.datasets.sources.config import ImemnetSource
    from mmva_platform.training.recipe import Recipe
    from mmva_platform.training.trainer import train

    torch.manual_seed(0)
    storage = StorageSettings(s3_endpoint=store)
    settings = Settings(home=tmp_path / "home", storage=storage, backbone_mirror="s3://media/mirror")
    specs = {}
    for modality, save in (("image", save_clip), ("music", save_mert), ("caption", save_roberta)):
        spec = preset("paper").specs[modality]
        folder = tmp_path / "made" / modality
        parameters = sum(parameter.numel() for parameter in save(folder).parameters())
        assert 0.07 < parameters / REAL[modality] < 0.13
        specs[modality] = replace(spec, sha256=weights_digest(weight_files(folder)))
        target = open_storage(f"s3://media/mirror/{spec.name}", storage)
        for path in folder.iterdir():
            target.write(path.name, path.read_bytes())

    media, dataset = tmp_path / "media", str(tmp_path / "dataset")
    generate(media, images=20, clips=20, seed=0)
    with pytest.MonkeyPatch.context() as patch:
        install(patch)  # without actors, which other tests start
        import_dataset(
            ImportConfig(sources=(ImemnetSource(root=str(media)),), fractions=(0.6, 0.2, 0.2)), dataset, settings
        )
        embed_dataset(dataset, Preset("paper", specs["image"], specs["music"], specs["caption"]), None, settings)
    values = {"dataset": dataset, "preset": "paper", "epochs": 2, "batch_size": 8, "workers": 1}
    result = train(validate(Recipe, values, "recipe"), settings)
    assert set(result.evaluation.metrics) == {"image", "music", "caption"}

    catalog = tmp_path / "catalog"
    catalog.mkdir()
    for number, path in enumerate(sorted(media.rglob("*.*g"))[:2] + sorted(media.rglob("*.wav"))[:2]):
        (catalog / f"{number}{path.suffix}").write_bytes(path.read_bytes())
    (catalog / "words.txt").write_text("A calm tune\n")
    summary = annotate(str(catalog), str(result.bundle_dir), str(tmp_path / "annotated"), settings, engine="torch")
    assert (summary.ok, summary.quarantined) == (5, 0)
    table = open_annotation(str(tmp_path / "annotated"), settings.storage).table(["modality", "valence"])
    assert np.isfinite(table["valence"].to_numpy()).all()
    return dict(Counter(table["modality"].to_pylist()))


if __name__ == "__main__":
    from mmva_platform.cluster import ray_session

    with ray_session(ClusterSettings(address="local", num_cpus=4, object_store_mb=256)):
        counted = walk_through(sys.argv[1], Path(sys.argv[2]))
    sys.stdout.write(json.dumps(counted) + "\n")
