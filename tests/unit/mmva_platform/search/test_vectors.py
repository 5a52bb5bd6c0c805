"""The index of embeddings: it finds what a scan finds, is used where it was built, and goes with its version."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import lance
import numpy as np
import pytest

from mmva.errors import UsageError
from mmva_platform.annotation import clean
from mmva_platform.cli.main import run
from mmva_platform.search import AnnotationIndex, Region, index, vectors
from mmva_platform.search.vectors import build_vectors
from mmva_platform.settings import Settings
from mmva_platform.storage import Storage, open_storage

from ...helpers.published import Rows, publish_points, update_points

COUNT = 1200
DIM = 12  # no multiple of 8
RNG = np.random.default_rng(7)
ROWS: Rows = [
    *((f"i{n:04d}", "image", *map(float, RNG.random(2).astype(np.float32))) for n in range(COUNT)),
    *((f"c{n}", "caption", 0.5, 0.5) for n in range(9)),
]
CENTRES = RNG.normal(size=(40, DIM))
VECTORS = {
    f"i{n:04d}": {"embedding": (CENTRES[n % 40] + 0.5 * RNG.normal(size=DIM)).astype(np.float32).tolist()}
    for n in range(COUNT)
}
VECTORS["i0007"] = {"embedding": [0.0] * DIM}


@pytest.fixture(scope="module", autouse=True)
def _small_ones_too() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "LEAST", 50)
        yield


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without an index."""
    return publish_points(tmp_path_factory.mktemp("plain") / "va", ROWS, shard_items=500, embeddings=VECTORS)


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = publish_points(tmp_path_factory.mktemp("indexed") / "va", ROWS, shard_items=500, embeddings=VECTORS)
    assert build_vectors(str(out), Settings()) == [f"image: {COUNT} embeddings indexed"]
    return out


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """A small annotation."""
    return publish_points(tmp_path / "va", ROWS[:120], shard_items=50, embeddings=VECTORS)


@pytest.fixture
def no_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    def scanned(*_arguments: object) -> None:
        raise AssertionError("every embedding was read")

    monkeypatch.setattr(index, "embeddings", scanned)


@pytest.mark.usefixtures("no_scan")
@pytest.mark.parametrize("region", [None, Region((0.25, 0.75), (0.1, 0.9))])
def test_the_index_finds_what_a_scan_finds(indexed: Path, region: Region | None) -> None:
    opened, found, points = AnnotationIndex.open(str(indexed), Settings()), 0, {row[0]: row[2:] for row in ROWS}
    emb_ND = np.array([VECTORS[f"i{n:04d}"]["embedding"] for n in range(COUNT)])
    unit_ND = emb_ND / np.maximum(np.linalg.norm(emb_ND, axis=1, keepdims=True), 1e-9)
    for number in (0, 44, 700, 1199):
        own = f"i{number:04d}"
        cosines = {f"i{n:04d}": cosine for n, cosine in enumerate(unit_ND @ unit_ND[number]) if n != number}
        if region is not None:
            cosines = {
                name: cosine for name, cosine in cosines.items()
                if 0.25 <= points[name][0] <= 0.75 and 0.1 <= points[name][1] <= 0.9
            }  # fmt: skip
        hits = opened.like(own, by="embedding", top=20, offset=5, region=region)
        expected = sorted(cosines, key=lambda name: -cosines[name])[5:25]
        found += len({hit.id for hit in hits} & set(expected))
        assert [hit.score for hit in hits] == pytest.approx([cosines[hit.id] for hit in hits], abs=1e-5)
        assert len(hits) == 20
        for hit in hits:
            assert hit.distance == pytest.approx(np.hypot(*np.subtract(points[hit.id], points[own])))
    assert found >= 76  # of 80


