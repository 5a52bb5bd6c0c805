"""A small look-alike of IMEMNet-C: images, music and captions that follow published relations to valence and arousal.

It exercises the whole platform where the real media are not available. Results on it do not transfer to IMEMNet-C.
"""

from mmva.imemnet.generator.write import generate

__all__ = ["generate"]
