"""Draw the pictures of README.md: `make pictures`. Needs no Ray, no network and about a minute.

plane.png: photographs, music and sentences, each at the place that the starter gives it.
architecture.svg: what flows where, from the tables below.
"""

from __future__ import annotations

import tempfile
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from PIL import Image

from mmva.inference.config import default_preprocessing
from mmva.inference.heads import predict
from mmva.inference.pipeline import Pipeline
from mmva.models.bundle import load_bundle
from mmva.starter import BUNDLE
from mmva_platform.quickstart.demo_catalog import CAPTIONS, build_demo_catalog
from mmva_platform.reporting.plane import SIDE, build_plane
from mmva_platform.tracking.plots import COLOURS

FOLDER = Path(__file__).resolve().parent / "pictures"
# Public domain or CC0, says scikit-image's and matplotlib's documentation; and easy to recognise.
PHOTOGRAPHS = (
    "astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "grace_hopper.jpg", "grass.png",
    "gravel.png", "hubble_deep_field.jpg", "rocket.jpg",
)  # fmt: skip
MARKS = {"music": "^", "caption": "s"}

# Boxes: name -> (column, row, width in columns, kind, lines). Rows go down.
BOXES: dict[str, tuple[float, float, float, str, tuple[str, ...]]] = {
    "ratings": (0, 0, 1, "data", ("ratings", "and their media")),
    "dataset": (1.35, 0, 1, "data", ("dataset", "immutable shards")),
    "embeddings": (2.7, 0, 1, "data", ("embeddings", "one per backbone")),
    "model": (4.05, 0, 1, "data", ("model", "bundle, version")),
    "champion": (5.4, 0, 1, "data", ("champion", "passed the gate")),
    "catalog": (0, 1.35, 1, "data", ("catalog", "folder, S3, table")),
    "annotation": (2.7, 1.35, 1, "data", ("annotation", "table with versions")),
    "use": (5.25, 1.35, 1.15, "data", ("results", "page, report, CSV, API")),
    "ray": (0, 2.5, 3.7, "base", ("Ray: Ray Data passes over shards, Ray Train, Ray Serve",)),
    "mlflow": (4.05, 2.5, 2.35, "base", ("MLflow: runs, registry, audit log",)),
}
ARROWS: tuple[tuple[str, str, str], ...] = (
    ("ratings", "dataset", "import"),
    ("dataset", "embeddings", "embed"),
    ("embeddings", "model", "train"),
    ("model", "champion", "promote"),
    ("catalog", "annotation", "annotate, update"),
    ("annotation", "use", "explore, report, export, serve"),
    ("champion", "annotation", "used by default"),
)
COLUMN, ROW, HEIGHT, MARGIN = 150, 112, 62, 24


def annotated_demo() -> tuple[pa.Table, dict[str, Image.Image]]:
    """Rows of the demonstration's photographs, music and sentences by the starter, and the photographs."""
    with tempfile.TemporaryDirectory() as folder:
        catalog = build_demo_catalog(Path(folder) / "catalog", seed=0)
        photographs = {name: catalog / "images" / name for name in PHOTOGRAPHS}
        music = sorted(path for path in (catalog / "music").iterdir() if "not-a-song" not in path.name)
        items = [{"id": name, "uri": str(path), "modality": "image"} for name, path in photographs.items()]
        items += [{"id": path.name, "uri": str(path), "modality": "music"} for path in music]
        items += [{"id": text, "modality": "caption", "caption": text} for text in CAPTIONS]
        schema = pa.schema([(name, pa.string()) for name in ("id", "uri", "modality", "caption")])
        model = load_bundle(BUNDLE)
        pipeline = Pipeline(
            model.dims, model.encoder, default_preprocessing(model.backbones), lambda uri, *_: Path(uri).read_bytes()
        )
        rows = predict(model, pipeline.embed(pa.Table.from_pylist(items, schema))).rows
        return rows, {name: Image.open(path).convert("RGB") for name, path in photographs.items()}


