"""A dataset's embeddings and labels as aligned arrays, which training and evaluation read.

Shapes: N items of a modality, D the dimension of its encoder.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from mmva.data.splits import fold_splits
from mmva.errors import CheckFailed
from mmva.modalities import AXES, Modality
from mmva_platform.datasets.dataset import Dataset
from mmva_platform.datasets.embedding.files import EmbeddingSet, EmbeddingsInfo, open_sets
from mmva_platform.settings import Settings


@dataclass(frozen=True)
class ModalityFeatures:
    """N items of one modality."""

    ids: NDArray[np.str_]  # [N]; a caption that belongs to a clip has the id of the clip
    emb_ND: NDArray[np.float32]
    va_N2: NDArray[np.float64]  # labels, about [0, 1]
    split: NDArray[np.str_]  # "train", "val" or "test"
    group: NDArray[np.str_]  # such as the song or the theme; a split keeps a group together

    def __len__(self) -> int:
        return len(self.ids)

    def where(self, mask_N: NDArray[np.bool_]) -> Self:
        """The rows where the mask is True, in order; views, not copies, if they are adjacent."""
        first, count = int(mask_N.argmax()) if len(mask_N) else 0, int(mask_N.sum())
        adjacent = bool(mask_N[first : first + count].all())
        rows: slice | NDArray[np.bool_] = slice(first, first + count) if adjacent else mask_N
        return type(self)(self.ids[rows], self.emb_ND[rows], self.va_N2[rows], self.split[rows], self.group[rows])


@dataclass(frozen=True)
class Features(Mapping[Modality, ModalityFeatures]):
    """Features by modality, for the modalities that the dataset has."""

    uri: str  # of the dataset
    digest: str  # of the dataset
    fingerprints: dict[Modality, str]  # of the encoder
    specs: dict[Modality, dict[str, object]]  # plain values of the encoder's BackboneSpec
    warnings: tuple[str, ...]  # of the dataset: every report must repeat them
    modalities: dict[Modality, ModalityFeatures]
    terms: Mapping[str, str] = field(default_factory=dict)  # license or terms of the dataset's sources, by name

    def __getitem__(self, modality: Modality) -> ModalityFeatures:
        return self.modalities[modality]

    def __iter__(self) -> Iterator[Modality]:
        return iter(self.modalities)

    def __len__(self) -> int:
        return len(self.modalities)

    def folds(self, k: int, seed: int = 0) -> Iterator[Self]:
        """Yield these features once for each of k folds by group, with the fold as the split "test".

        Every row is in "test" once. A caption is in the fold of its clip; images, clips and other captions are divided
        separately, so that the folds of each have the same size. Raises UsageError if there are too few groups.
        """
        music = self.modalities.get("music")
        dealt = {
            # The group of a picture may have the name of a song.
            modality: _splits_of(rows, k, seed, None if modality == "image" else music)
            for modality, rows in self.modalities.items()
        }
        for fold in range(k):
            chosen = {m: replace(rows, split=dealt[m][fold]) for m, rows in self.modalities.items()}
            yield replace(self, modalities=chosen)

    def split(self, name: str) -> dict[Modality, ModalityFeatures]:
        """Rows of one split, by modality; a modality without such rows has features of length 0."""
        return {modality: rows.where(rows.split == name) for modality, rows in self.modalities.items()}


def load_features(
    dataset_uri: str,
    backbones: str | Mapping[Modality, str],
    settings: Settings | None = None,
    *,
    embeddings: str | Sequence[str] | None = None,
) -> Features:
    """Load embeddings with their labels.

    `backbones` is a preset's name, or the encoders' fingerprints by modality. `embeddings` is their URI if they are not
    inside the dataset; see open_sets for several. Raises UsageError, with the command that makes them, if the dataset
    has no such embeddings, CheckFailed if a part is not the published one.
    """
    sets = FeatureSets.open(dataset_uri, backbones, settings or Settings(), embeddings=embeddings)
    return sets.describe({modality: sets.load(modality) for modality in sets.infos})


@dataclass(frozen=True)
class FeatureSets:
    """The embedding sets of load_features, for loading one modality at a time."""

    dataset: Dataset
    sets: dict[Modality, EmbeddingSet]

    @classmethod
    def open(
        cls,
        dataset_uri: str,
        backbones: str | Mapping[Modality, str],
        settings: Settings,
        *,
        embeddings: str | Sequence[str] | None = None,
    ) -> Self:
        """Find the sets without reading rows; arguments and errors are those of load_features."""
        dataset = Dataset.open(dataset_uri, settings)
        return cls(dataset, open_sets(dataset, backbones, settings, embeddings=embeddings))

    @property
    def infos(self) -> dict[Modality, EmbeddingsInfo]:
        """Descriptions of the sets by modality."""
        return {modality: found.info for modality, found in self.sets.items()}

    def load(self, modality: Modality, most: int | None = None, split: str | None = None) -> ModalityFeatures:
        """One modality's rows, sorted by split, within a split in the order of the dataset.

        With `most`, reads only evenly spaced parts that have about that many rows. With `split`, keeps only that
        split's rows; memory then holds these rows and one part. Raises CheckFailed if a part is not the published one,
        or the set has other items than the dataset.
        """
        info = self.sets[modality].info
        step = 1 if most is None else max(1, round(info.rows / most))
        return _load(self.dataset, self.sets[modality], range(0, len(info.parts), step), split)

    def describe(self, modalities: dict[Modality, ModalityFeatures]) -> Features:
        """Features of these rows."""
        return Features(
            uri=self.dataset.uri,
            digest=self.dataset.digest,
            fingerprints={modality: info.fingerprint for modality, info in self.infos.items()},
            specs={modality: info.spec for modality, info in self.infos.items()},
            warnings=self.dataset.warnings,
            modalities=modalities,
            terms=self.dataset.info.terms,
        )


def _load(
    dataset: Dataset, embeddings: EmbeddingSet, chosen: Sequence[int], only: str | None = None
) -> ModalityFeatures:
    info = embeddings.info
    labels = dataset.labels().to_pandas()
    captioned = (labels["modality"] == "caption") | ((labels["modality"] == "music") & (labels["caption"] != ""))
    rows = labels[captioned if info.modality == "caption" else labels["modality"] == info.modality]
    other_items = f"{embeddings.storage.uri}: {info.modality} embeddings have other items than the dataset; embed again"
    is_chosen = np.repeat(np.isin(np.arange(len(info.parts)), chosen), [part.rows for part in info.parts])
    if len(is_chosen) != len(rows):
        raise CheckFailed(other_items)
    rows = rows[is_chosen]
    split = rows["split"].to_numpy(dtype=np.str_)
    kept = np.arange(len(split)) if only is None else np.flatnonzero(split == only)
    order = kept[np.argsort(split[kept], kind="stable")]
    place = np.full(len(split), -1, np.int64)  # position of each row among the sorted rows; -1 if it is left out
    place[order] = np.arange(len(order))
    ids: list[str] = []
    emb_ND = np.empty((len(order), info.dim), np.float32)  # filled part by part, to need the memory only once
    for number in chosen:
        part_ids, part_emb_BD = embeddings.read(number)
        place_B = place[len(ids) : len(ids) + len(part_ids)]
        emb_ND[place_B[place_B >= 0]] = part_emb_BD[place_B >= 0]
        ids += part_ids
    if list(rows["id"]) != ids:
        raise CheckFailed(other_items)
    return ModalityFeatures(
        ids=np.array(ids, dtype=np.str_)[order],
        emb_ND=emb_ND,
        va_N2=rows[list(AXES)].to_numpy(np.float64)[order],
        split=split[order],
        group=rows["group"].to_numpy(dtype=np.str_)[order],
    )


def _splits_of(rows: ModalityFeatures, k: int, seed: int, music: ModalityFeatures | None) -> list[NDArray[np.str_]]:
    """Names of splits [N] for each fold; a row with the group of a clip gets the clip's split."""
    by_clip_N = np.zeros(len(rows), np.bool_) if music is None else np.isin(rows.group, music.group)
    found = [np.empty(len(rows), "<U5") for _ in range(k)]
    alone = fold_splits(rows.group[~by_clip_N].tolist(), rows.va_N2[~by_clip_N], k, seed)
    for names_N, alone_N in zip(found, alone, strict=True):
        names_N[~by_clip_N] = alone_N
    if music is not None and by_clip_N.any():
        clips = fold_splits(music.group.tolist(), music.va_N2, k, seed)
        for names_N, clip_N in zip(found, clips, strict=True):
            split_of = dict(zip(music.group.tolist(), clip_N.tolist(), strict=True))
            names_N[by_clip_N] = [split_of[group] for group in rows.group[by_clip_N].tolist()]
    return found
