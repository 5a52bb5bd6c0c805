"""A dataset folder of grey pictures and square waves with stored embeddings, and bundles for it; no import, no Ray."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import soundfile
import torch
from PIL import Image

from mmva.files import sha256_hex
from mmva.modalities import AXES, MODALITIES
from mmva.models.bundle import save_bundle
from mmva.models.model import MMVA
from mmva_platform.datasets.dataset import Dataset
from mmva_platform.datasets.embedding.files import EmbeddingsInfo, PartInfo, folder_name, part_bytes
from mmva_platform.datasets.schema import (
    DATASET_SCHEMA,
    LABELS_SCHEMA,
    DatasetInfo,
    Named,
    ShardInfo,
    SplitInfo,
    describe,
    json_bytes,
    parquet_bytes,
)

DIM = 4
OURS, THEIRS = "a" * 64, "b" * 64


def label_rows() -> list[dict[str, Any]]:
    """30 images and 40 clips in groups of two, every third of them for testing; half the clips have captions."""
    rng = np.random.default_rng(0)
    kinds = [("image", i, "oasis") for i in range(30)] + [("music", i, ("deam", "pmemo")[i % 2]) for i in range(40)]
    return [
        row_of(kind, i, rng.random(2), source=source, split="test" if i // 2 % 3 == 0 else "train")
        | ({"caption": "a song"} if kind == "music" and i % 2 == 0 else {})
        for kind, i, source in kinds
    ]


def row_of(kind: str, i: int, va_2: Any, *, source: str, split: str, group: str = "") -> dict[str, Any]:
    """A row of the labels (LABELS_SCHEMA), without the digest of its media."""
    labels = dict(zip(AXES, map(float, va_2), strict=True))
    names = {"id": f"{kind}-{i}", "source": source, "modality": kind, "split": split}
    return {**names, "group": group or f"{kind}-{i // 2}", **labels, "caption": "", "media_format": "x", "sha256": ""}


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


def make_dataset(folder: Path, *fingerprints: str, embeddings: Path | None = None, swapped: bool = False) -> Path:
    """A dataset of grey pictures and square waves, and embeddings by encoders of these fingerprints.

    The first two numbers of an embedding are the logits of its label, with noise of the fingerprint's own.
    """
    rows = label_rows()
    if swapped:  # train on what was for testing
        rows = [row | {"split": "train" if row["split"] == "test" else "test"} for row in rows]
    media = [picture(8 * i) for i in range(30)] + [tone((i + 1) / 50) for i in range(40)]
    publish(folder, rows, media)
    for fingerprint in fingerprints:
        for modality in MODALITIES:
            own = rows_of(rows, modality)
            va_N2 = np.array([[row[axis] for axis in AXES] for row in own])
            emb_ND = np.random.default_rng([len(own), ord(fingerprint[0])]).normal(0, 0.5, (len(own), DIM))
            emb_ND[:, :2] += np.log(va_N2 / (1 - va_N2))
            embed(folder, modality, emb_ND, fingerprint, embeddings)
    return folder


def rows_of(rows: list[dict[str, Any]], modality: str) -> list[dict[str, Any]]:
    """A modality's rows; a clip's caption is in the row of the clip."""
    if modality == "caption":
        return [row for row in rows if row["caption"]]
    return [row for row in rows if row["modality"] == modality]


def publish(folder: Path, rows: list[dict[str, Any]], media: list[bytes]) -> DatasetInfo:
    """Write a dataset of these rows, a shard a modality; a sentence on its own has no media."""
    for row, data in zip(rows, media, strict=True):
        row["sha256"] = sha256_hex(data)
    (folder / "shards").mkdir(parents=True)
    shards = []
    for kind in dict.fromkeys(row["modality"] for row in rows):
        mine = [
            {**row, "media": data or None} for row, data in zip(rows, media, strict=True) if row["modality"] == kind
        ]
        data, name = parquet_bytes(pa.Table.from_pylist(mine, schema=DATASET_SCHEMA)), f"shards/{kind}-00000.parquet"
        (folder / name).write_bytes(data)
        shards.append(ShardInfo(name=name, modality=kind, rows=len(mine), bytes=len(data), sha256=sha256_hex(data)))
    table = pa.Table.from_pylist(rows, schema=LABELS_SCHEMA)
    labels = parquet_bytes(table)
    named = Named("labels.parquet", sha256_hex(labels))
    info = describe(table, shards, labels=named, split=SplitInfo(policy="song", seed=0))
    (folder / "labels.parquet").write_bytes(labels)
    (folder / "dataset.json").write_bytes(json_bytes(info.model_dump(mode="json")))
    return info


def embed(folder: Path, modality: str, emb_ND: Any, fingerprint: str, out: Path | None = None) -> None:
    """Store embeddings of a modality's rows, inside the dataset or elsewhere."""
    dataset = Dataset.open(str(folder))
    ids = [item for items in dataset.items(modality) for item in items.ids]  # type: ignore[arg-type]
    data = part_bytes(ids, np.asarray(emb_ND, np.float32), {})
    part = PartInfo(name="0.parquet", rows=len(ids), sha256=sha256_hex(data))
    described = EmbeddingsInfo.model_validate(
        {
            "modality": modality, "fingerprint": fingerprint, "spec": {}, "dim": np.shape(emb_ND)[1], "preset": "x",
            "dataset": dataset.digest, "rows": len(ids), "parts": (part,),
        }
    )  # fmt: skip
    place = (out or folder / "embeddings") / folder_name(modality, fingerprint)  # type: ignore[arg-type]
    place.mkdir(parents=True)
    (place / "0.parquet").write_bytes(data)
    (place / "embeddings.json").write_text(described.model_dump_json())


def make_bundle(
    folder: Path, fingerprint: str, seed: int, known: tuple[str, ...] = MODALITIES, provenance: Any = None
) -> Path:
    """A bundle of random heads."""
    torch.manual_seed(seed)
    model = MMVA(dict.fromkeys(known, DIM))
    for parameter in model.parameters():  # untrained heads start at the neutral point
        torch.nn.init.normal_(parameter)
    for modality in known:
        model.backbones[modality] = {"spec": {}, "fingerprint": fingerprint, "dim": DIM}
        model.preprocessing[modality] = {}
    widths = {modality: dict.fromkeys(AXES, 0.2) for modality in known}
    save_bundle(folder, model, intervals=widths, card="# Card", provenance=provenance or {})
    return folder
