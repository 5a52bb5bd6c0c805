"""The API as it runs: Ray Serve, real replicas, a registry whose champion moves, a restart in the middle of a job."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from registry_cases import make_result

from mmva.backbones import load_encoder, preset
from mmva.models.bundle import read_bundle_info, save_bundle
from mmva.models.model import MMVA
from mmva_platform.annotation import verify
from mmva_platform.tracking.registry import register
from mmva_platform.tracking.runs import log_training_run

from .serving_process import HANGS, KILLS, Answer, ServeProcess, picture

pytestmark = pytest.mark.system


def make_version(server: ServeProcess, seed: int) -> str:
    """Registers a model whose points differ from any other seed's; its digest."""
    encoders = {modality: load_encoder(spec) for modality, spec in preset("tiny").specs.items()}
    model = MMVA({modality: encoder.dim for modality, encoder in encoders.items()})
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        weight.data = torch.randn(weight.shape, generator=generator)
    model.attach_encoders(encoders)
    result = make_result(server.folder / "runs", name=f"run-{seed}", seed=seed)
    folder = server.folder / f"bundle-{seed}"
    save_bundle(folder, model, intervals={}, card="a test", provenance={})
    digest = str(read_bundle_info(folder).digest)
    register(
        log_training_run(
            dataclasses.replace(result, bundle_dir=folder, bundle_digest=digest), server.settings, predictions={}
        ),
        server.settings,
    )
    return digest


def promote(server: ServeProcess, version: int) -> None:
    """By the command; the gate, which these models without an evaluation do not pass, has tests of its own."""
    server.mmva("models", "promote", str(version), "--force", "--reason", "a drill")


@pytest.fixture(scope="module")
def digests() -> dict[str, str]:
    """Digest by version."""
    return {}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, digests: dict[str, str]) -> Iterator[ServeProcess]:
    process = ServeProcess(tmp_path_factory.mktemp("serving"))
    digests |= {str(seed): make_version(process, seed) for seed in (1, 2)}
    promote(process, 1)
    for number in range(6):
        picture(process.media / f"{number}.png", number)
    process.start()
    yield process
    process.stop()


