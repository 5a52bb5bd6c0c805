"""Pairs of images and clips: an epoch's pairs and batches as pure functions of seed, epoch and labels.

Shapes: N images, M clips, P = min(N, M) pairs. A clip includes its caption. Each worker can draw the same plan alone.
"""

import itertools
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmva.affect import DEFAULT_SIGMA, matching_score
from mmva.errors import UsageError

Strategy = Literal["random", "matched"]
Points = NDArray[np.float32]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)


@dataclass(frozen=True)
class EpochPlan:
    """An epoch's pairs in training order; no item occurs twice."""

    image_index_P: NDArray[np.int64]  # row of each pair's image
    music_index_P: NDArray[np.int64]  # row of each pair's clip
    target_P: NDArray[np.float64]  # matching score of the two labels, in (0, 1]

    def __len__(self) -> int:
        return len(self.target_P)


def epoch_plan(
    image_va_N2: ArrayLike,
    music_va_M2: ArrayLike,
    *,
    seed: int,
    epoch: int,
    strategy: Strategy = "random",
    sigma: float = DEFAULT_SIGMA,
) -> EpochPlan:
    """Draw an epoch: P pairs of an image and a clip, each item at most once. Depends on the arguments alone.

    `random` is MMVA's random VA matching: any image with any clip; the target score comes from their labels. Most
    targets are near .4; about 1 % exceed .9. `matched` first draws wanted scores evenly from (0, 1], then looks for
    clips at the distance of each score (see _draw_matched). The histogram becomes as flat as the labels allow: two
    items near the middle never score .1.

    Each epoch (counted from 0) leaves out other items of the larger side. Raises UsageError for an unknown strategy, no
    items, or labels that are not finite.
    """
    image_va, music_va = _labels(image_va_N2, "image"), _labels(music_va_M2, "music")
    if strategy not in STRATEGIES:
        raise UsageError(f"strategy: unknown {strategy!r}; known: {', '.join(STRATEGIES)}")
    rng = np.random.default_rng([seed, epoch])
    pairs = min(len(image_va), len(music_va))
    image_index_P = rng.permutation(len(image_va))[:pairs]
    music_index_P = rng.permutation(len(music_va))[:pairs]
    if strategy == "matched":
        wanted_P = rng.permutation(1 - (np.arange(pairs) + rng.random()) / pairs)
        partner_P = _draw_matched(image_va[image_index_P], music_va[music_index_P], wanted_P, sigma, rng)
        music_index_P = music_index_P[partner_P]
    target_P = matching_score(image_va[image_index_P], music_va[music_index_P], sigma)
    return EpochPlan(image_index_P, music_index_P, target_P)


