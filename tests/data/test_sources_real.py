"""Real collections by the source files of the repository, skipped by name where REAL_DIR does not name them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mmva.data.splits import SPLITS, leaking_groups, split_groups
from mmva_platform.datasets.importing.candidates import find_media
from mmva_platform.datasets.sources.config import load_source
from mmva_platform.datasets.sources.reading import Collection, read_source
from mmva_platform.settings import StorageSettings


def read(repository: Path, real_dir: Path, name: str) -> Collection:
    source = load_source(repository / "jobs/recipes/sources" / f"{name}.yaml", str(real_dir / name))
    return read_source(source, StorageSettings())


@pytest.mark.parametrize(
    ("name", "rows", "groups"), [("oasis", 836, 243), ("vgmidi", 200, 24), ("emobank", 10_062, 136)]
)
def test_every_row_is_read_has_its_file_and_splits_in_the_requested_sizes(
    repository: Path, real_dir: Path, name: str, rows: int, groups: int
) -> None:
    collection = read(repository, real_dir, name)
    (labels,) = collection.labels
    assert (labels.rows_in, len(labels.rows)) == (rows, rows)
    candidates, findings = find_media(collection)
    assert len(candidates) == rows
    assert [finding.code for finding in findings if finding.dropped] == []
    own = [candidate.group for candidate in candidates]
    assert len(set(own)) == groups
    va_N2 = np.array([(candidate.valence, candidate.arousal) for candidate in candidates])
    splits = split_groups(own, va_N2)
    counts = Counter(splits.tolist())
    assert leaking_groups(own, splits.tolist()) == []
    for split, share in zip(SPLITS, (0.7, 0.15, 0.15), strict=True):
        assert counts[split] == pytest.approx(share * rows, rel=0.1)
        assert va_N2[splits == split].mean(axis=0) == pytest.approx(va_N2.mean(axis=0), abs=0.02)


def test_deviations_and_scales_are_those_of_the_tables(repository: Path, real_dir: Path) -> None:
    (labels,) = read(repository, real_dir, "oasis").labels
    row = labels.rows.set_index("id").loc["OASIS/images/acorns-1"]
    assert (row["valence"], row["valence_sd"]) == (pytest.approx((4.6863 - 1) / 6), pytest.approx(0.9542 / 6))
    assert row["group"] == "OASIS/Acorns"
    (music,) = read(repository, real_dir, "vgmidi").labels
    assert [problem.code for problem in music.problems] == ["scale-not-reached"]