def until(what: Callable[[], Any], seconds: float = 90.0) -> Any:
    """What it gives, once that is true."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.1)  # until a deadline, not for a time
    return found


def test_no_route_of_the_description_answers_without_a_key(server: ServeProcess) -> None:
    assert server.get("/openapi.json").status == 401
    paths = server.get("/openapi.json", "reader").json["paths"]
    assert len(paths) >= 10
    for path, operations in paths.items():
        for method in operations:
            place = path.replace("{job_id}", "0" * 16).replace("{name}", "x")
            answer = server.send(method.upper(), place, b"{}" if method == "post" else None)
            assert (answer.status == 401) != (path in {"/healthz", "/readyz"}), (method, path)
            assert "x-mmva-model" not in answer.headers
    assert server.post("/v1/annotate", {"items": [{"caption": "x"}]}, "reader").status == 403


def test_the_page_is_there_and_its_data_wants_a_key(server: ServeProcess) -> None:
    page = server.get("/")
    assert page.status == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert server.get("/static/main.js").status == 200
    assert server.get("/v1/explore").status == 401
    assert server.get("/v1/explore", "reader").json == {"catalogs": []}
    assert server.send("HEAD", "/healthz", None).status == 200


def test_items_of_many_requests_share_batches_and_nothing_else(server: ServeProcess) -> None:
    def body(number: int) -> dict[str, Any]:
        uri = "/etc/passwd" if number % 4 == 0 else str(server.media / f"{number % 6}.png")
        words = {"id": f"words-{number}", "caption": f"song number {number}"}
        return {"items": [{"id": f"picture-{number}", "uri": uri, "modality": "image"}, words, {"caption": " "}]}

    alone = [server.post("/v1/annotate", body(number)).json["items"] for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = [
            answer.json["items"] for answer in pool.map(lambda n: server.post("/v1/annotate", body(n)), range(8))
        ]
    for number, (mine, again) in enumerate(zip(alone, together, strict=True)):
        assert [row["id"] for row in again] == [f"picture-{number}", f"words-{number}", "2"]
        codes = [row.get("error", {}).get("code") for row in again]
        assert codes == ["outside-roots" if number % 4 == 0 else None, None, "empty-caption"]
        for one, other in zip(mine, again, strict=True):
            assert one.get("valence") == pytest.approx(other.get("valence"), abs=1e-5)
    assert len({row[1]["valence"] for row in together}) == 8


def test_uploads_sizes_and_types(server: ServeProcess) -> None:
    data = (server.media / "0.png").read_bytes() + bytes(5 * 2**20)  # more than a message of Serve's holds by default
    form = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n' + data + b"\r\n--x--\r\n"
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    (uploaded,) = server.send("POST", "/v1/annotate/upload", form, "worker", **kind).json["items"]
    (server.media / "large.png").write_bytes(data)
    (by_uri,) = server.post("/v1/annotate", {"items": [{"uri": str(server.media / "large.png")}]}).json["items"]
    assert uploaded["sha256"] == by_uri["sha256"]
    assert uploaded["valence"] == pytest.approx(by_uri["valence"], abs=1e-6)
    assert server.post("/v1/annotate", {"items": [{"caption": "x" * 9 * 2**20}]}).status == 413
    assert server.send("POST", "/v1/annotate", b"{}", "worker", **{"Content-Type": "text/plain"}).status == 415


def test_too_much_is_429_or_503_with_a_time_and_never_a_hang(server: ServeProcess) -> None:
    items = {"items": [{"caption": f"song {number}"} for number in range(32)]}
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: server.post("/v1/annotate", items), range(48)))
    assert {answer.status for answer in answers} <= {200, 429, 503}
    refused = [answer for answer in answers if answer.status != 200]
    assert refused
    assert len(refused) < len(answers)
    assert all("retry-after" in answer.headers for answer in refused)


def test_the_champion_moves_there_and_back_under_load_and_no_request_is_lost(
    server: ServeProcess, digests: dict[str, str]
) -> None:
    stop, answers = threading.Event(), []  # type: tuple[threading.Event, list[Answer]]
    items = {"items": [{"caption": "a calm piano"}, {"uri": str(server.media / "1.png")}]}

    def load() -> None:
        while not stop.is_set():
            answers.append(server.post("/v1/annotate", items))

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: answers)
        promote(server, 2)
        until(lambda: {answer.json["model"]["version"] for answer in answers[-8:]} == {"2"}, 60)  # of both replicas
        server.mmva("models", "rollback")
        until(lambda: {answer.json["model"]["version"] for answer in answers[-8:]} == {"1"}, 60)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert {answer.status for answer in answers} == {200}
    points: dict[str, set[tuple[float, ...]]] = {}
    for answer in answers:
        model, rows = answer.json["model"], answer.json["items"]
        assert model["digest"] == digests[model["version"]]
        assert {row["model_version"] for row in rows} == {model["version"]}
        points.setdefault(model["version"], set()).add(tuple(round(row["valence"], 4) for row in rows))
    assert set(points) == {"1", "2"}
    assert points["1"].isdisjoint(points["2"])
    assert all(len(found) == 1 for found in points.values())
    until(lambda: server.get("/v1/models", "reader").headers["x-mmva-model"] == "mmva/1")


def test_hostile_items_are_errors_and_no_other_request_notices(server: ServeProcess) -> None:
    bad = {"killed-worker": picture(server.media / "killer.png", 0, KILLS),
           "timed-out": picture(server.media / "hanger.png", 0, HANGS)}  # fmt: skip
    hostile = {
        "items": [*({"id": code, "uri": str(file)} for code, file in bad.items()), {"id": "good", "caption": "c"}]
    }
    harmless = {"items": [{"caption": "calm"}, {"uri": str(server.media / "1.png")}]}
    stop, others = threading.Event(), []  # type: tuple[threading.Event, list[Answer]]

    def load() -> None:
        while not stop.is_set():
            others.append(server.post("/v1/annotate", harmless))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: others)
        with ThreadPoolExecutor(3) as pool:  # both replicas get some
            answers = list(pool.map(lambda _: server.post("/v1/annotate", hostile), range(6)))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    for answer in answers:
        assert answer.status == 200
        codes = [row.get("error", {}).get("code", "ok") for row in answer.json["items"]]
        assert codes == ["killed-worker", "timed-out", "ok"]
    assert {other.status for other in others} == {200}
    assert {row["status"] for other in others for row in other.json["items"]} == {"ok"}
    for file in bad.values():
        file.unlink()


def test_jobs_wait_run_survive_a_killed_server_and_are_cancelled(server: ServeProcess) -> None:
    catalog = server.media / "catalog"
    catalog.mkdir()
    for number in range(30):
        picture(catalog / f"{number}.png", number)
    (catalog / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    url = "/v1/annotation-jobs"

    def submit(name: str) -> Answer:
        return server.post(url, {"catalog": str(catalog), "out": str(server.outs / name)})

    first, second, third = (submit(name) for name in ("first", "second", "third"))
    assert {answer.status for answer in (first, second, third)} == {202}
    places = [answer.headers["location"] for answer in (first, second, third)]
    assert server.send("DELETE", places[2], None, "worker").json["state"] == "cancelled"
    until(lambda: server.get(places[0], "reader").json["state"] == "running")
    assert server.get(places[1], "reader").json["state"] == "queued"
    server.kill()
    promote(server, 2)  # what was begun, or not, under version 1
    server.start()
    done = until(lambda: (found := server.get(places[0], "reader").json)["state"] == "done" and found, 120)
    assert (done["progress"]["annotated"], done["progress"]["quarantined"]) == (30, 1)
    assert done["progress"]["published"]
    assert verify(str(server.outs / "first"), server.settings).problems == ()
    until(lambda: server.get(places[1], "reader").json["state"] in {"running", "done"})
    assert server.send("DELETE", places[1], None, "worker").status == 200
    shown = {catalog["title"]: catalog["name"] for catalog in server.get("/v1/explore", "reader").json["catalogs"]}
    assert server.get(f"/v1/explore/catalogs/{shown['first']}", "reader").json["items"] == 30
    report = server.get(f"{places[0]}/report", "reader")
    assert report.status == 200
    assert report.body.startswith(b"<!doctype html>")
    assert not Path(server.outs / "third").exists()
    assert server.get(places[2], "reader").json["state"] == "cancelled"
    served = server.get("/v1/models", "reader").json["serving"]["digest"]
    query = {"annotation": str(server.outs / "first"), "text": "a calm piano", "top": 3}
    answer = server.post("/v1/search", query)
    same = served == done["progress"]["model_digest"]
    assert (answer.status == 200 and len(answer.json["hits"]) == 3) if same else answer.status == 409
    by_point = server.post("/v1/search", {"annotation": str(server.outs / "first"), "point": [0.5, 0.5], "top": 3})
    assert len(by_point.json["hits"]) == 3
