"""Captions that describe music with affective words.

The words' valence and arousal are our own approximations, guided by the norms of ANEW (Bradley & Lang 1999) and
Warriner, Kuperman & Brysbaert 2013 ("Norms of valence, arousal, and dominance for 13,915 English lemmas", Behav. Res.
Methods 45). Instruments, places and occasions do not depend on the VA point and are confounders; some captions do not
name a mood.
"""

from typing import Final

import numpy as np

from mmva.imemnet.generator.labels import Clip, stream
from mmva.imemnet.generator.music import Style

_FELT_STD = 0.04  # deviation of the described feeling from the played one
_REACH = 0.09  # distance in the plane within which mood words are confused
_VAGUE = 0.06  # share of captions without a mood word

# Each word with its valence and arousal.
LEXICON: Final[dict[str, tuple[float, float]]] = {
    "ecstatic": (0.92, 0.92), "exhilarating": (0.85, 0.92), "euphoric": (0.93, 0.86), "triumphant": (0.86, 0.82),
    "festive": (0.88, 0.78), "energetic": (0.74, 0.87), "joyful": (0.93, 0.72), "lively": (0.80, 0.76),
    "bouncy": (0.75, 0.70), "playful": (0.80, 0.64), "cheerful": (0.87, 0.62), "bright": (0.76, 0.57),
    "uplifting": (0.84, 0.60), "hopeful": (0.76, 0.50), "romantic": (0.79, 0.50), "warm": (0.76, 0.40),
    "tender": (0.72, 0.32), "dreamy": (0.66, 0.30), "gentle": (0.70, 0.25), "relaxing": (0.77, 0.20),
    "peaceful": (0.80, 0.15), "serene": (0.74, 0.13), "sleepy": (0.55, 0.10), "soothing": (0.72, 0.20),
    "driving": (0.58, 0.80), "powerful": (0.64, 0.82), "groovy": (0.68, 0.66), "steady": (0.55, 0.45),
    "nostalgic": (0.52, 0.36), "plain": (0.48, 0.30), "pensive": (0.44, 0.33), "wistful": (0.42, 0.30),
    "quirky": (0.58, 0.58), "mysterious": (0.45, 0.52), "dramatic": (0.48, 0.70), "restless": (0.38, 0.66),
    "frantic": (0.30, 0.88), "aggressive": (0.22, 0.90), "furious": (0.12, 0.93), "violent": (0.08, 0.88),
    "menacing": (0.15, 0.75), "terrifying": (0.09, 0.84), "tense": (0.26, 0.72), "anxious": (0.23, 0.66),
    "harsh": (0.24, 0.72), "ominous": (0.22, 0.58), "eerie": (0.28, 0.50), "dark": (0.28, 0.44),
    "bitter": (0.24, 0.46), "gloomy": (0.20, 0.30), "melancholic": (0.28, 0.28), "sad": (0.18, 0.30),
    "mournful": (0.14, 0.34), "bleak": (0.17, 0.25), "lonely": (0.19, 0.22), "dreary": (0.22, 0.18),
    "lifeless": (0.14, 0.10), "tired": (0.34, 0.12), "dull": (0.32, 0.15), "hopeless": (0.10, 0.28),
}  # fmt: skip
_WORDS: Final = tuple(LEXICON)
_WORD_VA: Final = np.array(list(LEXICON.values()))

_TEMPO: Final = ((70, "very slow"), (92, "slow"), (116, "mid-tempo"), (142, "fast"), (1000, "very fast"))
_GENRES: Final = ("pop", "folk", "film", "electronic", "classical", "rock", "jazz", "world", "indie", "ambient")
_DETAILS: Final = (
    "recorded in a small room", "with some tape hiss", "with a repeating motif", "for a scene on a train",
    "such as one hears in a market", "without vocals", "with a simple bass line", "from an old radio",
    "for a story about a lighthouse", "with light reverb", "in a live take", "with a wide stereo image",
    "for a cooking show", "played by amateurs", "as background to a documentary", "with a short introduction",
)  # fmt: skip
_TEMPLATES: Final = (
    "A {tempo}, {mood} {genre} piece in a {mode} key, with {lead} over {pad}, {detail}.",
    "This {genre} instrumental is {mood} and {mood2}; {lead} leads at a {tempo} pace {drums}.",
    "{Mood} {lead} melody with {pad} chords {drums}, {detail}. The tempo is {tempo}.",
    "The low quality recording features a {lead} and {pad}, {detail}. It sounds {mood} and {mood2}.",
    "{Lead} and {pad} play a {tempo} {genre} tune {drums}. The mood is {mood}, in a {mode} key.",
    "An instrumental {genre} clip, {detail}: {mood}, {tempo}, with {lead}.",
)
_VAGUE_TEMPLATES: Final = (
    "An instrumental {genre} clip with {lead} and {pad}, {detail}.",
    "{Lead} over {pad} at a {tempo} pace, {detail}.",
)


def write_caption(clip: Clip, style: Style, seed: int) -> str:
    """One or two English sentences about a clip; a pure function of its arguments."""
    rng = stream(seed, f"caption-{clip.song}", clip.k)
    drift = np.asarray(clip.va) - np.asarray(clip.song_va)
    described = np.asarray(style.felt) + drift + rng.normal(0.0, _FELT_STD, 2)
    near = np.exp(-np.sum((_WORD_VA - described) ** 2, axis=1) / (2 * _REACH**2)) + 1e-9
    mood, mood2 = rng.choice(_WORDS, 2, replace=False, p=near / near.sum())
    templates = _VAGUE_TEMPLATES if rng.random() < _VAGUE else _TEMPLATES
    heard_bpm = style.bpm + rng.normal(0.0, 8.0)
    lead = f"{rng.choice(['solo ', 'soft ', 'plain ', ''])}{style.lead}"
    return templates[int(rng.integers(len(templates)))].format(
        tempo=next(word for limit, word in _TEMPO if heard_bpm < limit),
        mood=mood,
        Mood=str(mood).capitalize(),
        mood2=mood2,
        mode="major" if style.major else "minor",
        genre=rng.choice(_GENRES),
        detail=rng.choice(_DETAILS),
        lead=lead,
        Lead=lead.capitalize(),
        pad=style.pad,
        drums="with drums" if style.drums >= 0.35 else "without drums",
    )
