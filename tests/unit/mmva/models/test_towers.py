"""A tower: standardised input, output in [0, 1], able to learn what a ridge regression learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmva.evaluation.metrics import va_metrics
from mmva.models.towers import Tower, TowerConfig


def test_untrained_tower_says_neutral_and_bounded_after_any_weights() -> None:
    tower = Tower(8).eval()
    emb_BD = torch.randn(5, 8)
    torch.testing.assert_close(tower(emb_BD), torch.full((5, 2), 0.5))
    torch.nn.init.normal_(tower.linear.weight, std=100.0)
    va_B2 = tower(emb_BD * 100)
    assert va_B2.min() >= 0
    assert va_B2.max() <= 1


def test_statistics_standardise_and_travel_with_the_state() -> None:
    emb_ND = np.random.default_rng(0).normal(3.0, [0.1, 10.0, 1.0, 0.0], (500, 4)).astype(np.float32)
    tower = Tower(4, TowerConfig(clip=100.0))
    tower.set_statistics(emb_ND)
    z_ND = tower.standardise(torch.from_numpy(emb_ND))
    torch.testing.assert_close(z_ND.mean(0), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(z_ND.std(0, correction=0), torch.tensor([1.0, 1.0, 1.0, 0.0]), atol=1e-3, rtol=0)
    copy = Tower(4, TowerConfig(clip=100.0))
    copy.load_state_dict(tower.state_dict())
    torch.testing.assert_close(copy.standardise(torch.from_numpy(emb_ND)), z_ND)


def test_outliers_steer_no_further_than_the_clip() -> None:
    tower = Tower(2, TowerConfig(clip=2.5))
    tower.set_statistics(np.array([[-1.0, -1.0], [1.0, 1.0]]))
    z_ND = tower.standardise(torch.tensor([[0.5, 1e6], [-1e6, -2.0]]))
    torch.testing.assert_close(z_ND, torch.tensor([[0.5, 2.5], [-2.5, -2.0]]))


@pytest.mark.parametrize("bad", [np.zeros((0, 4)), np.zeros((3, 5)), np.full((3, 4), np.nan)])
def test_statistics_refuse_what_they_cannot_use(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="embeddings"):
        Tower(4).set_statistics(bad)


def test_empty_batch_passes_and_has_gradients() -> None:
    tower = Tower(4)
    tower(torch.empty(0, 4)).sum().backward()
    assert all(parameter.grad is not None for parameter in tower.parameters())


def test_hidden_layer_can_be_left_out() -> None:
    tower = Tower(4, TowerConfig(hidden=0))
    assert {name for name, _ in tower.named_parameters()} == {"linear.weight", "linear.bias"}


@pytest.mark.parametrize("head", ["residual", "mlp"])
def test_the_hidden_layer_comes_beside_the_same_point(head: str) -> None:
    tower = Tower(4, TowerConfig.model_validate({"head": head, "hidden": 6, "activation": "relu"})).eval()
    emb_BD = torch.randn(3, 4)
    both_BK = tower(emb_BD, hidden=True)
    torch.testing.assert_close(both_BK[:, :2], tower(emb_BD))
    scale = 1.0 if head == "mlp" else 0.5
    torch.testing.assert_close(both_BK[:, 2:], tower.projection(scale * tower.standardise(emb_BD)).relu())


@pytest.mark.parametrize("activation", ["gelu", "relu", "tanh"])
def test_a_plain_mlp_is_torchs(activation: str) -> None:
    torch.manual_seed(0)
    tower = Tower(4, TowerConfig(head="mlp", activation=activation, hidden=7)).eval()  # type: ignore[arg-type]
    torch.manual_seed(0)
    mlp = torch.nn.Sequential(torch.nn.Linear(4, 7), torch.nn.Identity(), torch.nn.Linear(7, 2))
    mlp[1] = {"gelu": torch.nn.GELU(), "relu": torch.nn.ReLU(), "tanh": torch.nn.Tanh()}[activation]
    emb_BD = torch.randn(3, 4)
    torch.testing.assert_close(tower(emb_BD), torch.sigmoid(mlp(emb_BD)))
    with pytest.raises(ValueError, match="head: mlp needs a width above 0"):
        TowerConfig(head="mlp", hidden=0)


def ridge_r2(x_ND: np.ndarray, y_N2: np.ndarray, test: slice, train: slice) -> dict[str, float]:
    """Test R2 of the best closed-form ridge regression over a grid of penalties (chosen on the test split itself)."""
    mean, std, middle = x_ND[train].mean(0), x_ND[train].std(0), y_N2[train].mean(0)
    z_ND = (x_ND - mean) / std
    best = {"valence": -np.inf, "arousal": -np.inf}
    for penalty in 10.0 ** np.arange(0, 5):
        gram = z_ND[train].T @ z_ND[train] + penalty * np.eye(x_ND.shape[1])
        weight_D2 = np.linalg.solve(gram, z_ND[train].T @ (y_N2[train] - middle))
        scores = va_metrics(z_ND[test] @ weight_D2 + middle, y_N2[test])
        best = {axis: max(best[axis], scores[axis]["r2"]) for axis in best}
    return best


def train_briefly(tower: Tower, x_ND: np.ndarray, y_N2: np.ndarray, epochs: int, lr: float = 1e-3) -> None:
    x, y = torch.from_numpy(x_ND), torch.from_numpy(y_N2)
    optimiser = torch.optim.AdamW(tower.parameters(), lr=lr, weight_decay=0.01)
    steps = epochs * (len(x) // 64)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    tower.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64)[: len(x) // 64]:
            optimiser.zero_grad()
            torch.nn.functional.mse_loss(tower(x[rows]), y[rows]).backward()
            optimiser.step()
            schedule.step()
    tower.eval()


def test_trained_tower_is_no_worse_than_ridge() -> None:
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    factors_NK = rng.normal(size=(1600, 12))
    x_ND = (factors_NK @ rng.normal(size=(12, 96)) + 2 * rng.normal(size=(1600, 96)) + 5).astype(np.float32)
    signal_N2 = factors_NK @ rng.normal(size=(12, 2)) * 0.04 + 0.04 * np.tanh(2 * factors_NK[:, :1])
    y_N2 = (0.5 + signal_N2 + 0.06 * rng.normal(size=(1600, 2))).clip(0, 1).astype(np.float32)
    train, test = slice(0, 1200), slice(1200, None)
    tower = Tower(96)
    tower.set_statistics(x_ND[train])
    train_briefly(tower, x_ND[train], y_N2[train], epochs=20)
    with torch.no_grad():
        ours = va_metrics(tower(torch.from_numpy(x_ND[test])).numpy(), y_N2[test])
    ridge = ridge_r2(x_ND, y_N2, test, train)
    for axis, r2 in ridge.items():
        assert r2 > 0.5
        assert ours[axis]["r2"] >= r2 - 0.005


def test_hidden_layer_learns_what_no_line_can() -> None:
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    x_ND = rng.normal(size=(1600, 8)).astype(np.float32)
    y_N2 = (0.3 + 0.2 * np.abs(x_ND[:, :2])).clip(0, 1).astype(np.float32)
    tower = Tower(8, TowerConfig(input_dropout=0.0))
    train_briefly(tower, x_ND[:1200], y_N2[:1200], epochs=30, lr=1e-2)
    with torch.no_grad():
        values = va_metrics(tower(torch.from_numpy(x_ND[1200:])).numpy(), y_N2[1200:])
    assert min(values["valence"]["r2"], values["arousal"]["r2"]) > 0.3
