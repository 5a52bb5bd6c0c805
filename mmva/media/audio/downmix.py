"""Mix channels to mono with the coefficients of ITU-R BS.775-3, and find channels that cancel each other.

BS.775 (Annex 4) adds centre and surrounds to left and right with 1/sqrt(2) and omits the effects channel. Mono is the
mean of that left and right, so stereo content is equally loud in files with six and two channels. The standard also
attenuates everything so that no sum can exceed full scale, which would undo that; here the gain only falls from the
point where a sum exceeds full scale (see Downmix.gain).

Shapes: T samples, C channels.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mmva.errors import MediaError

_HALF_POWER: Final = 0.5**0.5
# Gains in mono by FFmpeg's channel names; front left and right have 1/2.
_GAINS: Final = {
    **dict.fromkeys(("FL", "FR", "FLC", "FRC", "DL", "DR", "WL", "WR"), 0.5),
    "FC": _HALF_POWER,
    **dict.fromkeys(("BL", "BR", "SL", "SR", "SDL", "SDR", "TFL", "TFR", "TBL", "TBR", "TSL", "TSR"), _HALF_POWER / 2),
    **dict.fromkeys(("BC", "TC", "TFC", "TBC"), 0.5),
    **dict.fromkeys(("LFE", "LFE2"), 0.0),
}
# The channel order of WAV and FLAC, for files without channel names.
_USUAL: Final = {
    3: ("FL", "FR", "FC"),
    4: ("FL", "FR", "BL", "BR"),
    5: ("FL", "FR", "FC", "BL", "BR"),
    6: ("FL", "FR", "FC", "LFE", "BL", "BR"),
    7: ("FL", "FR", "FC", "LFE", "BC", "SL", "SR"),
    8: ("FL", "FR", "FC", "LFE", "BL", "BR", "SL", "SR"),
}
# With lossy codecs, the sum of cancelling channels is 30 dB below them; below -80 dB there is no sound.
_CANCELLED: Final = 1e-3
_SILENCE: Final = 1e-8


@dataclass(frozen=True, slots=True)
class Block:
    """Decoded frames; `names` are FFmpeg's channel names, empty if unknown."""

    samples_TC: NDArray[np.float32]  # full scale 1
    sample_rate: int  # Hz; may change from block to block
    names: tuple[str, ...] = ()


@lru_cache(maxsize=64)
def gains(channels: int, names: tuple[str, ...]) -> NDArray[np.float32]:
    """Gain of each channel in mono, [C]; the mean for one or two channels and for unknown ones."""
    known = names if len(names) == channels and all(name in _GAINS for name in names) else _USUAL.get(channels, ())
    gains_C = np.array([_GAINS[name] for name in known], np.float32)
    if channels <= 2 or len(gains_C) == 0 or not gains_C.any():
        return np.full(channels, 1 / channels, np.float32)
    return gains_C


@dataclass(slots=True)
class Downmix:
    """Mixes successive blocks to mono, and sums the energy before and after.

    `gain` falls when a sum exceeds full scale, and never rises, because that would be audible as pumping.
    """

    gain: float = 1.0
    _channels: float = field(default=0.0, init=False)
    _mono: float = field(default=0.0, init=False)
    _samples: int = field(default=0, init=False)

    def mono(self, block: Block) -> NDArray[np.float32]:
        """The block in mono, [T]."""
        samples_TC = block.samples_TC
        channels = samples_TC.shape[1]
        gains_C = gains(channels, block.names)
        mono_T = samples_TC @ gains_C
        if channels == 1 or len(mono_T) == 0:
            return mono_T
        energy_C = np.einsum("tc,tc->c", samples_TC, samples_TC, dtype=np.float64)
        self._channels += float(energy_C @ gains_C.astype(np.float64) ** 2)
        self._mono += float(np.dot(mono_T, mono_T))
        self._samples += len(mono_T)
        if channels > 2:
            self.gain = min(self.gain, 1 / max(1.0, float(np.abs(mono_T).max())))
            mono_T *= np.float32(self.gain)
        return mono_T

    def refuse_cancelled(self) -> None:
        """Raises MediaError "cancelling-channels" if the channels have sound but their sum is silent."""
        audible = self._channels > _SILENCE * self._samples
        if audible and self._mono < _CANCELLED * self._channels:
            raise MediaError("cancelling-channels", "the channels cancel each other: in mono the sound is silent")
