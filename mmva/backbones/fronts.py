"""Fronts of exported networks: an encoder's preparation of items in numpy, without torch or transformers.

Each front gives the result of its encoder's prepare, and is made from a description in the exported file. Shapes: T
samples, F frames, S positions of a caption.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Prepared = dict[str, NDArray[Any]]


class Front(ABC):
    """Turns items into the network's inputs."""

    max_batch_elements: ClassVar[int | None] = None  # see Encoder.max_batch_elements

    @abstractmethod
    def prepare(self, item: Any) -> Prepared:
        """Inputs for one decoded item, without a batch axis."""

    def batch_key(self, prepared: Prepared) -> Any:
        """Items with equal keys may share a batch."""
        return tuple(array.shape for array in prepared.values())

    def collate(self, prepared: Sequence[Prepared]) -> Prepared:
        """Stack prepared items with equal keys."""
        return {name: np.stack([item[name] for item in prepared]) for name in prepared[0]}


class CentralSquare(Front):
    """An image's central square, resized: pixels uint8 [3, side, side]."""

    def __init__(self, crop: float, side: int) -> None:
        self._crop, self._side = crop, side

    def prepare(self, item: Image.Image) -> Prepared:
        """Crop and resize one RGB image."""
        return {"pixels": central_square(item, self._crop, self._side).transpose(2, 0, 1)}


class CentralSquares(CentralSquare):
    """The central square and five crops of an image: pixels uint8 [6, 3, side, side]."""

    # Four images with six views each.
    max_batch_elements: ClassVar[int | None] = 4 * 6 * 3 * 224 * 224

    def prepare(self, item: Image.Image) -> Prepared:
        """Crop and resize one RGB image."""
        return {"pixels": central_squares(item, self._crop, self._side).transpose(0, 3, 1, 2)}


class PowerSpectrogram(Front):
    """Power spectrum of overlapping frames of mono samples: power float32 [F, n_fft / 2 + 1]."""

    max_batch_elements: ClassVar[int | None] = 16 * 188 * 257

    def __init__(self, n_fft: int, hop: int, least_frames: int) -> None:
        """Periodic Hann windows of n_fft samples every `hop`; short clips are repeated to `least_frames` frames."""
        self._n_fft, self._hop, self._least = n_fft, hop, least_frames
        self._window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)).astype(np.float32)

    def prepare(self, item: NDArray[np.float32]) -> Prepared:
        """Spectrum of one clip, padded with zeros at both ends."""
        padded_T = np.pad(np.asarray(item, np.float32), self._n_fft // 2)
        frames = np.lib.stride_tricks.sliding_window_view(padded_T, self._n_fft)[:: self._hop]
        spectrum = np.fft.rfft(frames * self._window)
        power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32, copy=False)
        if len(power) < self._least:
            power = np.tile(power, (-(-self._least // len(power)), 1))[: self._least]
        return {"power": power}


class Tokens(Front):
    """Token ids of captions and their mask, int64 [S]."""

    def __init__(self, tokenizer: str, limit: int, pad_id: int) -> None:
        """`tokenizer` is JSON, `limit` the maximum number of tokens per caption, `pad_id` the padding token."""
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_str(tokenizer)
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(limit)
        self._pad_id = pad_id

    def prepare(self, item: str) -> Prepared:
        """Token ids of one caption."""
        return {"input_ids": np.asarray(self._tokenizer.encode(item).ids, np.int64)}

    def batch_key(self, prepared: Prepared) -> Any:  # noqa: ARG002 - the mask makes any lengths fit together
        """Captions of any length share a batch."""
        return None

    def collate(self, prepared: Sequence[Prepared]) -> Prepared:
        """Pad to the longest: input_ids and attention_mask [B, S]."""
        rows = [item["input_ids"] for item in prepared]
        ids_BS = np.full((len(rows), max(map(len, rows))), self._pad_id, np.int64)
        mask_BS = np.zeros_like(ids_BS)
        for index, row in enumerate(rows):
            ids_BS[index, : len(row)], mask_BS[index, : len(row)] = row, 1
        return {"input_ids": ids_BS, "attention_mask": mask_BS}


_FRONTS: Final[dict[str, Callable[..., Front]]] = {
    front.__name__: front for front in (CentralSquare, CentralSquares, PowerSpectrogram, Tokens)
}


def make_front(description: Mapping[str, Any]) -> Front:
    """Make the front described by {"front": name, **arguments}. Raises KeyError for an unknown name."""
    arguments = dict(description)
    return _FRONTS[arguments.pop("front")](**arguments)


def batches(keys: Sequence[Any], sizes: Sequence[int], most: int | None) -> Iterator[list[int]]:
    """Batches of rows with equal keys and at most `most` elements (None: no limit).

    `sizes` is the number of elements of each item; an item above `most` is a batch of its own.
    """
    groups: dict[Any, list[int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault(key, []).append(row)
    for rows in groups.values():
        size = len(rows) if most is None else max(1, most // max(sizes[row] for row in rows))
        yield from (rows[first : first + size] for first in range(0, len(rows), size))


def central_square(image: Image.Image, crop: float, side: int) -> NDArray[np.uint8]:
    """The central square of `crop` times the short side, resized with antialiasing: uint8 [side, side, 3]."""
    width, height = image.size
    edge = crop * min(width, height)
    left, top = (width - edge) / 2, (height - edge) / 2
    box = (left, top, left + edge, top + edge)
    return np.array(image.resize((side, side), Image.Resampling.BICUBIC, box, 2.0))


def central_squares(image: Image.Image, crop: float, side: int) -> NDArray[np.uint8]:
    """central_square of the image, then of five crops of 3/4 of each side, at the corners and in the centre.

    Returns uint8 [6, side, side, 3].
    """
    width, height = image.size
    parts = [image]
    for left, top in ((0, 0), (0.25, 0), (0, 0.25), (0.25, 0.25), (0.125, 0.125)):
        box = (int(left * width), int(top * height), int((left + 0.75) * width), int((top + 0.75) * height))
        # At least one pixel, for pictures one pixel high or wide.
        parts.append(image.crop((box[0], box[1], max(box[2], box[0] + 1), max(box[3], box[1] + 1))))
    return np.stack([central_square(part, crop, side) for part in parts])
