"""The model that ships with the package: heads for the `compact-layers` backbones, trained on human ratings.

Its card (bundle/card.md) names the sources, their terms, the results by group and the limits. `python
jobs/starter.py` makes it. It holds no picture, sound, text or label of what it was trained on.
"""

from pathlib import Path
from typing import Final

BUNDLE: Final = Path(__file__).parent / "bundle"
