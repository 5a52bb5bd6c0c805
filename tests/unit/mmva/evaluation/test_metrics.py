"""Metrics against scikit-learn and scipy, their corners, and the bootstrap's coverage and speed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmva.affect import matching_score
from mmva.evaluation.bootstrap import bootstrap, bootstrap_matching, bootstrap_mean, bootstrap_means
from mmva.evaluation.metrics import matching_mse, va_metrics


def predictions(count: int, seed: int = 0, noise: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = rng.random((count, 2))
    return 0.2 + 0.6 * label + noise * rng.normal(size=label.shape), label


@settings(max_examples=25, deadline=None)
@given(count=st.integers(3, 400), seed=st.integers(0, 10_000), noise=st.floats(0.001, 2.0))
def test_agrees_with_scikit_learn_scipy_and_lins_definition(count: int, seed: int, noise: float) -> None:
    from scipy import stats
    from sklearn import metrics as reference  # here, not above: a second a process

    pred, label = predictions(count, seed, noise)
    ours = va_metrics(pred, label)
    for column, axis in enumerate(("valence", "arousal")):
        p, y = pred[:, column], label[:, column]
        assert ours[axis]["mse"] == pytest.approx(reference.mean_squared_error(y, p), rel=1e-9)
        assert ours[axis]["mae"] == pytest.approx(reference.mean_absolute_error(y, p), rel=1e-9)
        assert ours[axis]["r2"] == pytest.approx(reference.r2_score(y, p), rel=1e-7)
        assert ours[axis]["pearson"] == pytest.approx(stats.pearsonr(p, y).statistic, rel=1e-7)
        # Lin (1989): twice the covariance over the sum of the variances and the squared distance of the means.
        covariance = np.cov(p, y, ddof=0)
        ccc = 2 * covariance[0, 1] / (covariance[0, 0] + covariance[1, 1] + (p.mean() - y.mean()) ** 2)
        assert ours[axis]["ccc"] == pytest.approx(ccc, rel=1e-7)


def test_perfect_and_constant_predictions() -> None:
    _, label = predictions(50)
    assert va_metrics(label, label)["valence"] == pytest.approx({"mse": 0, "mae": 0, "r2": 1, "pearson": 1, "ccc": 1})
    flat = va_metrics(np.broadcast_to(label.mean(axis=0), label.shape), label)["arousal"]
    assert flat["pearson"] == flat["ccc"] == 0
    assert flat["r2"] == pytest.approx(0, abs=1e-12)
    assert flat["mse"] == pytest.approx(label[:, 1].var())
    # A constant that float64 cannot sum exactly is still a constant.
    assert va_metrics(np.full((50, 2), 0.1), label)["valence"]["pearson"] == 0


def test_constant_labels_leave_association_undefined() -> None:
    pred, _ = predictions(20)
    values = va_metrics(pred, np.full((20, 2), 0.3))["valence"]
    assert np.isnan([values["r2"], values["pearson"], values["ccc"]]).all()
    assert values["mse"] == pytest.approx(np.mean((pred[:, 0] - 0.3) ** 2))


def test_values_far_from_zero_lose_no_digits() -> None:
    pred, label = predictions(200)
    near, far = va_metrics(pred, label)["valence"], va_metrics(pred + 1e5, label + 1e5)["valence"]
    assert far == pytest.approx(near, rel=1e-5)


@pytest.mark.parametrize(
    ("pred", "label"),
    [(np.zeros((3, 2)), np.zeros((4, 2))), (np.zeros(3), np.zeros(3)), (np.zeros((0, 2)), np.zeros((0, 2)))],
)
def test_shapes_that_do_not_fit_are_refused(pred: np.ndarray, label: np.ndarray) -> None:
    with pytest.raises(ValueError, match="must both be"):
        va_metrics(pred, label)


def test_nan_is_refused_not_averaged() -> None:
    pred, label = predictions(5)
    pred[2, 1] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        va_metrics(pred, label)


def test_bootstrap_holds_the_estimate_and_repeats() -> None:
    pred, label = predictions(600)
    groups = [f"song-{i // 10}" for i in range(600)]
    intervals = bootstrap(pred, label, groups, seed=3)
    point = va_metrics(pred, label)
    for axis, values in intervals.items():
        for name, (low, high) in values.items():
            assert low < point[axis][name] < high
    assert intervals == bootstrap(pred, label, groups, seed=3)
    assert intervals != bootstrap(pred, label, groups, seed=4)


def test_bootstrap_resamples_are_the_metrics_of_resampled_items() -> None:
    pred, label = predictions(12)
    groups = np.repeat(["a", "b", "c"], [2, 4, 6])
    low, high = bootstrap(pred, label, groups, resamples=400, confidence=1.0)["valence"]["ccc"]
    rows = {name: np.flatnonzero(groups == name) for name in "abc"}
    possible = [
        va_metrics(*(values[np.concatenate([rows[name] for name in draw])] for values in (pred, label)))["valence"][
            "ccc"
        ]
        for draw in ("aaa", "bbb", "ccc", "aab", "aac", "abb", "bbc", "acc", "bcc", "abc")
    ]
    assert (low, high) == pytest.approx((min(possible), max(possible)))


def test_neighbours_that_repeat_one_error_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    label = np.repeat(rng.random((60, 2)), 10, axis=0)
    pred = label + np.repeat(0.1 * rng.normal(size=(60, 2)), 10, axis=0)
    by_song = bootstrap(pred, label, np.repeat(np.arange(60), 10))["valence"]["mse"]
    by_clip = bootstrap(pred, label, np.arange(600))["valence"]["mse"]
    assert np.diff(by_song)[0] > 2 * np.diff(by_clip)[0]


def test_several_means_share_their_resamples_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    values, groups = {name: rng.normal(size=60) for name in "ab"}, np.repeat(np.arange(12), 5)
    assert bootstrap_means(values, groups) == {name: bootstrap_mean(values[name], groups) for name in "ab"}


def test_bootstrap_mean_covers_the_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(100):
        low, high = bootstrap_mean(rng.normal(size=80), np.arange(80), resamples=200, confidence=0.9, seed=trial)
        hits += low <= 0 <= high
    assert 80 <= hits <= 97


def test_bootstrap_matching_resamples_are_those_of_resampled_groups() -> None:
    (pred_a, label_a), (pred_b, label_b) = predictions(5, seed=1), predictions(7, seed=2)
    groups_a, groups_b = np.array(list("xxyyy")), np.array(list("ppppqqq"))
    options = {"groups_a": groups_a, "groups_b": groups_b, "resamples": 400, "confidence": 1.0}
    low, high = bootstrap_matching(pred_a, pred_b, label_a, label_b, **options)

    def of(draw_a: str, draw_b: str) -> float:
        a = np.concatenate([np.flatnonzero(groups_a == name) for name in draw_a])
        b = np.concatenate([np.flatnonzero(groups_b == name) for name in draw_b])
        return matching_mse(pred_a[a], pred_b[b], label_a[a], label_b[b])

    possible = [of(draw_a, draw_b) for draw_a in ("xx", "xy", "yy") for draw_b in ("pp", "pq", "qq")]
    assert (low, high) == pytest.approx((min(possible), max(possible)))


def test_a_clip_and_its_caption_are_resampled_together() -> None:
    pred, label = predictions(6, seed=3)
    groups = np.repeat(["x", "y"], 3)
    low, high = bootstrap_matching(
        pred, pred, label, label, groups_a=groups, groups_b=groups, resamples=400, confidence=1.0
    )
    rows = {"xx": [0, 1, 2], "xy": range(6), "yy": [3, 4, 5]}
    possible = [matching_mse(pred[i], pred[i], label[i], label[i]) for i in map(list, rows.values())]
    assert (low, high) == pytest.approx((min(possible), max(possible)))


def test_groups_must_name_every_item() -> None:
    pred, label = predictions(5)
    with pytest.raises(ValueError, match="one entry per item"):
        bootstrap(pred, label, ["a"] * 4)


def test_matching_mse_exact_and_sampled() -> None:
    (pred_a, label_a), (pred_b, label_b) = predictions(700, 1), predictions(900, 2)
    scores = [matching_score(a[:, None], b[None], 0.3) for a, b in ((pred_a, pred_b), (label_a, label_b))]
    expected = np.mean((scores[0] - scores[1]) ** 2)
    exact = matching_mse(pred_a, pred_b, label_a, label_b, sigma=0.3)
    assert exact == pytest.approx(expected, rel=1e-9)
    sampled = matching_mse(pred_a, pred_b, label_a, label_b, sigma=0.3, max_pairs=200_000, seed=1)
    assert sampled == pytest.approx(expected, rel=0.03)
    assert sampled != exact
