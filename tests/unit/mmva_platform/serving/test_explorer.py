"""The explorer's routes: who may ask, what an item shows, which bytes leave the machine."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from PIL import Image

from mmva.errors import UsageError
from mmva.modalities import MEDIA_KINDS
from mmva_platform.annotation import open_annotation
from mmva_platform.annotation.media import piece_of
from mmva_platform.annotation.plan.plan import ModelInfo
from mmva_platform.cli.serving import explorer_settings
from mmva_platform.serving.auth import Keyring
from mmva_platform.serving.deploy import queue_uri
from mmva_platform.serving.routes import explore
from mmva_platform.serving.routes.operations import STATIC
from mmva_platform.settings import Settings
from mmva_platform.tracking.resolve import STARTER
from mmva_platform.workflows import report_annotation

from ...helpers.explored import HOSTILE, KEY, add_job, explorer_world
from ...helpers.published import MODEL, lively_bundle, publish_media, publish_points
from ...helpers.serving_world import World

DATA = "/v1/explore/catalogs/media"


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("media"), np.random.default_rng(0)
    for number in range(5):
        Image.fromarray(rng.integers(0, 256, (300, 1200, 3), np.uint8)).save(folder / f"{number}.png")
        samples = np.sin(np.arange(16_000 * (4 + number)) * (0.02 + 0.01 * number)) / 2
        soundfile.write(folder / f"{number}.wav", samples, 16_000)
    for number, text in enumerate((HOSTILE, "an evening by the sea", "drums " * 500)):
        (folder / f"{number}.txt").write_text(text)
    return folder


@pytest.fixture(scope="module")
def world(media: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    home = tmp_path_factory.mktemp("explorer")
    settings, bundle = Settings(home=home), lively_bundle(home / "bundle", 0)
    publish_media(home / "va", media, bundle, settings)
    rng = np.random.default_rng(1)
    rows = [(f"{n}/é {n}", MEDIA_KINDS[n % 4], *rng.random(2).astype(np.float32).tolist()) for n in range(3100)]
    publish_points(home / "points", rows, shard_items=400)
    names = {"media": str(home / "va"), "points": str(home / "points"), "gone": str(home / "gone")}
    return explorer_world(names, [media], bundle, settings, home)


@pytest.fixture(scope="module")
def client(world: World) -> Iterator[TestClient]:
    with TestClient(world.client.app, headers={"Authorization": f"Bearer {KEY}"}) as client:
        yield client


def test_the_page_is_open_and_everything_else_asks_for_a_key(world: World) -> None:
    stranger, found = world.client, set()
    for route in explore.router.routes:
        assert isinstance(route, APIRoute)
        path = route.path.format(name="media")
        for method in route.methods:
            headers = {"Content-Type": "application/json"}
            status = stranger.request(method, path, params={"id": "0.png", "v": 0, "a": 0}, headers=headers).status_code
            assert status == 401, path
            found.add(path.removeprefix("/v1/explore").removeprefix("/catalogs/media"))
    assert found >= {"", "/view", "/view.csv", "/item", "/around", "/thumbnail", "/media", "/text"}
    assert stranger.get("/").status_code == 200


def test_the_page_holds_nothing_inline_and_names_no_other_host(client: TestClient) -> None:
    answer = client.get("/")
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    for needle in ("<script>", "<style", " style=", "onclick", "onerror", "http:", "https:"):
        assert needle not in answer.text, needle
    for path in STATIC.glob("*.js"):
        text = path.read_text(encoding="utf-8")
        if not path.name.startswith("d3-"):
            for needle in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "https:", ".html("):
                assert needle not in text, (path.name, needle)


def test_assets_are_the_known_files_with_their_types(client: TestClient) -> None:
    for path in STATIC.iterdir():
        answer = client.get(f"/static/{path.name}")
        assert answer.content == path.read_bytes()
        again = client.get(f"/static/{path.name}", headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    assert client.get("/static/main.js").headers["content-type"].startswith("text/javascript")
    for name in ("app.py", "..%2fapp.py", "%2e%2e/app.py", "nothing.js"):
        assert client.get(f"/static/{name}").status_code == 404, name


def test_what_is_vendored_is_what_was_released() -> None:
    vendored = json.loads((STATIC / "vendored.json").read_text())
    assert {path.name for path in STATIC.glob("*.min.js")} == set(vendored)
    for name, known in vendored.items():
        assert hashlib.sha256((STATIC / name).read_bytes()).hexdigest() == known["sha256"]
        assert known["license"] in {"ISC", "MIT", "BSD-3-Clause", "Apache-2.0"}
        assert "permission notice" in (STATIC / known["license_file"]).read_text()
        assert known["version"] in name


def test_overview_and_summary(client: TestClient) -> None:
    names = ["media", "points", "gone"]
    assert client.get("/v1/explore").json() == {"catalogs": [{"name": name, "title": name} for name in names]}
    summary = client.get(DATA).json()
    assert summary["by_modality"] == {"image": 5, "music": 5, "caption": 3}
    assert (summary["items"], summary["model"]["name"]) == (13, "mmva")
    assert client.get("/v1/explore/catalogs/gone").status_code == 404
    assert client.get("/v1/explore/catalogs/other").status_code == 404


def test_the_result_of_a_finished_job_is_there_without_a_restart(
    world: World, client: TestClient, tmp_path: Path
) -> None:
    publish_points(tmp_path / "songs", [("a", "music", 0.1, 0.2)])
    job = add_job(world, "s3://songs", str(tmp_path / "songs"), "done")
    assert client.get("/v1/explore").json()["catalogs"][3:] == [{"name": job.id, "title": "songs"}]
    assert client.get(f"/v1/explore/catalogs/{job.id}").json()["items"] == 1
    assert client.get(f"/v1/explore/catalogs/{'0' * 16}").status_code == 404


def test_a_window_is_points_or_counts(client: TestClient) -> None:
    points = "/v1/explore/catalogs/points/view"
    whole = client.get(points, params={"cells": 16}).json()
    assert "points" not in whole
    assert whole["total"] == 3100 == sum(sum(counts) for counts in whole["counts"].values())
    assert {len(counts) for counts in whole["counts"].values()} == {256}
    part = client.get(points, params={"v0": 0.5, "a1": 0.5, "modality": ["music", "video"]}).json()
    shown = part["points"]
    assert part["total"] == len(shown["id"]) > 100
    assert set(shown["modality"]) == {"music", "video"}
    assert min(shown["valence"]) >= 0.5
    assert max(shown["arousal"]) <= 0.5
    for wrong in ({"v0": 2}, {"v0": "nan"}, {"modality": "smell"}, {"cells": 100_000}, {"else": 1}):
        assert client.get(points, params=wrong).status_code == 422, wrong


def test_filters_by_mood_and_width_of_the_interval(client: TestClient, world: World) -> None:
    points, whole = "/v1/explore/catalogs/points/view", {"cells": 16}
    everything = client.get(points, params=whole).json()
    calm = client.get(points, params=whole | {"mood": "calm"}).json()
    assert 0 < calm["total"] < everything["total"]
    assert client.get(points, params=whole | {"width": 1.0}).json()["total"] == 0  # these have no interval
    media = {"width": 1.0}
    rows = open_annotation(world.context.settings.serving.annotations["media"]).table().to_pylist()
    widths = [row["valence_high"] - row["valence_low"] for row in rows if row["valence_low"] is not None]
    assert client.get(f"{DATA}/view", params=media).json()["total"] == len(widths)


def test_a_window_as_csv_holds_every_item_and_no_formula(client: TestClient) -> None:
    window = {"v0": 0.5, "modality": ["music", "image"]}
    answer = client.get("/v1/explore/catalogs/points/view.csv", params=window)
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert "attachment" in answer.headers["content-disposition"]
    rows = list(csv.DictReader(answer.text.splitlines()))
    total = client.get("/v1/explore/catalogs/points/view", params=window).json()["total"]
    assert len(rows) == total > 500
    assert list(rows[0]) == ["id", "uri", "modality", "valence", "arousal", "mood"]
    assert {row["modality"] for row in rows} == {"music", "image"}


def test_a_window_that_is_too_large_for_a_spreadsheet_is_refused(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explore, "_CSV_ROWS", 3099)
    url = "/v1/explore/catalogs/points/view.csv"
    answer = client.get(url)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too-many-items")
    assert "3,099 items" in answer.json()["error"]["message"]
    assert client.get(url, params={"v0": 0.5}).status_code == 200


def test_a_name_that_a_spreadsheet_would_run_stays_text(world: World, client: TestClient, tmp_path: Path) -> None:
    publish_points(tmp_path / "odd", [("=1+1", "image", 0.1, 0.2), ("-x", "image", 0.1, 0.2)])
    job = add_job(world, "s3://odd", str(tmp_path / "odd"), "done")
    text = client.get(f"/v1/explore/catalogs/{job.id}/view.csv").text
    assert [row["id"] for row in csv.DictReader(text.splitlines())] == ["'=1+1", "'-x"]


def test_answers_are_compressed_only_for_who_takes_it(client: TestClient) -> None:
    plain = client.get("/v1/explore/catalogs/points/view", headers={"Accept-Encoding": "identity"})
    packed = client.get("/v1/explore/catalogs/points/view", headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert plain.json() == packed.json()


def test_an_item_in_full_with_its_neighbours_in_the_other_modalities(client: TestClient) -> None:
    answer = client.get(f"{DATA}/item", params={"id": "3.wav"}).json()
    item, near = answer["item"], answer["near"]
    assert (item["id"], item["modality"]) == ("3.wav", "music")
    assert item["duration_s"] == pytest.approx(7.0)
    assert [window["start_s"] for window in item["windows"]] == pytest.approx([0, 1.5, 3, 4.5])
    assert set(near) == {"image", "caption"}
    for hits in near.values():
        assert [hit["distance"] for hit in hits] == sorted(hit["distance"] for hit in hits)
        for hit in hits:
            assert hit["distance"] == pytest.approx(
                np.hypot(hit["valence"] - item["valence"], hit["arousal"] - item["arousal"]), abs=1e-6
            )
    assert client.get(f"{DATA}/item", params={"id": "nobody"}).status_code == 404


def test_an_items_details_come_from_its_own_file(client: TestClient) -> None:
    for number in (0, 399, 400, 401, 1234, 3099):  # shards of 400: first and last rows of files
        name = f"{number}/é {number}"
        assert client.get("/v1/explore/catalogs/points/item", params={"id": name}).json()["item"]["id"] == name


def test_around_a_place(client: TestClient) -> None:
    answer = client.get(f"{DATA}/around", params={"v": 0.9, "a": 0.9}).json()
    assert (answer["mood"], set(answer["near"])) == ("excited", {"image", "music", "caption"})
    assert client.get(f"{DATA}/around", params={"v": 1.5, "a": 0}).status_code == 422


@pytest.mark.parametrize("side", [96, 960])
def test_pictures_leave_as_small_jpegs(client: TestClient, side: int) -> None:
    answer = client.get(f"{DATA}/thumbnail", params={"id": "0.png", "side": side})
    picture = Image.open(io.BytesIO(answer.content))
    assert (picture.format, max(picture.size)) == ("JPEG", side)
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.headers["x-content-type-options"] == "nosniff"
    again = client.get(answer.url, headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get(f"{DATA}/thumbnail", params={"id": "0.png", "side": 4000}).status_code == 422
    assert client.get(f"{DATA}/thumbnail", params={"id": "0.wav"}).status_code == 415


def test_sound_leaves_as_it_is_whole_or_in_pieces(client: TestClient, media: Path) -> None:
    data = (media / "0.wav").read_bytes()
    whole = client.get(f"{DATA}/media", params={"id": "0.wav"})
    assert (whole.status_code, whole.content, whole.headers["content-type"]) == (200, data, "audio/wav")
    piece = client.get(f"{DATA}/media", params={"id": "0.wav"}, headers={"Range": "bytes=100-199"})
    assert (piece.status_code, piece.content) == (206, data[100:200])
    assert piece.headers["content-range"] == f"bytes 100-199/{len(data)}"
    beyond = client.get(f"{DATA}/media", params={"id": "0.wav"}, headers={"Range": f"bytes={len(data)}-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{len(data)}")
    assert client.get(f"{DATA}/media", params={"id": "0.png"}).status_code == 415


@pytest.mark.parametrize(
    ("asked", "piece"),
    [
        (None, (0, 10)), ("bytes=2-4", (2, 5)), ("bytes=7-", (7, 10)), ("bytes=-3", (7, 10)), ("bytes=-99", (0, 10)),
        ("bytes=5-99", (5, 10)), ("bytes=4-2", (0, 10)), ("bytes=-", (0, 10)), ("bytes=0-1,3-4", (0, 10)),
        ("lines=1-2", (0, 10)),
        ("bytes=10-", None), ("bytes=-0", None),
    ],
)  # fmt: skip
def test_ranges(asked: str | None, piece: tuple[int, int] | None) -> None:
    data = b"0123456789"
    found = piece_of(data, asked)
    assert (found and (found.start, found.data, found.size)) == (piece and (piece[0], data[slice(*piece)], 10))


def test_only_the_annotated_bytes_under_the_roots_leave(client: TestClient, media: Path) -> None:
    path, original = media / "1.png", (media / "1.png").read_bytes()
    try:
        path.write_bytes((media / "2.png").read_bytes())
        assert client.get(f"{DATA}/thumbnail", params={"id": "1.png"}).status_code == 409
        path.unlink()
        gone = client.get(f"{DATA}/thumbnail", params={"id": "1.png"})
        assert gone.status_code == 404
        assert str(media) not in gone.text
    finally:
        path.write_bytes(original)
    outside = client.get("/v1/explore/catalogs/points/thumbnail", params={"id": "0/é 0"})
    assert (outside.status_code, "/media/" in outside.text) == (403, False)
    for name in ("../0.png", "/etc/passwd", "file:///etc/passwd"):
        assert client.get(f"{DATA}/thumbnail", params={"id": name}).status_code == 404, name


def test_captions_stay_text(client: TestClient) -> None:
    answer = client.get(f"{DATA}/text", params={"id": "0.txt"})
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["text"] == HOSTILE


def test_placing_a_sentence_a_picture_and_music(client: TestClient, media: Path) -> None:
    """What the page does: the item's point, then what is near it."""
    for name, modality in (("1.txt", "caption"), ("2.png", "image"), ("2.wav", "music")):
        data = (media / name).read_bytes()
        [row] = client.post("/v1/annotate/upload", files={"file": (name, data)}).json()["items"]
        item = client.get(f"{DATA}/item", params={"id": name}).json()["item"]
        assert row["modality"] == modality
        assert (row["valence"], row["arousal"]) == pytest.approx((item["valence"], item["arousal"]), abs=1e-5)
        near = client.get(f"{DATA}/around", params={"v": row["valence"], "a": row["arousal"]}).json()
        assert near["model"]["digest"] == row["model_digest"]
        assert near["near"][modality][0]["id"] == name
        assert near["near"]["music"]


