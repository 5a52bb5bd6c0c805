from __future__ import annotations

from pathlib import Path

import pytest

from mmva.errors import UsageError
from mmva_platform.settings import Config, Settings, load_config


class Optimizer(Config):
    lr: float = 1e-3


class Recipe(Config):
    name: str = "run"
    optimizer: Optimizer = Optimizer()


def test_file_then_overrides(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: a\noptimizer: {lr: 0.5}\n")
    recipe = load_config(Recipe, path, ["optimizer.lr=0.25"])
    assert (recipe.name, recipe.optimizer.lr) == ("a", 0.25)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("optimizer: {learning_rate: 1}", "unknown key 'optimizer.learning_rate'; known keys: lr"),
        ("nmae: a", "unknown key 'nmae'; did you mean 'name'?"),
        ("optimizer: {lr: fast}", "optimizer.lr: "),
        ("- a", "must be a mapping"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_field(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        load_config(Recipe, path)
    assert said in str(error.value)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.yaml: cannot be read"):
        load_config(Recipe, tmp_path / "none.yaml")


def test_override_without_value() -> None:
    with pytest.raises(UsageError, match="key=value"):
        load_config(Recipe, None, ["optimizer.lr"])


def test_tracking_uri_defaults_to_sqlite_under_home(tmp_path: Path) -> None:
    assert Settings(home=tmp_path).tracking_uri == f"sqlite:///{tmp_path / 'mlflow.db'}"