def batches(plan: EpochPlan, batch_size: int, rank: int = 0, world_size: int = 1) -> list[slice]:
    """One rank's rows of the plan, one slice per step; every rank has the same number of steps.

    The epoch has ceil(P / batch_size) global batches whose sizes differ by at most one: no pair is lost, and the last
    batch is not small. Batch b is the same for any world size; each rank gets a contiguous part of it. These parts
    differ by at most one row and may be empty, so the training loop weights by counts (losses.loss_scales). Raises
    UsageError if batch_size is smaller than world_size, or below 1.
    """
    assert 0 <= rank < world_size
    if batch_size < world_size:
        raise UsageError(f"batch_size: {batch_size} is less than one row for each of {world_size} workers")
    steps = -(-len(plan) // batch_size)
    bounds = [len(plan) * step // steps for step in range(steps + 1)]
    return [
        slice(start + (stop - start) * rank // world_size, start + (stop - start) * (rank + 1) // world_size)
        for start, stop in itertools.pairwise(bounds)
    ]


def score_histogram(target_P: ArrayLike, bins: int = 10) -> NDArray[np.int64]:
    """Number of scores in each of `bins` equally wide strata of [0, 1]; the last stratum includes 1."""
    return np.histogram(np.asarray(target_P, np.float64), bins=bins, range=(0.0, 1.0))[0].astype(np.int64)


def _labels(va: ArrayLike, modality: str) -> NDArray[np.float64]:
    labels = np.asarray(va, np.float64)
    if labels.ndim != 2 or labels.shape[1] != 2 or len(labels) == 0:
        raise UsageError(f"{modality} labels: expected [N, 2] with N >= 1, got {list(labels.shape)}")
    if not np.isfinite(labels).all():
        raise UsageError(f"{modality} labels: contain NaN or infinite values; check the dataset")
    return labels


# A cell of the VA plane is 1/32 wide: a twelfth of sigma, and about twenty of IMEMNet's clips.
_CELLS = 32
_ROUNDS = 6
_TINY = np.float32(1e-12)


def _draw_matched(
    image_va_P2: NDArray[np.float64],
    music_va_P2: NDArray[np.float64],
    wanted_P: NDArray[np.float64],
    sigma: float,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Clip of each image [P], a permutation, with scores near the wanted ones, in O(P log P).

    In each round, every image without a partner picks a point at the distance of its wanted score, in a random
    direction (more towards the clips' centre for larger distances, because there are no clips outside), and takes a
    free clip from that point's cell. Images that find no clip get new wanted scores; after the last round they take the
    remaining clips. The grid moves between rounds, so that cell borders favour no pair.
    """
    partner_P = np.empty(len(wanted_P), np.int64)
    # Single precision is enough to pick a cell, and three times as fast.
    distance = (-sigma * np.log(wanted_P)).astype(np.float32)
    (image_x, image_y), (clip_x, clip_y) = image_va_P2.T.astype(np.float32), music_va_P2.T.astype(np.float32)
    middle = (clip_x.mean(), clip_y.mean())
    images, clips = np.arange(len(wanted_P)), np.arange(len(wanted_P))
    for _ in range(_ROUNDS):
        shift = rng.random(2, np.float32)
        target_x, target_y = _look(image_x[images], image_y[images], middle, distance, rng)
        found, taken = _join(_cell(target_x, target_y, shift), _cell(clip_x[clips], clip_y[clips], shift))
        partner_P[images[found]] = clips[taken]
        distance = rng.permutation(np.delete(distance, found))
        images, clips = np.delete(images, found), np.delete(clips, taken)
    partner_P[images] = rng.permutation(clips)
    return partner_P


def _look(
    x: Points, y: Points, middle: tuple[np.float32, np.float32], distance: Points, rng: np.random.Generator
) -> tuple[Points, Points]:
    """The point that each image picks, `distance` away; a larger distance points more towards the middle."""
    angle = rng.random(len(x), np.float32) * np.float32(2 * np.pi)
    inward_x, inward_y = middle[0] - x, middle[1] - y
    pull = 1 / np.sqrt(inward_x * inward_x + inward_y * inward_y + _TINY)
    freedom = 2 * np.exp(-1.3 * distance)
    step_x, step_y = freedom * np.cos(angle) + pull * inward_x, freedom * np.sin(angle) + pull * inward_y
    scale = distance / np.sqrt(step_x * step_x + step_y * step_y + _TINY)
    return x + scale * step_x, y + scale * step_y


def _cell(x: Points, y: Points, shift: Points) -> NDArray[np.uint16]:
    """Number of each point's cell. Points outside the plane fall into a margin without clips."""
    column = np.clip(x * _CELLS + (shift[0] + 1), 0, _CELLS + 2).astype(np.uint16)
    row = np.clip(y * _CELLS + (shift[1] + 1), 0, _CELLS + 2).astype(np.uint16)
    # numpy sorts 16-bit integers by radix, in linear time.
    return column * np.uint16(_CELLS + 3) + row


def _join(a: NDArray[np.uint16], b: NDArray[np.uint16]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of a row of a and a row of b in the same cell, each row at most once."""
    order_a, order_b = np.argsort(a, kind="stable"), np.argsort(b, kind="stable")
    cells = (_CELLS + 3) ** 2
    count_a, count_b = np.bincount(a, minlength=cells), np.bincount(b, minlength=cells)
    pairs = np.minimum(count_a, count_b)
    # The first pairs[c] rows of cell c are paired; start[c] is the index of its first pair.
    start_a, start_b, start = (np.cumsum(count) - count for count in (count_a, count_b, pairs))
    pair = np.arange(pairs.sum())
    return order_a[np.repeat(start_a - start, pairs) + pair], order_b[np.repeat(start_b - start, pairs) + pair]
