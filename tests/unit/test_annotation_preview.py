"""`annotate --plan`: what it says is what would be done, and it writes and asks for nothing it may not."""

import io
import json
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from mmva.bundle import read_bundle_info
from mmva.errors import UsageError
from mmva.inference.calibration import Calibration, Measured
from mmva.inference.config import EngineInfo, Preprocessing
from mmva.inference.engines import cache_of
from mmva_platform.annotation import preview as preview_module
from mmva_platform.annotation.catalog import Catalog, read_catalog
from mmva_platform.annotation.commit import commit_path
from mmva_platform.annotation.plan import BaseInfo, ModelInfo, Plan, make_plan, settle_plan
from mmva_platform.annotation.preview import PlanPreview, preview
from mmva_platform.annotation.preview_text import as_duration, as_size
from mmva_platform.annotation.publish import MANIFEST_FILE
from mmva_platform.annotation.schema import CATALOG_SCHEMA
from mmva_platform.settings import ClusterSettings, Settings, StorageSettings
from mmva_platform.storage import Storage, open_storage
from mmva_platform.storage.local import LocalStorage


def wav(seconds: int) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(range(0, 160, 2)) * 200 * seconds)
    return buffer.getvalue()


def png(number: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (number % 256, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def media(tmp_path: Path) -> Path:
    folder = tmp_path / "media"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number:02}.png").write_bytes(png(number))
    (folder / "song.wav").write_bytes(wav(7))
    (folder / "words.txt").write_text("a calm piano")
    (folder / "notes.pdf").write_bytes(b"1")
    return folder


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", cluster=ClusterSettings(address="local", num_cpus=4))


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(tmp_path / "out")


@pytest.fixture
def planned(tiny_bundle: Path) -> Callable[..., tuple[Plan, dict[str, bytes]]]:
    """make_plan for the tiny bundle."""
    info = read_bundle_info(tiny_bundle)
    fingerprints = {name: record["fingerprint"] for name, record in info.backbones.items()}

    def make(catalog: Catalog, shard_items: int | None = None, **options: Any) -> tuple[Plan, dict[str, bytes]]:
        model = ModelInfo(name="tiny", version=None, digest=options.pop("digest", info.digest))
        cut = Preprocessing(fingerprints=fingerprints, window_s=3.0, hop_s=1.5, short_side=224)
        return make_plan(catalog, model, cut, shard_items, **options)

    return make


@pytest.fixture
def show(tiny_bundle: Path, storage: Storage, settings: Settings) -> Callable[..., PlanPreview]:
    """Preview for the tiny bundle and the output."""

    def call(catalog: Catalog, *, settings: Settings = settings, **options: Any) -> PlanPreview:
        return preview(catalog, tiny_bundle, storage, settings, **{"plan": None, "workers": 1, **options})

    return call


def catalog_of(rows: list[dict[str, Any]], uri: str) -> Catalog:
    known = {"uri": None, "modality": "image", "caption": None, "bytes": None, "etag": None}
    table = pa.Table.from_pylist([{**known, **row} for row in rows], schema=CATALOG_SCHEMA)
    return Catalog(uri, table, {}, 0, ())


def check(found: PlanPreview) -> str:
    """The text, of a size to be read at once; the JSON is plain."""
    text = found.to_text()
    assert len(text.splitlines()) < 20
    assert json.loads(json.dumps(found.to_json()))["out"] == found.out
    return text


def test_new_run(show: Any, media: Path, storage: Storage, planned: Any) -> None:
    catalog = read_catalog(str(media), StorageSettings())
    plan, _ = planned(catalog, 4)
    found = show(catalog, new_plan=plan, workers=None)
    text = check(found)
    assert (found.state, found.items) == ("new", {"image": 20, "music": 1, "caption": 1})
    assert (found.skipped, found.outside, found.shards_left) == ({".pdf": 1}, 0, found.shards)
    assert found.bytes.total == sum(file.stat().st_size for file in media.iterdir()) - 1
    assert {tower: view.name for tower, view in found.engines.items()} == {"image": "", "music": "", "caption": ""}
    for name, count in found.items.items():
        seconds = found.times[name].seconds
        assert seconds is not None
        assert seconds > 0
        assert found.seconds[name] == pytest.approx(count * seconds / found.needs.parallel)
    assert found.times["image"].units == {"image": found.times["image"].sampled}
    assert found.times["music"].units == {"music": 4}  # windows of 3 s every 1.5 s
    for words in ("22 items (", "1 .pdf", "will be calibrated", "to start, and the calibration", ": new, "):
        assert words in text
    assert not Path(storage.uri).exists()


@pytest.fixture
def measured(tiny_bundle: Path, settings: Settings) -> None:
    """Speeds of the image engines, as an earlier call left them."""
    info = read_bundle_info(tiny_bundle)
    figures = {"torch": (10.0, 0.0, 1.0), "onnx": (40.0, 0.0, 1.0), "torch-bf16": (90.0, 0.5, 0.2)}
    names = ("items_per_s", "max_va_difference", "min_cosine")
    found = {name: Measured(**dict(zip(names, of_it, strict=True))) for name, of_it in figures.items()}
    cache = cache_of(settings.home / "cache" / "engines", info, "image")
    cache.write(Calibration(engines=found))


@pytest.mark.usefixtures("measured")
def test_speeds_measured_before_spare_the_model(
    show: Any, planned: Any, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmva.inference.engines.load_predictor", None)
    catalog = catalog_of([{"id": str(n), "uri": str(media / f"{n:02}.png")} for n in range(20)], str(media))
    found = show(catalog, new_plan=planned(catalog)[0])
    assert (found.engines["image"].name, found.engines["image"].items_per_s) == ("onnx", 40.0)
    assert found.times["image"].infer_s == pytest.approx(1 / 40)
    assert found.times["image"].decode_s > 0
    assert "image: onnx 40/s a core (to be confirmed)" in check(found)


@pytest.mark.usefixtures("measured")
def test_settled_engines_stand(show: Any, planned: Any, media: Path, storage: Storage) -> None:
    catalog = catalog_of([{"id": str(n), "uri": str(media / f"{n:02}.png")} for n in range(20)], str(media))
    plan, contents = planned(catalog)
    settled = plan.model_copy(update={"engines": {"image": EngineInfo(name="torch", items_per_s={"torch": 20.0})}})
    settle_plan(storage, settled, contents)
    found = show(catalog, plan=settled, new_plan=plan)
    assert (found.engines["image"].name, found.engines["image"].settled) == ("torch", True)
    assert found.times["image"].infer_s == pytest.approx(1 / 20)
    assert found.refused == ()  # engines that are not chosen yet are no difference


def test_resume_counts_what_is_left_and_publishing_ends_it(
    show: Any, media: Path, storage: Storage, planned: Any
) -> None:
    catalog = read_catalog(str(media), StorageSettings())
    plan, contents = planned(catalog, 4)
    settle_plan(storage, plan, contents)
    images = next(k for k in range(len(plan.shards)) if plan.bounds[k] >= 1)  # the first shard holds the song
    committed = plan.shards[images : images + 2]
    for shard in (*committed, "999999"):
        storage.put_if_absent(commit_path(shard), b"only listed")
    before = sorted(storage.list())
    found = show(catalog, plan=plan, new_plan=planned(catalog)[0], workers=2)
    gone = plan.bounds[images + 2] - plan.bounds[images]
    assert (found.state, found.shards_left) == ("resume", found.shards - 2)
    assert sum(found.items_left.values()) == 22 - gone
    assert found.bytes.total < sum(file.stat().st_size for file in media.iterdir())
    assert f"2 of {found.shards} shards done" in check(found)
    assert sorted(storage.list()) == before
    for shard in plan.shards:
        storage.put_if_absent(commit_path(shard), b"only listed")
    found = show(catalog, plan=plan, new_plan=plan, workers=2)
    assert "only publishing is left" in check(found)
    storage.put_if_absent(MANIFEST_FILE, b"{}")
    found = show(catalog, plan=plan, new_plan=plan, workers=2)
    assert (found.state, found.shards_left, found.times) == ("published", 0, {})
    assert "published, nothing left to do" in check(found)


def test_says_why_the_call_would_be_refused(show: Any, media: Path, storage: Storage, planned: Any) -> None:
    catalog = read_catalog(str(media), StorageSettings())
    plan, contents = planned(catalog, 4, digest="e" * 64)
    settle_plan(storage, plan, contents)
    found = show(catalog, plan=plan, new_plan=planned(catalog, 64)[0], workers=2)
    assert [difference.partition(":")[0] for difference in found.refused] == ["model digest"]
    assert "refused   model digest" in check(found)


def test_nothing_outside_the_roots_is_asked_for(
    show: Any, media: Path, tmp_path: Path, planned: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "secret"
    elsewhere.mkdir()
    (elsewhere / "a.png").write_bytes(png())
    rows = [{"id": f"in{n}", "uri": str(media / f"{n:02}.png")} for n in range(20)]
    rows += [{"id": f"out{n}", "uri": str(elsewhere / "a.png")} for n in range(10)]
    rows += [{"id": "words", "modality": "caption", "caption": "calm"}]
    catalog = catalog_of(rows, str(media))
    asked: list[Path] = []
    size, read = LocalStorage.size, LocalStorage.read

    def watched(method: Callable[[LocalStorage, str], Any]) -> Callable[[LocalStorage, str], Any]:
        def call(self: LocalStorage, path: str) -> Any:
            asked.append(self.root)
            return method(self, path)

        return call

    monkeypatch.setattr(LocalStorage, "size", watched(size))
    monkeypatch.setattr(LocalStorage, "read", watched(read))
    plan, _ = planned(catalog)
    found = show(catalog, new_plan=plan)
    assert (found.outside, found.roots_checked) == (10, 30)
    assert "10 items lie outside" in check(found)
    assert set(asked) == {media}
    plan, _ = planned(catalog, roots=[str(elsewhere)])
    found = show(catalog, new_plan=plan)
    assert found.outside == 0
    assert set(asked) == {media, elsewhere}


def test_many_items_are_judged_by_some(show: Any, media: Path, planned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preview_module, "_ROOTS_CHECKED", 40)
    rows = [{"id": str(n), "uri": f"{media if n % 2 else '/elsewhere'}/{n}.png", "bytes": 10} for n in range(200)]
    catalog = catalog_of(rows, str(media))
    found = show(catalog, new_plan=planned(catalog)[0])
    assert found.roots_checked == 40
    assert 50 <= found.outside <= 150
    assert "; about " in check(found)


def test_unknown_sizes_are_reckoned_from_some(show: Any, media: Path, planned: Any) -> None:
    (media / "00.png").write_bytes(b"x" * 1000)
    rows = [{"id": str(n), "uri": str(media / "00.png")} for n in range(60)]
    rows += [{"id": "known", "uri": str(media / "01.png"), "bytes": 7}]
    catalog = catalog_of(rows, str(media))
    found = show(catalog, new_plan=planned(catalog)[0])
    assert found.bytes == preview_module.Bytes(total=60_007, unknown=60, asked=50)
    text = check(found)
    assert "about 60 kB (60 sizes not known, reckoned from 50 that were asked)" in text
    gone = catalog_of([{"id": "gone", "uri": str(media / "gone.png")}], str(media))
    found = show(gone, new_plan=planned(gone)[0])
    assert "1 files of unknown size" in check(found)
    assert "no estimate for image: none of the sampled items could be read" in found.to_text()


def test_base_saves_its_items_their_media(show: Any, media: Path, storage: Storage, planned: Any) -> None:
    catalog = read_catalog(str(media), StorageSettings())
    files = pa.array(["data/1.parquet" if n < 15 else None for n in range(22)])
    base = BaseInfo(uri="/va/1", run_id="r", manifest_sha256="m", same_model=False, items=15)
    plan, contents = planned(catalog, base=base, base_files=files)
    found = show(catalog, new_plan=plan, base_files=files)
    assert (found.base_left, found.items_left) == (15, {"image": 5, "music": 1, "caption": 1})
    assert "/va/1 saves 15 of 22 items their media (towers over its embeddings)" in check(found)
    settle_plan(storage, plan, contents)
    again = show(catalog, plan=plan, new_plan=plan)
    assert (again.base_left, sum(again.items_left.values())) == (15, 7)


def test_needs_of_the_cluster(show: Any, settings: Settings, planned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    catalog = catalog_of([{"id": str(n), "modality": "caption", "caption": f"calm {n}"} for n in range(2000)], "/m")
    plan, _ = planned(catalog, 1)
    few = show(catalog, new_plan=plan, workers=3).needs
    assert (few.workers, few.cpus, few.cpus_there, few.enough) == (3, 2.5, 4.0, True)
    many = show(catalog, new_plan=plan, workers=9)
    assert (many.needs.cpus, many.needs.enough) == (5.5, False)
    assert "TOO FEW" in check(many)
    one, _ = planned(catalog_of([{"id": "a", "modality": "caption", "caption": "calm"}], "/m"))
    alone = show(catalog, new_plan=one, workers=9)
    assert alone.needs.workers == 1  # no more than shards

    on_gpus = plan.model_copy(update={"engines": {"caption": EngineInfo(name="cuda")}})
    monkeypatch.setattr(preview_module, "_own_gpus", lambda: 1)
    shared = show(catalog, new_plan=on_gpus, workers=2)
    assert (shared.needs.gpus, shared.needs.gpus_there, shared.needs.enough) == (0.5, 1, True)
    monkeypatch.setattr(preview_module, "_own_gpus", lambda: 0)
    assert "and 0.5 GPUs: it has 4 and 0, TOO FEW" in check(show(catalog, new_plan=on_gpus, workers=2))

    def unreachable(_settings: ClusterSettings) -> Any:  # the real one would find the Ray of another test's session
        raise UsageError("cluster.address 127.0.0.1:1: no Ray cluster answers there")

    monkeypatch.setattr(preview_module, "ray_session", unreachable)
    away = settings.model_copy(update={"cluster": ClusterSettings(address="127.0.0.1:1")})
    found = show(catalog, new_plan=plan, workers=2, settings=away)
    assert (found.needs.cpus_there, found.needs.enough) == (None, False)
    assert "no Ray cluster answers there" in check(found)


def test_sizes_and_durations_for_people() -> None:
    assert [as_size(size) for size in (0, 999, 1500, 2_340_000, 5 * 10**9, 1234 * 10**12)] == [
        *["0 B", "999 B", "1.5 kB", "2.34 MB", "5 GB", "1,234.0 TB"]
    ]
    assert [as_duration(seconds) for seconds in (0.1, 99, 100, 5400, 7200, 10**6)] == [
        *["1 s", "99 s", "2 min", "90 min", "2 h", "11.6 days"]
    ]
