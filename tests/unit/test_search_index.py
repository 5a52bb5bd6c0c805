"""A published annotation, searched: its own items come first, foreign models and damaged files are refused."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmva.errors import CheckFailed, UsageError
from mmva.zeroshot.query import query_point
from mmva_platform.annotation.publish import MANIFEST_FILE, read_annotations
from mmva_platform.cli.main import run
from mmva_platform.search import AnnotationIndex, Hit, Region, load_predictor, open_query_model
from mmva_platform.settings import Settings

from .published import lively_bundle, publish_media, publish_points

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


def test_what_is_found_is_what_a_sort_of_the_annotations_finds(made_up: Path, settings: Settings) -> None:
    index, table = AnnotationIndex.open(str(made_up), settings), read_annotations(str(made_up)).to_pylist()
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
    index, table = AnnotationIndex.open(str(embedded), settings), read_annotations(str(embedded)).to_pylist()
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
    with pytest.raises(UsageError, match="compared with their own kind only: 'music'"):
        index.like("item-030", by="embedding", modality="music")
    with pytest.raises(UsageError, match="no annotated item has the id 'nobody'"):
        index.like("nobody", by="embedding")
    copy = shutil.copytree(embedded, tmp_path / "copy")
    index = AnnotationIndex.open(str(copy), settings)
    for file in (copy / "data").iterdir():
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(CheckFailed, match="changed since it was written"):
        index.like("item-030", by="embedding")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"top": 0}, "top 0"),
        ({"offset": -1}, "offset -1"),
        ({"modality": "smell"}, "'smell'"),
        ({"va_2": (0.1, float("nan"))}, "a query is a point"),
        ({"va_2": 0.5}, "a query is a point"),
    ],
)
def test_wrong_questions_are_named(made_up: Path, settings: Settings, options, named) -> None:
    index = AnnotationIndex.open(str(made_up), settings)
    with pytest.raises(UsageError, match=named):
        index.search(**({"va_2": (0.5, 0.5)} | options))


def test_a_run_without_manifest_and_a_changed_file_are_refused(tmp_path: Path, settings: Settings) -> None:
    out = publish_points(tmp_path / "va", [("a", "image", 0.1, 0.2), ("b", "music", 0.3, 0.4)])
    (file,) = (out / "data").iterdir()
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckFailed, match="changed since it was written"):
        AnnotationIndex.open(str(out), settings)
    (out / MANIFEST_FILE).unlink()
    with pytest.raises(UsageError, match="no published annotations"):
        AnnotationIndex.open(str(out), settings)


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
    assert "nothing passes the filters" in capsys.readouterr().out
    assert run(["search", str(annotations), "--like", "2.png", "--by", "embedding", "--json"]) == 0  # without a model
    found = json.loads(capsys.readouterr().out)
    assert {hit["modality"] for hit in found["hits"]} == {"image"}
    assert len(found["hits"]) == 5


def test_command_line_mistakes_are_one_line(
    annotations: Path, bundle: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    (tmp_path / "small.png").write_bytes(buffer.getvalue())
    cases = [
        ([], "search by one of --text, --image, --music and --like; 0 are given"),
        (["--text", "a", "--image", "b.png"], "2 are given"),
        (["--image", str(tmp_path / "none.png")], "cannot be read"),
        (["--image", str(tmp_path / "broken.png")], "broken.png: "),
        (["--text", "  "], "empty-caption"),
        (["--text", "a", "--valence", ".9", ".1"], "valence 0.9 to 0.1"),
        (["--text", "a", "--modality", "smell"], "'smell'"),
        (["--text", "a", "--by", "embedding"], "only an annotated item, named with --like ID"),
        (["--like", "2.png", "--by", "embedding", "--modality", "caption"], "their own kind only"),
    ]
    for options, named in cases:
        assert run(["search", str(annotations), *options, "--model", str(bundle)]) == 2
        complaint = capsys.readouterr().err
        assert named in complaint
        assert complaint.count("\n") == 1
