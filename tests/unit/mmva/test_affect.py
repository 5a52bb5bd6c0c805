from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmva.affect import DEAM_RANGE, IMEMNET_SIGMA, matching_score, mood, quadrant

coordinate = st.floats(0, 1)
point = st.tuples(coordinate, coordinate)


def test_matching_score_by_hand() -> None:
    assert matching_score([0.2, 0.1], [0.5, 0.5], sigma=0.5) == pytest.approx(np.exp(-1.0))


@given(point, point)
def test_matching_score_is_symmetric_and_in_unit_interval(a: tuple[float, float], b: tuple[float, float]) -> None:
    assert matching_score(a, b) == matching_score(b, a)
    assert 0 < matching_score(a, b) <= 1
    assert matching_score(a, a) == 1


def test_matching_score_broadcasts() -> None:
    assert matching_score(np.zeros((3, 1, 2)), np.ones((1, 4, 2))).shape == (3, 4)


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), float("inf")])
def test_sigma_must_be_positive(sigma: float) -> None:
    with pytest.raises(ValueError, match="sigma"):
        matching_score([0, 0], [1, 1], sigma)


def test_deam_scale_explains_labels_above_one() -> None:
    low, high = DEAM_RANGE
    assert (0.725 - low) / (high - low) == pytest.approx(1.0058, abs=1e-4)


def test_quadrants_and_moods() -> None:
    corners = [[0.9, 0.9], [0.1, 0.9], [0.1, 0.1], [0.9, 0.1]]
    assert quadrant(corners).tolist() == ["excited", "tense", "sad", "calm"]
    assert mood([[0.9, 0.5], [0.5, 0.9], [0.1, 0.5], [0.5, 0.1], [0.5, 0.52]]).tolist() == [
        "happy",
        "aroused",
        "miserable",
        "tired",
        "neutral",
    ]


def test_published_scores_are_reproduced(imemnet_dir) -> None:
    """Of the published pairs whose two labels are at hand, most come out exactly.

    The rest are images that IMEMNet labelled differently. The known music labels are rounded to 1e-6, so that is
    how exact it can be.
    """
    import pandas as pd

    image = pd.read_csv(imemnet_dir / "image_va.csv", dtype={"img": str}).drop_duplicates("img", keep=False)
    image = image.set_index("img")
    music = pd.read_csv(imemnet_dir / "music_va_known.csv").set_index("clip_id")
    columns = {"clip_id": str, "image": str, "score": float}
    pairs = pd.read_csv(imemnet_dir / "val_matching.txt", sep=" ", names=list(columns), dtype=columns)
    known = pairs[pairs["clip_id"].isin(music.index) & pairs["image"].isin(image.index)]
    scores = matching_score(
        image.loc[known["image"], ["valence", "arousal"]].to_numpy(),
        music.loc[known["clip_id"], ["valence", "arousal"]].to_numpy(),
        IMEMNET_SIGMA["val"],
    )
    exact = np.abs(scores - known["score"].to_numpy()) < 1e-6
    assert len(known) > 7_800
    assert exact.mean() >= 0.55
