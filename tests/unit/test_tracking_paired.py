"""Two bundles predicted on the same rows of a real dataset folder with stored embeddings."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch
from PIL import Image

from mmva.bundle import save_bundle
from mmva.errors import CheckFailed, UsageError
from mmva.modalities import AXES, MODALITIES
from mmva.model import MMVA
from mmva_platform.datasets import traits
from mmva_platform.datasets.dataset import Dataset
from mmva_platform.datasets.embedding_set import EmbeddingsInfo, PartInfo, folder_name, part_bytes
from mmva_platform.datasets.schema import (
    DATASET_SCHEMA,
    LABELS_SCHEMA,
    Named,
    ShardInfo,
    SplitInfo,
    describe,
    json_bytes,
    parquet_bytes,
    sha256_of,
)
from mmva_platform.settings import Settings
from mmva_platform.tracking.paired import facts_of, predict_pair
from mmva_platform.tracking.policy import GatePolicy, Slices

DIM = 4
OURS, THEIRS = "a" * 64, "b" * 64


def label_rows() -> list[dict[str, Any]]:
    """30 images and 40 clips, of which the test split has every third; every second clip has a caption."""
    rng = np.random.default_rng(0)
    empty = {"caption": "", "media_format": "x", "sha256": "0" * 64}
    kinds = [("image", i, "oasis") for i in range(30)] + [("music", i, ("deam", "pmemo")[i % 2]) for i in range(40)]
    return [
        {"id": f"{kind}-{i}", "source": source, "modality": kind, "split": "test" if i % 3 == 0 else "train",
         "group": f"{kind}-{i // 2}", **dict(zip(AXES, rng.random(2).tolist(), strict=True)), **empty}
        | ({"caption": "a song"} if kind == "music" and i % 2 == 0 else {})
        for kind, i, source in kinds
    ]  # fmt: skip


def picture(level: int) -> bytes:
    """An even grey: its brightness is level / 255."""
    buffer = io.BytesIO()
    Image.new("L", (8, 8), level).save(buffer, "PNG")
    return buffer.getvalue()


def tone(amplitude: float) -> bytes:
    """A square wave: its loudness is 20 log10 of the amplitude."""
    buffer = io.BytesIO()
    soundfile.write(buffer, amplitude * np.where(np.arange(1600) % 40 < 20, 1.0, -1.0), 16_000, "FLOAT", format="WAV")
    return buffer.getvalue()


def make_dataset(folder: Path, *fingerprints: str) -> Path:
    """A dataset of grey pictures and square waves, and embeddings by encoders of these fingerprints."""
    rows = label_rows()
    labels = parquet_bytes(pa.Table.from_pylist(rows, schema=LABELS_SCHEMA))
    table = pa.Table.from_pylist(rows, schema=LABELS_SCHEMA)
    (folder / "shards").mkdir(parents=True)
    shards = []
    for kind, media in (("image", lambda i: picture(8 * i)), ("music", lambda i: tone((i + 1) / 50))):
        mine = [row for row in rows if row["modality"] == kind]
        values = [{**row, "media": media(i)} for i, row in enumerate(mine)]
        data, name = parquet_bytes(pa.Table.from_pylist(values, schema=DATASET_SCHEMA)), f"shards/{kind}-00000.parquet"
        (folder / name).write_bytes(data)
        shards.append(ShardInfo(name=name, modality=kind, rows=len(mine), bytes=len(data), sha256=sha256_of(data)))
    named = Named("labels.parquet", sha256_of(labels))
    info = describe(table, shards, labels=named, split=SplitInfo(policy="song", seed=0))
    (folder / "labels.parquet").write_bytes(labels)
    (folder / "dataset.json").write_bytes(json_bytes(info.model_dump(mode="json")))
    for fingerprint in fingerprints:
        for modality in MODALITIES:
            kind = "music" if modality == "caption" else modality
            ids = [row["id"] for row in rows if row["modality"] == kind and (modality != "caption" or row["caption"])]
            rng = np.random.default_rng(len(ids))
            data = part_bytes(ids, rng.normal(size=(len(ids), DIM)).astype(np.float32), {})
            part = PartInfo(name="0.parquet", rows=len(ids), sha256=sha256_of(data))
            described = EmbeddingsInfo(
                modality=modality, fingerprint=fingerprint, spec={}, dim=DIM, preset="x", dataset=info.digest,
                rows=len(ids), parts=(part,),
            )  # fmt: skip
            place = folder / "embeddings" / folder_name(modality, fingerprint)
            place.mkdir(parents=True)
            (place / "0.parquet").write_bytes(data)
            (place / "embeddings.json").write_text(described.model_dump_json())
    return folder


def make_bundle(folder: Path, fingerprint: str, seed: int, known: tuple[str, ...] = MODALITIES) -> Path:
    torch.manual_seed(seed)
    model = MMVA(dict.fromkeys(known, DIM))
    for parameter in model.parameters():  # untrained heads start at the neutral point
        torch.nn.init.normal_(parameter)
    for modality in known:
        model.backbones[modality] = {"spec": {}, "fingerprint": fingerprint, "dim": DIM}
        model.preprocessing[modality] = {}
    widths = {modality: dict.fromkeys(AXES, 0.2) for modality in known}
    save_bundle(folder, model, intervals=widths, card="# Card", provenance={})
    return folder


def test_both_are_predicted_on_the_same_rows_whatever_their_backbones(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", OURS, THEIRS)
    ours, theirs = make_bundle(tmp_path / "ours", OURS, 1), make_bundle(tmp_path / "theirs", THEIRS, 2)
    pairing = predict_pair(ours, theirs, str(data), Settings(home=tmp_path))
    assert pairing.expected == {"image": 10, "music": 14, "caption": 7}
    assert {modality: len(rows.label_N2) for modality, rows in pairing.rows.items()} == dict(pairing.expected)
    assert all(rows.complete for rows in pairing.rows.values())
    music = pairing.rows["music"]
    assert music.champion_N2 is not None
    assert not np.allclose(music.candidate_N2, music.champion_N2)
    test = [row for row in label_rows() if row["modality"] == "music" and row["split"] == "test"]
    assert list(music.source_N) == [row["source"] for row in test]
    assert list(music.group_N) == [row["group"] for row in test]
    assert np.array_equal(music.label_N2, [[row[axis] for axis in AXES] for row in test])
    assert set(pairing.rows["caption"].source_N) == {"deam"}
    assert min(music.candidate_us, music.champion_us) > 0
    assert music.trait_N is not None
    np.testing.assert_allclose(music.trait_N, [20 * np.log10((i + 1) / 50) for i in range(0, 40, 3)], atol=0.1)
    image = pairing.rows["image"].trait_N
    assert image is not None
    np.testing.assert_allclose(image, [8 * i / 255 for i in range(0, 30, 3)], atol=0.01)
    assert pairing.rows["caption"].trait_N is None


def test_what_was_measured_is_not_measured_again_and_not_where_nobody_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, ours = make_dataset(tmp_path / "data", OURS), make_bundle(tmp_path / "ours", OURS, 1)
    settings = Settings(home=tmp_path)
    plain = GatePolicy(slices=Slices(by=("source",)))
    assert predict_pair(ours, ours, str(data), settings, policy=plain).rows["image"].trait_N is None
    first = predict_pair(ours, ours, str(data), settings).rows["music"].trait_N
    monkeypatch.setattr(Dataset, "read_shard", None)
    assert first is not None
    assert np.array_equal(first, predict_pair(ours, ours, str(data), settings).rows["music"].trait_N)


def test_silence_has_a_loudness_and_equal_values_are_in_one_third() -> None:
    assert traits.loudness(tone(0.0)) == traits.SILENCE_DBFS
    names = traits.thirds(np.array([0.0] * 8 + [0.5, 1.0]), ("a", "b", "c"))
    assert list(names) == ["a"] * 8 + ["c", "c"]


def test_one_bundle_against_itself_does_not_differ(tmp_path: Path) -> None:
    data, ours = make_dataset(tmp_path / "data", OURS), make_bundle(tmp_path / "ours", OURS, 1)
    for rows in predict_pair(ours, ours, str(data), Settings(home=tmp_path)).rows.values():
        assert rows.champion_N2 is not None
        assert np.array_equal(rows.candidate_N2, rows.champion_N2)


def test_a_modality_that_the_champion_does_not_know_has_no_second_prediction(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", OURS)
    ours, theirs = make_bundle(tmp_path / "o", OURS, 1), make_bundle(tmp_path / "t", OURS, 2, ("image", "music"))
    rows = predict_pair(ours, theirs, str(data), Settings(home=tmp_path)).rows
    assert rows["caption"].champion_N2 is None
    assert not rows["caption"].complete


def test_missing_embeddings_say_which_command_makes_them(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", OURS)
    ours, theirs = make_bundle(tmp_path / "o", OURS, 1), make_bundle(tmp_path / "t", THEIRS, 2)
    with pytest.raises(UsageError, match="mmva embed"):
        predict_pair(ours, theirs, str(data), Settings(home=tmp_path))


def test_altered_embeddings_are_not_judged_by(tmp_path: Path) -> None:
    data, ours = make_dataset(tmp_path / "data", OURS), make_bundle(tmp_path / "ours", OURS, 1)
    part = data / "embeddings" / folder_name("image", OURS) / "0.parquet"
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    with pytest.raises(CheckFailed, match="its bytes are not those"):
        predict_pair(ours, ours, str(data), Settings(home=tmp_path))


def test_facts_are_those_of_the_files(tmp_path: Path) -> None:
    ours = make_bundle(tmp_path / "ours", OURS, 1)
    facts = facts_of(ours)
    sums = (ours / "SHA256SUMS").stat().st_size
    on_disk = sum(path.stat().st_size for path in ours.iterdir())
    assert on_disk - sums <= facts.size_bytes <= on_disk
    assert (facts.card, facts.intervals["image"]["valence"]) == ("# Card", 0.2)
