"""Memory of an evaluation whose rows are all groups of their own: python benchmarks/evaluation_memory.py [--clips N]

Clips and their captions with made-up embeddings of the `compact` widths, one modality in memory at a time as in
`mmva evaluate`, then every figure with its interval. Exit code 1 above the limit.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time

import numpy as np

from mmva.models.model import MMVA
from mmva_platform.datasets.features import ModalityFeatures
from mmva_platform.training.evaluation.evaluate import evaluate_rows
from mmva_platform.training.evaluation.predictions import PredictedRows

WIDTHS = {"music": 753, "caption": 384}


def made(width: int, rows: int) -> ModalityFeatures:
    """Random rows, each a group."""
    rng = np.random.default_rng(width)
    ids = np.array([f"clip-{row}" for row in range(rows)])
    emb_ND = rng.standard_normal((rows, width), np.float32)
    return ModalityFeatures(ids, emb_ND, rng.uniform(0.1, 0.9, (rows, 2)), np.full(rows, "test"), ids)


def main() -> int:
    """Print seconds and the process's peak."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=500_000)
    parser.add_argument("--limit-gb", type=float, default=4.0)
    options = parser.parse_args()
    model, began = MMVA(WIDTHS).eval(), time.monotonic()
    rows = {modality: PredictedRows.of(model, modality, made(WIDTHS[modality], options.clips)) for modality in WIDTHS}
    constants = {modality: np.full(2, 0.5) for modality in rows}
    found = evaluate_rows(rows, ("made", "0" * 64, "test"), constants, model.config.sigma)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{options.clips:,} clips of {found.groups['music']:,} groups: peak {peak:.2f} GB of {options.limit_gb:g}")
    print(f"pairs of a sample of {found.sampled}; {time.monotonic() - began:.0f} s")
    return int(peak > options.limit_gb)


if __name__ == "__main__":
    sys.exit(main())
