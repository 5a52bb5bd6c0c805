"""The model that ships with the package: heads for the `compact-layers` backbones, trained on human ratings.

Its card (bundle/card.md) lists the sources and their terms, the results by group and the limits. `python
jobs/starter.py` makes it. It contains no picture, sound, text or label of its training data.
"""

from pathlib import Path
from typing import Final

BUNDLE: Final = Path(__file__).parent / "bundle"