@pytest.mark.usefixtures("no_scan")
def test_a_filter_loses_nothing(indexed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The few items that pass are in partitions far from the item."""
    monkeypatch.setattr(vectors, "_PROBES", 1)
    region = Region((0.5, 0.52), (0, 1))
    inside = {name for name, kind, valence, _ in ROWS if kind == "image" and 0.5 <= valence <= 0.52}
    hits = AnnotationIndex.open(str(indexed), Settings()).like("i0003", by="embedding", top=100, region=region)
    assert {hit.id for hit in hits} == inside - {"i0003", "i0007"}
    assert len(hits) > 10


def test_an_index_that_fails_is_opened_again_and_meanwhile_everything_is_read(
    indexed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened = AnnotationIndex.open(str(indexed), Settings())
    found = [hit.id for hit in opened.like("i0003", by="embedding", top=3)]
    first = opened._vectors["image"]
    first._dataset = None  # as with credentials that have expired
    assert [hit.id for hit in opened.like("i0003", by="embedding", top=3)] == found
    assert "the index of embeddings" in caplog.text
    assert opened.vectors("image", 3) not in {None, first}


@pytest.mark.usefixtures("no_scan")
def test_pages_of_the_index_are_those_of_one_list(indexed: Path) -> None:
    opened = AnnotationIndex.open(str(indexed), Settings())
    pages = [hit.id for offset in range(0, 100, 10) for hit in opened.like("i0003", by="embedding", offset=offset)]
    assert pages == [hit.id for hit in opened.like("i0003", by="embedding", top=100)]
    assert len(set(pages)) == 100
    assert "i0003" not in pages


def test_what_the_index_cannot_find_is_scanned(indexed: Path, plain: Path) -> None:
    here, there = (AnnotationIndex.open(str(out), Settings()) for out in (indexed, plain))
    for options in ({"id": "i0007"}, {"id": "i0003", "offset": 1000, "top": 5}):  # no direction; a late page
        assert here.like(**options, by="embedding") == there.like(**options, by="embedding")  # type: ignore[arg-type]
    assert here.vectors("image", 10) is not None
    assert there.vectors("image", 10) is None


def test_small_modalities_are_scanned(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["annotations", "index", str(plain), "--modality", "caption"]) == 2
    assert "9 caption items; an index needs 50" in capsys.readouterr().err
    captions = publish_points(tmp_path / "va", ROWS[-9:])
    assert run(["annotations", "index", str(captions)]) == 0
    assert "no modality has 50 items" in capsys.readouterr().out
    assert run(["annotations", "index", str(plain), "--modality", "smell"]) == 2


def test_videos_with_and_without_sound_have_no_index_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "LEAST", 2)
    both = {f"v{n}": {"embedding": [1.0] * (2 + n), "tracks": ["image", "music"][: 1 + n]} for n in range(2)}
    out = publish_points(tmp_path / "va", [(name, "video", 0.5, 0.5) for name in both], embeddings=both)
    [said] = build_vectors(str(out), Settings())
    assert said.startswith("video: no index, because embeddings differ in length")


def test_an_index_belongs_to_a_version_and_is_cleaned_with_it(few: Path) -> None:
    out = str(few)
    assert run(["annotations", "index", out]) == 0
    assert build_vectors(out, Settings()) == ["image: has an index already"]
    update_points(few, [("i0003", "image", 0.5, 0.5), *ROWS[4:120]], shard_items=50, embeddings=VECTORS)
    old, new = (AnnotationIndex.open(out, Settings(), version=version) for version in (0, 1))
    assert old.vectors("image", 10) is not None
    assert new.vectors("image", 10) is None
    build_vectors(out, Settings())
    assert new.vectors("image", 10) is not None, "an open index notices a new one"
    clean(out, Settings(), keep=1, delete=True)
    assert {path.relative_to(few).parts[1] for path in few.rglob("_mmva/*/index/**/*.json")} == {"000001"}


def test_an_unfinished_build_is_no_index_and_is_built_anew(few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(lance.LanceDataset, "create_index", lambda *_given, **_more: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build_vectors(str(few), Settings())
    opened = AnnotationIndex.open(str(few), Settings())
    assert opened.vectors("image", 10) is None
    build_vectors(str(few), Settings())
    assert opened.vectors("image", 10) is not None
    assert opened.like("i0003", by="embedding")


def test_without_the_package_it_is_not_built_and_searches_scan(
    indexed: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "lance", None)
    with pytest.raises(UsageError, match=r"pip install 'mmva-platform\[lance\]'"):
        build_vectors(str(indexed), Settings())
    with caplog.at_level(logging.WARNING):
        assert AnnotationIndex.open(str(indexed), Settings()).like("i0003", by="embedding")
    assert "needs the package pylance" in caplog.text


def test_it_lies_in_the_storage_of_the_annotation(storage: Storage, settings: Settings, few: Path) -> None:
    source = open_storage(few)
    exact = AnnotationIndex.open(source.uri, Settings()).like("i0003", by="embedding", top=3)
    if storage.uri != source.uri:
        for entry in source.walk():
            storage.put_if_absent(entry.path, source.read(entry.path))
    build_vectors(storage.uri, settings, "image")
    found = AnnotationIndex.open(storage.uri, settings).like("i0003", by="embedding", top=3)
    assert [hit.id for hit in found] == [hit.id for hit in exact]
    assert storage.exists("_mmva/000000/index/image.json")
