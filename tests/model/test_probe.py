"""The probe against scikit-learn's ridge regression, and what a tower starts as."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch

from mmva_platform.training.loop.probe import PENALTIES, fit_probe


def data(rows: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    weight_D2 = 0.03 * np.random.default_rng(0).normal(size=(30, 2))
    z_ND = rng.normal(size=(rows, 30))
    return z_ND, 0.5 + z_ND @ weight_D2 + noise * rng.normal(size=(rows, 2))


@pytest.mark.parametrize("rows", [80, 20])
def test_weights_are_those_of_scikit_learn_at_the_chosen_penalty(rows: int) -> None:
    from sklearn.linear_model import Ridge  # here, not above: a second a process

    (z, va), (z_val, va_val) = data(rows, 0.2, 1), data(60, 0.2, 2)
    weight_D2, penalty_2 = fit_probe([z[:15], z[15:]], va, [z_val], va_val)
    for axis in range(2):
        ridge = Ridge(alpha=30 * penalty_2[axis], fit_intercept=False).fit(z, va[:, axis] - va[:, axis].mean())
        assert weight_D2[:, axis] == pytest.approx(ridge.coef_, abs=1e-8)


def test_the_penalty_is_the_best_of_all_on_validation() -> None:
    from sklearn.linear_model import Ridge

    (z, va), (z_val, va_val) = data(80, 0.2, 1), data(60, 0.2, 2)
    _, penalty_2 = fit_probe([z[:50], z[50:]], va, [z_val], va_val)
    mean_2 = va.mean(axis=0)
    for axis in range(2):
        errors = [
            np.square(Ridge(alpha=30 * p, fit_intercept=False).fit(z, va - mean_2).predict(z_val) + mean_2 - va_val)
            for p in PENALTIES
        ]
        assert penalty_2[axis] == PENALTIES[np.argmin([error[:, axis].mean() for error in errors])]


def test_noise_asks_for_more_penalty() -> None:
    quiet, loud = (
        fit_probe([z], va, [z_val], va_val)[1]
        for (z, va), (z_val, va_val) in ((data(80, noise, 1), data(60, noise, 2)) for noise in (0.01, 1.0))
    )
    assert (loud > 10 * quiet).all()


def test_a_tower_starts_as_its_probe(synthetic: ModuleType) -> None:
    from mmva.models.model import MMVA
    from mmva_platform.training.loop.probe import start_from_probes

    train, val = synthetic.triplets_of(80, 80), synthetic.triplets_of(40, 40, seed=1)
    model = MMVA({m: emb.shape[1] for m, emb in train.emb.items()})
    model.set_statistics(train.emb)
    penalties = start_from_probes(model, train, val)
    assert penalties.keys() == {"image", "music", "caption"}
    for modality, emb_ND in train.emb.items():
        va_N2 = train.labels()[modality]
        constant = np.square(va_N2 - va_N2.mean(axis=0)).mean()
        with torch.no_grad():
            fitted = np.square(model.predict_embeddings(modality, emb_ND) - va_N2).mean()
        assert fitted < 0.9 * constant
