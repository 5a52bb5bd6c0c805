"""docs/scale.md's table is what benchmarks/scale.py reckons, and that reckons right."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def scale() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scale", ROOT / "benchmarks" / "scale.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:  # dataclass looks its module up
        patch.setitem(sys.modules, "scale", module)
        spec.loader.exec_module(module)
    return module


def test_the_page_holds_the_table_and_its_rates(scale: ModuleType) -> None:
    page = (ROOT / "docs" / "scale.md").read_text()
    assert "\n".join(scale.table()) in page
    assert f"| {scale.IMAGES_S:.0f}: two cores together {2 * scale.IMAGES_S:.0f} (" in page
    assert f"| fixed cost of a run | {scale.FIXED_S} s |" in page
    assert f"two cores {2 * scale.TRACKS_TIMES_REAL} |" in page
    assert f"{scale.IMAGES_S * scale.CORES:.0f} images/s, " in page
    hours = 50_000 / scale.TRACKS_TIMES_REAL
    assert f"{round(hours, -1):,.0f} core hours, ${hours / scale.CORES * scale.SPOT_H:.0f} of spot" in page
    machines = scale.SIZES[10**10]
    assert f"{machines} machines at {scale.IMAGES_S * scale.CORES:.0f} images/s are 131,000 GET/s" in page
    assert round(machines * scale.IMAGES_S * scale.CORES, -3) == 131_000


def test_a_million_by_hand(scale: ModuleType) -> None:
    cost = scale.Cost(10**6, 1)
    assert cost.core_hours == pytest.approx(12_195 / 3600, rel=1e-4)  # 10^6 / 82 s
    assert cost.hours == pytest.approx((12_195 / 8 + 13.9) / 3600, rel=1e-4)
    assert cost.spot_usd == pytest.approx(0.1239, rel=1e-3)
    assert (cost.shards, cost.shard_items) == (204, 60 * 82)
    assert scale.Cost(2 * 10**6, 4).hours < cost.hours
