"""A small look-alike of IMEMNet-C: images, music and captions that follow published relations to valence and arousal.

It exists to exercise the whole platform where the real media may not go. What a model reaches on it says nothing about
IMEMNet-C. One file a part: labels, pictures (with scenes), music (with synth), captions, write.
"""

from __future__ import annotations

from mmva.imemnet.generator.write import generate

__all__ = ["generate"]
