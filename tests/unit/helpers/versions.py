"""A small folder of media whose annotation is made, updated and retried in this process: no Ray, tiny encoders."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from deltalake import DeltaTable
from inline_pass import install_annotation
from PIL import Image

from mmva.backbones import BackboneSpec, load_encoder, preset
from mmva.models.bundle import save_bundle
from mmva.models.model import MMVA
from mmva_platform.annotation import (
    AnnotationSummary,
    annotate,
    open_annotation,
    open_catalog,
    retry,
    update,
    verify,
)
from mmva_platform.annotation.schema import CATALOG_SCHEMA
from mmva_platform.settings import Settings

_RATE = 16_000
_OTHER_IMAGES = BackboneSpec("image", "tiny-image", "random:1")
POINTS = ("valence", "arousal", "valence_low", "valence_high", "arousal_low", "arousal_high")


@cache
def model(base: Path, seed: int, *, other_images: bool = False) -> Path:
    """A bundle below a folder, with towers of this seed over the tiny encoders or over another encoder of images."""
    specs = preset("tiny").specs | ({"image": _OTHER_IMAGES} if other_images else {})
    encoders = {modality: load_encoder(spec) for modality, spec in specs.items()}
    towers = MMVA({modality: encoder.dim for modality, encoder in encoders.items()})
    for index, parameter in enumerate(towers.parameters()):  # new towers say .5 to everything
        values = np.random.default_rng([seed, index]).normal(0, 0.3, tuple(parameter.shape))
        parameter.data = torch.tensor(values, dtype=parameter.dtype)
    towers.attach_encoders(encoders)
    folder = base / f"model-{seed}{'-other' * other_images}"
    intervals = {name: {"valence": 0.1 * (1 + seed), "arousal": 0.3} for name in ("image", "music")}
    save_bundle(folder, towers, intervals=intervals, card="a test", provenance={})
    return folder


@dataclass
class World:
    """Media, models and the annotation `out`.

    Attributes:
        folder: The same one for all tests of a process.
        models: The first two have the same backbones; the third one has another for images.
        catalog: What is annotated: the media folder, or a table.
        settings: For all calls.
    """

    folder: Path
    models: tuple[Path, Path, Path]
    catalog: str
    settings: Settings

    @classmethod
    def made(
        cls,
        patch: pytest.MonkeyPatch,
        factory: pytest.TempPathFactory,
        begin: Callable[[World], object] = lambda _world: None,
    ) -> World:
        """Six pictures, four texts, a long tone and a file that is no picture, and what `begin` makes of them.

        They are made once for each `begin`. The next tests get a copy in the same place, which annotations name.
        """
        install_annotation(patch)
        base = factory.getbasetemp() / "versions"
        models = (model(base, 0), model(base, 1), model(base, 0, other_images=True))
        world = cls(base / "world", models, str(base / "world" / "media"), Settings(home=base / "home"))
        begun = base / f"{begin.__module__}.{begin.__qualname__}"
        shutil.rmtree(world.folder, ignore_errors=True)
        if not begun.exists():
            world._fill()
            begin(world)
            shutil.copytree(world.folder, begun)
        else:
            shutil.copytree(begun, world.folder)
        return world

    def _fill(self) -> None:
        self.media.mkdir(parents=True)
        for number in range(6):
            self.picture(f"i{number}.png")
        for number in range(4):
            self.text(f"c{number}.txt")
        tone_T = np.sin(np.linspace(0, 20_000, 7 * _RATE)) / 2
        soundfile.write(self.media / "m0.wav", tone_T, _RATE)
        self.text("bad.png")

    @property
    def media(self) -> Path:
        """The folder of media."""
        return self.folder / "media"

    @property
    def out(self) -> str:
        """The annotation."""
        return str(self.folder / "va")

    def as_table(self, *changes: dict[str, Any], left_out: frozenset[str] = frozenset()) -> None:
        """Make the catalog a table of the media folder, with rows that replace or follow the folder's by their id."""
        found = pa.concat_tables(open_catalog(str(self.media), self.settings.storage).batches()).to_pylist()
        changed = {row["id"]: row for row in changes}
        rows = [row | changed.pop(row["id"], {}) for row in found if row["id"] not in left_out]
        self.write_table([*rows, *changed.values()])

    def write_table(self, rows: list[dict[str, Any]]) -> None:
        """Make the catalog a table of these rows."""
        self.catalog = str(self.folder / "catalog.parquet")
        pq.write_table(pa.Table.from_pylist(rows, CATALOG_SCHEMA), self.catalog)

    def picture(self, name: str) -> None:
        """A picture of noise; another one each time."""
        noise = np.random.default_rng(list(os.urandom(4))).integers(0, 256, (24, 32, 3), np.uint8)
        Image.fromarray(noise).save(self.media / name)

    def text(self, name: str) -> None:
        """A caption; another one each time."""
        (self.media / name).write_text(f"A calm song, number {os.urandom(4).hex()}")

    def annotate(self, number: int = 0, out: str | None = None, **options: Any) -> AnnotationSummary:
        """Version 0, with one of the models."""
        values = {"engine": "torch", "shard_items": 8} | options
        return annotate(self.catalog, str(self.models[number]), out or self.out, self.settings, **values)

    def update(self, number: int | None = None, **options: Any) -> AnnotationSummary:
        """The next version, with the model of the one before or another."""
        values = options if number is None else {"model": str(self.models[number])} | options
        return update(self.out, self.settings, **values)

    def retry(self) -> AnnotationSummary:
        """The next version, with the quarantine tried again."""
        return retry(self.out, self.settings)

    def rows(self, columns: list[str] | None = None, *, out: str | None = None, version: int | None = None) -> pa.Table:
        """Annotated items by id."""
        return open_annotation(out or self.out, version=version).table(columns).sort_by("id")

    def quarantine(self, version: int | None = None) -> pa.Table:
        """Quarantined items by id."""
        return open_annotation(self.out, version=version).table(status="quarantined").sort_by("id")

    def check(self, ok: set[str], quarantined: set[str], version: int | None = None) -> None:
        """Every item is there exactly once, also for readers that know nothing of us, and all bytes are right."""
        wanted = sorted([(name, "ok") for name in ok] + [(name, "quarantined") for name in quarantined])
        by_polars = pl.scan_delta(self.out, version=version).select("id", "status").collect()
        dataset = DeltaTable(self.out, version=version).to_pyarrow_dataset()
        by_deltalake = dataset.to_table(columns=["id", "status"]).to_pylist()
        assert sorted(by_polars.rows()) == wanted
        assert sorted((row["id"], row["status"]) for row in by_deltalake) == wanted
        assert self.rows(["id"], version=version)["id"].to_pylist() == sorted(ok)
        assert self.quarantine(version)["id"].to_pylist() == sorted(quarantined)
        assert verify(self.out, self.settings, version).problems == ()

    def files(self, pattern: str = "*") -> dict[str, int]:
        """Files of the annotation below it, with the time of their last change in ns."""
        root = Path(self.out)
        return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in root.rglob(pattern) if path.is_file()}

    def embeddings(self) -> dict[str, int]:
        """Files of embeddings."""
        return {path: at for path, at in self.files("*.parquet").items() if "/embeddings/" in path}


