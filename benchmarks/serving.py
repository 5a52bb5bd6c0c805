"""The API against what it stands on: the bulk engine's throughput, a call of the model in process, its own peak.

    python benchmarks/serving.py [--workdir DIR] [--pictures 192] [--seconds 10] [--rounds 2] [--only latency]

One server with two replicas (compact preset, the engine that calibration chooses) on this machine; load comes from a
second process (this file with --load). Pictures of 512 pixels; the server remembers nothing of them.

latency     one upload at a time on an idle server against a bare Serve application of the same shape in the same Serve
            (a FastAPI ingress that hands the bytes to a deployment with the model, without keys, limits, batches and
            decoder processes), interleaved
saturation  requests of 16 items by URI, six at a time, against the bulk engine's workers on the same files (items over
            the workers' seconds, as the run's commits record them; its start is left out), interleaved
overload    such requests at three times the rate at which saturation answered them, whether answers come or not
search      a million points, through the application without Serve's hops
"""

import argparse
import hashlib
import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from fastapi import FastAPI, UploadFile
from harness import make_bundle
from made_media import make_pictures

PORT, KEY, ITEMS, AT_ONCE, REPLICAS = 8765, "benchmark", 16, 6, 2
CPUS = 6  # logical ones: for the replicas of both applications and the bulk engine's workers


def settings_of(workdir: Path) -> Any:
    """Settings of the server."""
    from mmva_platform.settings import ClusterSettings, KeySettings, ServingSettings, Settings

    key = KeySettings(name="load", sha256=hashlib.sha256(KEY.encode()).hexdigest(), scopes=("admin",))
    serving = ServingSettings(
        port=PORT, keys=(key,), model=str(workdir / "bundle"), roots=(str(workdir),), replicas=REPLICAS,
        max_in_flight_per_key=128,
    )  # fmt: skip
    return Settings(home=workdir / "home", cluster=ClusterSettings(address="local", num_cpus=CPUS), serving=serving)


class Client:
    """One connection."""

    def __init__(self) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)

    def post(self, path: str, body: bytes, kind: str = "application/json") -> tuple[int, float, bytes]:
        """Status, seconds and body."""
        begun = time.perf_counter()
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": kind}
        self._connection.request("POST", path, body, headers)
        answer = self._connection.getresponse()
        data = answer.read()
        return answer.status, time.perf_counter() - begun, data


def pictures_body(files: list[Path], first: int) -> bytes:
    """A request of ITEMS pictures by URI."""
    chosen = [files[(first + number) % len(files)] for number in range(ITEMS)]
    return json.dumps({"items": [{"uri": str(file)} for file in chosen]}).encode()


def load_latency(files: list[Path], seconds: float) -> dict[str, Any]:
    """One upload at a time, to the API and to the bare application."""
    client, bare_s, http_s = Client(), [], []
    deadline = time.monotonic() + seconds
    number = 0
    while time.monotonic() < deadline:
        data = files[number % len(files)].read_bytes()
        form = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\n' + data + b"\r\n--x--\r\n"
        for path, spent in (("/bare/", bare_s), ("/v1/annotate/upload", http_s)):
            status, spent_s, answer = client.post(path, form, "multipart/form-data; boundary=x")
            assert status == 200, answer
            spent.append(spent_s)
        number += 1
    return {"bare_s": bare_s[5:], "http_s": http_s[5:]}


def bare_application(settings: Any) -> Any:
    """What a Ray Serve user writes first: an ingress and the model."""
    from ray import serve

    app = FastAPI()

    @serve.deployment(num_replicas=REPLICAS, ray_actor_options={"num_cpus": settings.serving.replica_cpus})
    class Model:
        def __init__(self) -> None:
            from mmva_platform.serving.model import ServedModel
            from mmva_platform.tracking.resolve import resolve_model

            served = ServedModel(resolve_model(settings.serving.model, settings), settings)
            self._model = served._model  # noqa: SLF001

        def __call__(self, data: bytes) -> list[float]:
            from mmva.media.images.decode import SHORT_SIDE, decode_image

            found: list[float] = self._model.predict("image", [decode_image(data, at_least=SHORT_SIDE)])[0].tolist()
            return found

    @serve.deployment(ray_actor_options={"num_cpus": 0})
    @serve.ingress(app)
    class Ingress:
        def __init__(self, model: Any) -> None:
            self._model = model

        @app.post("/")
        async def annotate(self, file: UploadFile) -> list[float]:
            found: list[float] = await self._model.remote(await file.read())
            return found

    return Ingress.bind(Model.bind())  # type: ignore[attr-defined]


