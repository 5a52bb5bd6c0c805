"""A folder that has changed since it was annotated, and calls that make versions, each in a process of its own."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from one_process import Call, Running
from PIL import Image
from places import Place, Rows

from mmva_platform.settings import Settings


def picture(path: Path, seed: int) -> None:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8)).save(path)


@dataclass(frozen=True)
class Calm:
    """A version that was made without any fault: its place, rows by status, and writes in order."""

    place: Place
    rows: Rows
    writes: list[str]


class Made:
    """An annotation of a folder that has changed since, and calls that make versions of it.

    Attributes:
        base: Version 0: of the folder before it was changed.
        media: The folder.
    """

    def __init__(self, base: Place, folder: Path, bundle: Path) -> None:
        self.base, self._folder, self._bundle = base, folder, bundle
        self.settings = Settings.model_validate({"home": folder / "home", "storage": base.storage})
        self._calm: dict[str, Calm] = {}
        self.media = folder / "media"
        self.media.mkdir()
        for name in ("changed", "gone", "kept"):
            picture(self.media / f"{name}.png", len(name))
        for name in ("broken", "repaired"):
            (self.media / f"{name}.png").write_bytes(b"\x89PNG no picture")
        (self.media / "words.txt").write_text("A calm piece for solo piano.")
        assert self.run("annotate", base).end()["quarantined"] == 2
        for seed, name in enumerate(("changed", "new", "repaired"), 50):
            picture(self.media / f"{name}.png", seed)
        (self.media / "gone.png").unlink()

    def run(self, verb: str, place: Place, writes: int | None = None, **options: Any) -> Running:
        """A call in a process of its own; `model`, `settings` and `end` besides the options of the call."""
        model, settings = options.pop("model", self._bundle), options.pop("settings", self.settings)
        end = options.pop("end", signal.SIGKILL)
        words = (str(self.media), str(model), place.uri) if verb == "annotate" else (place.uri,)
        defaults = {"annotate": {"engine": "torch", "shard_items": 3}, "resume": {}}.get(verb, {"shard_items": 3})
        return Running(Call(verb, words, place.uri, defaults | options), settings, self._folder / "said", writes, end)

    def calm(self, verb: str) -> Calm:
        """What a verb makes if nothing happens to it."""
        if verb not in self._calm:
            place = self.start(verb, f"{verb}-calm")
            running = self.run(verb, place)
            assert "error" not in running.end()
            self._calm[verb] = Calm(place, place.rows(), running.writes)
        return self._calm[verb]

    def stopped(self, verb: str, place: Place, last: str) -> Running:
        """A call that has stopped right after its first write of a kind, such as "commits/"."""
        number = next(number for number, path in enumerate(self.calm(verb).writes, 1) if last in path)
        running = self.run(verb, place, number, end=signal.SIGSTOP)
        running.wait_until_stopped()
        return running

    def start(self, verb: str, name: str) -> Place:
        """What a verb begins with: nothing, or version 0."""
        return self.base.beside(name) if verb == "annotate" else self.base.copied(name)
