"""Records which media, texts and groups a model was trained on, to recognize them in an exam under another name.

A media file is identified by the digest of its bytes, a caption of a clip by that of its clip, another sentence by its
words without case and spacing, and a group by its source and name. Each becomes 8 bytes of a SHA-256: for a million
training rows and an exam of a hundred thousand, a false match has a chance of 1 in 10^8.
"""

import base64
import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mmva.modalities import MODALITIES, Modality
from mmva_platform.datasets.dataset import Dataset

TRAINING_SPLITS: Final = ("train", "val")  # validation chooses penalties, the best epoch and the intervals
_KINDS: Final = ("media", "texts", "groups")


@dataclass(frozen=True)
class Seen:
    """Numbers of a split's rows that a model was trained on."""

    rows: int  # all rows of the modality in the split
    certain: int  # rows whose media or group it was trained on
    by_text: int  # other rows whose words it was trained on; two documents may have the same phrase by chance


def training_record(dataset: Dataset, modalities: Collection[str]) -> dict[str, Any]:
    """Identities of the rows that a model is trained and chosen on, as plain values for its provenance.

    Returns {"dataset": digest, "shared_groups": groups in more than one split, modality: {"media", "texts", "groups"}},
    the digests sorted and in base64.
    """
    record: dict[str, Any] = {"dataset": dataset.digest, "shared_groups": shared_groups(dataset)}
    for modality in MODALITIES:
        if modality in modalities:
            rows = _identities(dataset, modality, TRAINING_SPLITS)
            unique = {kind: np.unique(rows[kind][rows[kind] != 0]).astype("<u8") for kind in _KINDS}
            record[modality] = {kind: base64.b64encode(found.tobytes()).decode() for kind, found in unique.items()}
    return record


def seen_rows(record: Mapping[str, Any], dataset: Dataset, modality: Modality, split: str) -> Seen:
    """How many of a split's rows a model with this training record was trained on; none of an unrecorded modality."""
    rows = _identities(dataset, modality, (split,))
    digests = {kind: base64.b64decode(record.get(modality, {}).get(kind, "")) for kind in _KINDS}
    known = {kind: np.isin(rows[kind], np.frombuffer(digests[kind], np.dtype("<u8"))) for kind in _KINDS}
    certain_N = (known["media"] & (rows["media"] != 0)) | known["groups"]
    by_text_N = known["texts"] & (rows["texts"] != 0) & ~certain_N
    return Seen(len(certain_N), int(certain_N.sum()), int(by_text_N.sum()))


def shared_groups(dataset: Dataset) -> int:
    """Number of groups with rows in more than one split; above 0, the split leaks."""
    labels = dataset.labels().select(["source", "modality", "group", "split"]).to_pandas()
    splits = labels.groupby(["source", "modality", "group"], observed=True)["split"].nunique()
    return int((splits > 1).sum())


def _identities(dataset: Dataset, modality: Modality, splits: Collection[str]) -> dict[str, NDArray[np.uint64]]:
    """Digests of the rows' media, texts and groups, uint64 [N] each; 0 where a row has none."""
    labels = dataset.labels().to_pandas()
    of_clip = (labels["modality"] == "music") & (labels["caption"] != "")
    chosen = (labels["modality"] == modality) | (of_clip if modality == "caption" else False)
    rows = labels[chosen & labels["split"].isin(list(splits))]
    alone = rows["modality"] == "caption"
    return {
        "media": _digests("" if text else media for media, text in zip(rows["sha256"], alone, strict=True)),
        "texts": _digests(" ".join(text.casefold().split()) for text in rows["caption"].where(alone, "").fillna("")),
        "groups": _digests(f"{source}\0{group}" for source, group in zip(rows["source"], rows["group"], strict=True)),
    }


def _digests(texts: Iterable[str]) -> NDArray[np.uint64]:
    """First 8 bytes of each text's SHA-256; 0 for an empty text."""
    found = (hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8] if text else bytes(8) for text in texts)
    return np.frombuffer(b"".join(found), np.dtype("<u8")).astype(np.uint64)