def test_the_report_of_a_job_shows_media_below_the_roots_and_only_the_annotated_bytes(
    media: Path, world: World, tmp_path: Path
) -> None:
    out, settings = world.context.settings.serving.annotations["media"], world.context.settings
    words = "an evening by the sea"
    original = (media / "1.txt").read_text()
    assert original == words

    def page_of(roots: list[str]) -> str:
        report_annotation(out, tmp_path / "report.html", settings, roots=roots)
        return (tmp_path / "report.html").read_text()

    assert words in page_of([str(media)])
    assert words not in page_of([str(tmp_path)])
    try:
        (media / "1.txt").write_text("something else")
        assert "something else" not in page_of([str(media)])
    finally:
        (media / "1.txt").write_text(original)


def test_explore_serves_one_annotation_with_its_own_media_and_a_key_of_its_own(
    world: World, media: Path, tmp_path: Path
) -> None:
    out = world.context.settings.serving.annotations["media"]
    settings, key = explorer_settings(out, Settings(), port=8123, model=None)
    serving = settings.serving
    assert serving.annotations == {"va": out}
    assert serving.roots == (str(media),)
    assert serving.wait_for_model
    assert serving.host == "127.0.0.1"
    caller = Keyring(serving.keys).find(f"Bearer {key}", "GET")
    assert caller is not None
    assert caller.scopes == {"read", "annotate"}  # to look, and to place something
    assert not serving.out_roots  # so it cannot submit jobs
    assert serving.jobs
    assert serving.jobs != queue_uri(Settings())  # nor start those that wait for `mmva serve`
    assert serving.model == "models:/mmva@champion"  # its own bundle was never registered
    by_starter = publish_points(tmp_path / "va", [("a", "image", 0.1, 0.1)], MODEL.model_copy(update={"name": STARTER}))
    assert explorer_settings(str(by_starter), Settings(), port=8123, model=None)[0].serving.model == STARTER
    with pytest.raises(UsageError, match="no published annotations"):
        explorer_settings(str(media), Settings(), port=8123, model=None)


def test_explore_places_items_with_the_starter_that_annotated(tmp_path: Path) -> None:
    starter = ModelInfo(name="starter", version=None, digest="d" * 64)
    out = publish_points(tmp_path / "va", [("a", "caption", 0.5, 0.5)], starter)
    settings, _ = explorer_settings(str(out), Settings(), port=8123, model=None)
    assert settings.serving.model == "starter"
