"""Two annotations of the same items: how far apart they are, which items differ most, and the page of it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from mmva.affect import mood
from mmva_platform.reporting.shadow import BINS, FURTHEST, Shadow, compared, write_shadow_page

N = 40


def table(points: dict[str, tuple[float, float]], modality: str = "image") -> pa.Table:
    rows = [
        {
            "id": item,
            "uri": f"/media/{item}",
            "modality": modality,
            "valence": v,
            "arousal": a,
            "mood": str(mood([v, a])),
        }
        for item, (v, a) in points.items()
    ]
    return pa.Table.from_pylist(rows)


def points(shift: float = 0.0) -> dict[str, tuple[float, float]]:
    rng = np.random.default_rng(0)
    return {f"item-{i}": (float(v) + shift, float(a)) for i, (v, a) in enumerate(rng.uniform(0.1, 0.6, (N, 2)))}


def shadow(first: pa.Table, second: pa.Table, **changed: Any) -> Shadow:
    agreements, furthest, only_first, only_second = compared(first, second)
    given = {"first": "version 2", "second": "version 1", "catalog": "photos", "catalog_items": 99, "sample": N}
    rest = {"agreements": agreements, "furthest": furthest, "only_first": only_first, "only_second": only_second}
    return Shadow(**(given | rest | {"seed": 0, "neither": 0} | changed))


def test_a_version_beside_itself_does_not_differ() -> None:
    found = compared(table(points()), table(points()))[0]["image"]
    assert (found.items, found.largest_distance, found.same_quadrant) == (N, 0.0, 1.0)
    assert found.axes["valence"].correlation == pytest.approx(1.0)
    assert found.axes["valence"].counts[BINS // 2] == N


def test_a_shift_is_seen_with_its_sign_on_its_axis_alone() -> None:
    found = compared(table(points(0.3)), table(dict(reversed(points().items()))))[0]["image"]
    assert found.axes["valence"].mean == pytest.approx(0.3)
    assert found.axes["valence"].median == found.axes["valence"].p90 == pytest.approx(0.3)
    assert found.axes["arousal"].largest == 0.0
    assert found.median_distance == pytest.approx(0.3)
    assert found.same_quadrant < 1
    assert sum(found.axes["valence"].counts) == N


def test_the_furthest_come_first_and_what_one_lacks_is_named() -> None:
    mine, theirs = points(), points()
    theirs["item-7"], theirs["item-3"] = (0.9, 0.9), (0.8, 0.8)
    del mine["item-1"], theirs["item-2"]
    _, furthest, only_first, only_second = compared(table(mine), table(theirs))
    assert {furthest[0].id, furthest[1].id} == {"item-7", "item-3"}
    assert furthest[0].distance >= furthest[1].distance
    assert len(furthest) == FURTHEST
    assert (only_first, only_second) == (("item-2",), ("item-1",))
    assert furthest[0].second in {(0.9, 0.9), (0.8, 0.8)}


def test_one_value_for_all_has_no_correlation_and_is_still_json() -> None:
    flat = dict.fromkeys(points(), (0.5, 0.5))
    found = shadow(table(flat), table(points()))
    assert found.agreements["image"].axes["valence"].correlation is None
    json.dumps(found.to_json(), allow_nan=False)
    assert "r undefined" in found.to_text()
    assert "version 2 and version 1 on 40 of 99 items of photos (seed 0)" in found.to_text()


def test_the_page_shows_the_items_and_survives_missing_files(tmp_path: Path) -> None:
    theirs = points() | {"item-7": (0.9, 0.9), "<b>item": (0.9, 0.1)}
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (250, 10, 10)).save(buffer, "PNG")

    def read(uri: str) -> bytes:
        if uri == "/media/item-7":
            return buffer.getvalue()
        raise FileNotFoundError(uri)

    found = shadow(table(points() | {"<b>item": (0.1, 0.9)}), table(theirs), neither=2)
    write_shadow_page(tmp_path / "new" / "shadow.html", found, read, {})
    page = (tmp_path / "new" / "shadow.html").read_text()
    assert page.count("data:image/jpeg") == 1
    assert page.count("can no longer be shown") == FURTHEST - 1
    assert "&lt;b&gt;item" in page
    assert "<b>item" not in page
    assert "2 that neither could" in page
