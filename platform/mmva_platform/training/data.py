"""What a training loop reads: the features of one split as arrays, clips and their captions row by row.

Shapes: N images, M clips; D differs by modality. A clip without a caption has a zero row and False in the mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mmva.errors import UsageError

if TYPE_CHECKING:
    from mmva_platform.datasets.features import Features

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Triplets:
    """Images on one side, clips with their captions on the other; pairs between the sides come from the sampler.

    Attributes:
        image_emb_ND: Image embeddings.
        image_va_N2: Their labels, about [0, 1].
        music_emb_MD: Clip embeddings.
        music_va_M2: Their labels; a clip's caption has the same.
        caption_emb_MD: Embedding of each clip's caption.
        caption_mask_M: Whether the clip has a caption.
    """

    image_emb_ND: Floats
    image_va_N2: Floats
    music_emb_MD: Floats
    music_va_M2: Floats
    caption_emb_MD: Floats
    caption_mask_M: NDArray[np.bool_]

    def embeddings(self) -> dict[str, Floats]:
        """Rows by modality, captions only where there is one: what the towers standardise by."""
        return {
            "image": self.image_emb_ND,
            "music": self.music_emb_MD,
            "caption": self.caption_emb_MD[self.caption_mask_M],
        }

    def labels(self) -> dict[str, Floats]:
        """The labels of `embeddings`' rows."""
        return {
            "image": self.image_va_N2,
            "music": self.music_va_M2,
            "caption": self.music_va_M2[self.caption_mask_M],
        }


def triplets(features: Features, split: str) -> Triplets:
    """One split's rows, captions joined to clips by id.

    Raises:
        UsageError: If the split has no image or no clip, or the dataset has no caption in it at all.
    """
    rows = features.split(split)
    for modality in ("image", "music", "caption"):
        if modality not in rows or len(rows[modality].ids) == 0:
            raise UsageError(
                f"dataset: split {split!r} has no {modality} to train with; import more data or other splits"
            )
    image, music, caption = rows["image"], rows["music"], rows["caption"]
    row_of = {str(id_): row for row, id_ in enumerate(caption.ids)}
    source_M = np.array([row_of.get(str(id_), -1) for id_ in music.ids], np.int64)
    mask_M = source_M >= 0
    caption_emb_MD = np.where(mask_M[:, None], caption.emb_ND[source_M], 0).astype(np.float32)
    return Triplets(image.emb_ND, image.va_N2, music.emb_ND, music.va_N2, caption_emb_MD, mask_M)