def draw_plane(out: Path) -> None:
    """The plane of the report, with the photographs themselves."""
    rows, photographs = annotated_demo()
    plane = build_plane(rows)
    figure = Figure(figsize=(8, 8), layout="constrained")
    axes: Any = figure.subplots()
    for word in plane.words:
        axes.text(word.x, word.y, word.text, ha="center", va="center", color="0.55", fontsize=10)
    corners = (("tense", 0.02, 0.98), ("excited", 0.98, 0.98), ("sad", 0.02, 0.02), ("calm", 0.98, 0.02))
    for text, x, y in corners:
        sides = {"ha": "left" if x < 0.5 else "right", "va": "top" if y > 0.5 else "bottom"}
        axes.text(x * SIDE, (1 - y) * SIDE, text, fontsize=14, weight="bold", color="0.3", **sides)
    for modality, mark in MARKS.items():
        points = [(point.x, point.y) for point in plane.points if point.modality == modality]
        x_N, y_N = np.array(points).T
        axes.scatter(x_N, y_N, s=70, marker=mark, color=COLOURS[modality], edgecolors="white", label=modality, zorder=3)
    for point in plane.points:
        if point.modality == "image":
            picture = photographs[point.label.partition(":")[0]]
            picture.thumbnail((150, 150))
            frame = {"edgecolor": COLOURS["image"], "boxstyle": "square,pad=0.08"}
            box = OffsetImage(np.asarray(picture), zoom=0.36)
            axes.add_artist(AnnotationBbox(box, (point.x, point.y), bboxprops=frame, pad=0.1, zorder=2))
    middle = SIDE / 2
    axes.axhline(middle, color="0.85", zorder=0)
    axes.axvline(middle, color="0.85", zorder=0)
    axes.set(xlim=(0, SIDE), ylim=(SIDE, 0), aspect="equal", xticks=[], yticks=[])
    axes.set(xlabel="valence: unpleasant to pleasant", ylabel="arousal: quiet to active")
    axes.legend(loc="upper center", ncols=2, frameon=False)
    figure.savefig(out, dpi=100)
    # A palette halves the file, and is enough for thumbnails.
    Image.open(out).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(out, optimize=True)


def draw_architecture(out: Path) -> None:
    """The boxes and arrows above as SVG."""
    width = int(6.4 * COLUMN + 2 * MARGIN)
    height = int(2.5 * ROW + HEIGHT + 2 * MARGIN)
    tip = 'id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">',
        f'<defs><marker {tip}><path d="M0 0 8 4 0 8z" fill="#555"/></marker></defs>',
        f'<rect width="{width}" height="{height}" rx="10" fill="#fff"/>',
        *(arrow(start, end, text) for start, end, text in ARROWS),
        *(box(name) for name in BOXES),
        "</svg>",
    ]
    out.write_text("\n".join(parts) + "\n", encoding="utf-8")


def edges(name: str) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a box."""
    column, row, wide, _, _ = BOXES[name]
    left, top = MARGIN + column * COLUMN, MARGIN + row * ROW
    return left, top, left + wide * COLUMN, top + HEIGHT


def box(name: str) -> str:
    """A box with its lines; the first one is its title."""
    _, _, _, kind, lines = BOXES[name]
    left, top, right, bottom = edges(name)
    fill, stroke = {"data": ("#eaf3fa", "#0072b2"), "base": ("#f3f3ef", "#8a8a80")}[kind]
    place = f'x="{left:g}" y="{top:g}" width="{right - left:g}" height="{bottom - top:g}" rx="8"'
    parts = [f'<rect {place} fill="{fill}" stroke="{stroke}" stroke-width="1.5"/>']
    middle = (top + bottom) / 2 + 5 - 10 * (len(lines) - 1)
    for number, line in enumerate(lines):
        style = 'font-size="15" font-weight="bold" fill="#1d2126"' if not number else 'font-size="13" fill="#5a626c"'
        x, y = (left + right) / 2, middle + 20 * number
        parts.append(f'<text x="{x:g}" y="{y:g}" text-anchor="middle" {style}>{escape(line)}</text>')
    return "\n".join(parts)


def arrow(start: str, end: str, text: str) -> str:
    """An arrow to the right, or down and to the left; its text is above it."""
    left, top, right, bottom = edges(start)
    to_left, to_top, to_right, _ = edges(end)
    if to_left > right:
        y = (top + bottom) / 2
        x, path = (right + to_left) / 2, f"M{right:g} {y:g}H{to_left - 1:g}"
    else:
        y, start_x, end_x = (bottom + to_top) / 2, (left + right) / 2, (to_left + to_right) / 2
        x, path = (start_x + end_x) / 2, f"M{start_x:g} {bottom:g}V{y:g}H{end_x:g}V{to_top - 1:g}"
    label = f'<text x="{x:g}" y="{y - 8:g}" text-anchor="middle" font-size="12" fill="#555">{escape(text)}</text>'
    return f'<path d="{path}" stroke="#555" stroke-width="1.8" fill="none" marker-end="url(#tip)"/>\n{label}'


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    draw_architecture(FOLDER / "architecture.svg")
    draw_plane(FOLDER / "plane.png")
