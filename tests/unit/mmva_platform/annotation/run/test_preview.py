"""`annotate --plan`: what it says is what would be done, and it writes and asks for nothing it may not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmva.engines.calibration import Calibration, Measured
from mmva.engines.choice import cache_of
from mmva.errors import UsageError
from mmva.models.bundle import read_bundle_info
from mmva_platform.annotation.options import AnnotateOptions
from mmva_platform.annotation.plan.plan import Base, Plan
from mmva_platform.annotation.plan.planning import settled
from mmva_platform.annotation.run import preview as preview_module
from mmva_platform.annotation.run.prepare import look_up, make_plan
from mmva_platform.annotation.run.preview import PlanPreview, as_duration, preview_run
from mmva_platform.annotation.table.commit import read_commits
from mmva_platform.annotation.table.publish import publish
from mmva_platform.annotation.table.status import status
from mmva_platform.settings import ClusterSettings, Settings
from mmva_platform.storage import Storage, open_storage

from ....helpers.planned import iter_items, quarantine_all

Show = Callable[..., PlanPreview]


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """Files that a preview need not open."""
    folder = tmp_path / "media"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number:02}.png").write_bytes(b"x" * 1000)
    (folder / "song.wav").write_bytes(b"x" * 176_400 * 6)
    (folder / "words.txt").write_text("a calm piano")
    (folder / "notes.pdf").write_bytes(b"1")
    return folder


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return Settings(home=tmp_path / "home", cluster=ClusterSettings(address="local", num_cpus=4))


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(tmp_path / "out")


@pytest.fixture
def show(media: Path, tiny_bundle: Path, storage: Storage, settings: Settings) -> Show:
    """Preview of the folder for the tiny bundle and the output."""

    def call(catalog: Path = media, *, settings: Settings = settings, **options: Any) -> PlanPreview:
        return preview_run(str(catalog), str(tiny_bundle), storage.uri, settings, **options)

    return call


@pytest.fixture
def planned(media: Path, tiny_bundle: Path, storage: Storage, settings: Settings) -> Plan:
    """The plan that a run has left: shards of 4 items."""
    options = AnnotateOptions(engine="torch", shard_items=4)
    return make_plan(look_up(str(media), str(tiny_bundle), storage.uri, settings, options), settings)


@pytest.fixture
def measured(tiny_bundle: Path, settings: Settings) -> None:
    """Speeds as an earlier call left them."""
    info = read_bundle_info(tiny_bundle)
    figures = {"torch": (10.0, 0.0, 1.0), "onnx": (40.0, 0.0, 1.0), "torch-bf16": (90.0, 0.5, 0.2)}
    names = ("items_per_s", "max_va_difference", "min_cosine")
    found = {name: Measured(**dict(zip(names, of_it, strict=True))) for name, of_it in figures.items()}
    for tower in info.backbones:
        cache_of(settings.home / "cache" / "engines", info, tower).write(Calibration(engines=found))


def check(found: PlanPreview) -> str:
    """The text, of a size to be read at once; the JSON is plain."""
    text = found.to_text()
    assert len(text.splitlines()) < 20
    assert json.loads(json.dumps(found.to_json()))["out"] == found.out
    return text


def test_new_run(show: Show, media: Path, storage: Storage) -> None:
    found = show(shard_items=4)
    text = check(found)
    assert (found.state, found.items) == ("new", {"image": 20, "music": 1, "caption": 1})
    assert (found.skipped, found.duplicates, found.outside) == ({".pdf": 1}, 0, 0)
    assert (found.items_left, found.shards, found.shards_left) == (22, 6, 6)
    assert found.bytes == sum(file.stat().st_size for file in media.iterdir()) - 1
    assert found.engines == {"image": ("", None), "music": ("", None), "caption": ("", None)}
    assert found.seconds is None
    for words in ("22 items (", "1 .pdf", "will be measured", "no estimate", ": new, 6 shards"):
        assert words in text
    assert not Path(storage.uri).exists()


@pytest.mark.usefixtures("measured")
def test_time_by_the_speeds_that_were_measured(show: Show) -> None:
    found = show(workers=2)
    assert found.engines == dict.fromkeys(("image", "music", "caption"), ("onnx", 40.0))
    assert found.seconds == pytest.approx((20 / 40 + 1 / 40 + 6 / 1.5 / 40) / 2)  # a window every 1.5 s of the song
    assert "image: onnx 40/s a worker" in check(found)
    assert show(workers=2, engine="torch").seconds == pytest.approx(4 * found.seconds)
    assert show(workers=2, engine="cuda").seconds is None


def test_a_run_that_is_there_is_told_from_its_directory(
    show: Show, storage: Storage, planned: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmva_platform.annotation.catalog.catalog.Catalog.batches", lambda _self: pytest.fail("listed"))
    assert show().seconds is None  # nothing is recorded yet
    for shard in planned.shards[2:4]:
        quarantine_all(storage, planned, shard)
    before = sorted(storage.list())
    found = show(workers=2)
    assert (found.state, found.shards, found.shards_left, found.items_left) == ("resume", 6, 4, 14)
    assert (found.items["image"], found.refused, found.bytes, found.outside) == (20, (), None, None)
    recorded = status(storage.uri, Settings()).items_per_worker_s
    assert recorded is not None
    assert found.seconds == pytest.approx(14 / recorded / 2)
    assert "2 of 6 shards done, 14 items left" in check(found)
    assert sorted(storage.list()) == before
    for shard in planned.shards:
        quarantine_all(storage, planned, shard)
    publish(storage, planned, read_commits(storage, 0, planned.shards))
    found = show(workers=2)
    assert (found.state, found.shards_left, found.items_left) == ("published", 0, 0)
    assert "published, nothing left to do" in check(found)


def test_an_update_under_way_is_not_what_the_call_would_do(show: Show, storage: Storage, planned: Plan) -> None:
    for shard in planned.shards:
        quarantine_all(storage, planned, shard)
    publish(storage, planned, read_commits(storage, 0, planned.shards))
    base = Base(replaced=(), same_model=True, kept=22, unchanged=22, new=0, changed=0, removed=0)
    settled(storage, planned.model_copy(update={"version": 1, "kind": "update", "base": base}))
    found = show()
    assert (found.state, found.shards, found.shards_left, found.items_left) == ("published", 6, 0, 0)


@pytest.mark.usefixtures("planned")
def test_says_why_the_call_would_be_refused(show: Show) -> None:
    found = show(hop_s=2.0, engine="onnx")
    assert [difference.partition(":")[0] for difference in found.refused] == [
        *["hop_s", "caption engine", "image engine", "music engine"]
    ]
    assert "refused   hop_s: 1.5 there, 2.0 now" in check(found)


def test_items_outside_the_roots_are_counted(
    show: Show, media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = media / "list.csv"
    inside = [f"in{n},{media}/{n:02}.png," for n in range(20)]
    outside = [f"out{n},{tmp_path}/secret/{n}.png," for n in range(10)]
    table.write_text("\n".join(["id,uri,caption", *inside, *outside, "words,,calm"]))
    found = show(table)
    assert found.outside == 10
    assert "10 items are outside" in check(found)
    assert show(table, roots=(str(tmp_path),)).outside == 0
    monkeypatch.setattr(preview_module, "_ROOTS_CHECKED", 16)  # every second item
    assert show(table).outside == 10


def test_unknown_sizes_and_repeated_ids_are_counted(show: Show, media: Path) -> None:
    table = media / "list.csv"
    table.write_text("id,uri,bytes\n1,s3://b/a.png,7\n1,s3://b/b.png,8\n2,s3://b/c.png,\n")
    found = show(table, roots=("s3://b",))
    assert (found.bytes, found.sizes_unknown, found.duplicates, found.items) == (15, 1, 1, {"image": 2})
    text = check(found)
    assert "15 bytes and 1 files of unknown size" in text
    assert "1 rows with an earlier row's id" in text


def test_workers(show: Show, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert show(workers=3).workers == 3
    assert show(shard_items=1).workers == 4  # one for each CPU
    assert show(shard_items=1000, workers=9).workers == show(shard_items=1000).shards  # no more than shards

    def unreachable(_settings: ClusterSettings) -> Any:  # the real one would find the Ray of another test's session
        raise UsageError("cluster.address 127.0.0.1:1: no Ray cluster answers there")

    monkeypatch.setattr(preview_module, "ray_session", unreachable)
    away = settings.model_copy(update={"cluster": ClusterSettings(address="127.0.0.1:1")})
    found = show(workers=2, settings=away)
    assert found.problem is not None
    assert "no Ray cluster answers there" in check(found)


def test_plan_and_preview_agree(
    show: Show, storage: Storage, settings: Settings, media: Path, tiny_bundle: Path
) -> None:
    found = show(engine="torch")
    options = AnnotateOptions(engine="torch")
    plan = make_plan(look_up(str(media), str(tiny_bundle), storage.uri, settings, options), settings)
    assert found.shards == len(plan.shards)
    assert sum(items.num_rows for items in iter_items(storage, plan)) == found.items_left


def test_durations_for_people() -> None:
    assert [as_duration(seconds) for seconds in (0.1, 99, 100, 5400, 7200, 10**6)] == [
        *["1 s", "99 s", "2 min", "90 min", "2 h", "11.6 days"]
    ]
