"""A small look-alike of IMEMNet-C: images, music and captions that follow published relations to valence and arousal.

It exercises the whole platform where the real media may not go. Results on it do not carry over to IMEMNet-C. Its
parts: labels, pictures (with scenes), music (with synth), captions, write.
"""

from mmva.imemnet.generator.write import generate

__all__ = ["generate"]
