"""Where towers start and how hard they are held: ridge regression in closed form, its penalty chosen on validation.

Probe first, then train (Kumar et al., ICLR 2022): a tower's linear path starts as the ridge regression on its frozen
features, so that training only adds to it, and its L2 penalty stays the one that this regression needed. How much that
is differs tenfold between backbones, so no single number serves all three.

Shapes: N rows, D embedding width, A penalties tried; a last axis of 2 is (valence, arousal).
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from mmva.model import MMVA
from mmva.towers import Tower
from mmva_platform.training.data import Triplets

Floats = NDArray[np.float64]
PENALTIES: Final = np.logspace(-2.5, 2.0, 28)  # alpha per input dimension


def fit_probe(z_ND: Floats, va_N2: Floats, z_val_MD: Floats, va_val_M2: Floats) -> tuple[Floats, Floats]:
    """Ridge regression on standardised embeddings; each axis has the penalty of PENALTIES that is best on validation.

    Args:
        z_ND: Standardised embeddings of the training split.
        va_N2: Their labels.
        z_val_MD: Standardised embeddings of the validation split.
        va_val_M2: Their labels.

    Returns:
        Weights [D, 2] of va - va_N2.mean(axis=0), and the penalties [2].
    """
    mean_2 = va_N2.mean(axis=0)
    u_NK, s_K, vt_KD = np.linalg.svd(z_ND, full_matrices=False)
    projected_K2 = u_NK.T @ (va_N2 - mean_2)
    shrink_AK = s_K / (s_K**2 + z_ND.shape[1] * PENALTIES[:, None])
    predicted_AM2 = np.einsum("mk,ak,kc->amc", z_val_MD @ vt_KD.T, shrink_AK, projected_K2, optimize=True) + mean_2
    best_2 = np.square(predicted_AM2 - va_val_M2).mean(axis=1).argmin(axis=0)
    return vt_KD.T @ (shrink_AK[best_2].T * projected_K2), PENALTIES[best_2]


def start_from_probes(model: MMVA, train: Triplets, val: Triplets) -> dict[str, Floats]:
    """Set every tower's linear path to its probe; returns the penalties [2] by modality, per input dimension.

    The probe predicts labels and the path logits: at the mean label both have the same value and the same slope.
    """
    penalties = {}
    labels, held_out = ({m: va.astype(np.float64) for m, va in split.labels().items()} for split in (train, val))
    for modality, emb_ND in train.embeddings().items():
        tower = model.tower(modality)
        z_ND, z_val_MD = _standardised(tower, emb_ND), _standardised(tower, val.embeddings()[modality])
        weight_D2, penalties[modality] = fit_probe(z_ND, labels[modality], z_val_MD, held_out[modality])
        mean_2 = labels[modality].mean(axis=0).clip(0.01, 0.99)
        with torch.no_grad():
            tower.linear.weight.copy_(torch.from_numpy((weight_D2 / (mean_2 * (1 - mean_2))).T))
            tower.linear.bias.copy_(torch.from_numpy(np.log(mean_2 / (1 - mean_2))))
    return penalties


def _standardised(tower: Tower, emb_ND: NDArray[np.floating]) -> Floats:
    device = tower.mean_D.device
    return np.asarray(tower.standardise(torch.as_tensor(emb_ND, device=device)).double().cpu().numpy(), np.float64)
