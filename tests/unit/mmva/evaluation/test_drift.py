"""Drift: nothing where nothing drifts, the right number where the answer is known, silence on small samples."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mmva.evaluation.drift import (
    BINS,
    MIN_ITEMS,
    QUANTILES,
    TOO_FEW,
    drift,
    drift_by_modality,
    psi,
    reference_quantiles,
)

N = 20_000


@pytest.fixture(scope="module")
def reference() -> dict[str, list[float]]:
    return reference_quantiles(np.random.default_rng(0).uniform(0.2, 0.8, (N, 2)))


def test_the_reference_is_json_and_ascends(reference: dict[str, list[float]]) -> None:
    assert json.loads(json.dumps(reference)) == reference
    for quantiles in reference.values():
        assert len(quantiles) == QUANTILES
        assert quantiles == sorted(quantiles)


def test_the_same_population_is_stable(reference: dict[str, list[float]]) -> None:
    found = drift(np.random.default_rng(1).uniform(0.2, 0.8, N), reference["valence"], N)
    assert found.verdict == "stable"
    assert found.psi is not None
    assert found.psi < 0.005
    assert found.wasserstein == pytest.approx(0.0, abs=0.01)


def test_known_answers(reference: dict[str, list[float]]) -> None:
    """Half of the mass doubled: ten bins of .1, of which five hold .2 and five nothing (half an item when smoothed)."""
    values = np.random.default_rng(1).uniform(0.2, 0.5, N)
    found = drift(values, reference["arousal"], N)
    empty = 0.5 / (N + 0.5 * BINS)
    expected = 5 * (0.2 - 0.1) * np.log(2) + 5 * (empty - 0.1) * np.log(empty / 0.1)
    assert found.psi == pytest.approx(expected, rel=0.01)
    assert found.wasserstein == pytest.approx(0.15, abs=0.01)
    assert found.verdict == "strongly shifted"


def test_a_shift_moves_the_wasserstein_distance_by_itself(reference: dict[str, list[float]]) -> None:
    values = np.random.default_rng(2).uniform(0.2, 0.8, N)
    found = drift(values + 0.06, reference["valence"], N)
    assert found.wasserstein == pytest.approx(0.06, abs=0.01)


def test_the_words_follow_the_limits(reference: dict[str, list[float]]) -> None:
    values = np.random.default_rng(3).uniform(0.2, 0.8, N)
    shifts = (0.0, 0.01, 0.02, 0.03, 0.05, 0.1)
    found = [drift(values + shift, reference["valence"], N) for shift in shifts]
    assert [each.verdict for each in found] == [
        "stable" if each.psi <= 0.1 else "shifted" if each.psi <= 0.25 else "strongly shifted"
        for each in found
        if each.psi is not None
    ]
    assert {each.verdict for each in found} == {"stable", "shifted", "strongly shifted"}


@pytest.mark.parametrize(("items", "reference_items"), [(MIN_ITEMS - 1, N), (N, MIN_ITEMS - 1), (0, N)])
def test_too_few_items_say_so(reference: dict[str, list[float]], items: int, reference_items: int) -> None:
    found = drift(np.full(items, 0.9), reference["valence"], reference_items)
    assert (found.psi, found.wasserstein, found.verdict) == (None, None, TOO_FEW)


def test_chance_alone_seldom_calls_the_smallest_sample_shifted() -> None:
    rng = np.random.default_rng(4)
    called = [
        drift(rng.random(MIN_ITEMS), reference_quantiles(rng.random((MIN_ITEMS, 2)))["valence"], MIN_ITEMS).verdict
        for _ in range(300)
    ]
    assert np.mean([verdict != "stable" for verdict in called]) < 0.05


def test_a_constant_model_is_stable_against_itself() -> None:
    quantiles = reference_quantiles(np.full((500, 2), 0.5))["valence"]
    assert psi(np.full(500, 0.5), quantiles, 500) == pytest.approx(0.0, abs=1e-9)
    assert psi(np.full(500, 0.6), quantiles, 500) > 1


def test_a_modality_without_reference_is_left_out(reference: dict[str, list[float]]) -> None:
    va_N2 = np.random.default_rng(5).uniform(0.2, 0.8, (N, 2))
    found = drift_by_modality({"image": va_N2, "video": va_N2}, {"image": reference, "items": {"image": N}})
    assert list(found) == ["image"]
    assert found["image"]["arousal"].verdict == "stable"


@pytest.mark.parametrize("bad", [np.zeros((0, 2)), np.full((3, 2), np.nan), np.zeros(3)])
def test_a_reference_of_nothing_is_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="finite VA points"):
        reference_quantiles(bad)
