"""Music prompts: the nearest template, filled; tempo, loudness and mode follow the plane whatever the tower says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmva.affect import MOOD_WORDS, mood
from mmva.errors import UsageError
from mmva.zeroshot.prompts import _ADJECTIVES, TEMPLATES, MusicPrompt, PromptBank, fill, music_prompt

LOUDNESS = ("very soft", "soft", "moderate", "loud", "very loud")
TEMPI = ("very slow", "slow", "mid-tempo", "fast", "very fast")
MODES = ("minor", "modal", "major")
unit = st.floats(0, 1)


class Tower:
    """Places the sentences at given points, and remembers them."""

    def __init__(self, va_T2: np.ndarray) -> None:
        self.dims, self.va_T2, self.sentences = {"caption": 3}, va_T2, [""]

    def predict(self, modality: str, items: list[str]) -> np.ndarray:
        assert modality == "caption"
        self.sentences = items
        return self.va_T2


SCATTERED = np.random.default_rng(0).random((len(TEMPLATES), 2))


@settings(deadline=None)
@given(low=unit, high=unit, valence=unit, seed=st.integers(0, 100))
def test_faster_and_louder_with_arousal(low: float, high: float, valence: float, seed: int) -> None:
    bank = PromptBank(np.random.default_rng(seed).random((len(TEMPLATES), 2)))
    calmer, wilder = (bank.prompt((valence, arousal)) for arousal in sorted((low, high)))
    assert calmer.bpm <= wilder.bpm
    assert TEMPI.index(calmer.tempo) <= TEMPI.index(wilder.tempo)
    assert LOUDNESS.index(calmer.loudness) <= LOUDNESS.index(wilder.loudness)
    if abs(high - low) > 0.05:
        assert calmer.bpm < wilder.bpm


@settings(deadline=None)
@given(low=unit, high=unit, arousal=unit, seed=st.integers(0, 100))
def test_towards_major_with_valence(low: float, high: float, arousal: float, seed: int) -> None:
    bank = PromptBank(np.random.default_rng(seed).random((len(TEMPLATES), 2)))
    sadder, happier = (bank.prompt((valence, arousal)) for valence in sorted((low, high)))
    assert MODES.index(sadder.mode) <= MODES.index(happier.mode)
    assert sadder.bpm == happier.bpm


def test_all_of_the_plane_is_used() -> None:
    bank = PromptBank(SCATTERED)
    prompts = [bank.prompt((v, a)) for v in np.linspace(0, 1, 11) for a in np.linspace(0, 1, 11)]
    assert {one.mode for one in prompts} == set(MODES)
    assert {one.tempo for one in prompts} == set(TEMPI)
    assert {one.loudness for one in prompts} == set(LOUDNESS)
    assert (min(one.bpm for one in prompts), max(one.bpm for one in prompts)) == (56, 176)


@settings(deadline=None)
@given(target=st.tuples(unit, unit))
def test_the_nearest_template_is_filled_for_the_target(target: tuple[float, float]) -> None:
    prompt = PromptBank(SCATTERED).prompt(target)
    distance_T = np.linalg.norm(SCATTERED - target, axis=1)
    template = TEMPLATES[int(distance_T.argmin())]
    assert (prompt.template, prompt.genre, prompt.instruments) == (template.name, template.genre, template.instruments)
    assert prompt.distance == pytest.approx(distance_T.min())
    assert prompt.va == pytest.approx(tuple(SCATTERED[distance_T.argmin()]))
    assert prompt.mood == str(mood(np.array(target)))
    for part in (
        prompt.genre,
        prompt.instruments,
        _ADJECTIVES[prompt.mood],
        prompt.tempo,
        prompt.mode,
        prompt.loudness,
    ):
        assert part in prompt.text
    assert f"{prompt.bpm} BPM" in prompt.text


def test_the_caption_tower_places_the_bank() -> None:
    tower = Tower(SCATTERED)
    prompt = music_prompt(tower, SCATTERED[7])
    assert isinstance(prompt, MusicPrompt)
    assert (prompt.template, prompt.distance) == (TEMPLATES[7].name, 0)
    assert tower.sentences == [fill(template, template.home)["text"] for template in TEMPLATES]
    tower.dims = {"image": 3}
    with pytest.raises(UsageError, match="need a caption tower"):
        PromptBank.place(tower)


def test_the_bank_is_a_bank() -> None:
    assert set(_ADJECTIVES) == {*MOOD_WORDS, "neutral"}
    assert len({template.name for template in TEMPLATES}) == len(TEMPLATES)
    home_T2 = np.array([template.home for template in TEMPLATES])
    # Some template is at home near every place where music lies.
    grid = np.array([(v, a) for v in np.linspace(0.1, 0.9, 9) for a in np.linspace(0.1, 0.9, 9)])
    assert np.linalg.norm(grid[:, None] - home_T2, axis=-1).min(axis=1).max() < 0.3
    sentences = {fill(template, template.home)["text"] for template in TEMPLATES}
    assert len(sentences) == len(TEMPLATES)
    assert all(sentence[0] == "A" and sentence.endswith(".") and "  " not in sentence for sentence in sentences)