def load_saturation(files: list[Path], seconds: float) -> dict[str, Any]:
    """AT_ONCE requests at any time; items a second."""
    stop = time.monotonic() + seconds
    counts: list[int] = []

    def worker(number: int) -> None:
        client, first = Client(), number * ITEMS
        while time.monotonic() < stop:
            status, _, data = client.post("/v1/annotate", pictures_body(files, first))
            assert status == 200, data
            counts.append(sum(row["status"] == "ok" for row in json.loads(data)["items"]))
            first += AT_ONCE * ITEMS

    begun = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(worker, range(AT_ONCE)))
    return {"items_per_s": sum(counts) / (time.monotonic() - begun), "requests": len(counts)}


def load_overload(files: list[Path], seconds: float, rate: float) -> dict[str, Any]:
    """Requests at a rate, whether answers come or not."""
    begun = time.monotonic()
    answers: list[tuple[int, float, float]] = []

    def one(number: int) -> None:
        try:
            status, spent_s, _ = Client().post("/v1/annotate", pictures_body(files, number * ITEMS))
        except OSError:
            status, spent_s = 0, 0.0
        answers.append((status, spent_s, time.monotonic() - begun))

    threads = []
    for number in range(int(seconds * rate)):
        time.sleep(max(0.0, begun + number / rate - time.monotonic()))
        threads.append(threading.Thread(target=one, args=(number,)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    last = max(at for status, _, at in answers if status == 200)
    ok_s = sorted(spent for status, spent, _ in answers if status == 200)
    shed_s = sorted(spent for status, spent, _ in answers if status in {429, 503})
    return {
        "sent": len(answers), "ok": len(ok_s), "shed": len(shed_s),
        "lost": len(answers) - len(ok_s) - len(shed_s), "items_per_s": len(ok_s) * ITEMS / last,
        "ok_max_s": ok_s[-1], "shed_p50_s": percentile(shed_s, 50), "shed_p95_s": percentile(shed_s, 95),
        "shed_max_s": shed_s[-1] if shed_s else None,
    }  # fmt: skip


def percentile(values: list[float], share: float) -> float:
    """A percentile; NaN of nothing."""
    return float(np.percentile(values, share)) if values else float("nan")


def load(kind: str, workdir: Path, seconds: float, rate: float = 0.0) -> Any:
    """Run a load in a process of its own."""
    command = [sys.executable, __file__, "--workdir", workdir, "--load", kind, "--seconds", seconds, "--rate", rate]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def bulk(workdir: Path, settings: Any, number: int) -> float:
    """Items a second of the bulk engine's workers on the same files, in the same Ray."""
    from mmva_platform.annotation import annotate, status

    out = str(workdir / f"bulk-{os.getpid()}-{number}")
    annotate(str(workdir / "pictures"), settings.serving.model, out, settings, workers=REPLICAS, shard_items=32)
    speed = status(out, settings).items_per_worker_s
    assert speed is not None
    return REPLICAS * speed


def search_million(workdir: Path) -> tuple[float, float]:
    """p50 and p95 of searches in a million points, in ms."""
    import pyarrow as pa
    from starlette.testclient import TestClient

    from mmva_platform.annotation.plan.plan import ModelInfo
    from mmva_platform.monitoring.metrics import ApiMetrics
    from mmva_platform.search import AnnotationIndex
    from mmva_platform.serving.app import create_app
    from mmva_platform.serving.auth import Keyring
    from mmva_platform.serving.context import Context

    count, rng = 1_000_000, np.random.default_rng(0)
    names = pa.array([f"{number:07d}" for number in range(count)])
    table = pa.table({
        "id": names, "uri": names, "modality": pa.array(rng.choice(["image", "music"], count)),
        "valence": rng.beta(4, 4, count).astype(np.float32), "arousal": rng.beta(4, 4, count).astype(np.float32),
        "mood": pa.repeat("calm", count),
    })  # fmt: skip
    index = AnnotationIndex("/a", "run", ModelInfo(name="m", version=None, digest="d" * 64), table)
    settings = settings_of(workdir)
    models: Any = SimpleNamespace(known=None)
    nothing: Any = None
    context = Context(
        settings, Keyring(settings.serving.keys), models, nothing, nothing, str, lambda _uri: index, ApiMetrics()
    )
    client = TestClient(create_app(context))
    spent_ms = []
    with client:
        for _ in range(200):
            body = {"annotation": str(workdir / "a"), "point": rng.uniform(0, 1, 2).tolist(), "only": "music"}
            begun = time.perf_counter()
            answer = client.post("/v1/search", json=body, headers={"Authorization": f"Bearer {KEY}"})
            spent_ms.append(1000 * (time.perf_counter() - begun))
            assert len(answer.json()["hits"]) == 10, answer.text
    return percentile(spent_ms, 50), percentile(spent_ms, 95)


@contextmanager
def served(workdir: Path) -> Iterator[Any]:
    """The server, and beside it the bare application; gives the settings."""
    from ray import serve

    from mmva_platform.serving.deploy import running
    from mmva_platform.workflows import report_annotation

    settings = settings_of(workdir)
    with running(settings, report_annotation):
        serve.run(bare_application(settings), name="bare", route_prefix="/bare")
        yield settings
        serve.delete("bare")


def main() -> None:
    """All four; one line each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", type=Path, default=Path(tempfile.gettempdir()) / "mmva-serving-benchmark")
    parser.add_argument("--pictures", type=int, default=192)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", choices=["latency", "load", "search"])
    parser.add_argument("--load")
    parser.add_argument("--rate", type=float, default=0.0)
    options = parser.parse_args()
    workdir = options.workdir.resolve()
    if options.load:
        files = sorted((workdir / "pictures").iterdir())
        loads = {
            "latency": lambda: load_latency(files, options.seconds),
            "saturation": lambda: load_saturation(files, options.seconds),
            "overload": lambda: load_overload(files, options.seconds, options.rate),
        }
        print(json.dumps(loads[options.load]()))
        return
    workdir.mkdir(parents=True, exist_ok=True)
    make_bundle(workdir / "bundle")
    if not (workdir / "pictures").exists():
        make_pictures(workdir / "pictures", options.pictures)
    if options.only != "search":
        with served(workdir) as settings:
            load("saturation", workdir, 3.0)  # to warm up
            if options.only != "load":
                say_latency(load("latency", workdir, options.seconds))
            if options.only != "latency":
                say_load(workdir, settings, options.rounds, options.seconds)
    if options.only in {None, "search"}:
        p50, p95 = search_million(workdir)
        print(f"search in 10^6 points: p50 {p50:.1f} ms, p95 {p95:.1f} ms")


def say_latency(found: dict[str, list[float]]) -> None:
    """Percentiles, and their ratio to the bare application's."""
    for share in (50, 99):
        bare, own = (1000 * percentile(found[name], share) for name in ("bare_s", "http_s"))
        print(f"latency p{share}: bare application {bare:.1f} ms, the API {own:.1f} ms, {own / bare:.2f} times")


def say_load(workdir: Path, settings: Any, rounds: int, seconds: float) -> None:
    """Saturation against the bulk engine, then three times as much."""
    speeds = []
    for number in range(rounds):
        engine = bulk(workdir, settings, number)
        speeds.append((load("saturation", workdir, seconds)["items_per_s"], engine))
        print(f"saturation: {speeds[-1][0]:.1f} items/s, bulk engine {engine:.1f}")
    peak = median(api for api, _ in speeds)
    print(f"saturation / bulk engine: {median(api / engine for api, engine in speeds):.2f}")
    over = load("overload", workdir, seconds, 3 * peak / ITEMS)
    print(f"overload: {over['items_per_s'] / peak:.2f} of the peak; {json.dumps(over)}")


if __name__ == "__main__":
    main()
