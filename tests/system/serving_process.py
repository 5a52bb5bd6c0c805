"""`mmva serve` as a process, its registry, and a client."""

from __future__ import annotations

import dataclasses
import hashlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmva_platform.cli.main import run
from mmva_platform.settings import Settings

REPOSITORY = Path(__file__).resolve().parents[2]
MAIN = "from mmva_platform.cli.main import main; main()"
KILLS, HANGS = (61, 67), (71, 73)
# A picture of one size kills the process that decodes it, as a crash in a native library would; one of another hangs.
SITECUSTOMIZE = f"""
import os, signal, time
from PIL import ImageFile

original = ImageFile.ImageFile.load

def load(self):
    if self.size == {KILLS}:
        os.kill(os.getpid(), signal.SIGKILL)
    if self.size == {HANGS}:
        time.sleep(3600)
    return original(self)

ImageFile.ImageFile.load = load
"""
PREFIX = "/shared/mmva"
SCOPES = {"reader": ["read"], "worker": ["read", "annotate"], "boss": ["admin"]}


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def picture(path: Path, seed: int, size: tuple[int, int] = (80, 60)) -> Path:
    """A small PNG."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class ServeProcess:
    """One home with media, settings and keys; `start` and `stop` as often as a test likes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.media, self.outs = folder, folder / "media", folder / "outs"
        self.media.mkdir(parents=True)
        self.port = free_port()
        (folder / "poison").mkdir()
        (folder / "poison" / "sitecustomize.py").write_text(SITECUSTOMIZE)
        keys = [
            {"name": name, "sha256": hashlib.sha256(f"{name}-key".encode()).hexdigest(), "scopes": scopes}
            for name, scopes in SCOPES.items()
        ]
        self.config = folder / "serving.yaml"
        self.config.write_text(
            json.dumps({
                "port": self.port, "keys": keys, "roots": [str(self.media)], "out_roots": [str(self.outs)],
                "engine": "torch", "follow_s": 0.5, "max_body_mb": 8, "max_in_flight": 64, "item_timeout_s": 6,
                "max_in_flight_per_key": 40, "request_timeout_s": 45,
                "replicas": 2, "route_prefix": PREFIX,
            })
        )  # fmt: skip
        self.settings_file = folder / "settings.yaml"
        self.settings_file.write_text(
            json.dumps({"home": str(folder / "home"), "cluster": {"address": "local", "num_cpus": 3}})
        )
        self.settings = Settings(home=folder / "home")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start and wait until a model answers."""
        path = [str(self.folder / "poison"), str(REPOSITORY), str(REPOSITORY / "platform")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path), "RAY_AUTH_MODE": "disabled"}
        command = ["--settings", str(self.settings_file), "serve", "--config", str(self.config)]
        with (self.folder / "serve.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", MAIN, *command], stdout=log, stderr=log, env=environment, cwd=self.folder
            )
        deadline = time.monotonic() + 240
        while True:
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            try:
                if self.get("/readyz").status == 200:
                    return
            except OSError:
                pass
            time.sleep(0.2)  # until a deadline, not for a time

    def stop(self) -> None:
        """Ctrl-C."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(timeout=90) == 0, self.log()

    def kill(self) -> None:
        """As the machine's memory killer would; what Ray started ends by itself."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        deadline = time.monotonic() + 60
        while True:
            try:
                self.get("/healthz")
            except ConnectionRefusedError:
                return
            except OSError:
                pass
            assert time.monotonic() < deadline, "the server outlives its process"
            time.sleep(0.1)  # until a deadline, not for a time

    def mmva(self, *command: str) -> None:
        """A command of `mmva` against the same home."""
        assert run(["--settings", str(self.settings_file), *command]) == 0

    def log(self) -> str:
        """What the process said."""
        return (self.folder / "serve.log").read_text(errors="replace")[-4000:]

    def get(self, path: str, key: str | None = None) -> Answer:
        """GET."""
        return self.send("GET", path, None, key)

    def post(self, path: str, body: Any, key: str | None = "worker") -> Answer:
        """POST of JSON."""
        return self.send("POST", path, json.dumps(body).encode(), key)

    def send(self, method: str, path: str, body: bytes | None, key: str | None = None, **headers: str) -> Answer:
        """A request of its own connection."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        if key is not None:
            headers["Authorization"] = f"Bearer {key}-key"
        if body is not None:
            headers.setdefault("Content-Type", "application/json")
        begun = time.monotonic()
        try:
            connection.request(method, path if path.startswith(PREFIX) else PREFIX + path, body, headers)
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        named = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, named, data, time.monotonic() - begun)
