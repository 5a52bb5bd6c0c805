"""A published annotation, searched: its own items come first, foreign models and damaged files are refused."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from PIL import Image

from mmva.errors import CheckFailed, UsageError
from mmva.zeroshot.query import query_point
from mmva_platform.annotation.schema import ANNOTATION_SCHEMA
from mmva_platform.annotation.table import reader
from mmva_platform.annotation.table.reader import open_annotation, read_columns
from mmva_platform.cli.main import run
from mmva_platform.search import AnnotationIndex, Hit, Region, load_predictor, open_query_model
from mmva_platform.settings import Settings
from mmva_platform.storage import Storage

from ...helpers.damaged import damage
from ...helpers.published import lively_bundle, publish_media, publish_points, update_points

CAPTIONS = ("a calm piano in the evening", "aggressive metal drums", "cheerful ukulele on a sunny day")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(home=tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lively_bundle(tmp_path_factory.mktemp("lively") / "bundle", 0)


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("media"), np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(folder / f"{number}.png")
        samples = np.sin(np.arange(16_000 * (2 + number)) * (0.02 + 0.01 * number)) / 2
        soundfile.write(folder / f"{number}.wav", samples + rng.normal(0, 0.01, len(samples)), 16_000)
    for number, text in enumerate(CAPTIONS):
        (folder / f"{number}.txt").write_text(text)
    return folder


@pytest.fixture(scope="module")
def annotations(media: Path, bundle: Path, settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish_media(tmp_path_factory.mktemp("annotations") / "va", media, bundle, settings)


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(3)
    kinds = ("image", "music", "caption", "video")
    rows = [(f"item-{n:03d}", kinds[n % 4], *map(float, rng.random(2).astype(np.float32))) for n in range(200)]
    return publish_points(tmp_path_factory.mktemp("made-up") / "va", rows)


def rows_of(annotation: Path) -> list[dict[str, Any]]:
    """All rows of the newest version, with embeddings."""
    rows: list[dict[str, Any]] = (
        open_annotation(str(annotation)).table([*ANNOTATION_SCHEMA.names, "embedding"]).to_pylist()
    )
    return rows


def test_what_is_found_is_what_a_sort_of_the_annotations_finds(made_up: Path, settings: Settings) -> None:
    index, table = AnnotationIndex.open(str(made_up), settings), rows_of(made_up)
    assert len(index) == len(table) == 200
    assert (index.uri, index.model.digest) == (str(made_up), "d" * 64)
    for modality, region in ((None, None), ("music", Region((0.5, 1), (0, 0.7))), ("video", Region())):
        kept = [
            row
            for row in table
            if modality in {None, row["modality"]}
            and (not region or region.valence[0] <= row["valence"] <= region.valence[1])
            and (not region or region.arousal[0] <= row["arousal"] <= region.arousal[1])
        ]
        kept.sort(key=lambda row: np.hypot(row["valence"] - 0.4, row["arousal"] - 0.6))
        hits = index.search((0.4, 0.6), top=7, offset=3, modality=modality, region=region)
        assert [hit.id for hit in hits] == [row["id"] for row in kept[3:10]]
        for hit, row in zip(hits, kept[3:10], strict=True):
            assert (hit.valence, hit.arousal, hit.mood) == (row["valence"], row["arousal"], row["mood"])
            assert hit.uri == (row["uri"] or "")
            assert hit.score == pytest.approx(np.exp(-hit.distance / 0.380699))


def test_an_item_by_its_id(made_up: Path, settings: Settings) -> None:
    index = AnnotationIndex.open(str(made_up), settings)
    hit = index.item("item-123")
    assert isinstance(hit, Hit)
    assert (hit.id, hit.modality, hit.distance, hit.score) == ("item-123", "video", 0, 1)
    assert index.search((hit.valence, hit.arousal), top=1) == [hit]
    assert index.item("item-999") is None


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 items in files of 16, an embedding's length by modality; of the videos every other one has no sound."""
    rng = np.random.default_rng(4)
    kinds = {"image": 5, "music": 3, "video": 8}
    rows, embeddings = [], {}
    for number in range(120):
        kind = list(kinds)[number % 3]
        silent = kind == "video" and number % 2
        rows.append((f"item-{number:03d}", kind, *map(float, rng.random(2).astype(np.float32))))
        vector = rng.normal(size=kinds["image"] if silent else kinds[kind]).astype(np.float32)
        tracks = (["image"] if silent else ["image", "music"]) if kind == "video" else None
        embeddings[rows[-1][0]] = {"embedding": vector.tolist(), "tracks": tracks}
    return publish_points(tmp_path_factory.mktemp("embedded") / "va", rows, embeddings=embeddings)


