"""Which ids repeat, found without holding them: exact, for any ids, in any number of calls."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmva_platform.annotation.plan.unique import UniqueIds, digests_of


def repeated_of(batches: list[list[str]], held: int) -> list[int]:
    with TemporaryDirectory() as folder:
        ids = UniqueIds(Path(folder), held)
        for batch in batches:
            ids.add(pa.array(batch, pa.large_string()))
        return ids.repeated().tolist()


@given(st.lists(st.lists(st.text(max_size=2), max_size=20), max_size=8), st.sampled_from([1, 10, 1000]))
def test_every_row_but_the_first_of_its_id_repeats(batches: list[list[str]], held: int) -> None:
    flat = [name for batch in batches for name in batch]
    assert repeated_of(batches, held) == [row for row, name in enumerate(flat) if name in flat[:row]]


def test_rows_far_apart_and_ids_that_fill_the_catalog(tmp_path: Path) -> None:
    ids = UniqueIds(tmp_path, held=2000)
    for part in range(20):
        ids.add(pa.array([f"{part}-{row}" for row in range(1000)] + ["always"] * 1000))
    ids.add(pa.array(["7-12", "20-1"]))
    found = ids.repeated()
    assert len(found) == 20 * 1000 - 1 + 1
    assert found[-1] == 20 * 2000
    assert np.all(np.diff(found) > 0)
    assert max(path.stat().st_size for path in tmp_path.iterdir()) < 24 * 200  # "always" did not fill its bucket


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_digests_are_of_the_text(kind: pa.DataType) -> None:
    first, again = (digests_of(pa.chunked_array([pa.array(["a", "b"], kind)])) for _ in range(2))
    assert first.shape == (2, 2)
    assert np.array_equal(first, again)
    assert not np.array_equal(first[0], first[1])