STARTING_OK = {*(f"i{n}.png" for n in range(6)), *(f"c{n}.txt" for n in range(4)), "m0.wav"}
BAD = {"bad.png"}


def killed(patch: pytest.MonkeyPatch, name: str, call: Callable[[], Any]) -> None:
    """A call that ends as if the driver was killed when it reached a function, by its dotted name."""

    def die(*_args: Any, **_kwargs: Any) -> Any:
        raise KeyboardInterrupt

    with patch.context() as inner:
        inner.setattr(name, die)
        with pytest.raises(KeyboardInterrupt):
            call()


def close(mine: pa.Table, theirs: pa.Table, columns: tuple[str, ...] = POINTS) -> None:
    """Points, intervals and curves of two tables of the same items agree to 1e-5."""
    assert mine["id"].equals(theirs["id"])
    for name in columns:
        assert mine[name].to_pylist() == pytest.approx(theirs[name].to_pylist(), abs=1e-5, nan_ok=True), name
    for one, other in zip(mine["windows"].to_pylist(), theirs["windows"].to_pylist(), strict=True):
        assert [point["start_s"] for point in one or ()] == [point["start_s"] for point in other or ()]
        for axis in ("valence", "arousal"):
            points = [[point[axis] for point in curve or ()] for curve in (one, other)]
            assert points[0] == pytest.approx(points[1], abs=2e-4)  # windows' embeddings are float16