@pytest.mark.parametrize("name", ["item-030", "item-031", "item-032", "item-035"])  # an image, music, both videos
def test_likeness_by_embedding_is_that_of_a_sort(
    embedded: Path, settings: Settings, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmva_platform.search.embeddings._BLOCK", 2)
    index, table = AnnotationIndex.open(str(embedded), settings), rows_of(embedded)
    (own,) = (row for row in table if row["id"] == name)
    for region in (None, Region((0.2, 0.9), (0, 0.7))):
        cosines = {}
        for row in table:
            inside = region is None or (0.2 <= row["valence"] <= 0.9 and row["arousal"] <= 0.7)
            if inside and row["id"] != name and (row["modality"], row["tracks"]) == (own["modality"], own["tracks"]):
                one, other = np.array(own["embedding"]), np.array(row["embedding"])
                cosines[row["id"]] = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
        expected = sorted(cosines, key=lambda found: -cosines[found])
        hits = index.like(name, by="embedding", top=6, offset=2, region=region)
        assert [hit.id for hit in hits] == expected[2:8]
        for hit in hits:
            assert hit.score == pytest.approx(cosines[hit.id])
            assert hit.distance == pytest.approx(np.hypot(hit.valence - own["valence"], hit.arousal - own["arousal"]))


def test_likeness_by_embedding_goes_over_the_embeddings_of_several_versions(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In version 2 a data file holds rows that refer to embeddings of versions 0 and 1."""
    rng = np.random.default_rng(5)
    rows = {f"i{n:02d}": (f"i{n:02d}", "image", *map(float, rng.random(2).astype(np.float32))) for n in range(40)}
    vectors = {name: {"embedding": rng.normal(size=5).astype(np.float32).tolist()} for name in [*rows, "new"]}
    out = publish_points(tmp_path / "va", [*rows.values()], embeddings=vectors)
    first = dict(vectors)
    for name in ("i03", "i20", "i21"):
        rows[name] = (name, "image", 0.5, 0.5)
        vectors[name] = {"embedding": rng.normal(size=5).astype(np.float32).tolist()}
    rows["new"] = ("new", "image", 0.4, 0.4)
    update_points(out, [*rows.values()], embeddings=vectors)
    for name in ("i05", "i20", "i30"):
        del rows[name]
    update_points(out, [*rows.values()], embeddings={})

    annotation = open_annotation(str(out))
    versions = [
        {path.split("/")[1] for path in table["embedding_file"].to_pylist()}
        for table in annotation.tables(["embedding_file"])
    ]
    assert {"000000", "000001"} in versions
    assert set().union(*versions) == {"000000", "000001"}
    monkeypatch.setattr("mmva_platform.search.embeddings._BLOCK", 3)
    index = AnnotationIndex.open(str(out), settings)
    for own in ("i02", "i21", "new"):
        assert found_by_embedding(index, own) == pytest.approx(cosines_of(vectors, own, rows))
    earlier = AnnotationIndex.open(str(out), settings, version=0)
    assert len(earlier) == 40
    assert found_by_embedding(earlier, "i20") == pytest.approx(cosines_of(first, "i20", set(first) - {"new"}))


def found_by_embedding(index: AnnotationIndex, own: str) -> dict[str, float]:
    return {hit.id: hit.score for hit in index.like(own, by="embedding", top=100)}


def cosines_of(vectors: Mapping[str, dict[str, Any]], own: str, names: Collection[str]) -> dict[str, float]:
    unit = {name: np.array(vectors[name]["embedding"]) / np.linalg.norm(vectors[name]["embedding"]) for name in names}
    return {name: float(unit[own] @ vector) for name, vector in unit.items() if name != own}


def test_likeness_in_the_plane_goes_over_all_modalities_and_leaves_the_item_out(
    embedded: Path, settings: Settings
) -> None:
    index = AnnotationIndex.open(str(embedded), settings)
    own = index.item("item-030")
    assert own is not None
    near = index.search((own.valence, own.arousal), top=11)
    assert near[0].id == own.id
    assert index.like(own.id, top=10) == near[1:]
    assert index.like(own.id, top=3, offset=4) == near[5:8]
    assert {hit.modality for hit in index.like(own.id, modality="music")} == {"music"}


def test_embeddings_of_other_spaces_ids_of_nobody_and_changed_files_are_refused(
    embedded: Path, settings: Settings, tmp_path: Path
) -> None:
    index = AnnotationIndex.open(str(embedded), settings)
    with pytest.raises(UsageError, match="compared only with their own kind, not with 'music'"):
        index.like("item-030", by="embedding", modality="music")
    with pytest.raises(UsageError, match="no annotated item has the id 'nobody'"):
        index.like("nobody", by="embedding")
    copy = shutil.copytree(embedded, tmp_path / "copy")
    index = AnnotationIndex.open(str(copy), settings)
    for file in (copy / "_mmva" / "000000" / "embeddings").iterdir():
        damage(file, "embedding")
    with pytest.raises(CheckFailed, match=r"_mmva/000000/embeddings/.*parquet: damaged"):
        index.like("item-030", by="embedding")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"top": 0}, "top 0"),
        ({"offset": -1}, "offset -1"),
        ({"modality": "smell"}, "'smell'"),
        ({"va_2": (0.1, float("nan"))}, "a query must be a point"),
        ({"va_2": 0.5}, "a query must be a point"),
    ],
)
def test_wrong_questions_are_named(made_up: Path, settings: Settings, options, named) -> None:
    index = AnnotationIndex.open(str(made_up), settings)
    with pytest.raises(UsageError, match=named):
        index.search(**({"va_2": (0.5, 0.5)} | options))


@pytest.mark.parametrize("column", ["id", "uri", "valence", "mood"])
def test_a_damaged_and_a_missing_file_are_refused(tmp_path: Path, settings: Settings, column: str) -> None:
    out = publish_points(tmp_path / "va", [("a", "image", 0.1, 0.2), ("b", "image", 0.3, 0.4)])
    (file,) = (out / "status=ok" / "modality=image").iterdir()
    damage(file, column)
    with pytest.raises(CheckFailed, match=f"{file.name}: damaged"):
        AnnotationIndex.open(str(out), settings)
    file.unlink()
    with pytest.raises(CheckFailed, match=f"{file.name}: is missing"):
        AnnotationIndex.open(str(out), settings)


def test_what_is_not_published_is_refused(tmp_path: Path, settings: Settings) -> None:
    out = publish_points(tmp_path / "va", [("a", "image", 0.1, 0.2)])
    with pytest.raises(UsageError, match="there is no version 1; versions are 0 to 0"):
        AnnotationIndex.open(str(out), settings, 1)
    shutil.rmtree(out / "_delta_log")
    with pytest.raises(UsageError, match="no published annotations"):
        AnnotationIndex.open(str(out), settings)


def test_opening_and_searching_the_plane_read_six_columns_and_no_embeddings(
    embedded: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[str, set[str]]] = []

    def spy(storage: Storage, path: str, columns: Sequence[str]) -> pa.Table:
        read.append((path, set(columns)))
        return read_columns(storage, path, columns)

    monkeypatch.setattr(reader, "read_columns", spy)
    index = AnnotationIndex.open(str(embedded), settings)
    index.like("item-030")
    assert {path.partition("/")[0] for path, _ in read} == {"status=ok"}
    assert set().union(*(columns for _, columns in read)) == {"id", "uri", "valence", "arousal", "mood"}
    index.like("item-030", by="embedding")
    stored = [columns for path, columns in read if path.startswith("_mmva/")]
    assert stored
    assert all(columns == {"embedding"} for columns in stored)


def test_a_query_by_an_items_own_bytes_finds_that_item(
    annotations: Path, media: Path, bundle: Path, settings: Settings
) -> None:
    """The query's path and the annotation's give the same point: windows, means and preprocessing agree."""
    index = AnnotationIndex.open(str(annotations), settings)
    model = open_query_model(index, settings, str(bundle))
    for kind, suffix, count in (("image", "png", 6), ("music", "wav", 6), ("caption", "txt", 3)):
        for number in range(count):
            name = f"{number}.{suffix}"
            (hit,) = index.search(query_point(model, kind, (media / name).read_bytes()), top=1, modality=kind)
            assert hit.id == name
            assert hit.distance < 1e-5


def test_queries_of_another_model_are_refused(annotations: Path, settings: Settings, tmp_path: Path) -> None:
    index = AnnotationIndex.open(str(annotations), settings)
    with pytest.raises(UsageError, match="not registered; say where it is with --model"):
        open_query_model(index, settings)
    other = lively_bundle(tmp_path / "other", 1)
    with pytest.raises(CheckFailed, match="points of two models cannot be compared"):
        open_query_model(index, settings, str(other))


def test_what_is_no_query(bundle: Path, settings: Settings) -> None:
    model = load_predictor(str(bundle), settings)
    with pytest.raises(UsageError, match="'video'"):
        query_point(model, "video", b"")
    model.dims = {"image": model.dims["image"]}
    with pytest.raises(UsageError, match="no 'caption' tower"):
        query_point(model, "caption", "words")


def test_command_line(
    annotations: Path, media: Path, bundle: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = ["--model", str(bundle)]
    assert run(["search", str(annotations), "--text", CAPTIONS[1], "--modality", "caption", "--json", *model]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["hits"][0]["id"] == "1.txt"
    assert found["items"] == 15
    assert found["query"]["modality"] == "caption"
    assert run(["search", str(annotations), "--image", str(media / "2.png"), "--top", "3", *model]) == 0
    assert capsys.readouterr().out.splitlines()[1].endswith(str(media / "2.png"))
    assert run(["search", str(annotations), "--music", str(media / "4.wav"), "--valence", "0", "0", *model]) == 0
    assert "no items pass the filters" in capsys.readouterr().out
    assert run(["search", str(annotations), "--like", "2.png", "--by", "embedding", "--json"]) == 0  # without a model
    found = json.loads(capsys.readouterr().out)
    assert {hit["modality"] for hit in found["hits"]} == {"image"}
    assert len(found["hits"]) == 5


def test_command_line_searches_the_version_that_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(publish_points(tmp_path / "va", [("a", "image", 0.1, 0.1), ("b", "image", 0.2, 0.1)]))
    update_points(Path(out), [("a", "image", 0.1, 0.1), ("c", "image", 0.9, 0.9)])

    def found(*options: str) -> list[str]:
        assert run(["search", out, "--like", "a", "--json", *options]) == 0
        return [hit["id"] for hit in json.loads(capsys.readouterr().out)["hits"]]

    assert found() == found("--version", "1") == ["c"]
    assert found("--version", "0") == ["b"]
    assert run(["search", out, "--like", "a", "--version", "2"]) == 2
    complaint = capsys.readouterr().err
    assert "there is no version 2; versions are 0 to 1" in complaint
    assert complaint.count("\n") == 1


def test_command_line_mistakes_are_one_line(
    annotations: Path, bundle: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    (tmp_path / "small.png").write_bytes(buffer.getvalue())
    cases = [
        ([], "search by exactly one of --text, --image, --music and --like; 0 are given"),
        (["--text", "a", "--image", "b.png"], "2 are given"),
        (["--image", str(tmp_path / "none.png")], "cannot be read"),
        (["--image", str(tmp_path / "broken.png")], "broken.png: "),
        (["--text", "  "], "empty-caption"),
        (["--text", "a", "--valence", ".9", ".1"], "valence 0.9 to 0.1"),
        (["--text", "a", "--modality", "smell"], "'smell'"),
        (["--text", "a", "--by", "embedding"], "needs an annotated item, named with --like ID"),
        (["--like", "2.png", "--by", "embedding", "--modality", "caption"], "only with their own kind"),
    ]
    for options, named in cases:
        assert run(["search", str(annotations), *options, "--model", str(bundle)]) == 2
        complaint = capsys.readouterr().err
        assert named in complaint
        assert complaint.count("\n") == 1


def test_a_late_page_builds_no_earlier_hits(made_up: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    index, built = AnnotationIndex.open(str(made_up), settings), []
    hits = index._hits
    monkeypatch.setattr(index, "_hits", lambda rows, *more: built.append(len(rows)) or hits(rows, *more))
    everything = [hit.id for hit in index.like("item-000", top=199)]
    built.clear()
    late = index.like("item-000", top=10, offset=150)
    assert [hit.id for hit in late] == everything[150:160]
    assert max(built) == 10
