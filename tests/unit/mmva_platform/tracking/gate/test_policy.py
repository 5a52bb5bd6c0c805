"""The gate's policy file: its defaults, its errors, and what the command line makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmva.errors import UsageError
from mmva.modalities import AXES, MODALITIES
from mmva_platform.settings import load_config
from mmva_platform.tracking.gate.policy import GatePolicy


def test_the_recipe_spells_out_the_defaults(repository: Path) -> None:
    path = repository / "jobs" / "recipes" / "policy.yaml"
    assert load_config(GatePolicy, path) == GatePolicy() == load_config(GatePolicy)
    for name in GatePolicy.model_fields:
        assert f"\n{name}:" in path.read_text(), f"{name} is not spelled out"


def test_a_margin_may_differ_for_one_axis(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("margins: {default: 0.1, music: {arousal: 0.2}}\n")
    margins = load_config(GatePolicy, path).margins
    shares = {(modality, axis): margins.share(modality, axis) for modality in MODALITIES for axis in AXES}
    assert shares.pop(("music", "arousal")) == 0.2
    assert set(shares.values()) == {0.1}


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("margins: {default: -1}", r"margins\.default"),
        ("margins: {music: {arousal: many}}", r"margins\.music\.arousal"),
        ("margins: {musik: {arousal: 0.1}}", r"unknown key 'margins\.musik'; did you mean 'music'"),
        ("slices: {smallest_groups: 1}", r"slices\.smallest_groups"),
        ("slices: {by: [colour]}", r"slices\.by"),
        ("largest_shortfall: .nan", "largest_shortfall"),
        ("exam: {dataset: s3://exam, digest: abc}", r"exam\.digest"),
        ("exam: {dataset: s3://exam}", r"exam\.digest"),
        ("marginss: {}", "did you mean 'margins'"),
    ],
)
def test_a_wrong_field_is_named_with_its_file_in_one_line(tmp_path: Path, text: str, field: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=field) as caught:
        load_config(GatePolicy, path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
