"""Numbers of related systems and published floors, so that ours can be set beside them.

Each system's figure comes from its own paper, on its own data and split, and compares only as far as those agree.
"""

from typing import Final

# MSE (valence, arousal) of the best constant prediction on IMEMNet-C's own labels, recomputed from its published files.
PUBLISHED_FLOORS: Final = {"image": (0.0240, 0.0483), "music": (0.0272, 0.0283)}
# System, data, figure.
RELATED: Final = (
    ("CDCML (2020)", "IMEMNet, split by song", "music arousal MSE .015"),
    ("MMVA (2025)", "IMEMNet-C, most likely split by clip", "music arousal MSE .0002 (second-hand)"),
    ("MERT-95M frozen, linear probe", "DEAM", "arousal R2 about .58"),
    ("Music2Emo (2025)", "DEAM, song level", "R2 valence .518, arousal .623"),
    ("Music2Emo (2025)", "EmoMusic, song level", "R2 valence .651, arousal .762"),
    ("Emo-CLIM (2024)", "image to music", "P@1 .688, P@5 .682, MRR .767"),
    ("ResNet-50", "IAPS", "VA MSE .0174 on [0, 1]"),
)
