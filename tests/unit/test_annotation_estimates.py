"""Times of sampled items: what is known is not measured again, what is too long is reckoned, what is broken counts."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmva.inference.config import Preprocessing
from mmva.inference.prefetch import THREADS
from mmva_platform.annotation.catalog import read_catalog
from mmva_platform.annotation.estimates import ItemTime, ItemTimer
from mmva_platform.annotation.plan import ModelInfo, make_plan
from mmva_platform.settings import Settings, StorageSettings
from mmva_platform.storage import open_storage


def timed(folder: Path, bundle: Path, speeds: dict[str, float], budget_s: float = 10.0) -> dict[str, ItemTime]:
    catalog = read_catalog(str(folder), StorageSettings())
    cut = Preprocessing(fingerprints={}, window_s=3.0, hop_s=1.5, short_side=224)
    plan, _ = make_plan(catalog, ModelInfo(name="tiny", version=None, digest="d"), cut, None)
    return ItemTimer(bundle, plan, open_storage(folder / "out"), Settings()).times(catalog.items, speeds, budget_s)


def test_long_music_is_cut_short_and_reckoned_by_its_size(tmp_path: Path, tiny_bundle: Path) -> None:
    seconds = 900
    samples_T = np.sin(np.arange(seconds * 8000) / 9).astype(np.float32) / 2
    soundfile.write(tmp_path / "long.wav", samples_T, 8000)  # 14.4 MB, which at a CD's rate is 82 s
    took = timed(tmp_path, tiny_bundle, {"music": 100.0}, budget_s=0.0)["music"]
    assert took.cut_short
    assert took.units["music"] == pytest.approx(seconds * 16_000 / 176_400 / 1.5, rel=0.01)
    assert took.infer_s == pytest.approx(took.units["music"] / 100)


def test_broken_items_count_with_the_time_they_take(tmp_path: Path, tiny_bundle: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32)).save(buffer, "PNG")
    (tmp_path / "good.png").write_bytes(buffer.getvalue())
    (tmp_path / "bad.png").write_bytes(buffer.getvalue()[:40])
    took = timed(tmp_path, tiny_bundle, {"image": 10.0})["image"]
    assert (took.sampled, took.failed, took.units) == (2, 1, {"image": 1})
    assert took.infer_s == pytest.approx(0.05)


def test_an_unknown_speed_is_measured(tmp_path: Path, tiny_bundle: Path) -> None:
    (tmp_path / "a.txt").write_text("calm strings")
    took = timed(tmp_path, tiny_bundle, {})
    assert list(took) == ["caption"]
    assert took["caption"].infer_s > 0


def test_slowest_of_fetching_and_computing_counts() -> None:
    assert ItemTime(sampled=1, fetch_s=2.0 * THREADS, decode_s=1.0, infer_s=0.5).seconds == 2.0  # so many fetch ahead
    assert ItemTime(sampled=1, fetch_s=1.0, decode_s=1.0, infer_s=0.5).seconds == 1.5
    assert ItemTime(sampled=2, failed=2, decode_s=1.0).seconds is None
