"""Start and L2 penalty of the towers: ridge regression in closed form, with its penalty chosen on validation.

Probe first, then train (Kumar et al., ICLR 2022): a tower's linear path starts as the ridge regression on its frozen
features, so that training only adds to it, and keeps the penalty of this regression. The best penalties of two
backbones differ tenfold, so no single number fits all three.

Shapes: N rows, D embedding width, A penalties tried; a last axis of 2 is (valence, arousal).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from mmva.errors import UsageError
from mmva.models.model import MMVA
from mmva.models.towers import Tower
from mmva_platform.training.loop.data import Triplets

Floats = NDArray[np.float64]
Pieces = Iterable[Floats]
_PIECE: Final = 65_536
PENALTIES: Final = np.logspace(-2.5, 2.0, 28)  # alpha per input dimension


def fit_probe(
    z: Pieces, va_N2: Floats, z_val: Pieces, va_val_M2: Floats, penalty_2: Floats | None = None
) -> tuple[Floats, Floats]:
    """Ridge regression on standardised embeddings; each axis gets the penalty of PENALTIES that is best on validation.

    Uses the Gram matrix, piece by piece, so memory does not grow with the number of rows. With fewer rows than
    dimensions it decomposes the rows themselves, which is faster. `z` are the training rows [N, D] in pieces, `z_val`
    the validation rows, which are not read if penalties [2] are given. Returns weights [D, 2] of
    va - va_N2.mean(axis=0), and the penalties [2].
    """
    mean_2 = va_N2.mean(axis=0)
    variance_K, v_DK, moment_D2 = _decomposed(z, va_N2 - mean_2)
    dim, projected_K2 = len(v_DK), v_DK.T @ moment_D2
    if penalty_2 is not None:
        return v_DK @ (projected_K2 / (variance_K[:, None] + dim * penalty_2)), penalty_2
    shrink_AK = 1 / (variance_K + dim * PENALTIES[:, None])
    errors_A2, start = np.zeros((len(PENALTIES), 2)), 0
    for piece_BD in z_val:
        predicted_AB2 = np.einsum("bk,ak,kc->abc", piece_BD @ v_DK, shrink_AK, projected_K2, optimize=True) + mean_2
        errors_A2 += np.square(predicted_AB2 - va_val_M2[start : start + len(piece_BD)]).sum(axis=1)
        start += len(piece_BD)
    best_2 = errors_A2.argmin(axis=0)
    return v_DK @ (shrink_AK[best_2].T * projected_K2), PENALTIES[best_2]


def _decomposed(z: Pieces, va_N2: Floats) -> tuple[Floats, Floats, Floats]:
    """Eigenvalues [K] and eigenvectors [D, K] of z.T @ z, and z.T @ va [D, 2]."""
    pieces = iter(z)
    first_BD = next(pieces)
    if len(va_N2) < first_BD.shape[1]:
        z_ND = np.concatenate([first_BD, *pieces])
        _, singular_K, v_KD = np.linalg.svd(z_ND, full_matrices=False)
        return np.square(singular_K), v_KD.T, z_ND.T @ va_N2
    gram_DD: Floats | float = 0.0
    moment_D2: Floats | float = 0.0
    start = 0
    for piece_BD in chain([first_BD], pieces):
        gram_DD = gram_DD + piece_BD.T @ piece_BD
        moment_D2 = moment_D2 + piece_BD.T @ va_N2[start : start + len(piece_BD)]
        start += len(piece_BD)
    variance_K, v_DK = np.linalg.eigh(gram_DD)
    return variance_K.clip(0), v_DK, np.asarray(moment_D2)


def check_probes(train: Triplets, val: Triplets) -> None:
    """Raises UsageError if validation lacks a modality of training: its tower's penalty could not be chosen."""
    if missing := [modality for modality in train.emb if modality not in val.emb]:
        raise UsageError(
            f"dataset: split 'val' has no {missing[0]} to choose a penalty; set optimizer.ridge to a number"
        )


def start_from_probes(
    model: MMVA, train: Triplets, val: Triplets, penalties: Mapping[str, list[float]] | None = None
) -> dict[str, list[float]]:
    """Set every tower's linear path to its probe; returns the penalties [2] by modality, per input dimension.

    The probe predicts labels, the path logits: at the mean label both have the same value and slope. With `penalties`,
    validation is not read. Raises UsageError as check_probes.
    """
    check_probes(train, val)
    found = {}
    labels, held_out = ({m: va.astype(np.float64) for m, va in split.labels().items()} for split in (train, val))
    for modality, emb_ND in train.emb.items():
        tower = model.tower(modality)
        z, z_val = _standardised(tower, emb_ND), _standardised(tower, val.emb[modality])
        given_2 = None if penalties is None else np.array(penalties[modality])
        weight_D2, penalty_2 = fit_probe(z, labels[modality], z_val, held_out[modality], given_2)
        found[modality] = penalty_2.tolist()
        mean_2 = labels[modality].mean(axis=0).clip(0.01, 0.99)
        with torch.no_grad():
            tower.linear.weight.copy_(torch.from_numpy((weight_D2 / (mean_2 * (1 - mean_2))).T))
            tower.linear.bias.copy_(torch.from_numpy(np.log(mean_2 / (1 - mean_2))))
    return found


def _standardised(tower: Tower, emb_ND: NDArray[np.floating]) -> Iterator[Floats]:
    """Standardised rows as float64 pieces [B, D]."""
    device = tower.mean_D.device
    for start in range(0, len(emb_ND), _PIECE):
        emb_BD = torch.from_numpy(np.array(emb_ND[start : start + _PIECE])).to(device)  # shared memory is read-only
        yield np.asarray(tower.standardise(emb_BD).double().cpu().numpy(), np.float64)
