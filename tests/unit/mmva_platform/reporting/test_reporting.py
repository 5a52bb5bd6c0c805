"""The HTML report: complete, self-contained, and safe whatever a catalog holds."""

from __future__ import annotations

import base64
import io
import itertools
import math
from collections.abc import Callable
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from PIL import Image

from mmva.affect import mood
from mmva.modalities import AXES, MODALITIES
from mmva_platform.annotation.schema import ANNOTATION_SCHEMA, QUARANTINE_SCHEMA
from mmva_platform.reporting.charts import HEIGHT, WIDTH, training_charts
from mmva_platform.reporting.data import ReportData
from mmva_platform.reporting.examples import corner_examples
from mmva_platform.reporting.figures import SCALE, error_rows, retrieval_rows
from mmva_platform.reporting.html import render, write_report
from mmva_platform.reporting.plane import MAX_POINTS, SIDE, build_plane
from mmva_platform.reporting.previews import CAPTION_CHARACTERS, THUMBNAIL_PX, preview

HOSTILE = """<script>alert('x')</script><img src=x onerror="alert(1)">{{ 7*7 }}"""
VOID = {"meta", "img", "input", "br"}


def annotation(id_: str, modality: str, valence: float, arousal: float, **values: Any) -> dict[str, Any]:
    return {
        "id": id_,
        "uri": f"/media/{id_}",
        "modality": modality,
        "valence": valence,
        "arousal": arousal,
        **{f"{axis}_{side}": None for axis in AXES for side in ("low", "high")},
        "embedding": [0.0],
        "mood": str(mood([valence, arousal])),
        "duration_s": 125.0 if modality == "music" else None,
        "windows": None,
        "sha256": "0" * 64,
        "model_name": "mmva",
        "model_version": "1",
        "model_digest": "a" * 64,
        "run_id": "run",
        "shard": "00000",
        "annotated_at": datetime(2025, 1, 1, tzinfo=UTC),
    } | values


def quarantined(id_: str, error: str, message: str = "why") -> dict[str, Any]:
    row = {"id": id_, "uri": None, "modality": "image", "stage": "decode", "error": error, "message": message}
    return row | {"sha256": None, "attempts": 1, "run_id": "run", "shard": "00000"}


def tables(annotations: list[dict[str, Any]], quarantine: list[dict[str, Any]] | None = None) -> dict[str, pa.Table]:
    return {
        "annotations": pa.Table.from_pylist(annotations, schema=ANNOTATION_SCHEMA),
        "quarantine": pa.Table.from_pylist(quarantine or [], schema=QUARANTINE_SCHEMA),
    }


def jpeg(size: tuple[int, int] = (400, 300)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 30, 30)).save(buffer, "JPEG")
    return buffer.getvalue()


def wav(seconds: float = 10.0) -> bytes:
    buffer = io.BytesIO()
    time_T = np.arange(int(22_050 * seconds)) / 22_050
    soundfile.write(
        buffer, 0.5 * np.sin(2 * np.pi * 440 * time_T) * np.linspace(0, 1, len(time_T)), 22_050, format="WAV"
    )
    return buffer.getvalue()


def read(uri: str) -> bytes:
    return {"jpg": jpeg, "wav": wav, "txt": lambda: b"a quiet evening"}[uri.rpartition(".")[2]]()


def refuse(uri: str) -> bytes:
    raise FileNotFoundError(uri)


@pytest.fixture
def evaluation() -> dict[str, Any]:
    figures = {"value": 0.02, "low": 0.015, "high": 0.025}
    return {
        "split": "test",
        "rows": dict.fromkeys(MODALITIES, 1),
        "metrics": {m: {axis: {"mse": dict(figures), "r2": dict(figures)} for axis in AXES} for m in MODALITIES},
        "floors": {m: dict.fromkeys(AXES, 0.03) for m in MODALITIES},
        "retrieval": {
            "image->music": {
                name: {"value": value, "low": None, "high": None}
                for name, value in (("recall@10", 0.4), ("recall@5", 0.3), ("ndcg@10", 0.8), ("random_ndcg@10", 0.5))
            }
        },
        "warnings": ["split by clip"],
    }


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails on a tag that is closed in the wrong order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def full(evaluation: dict[str, Any]) -> ReportData:
    rows = [
        annotation("sun.jpg", "image", 0.9, 0.8),
        annotation("march.wav", "music", 0.2, 0.9),
        annotation("evening.txt", "caption", 0.8, 0.2),
        annotation("gone.jpg", "image", 0.1, 0.1),
        annotation("said", "caption", 0.5, 0.5, uri=None),
    ]
    history = [{"epoch": e, "loss": 1 / (e + 1), "val_va_mse": 0.1, "val_r2/image/valence": -3.0 + e} for e in range(5)]
    return ReportData(
        **tables(rows, [quarantined("a.jpg", "corrupt-image", "broken stream"), quarantined("b.jpg", "corrupt-image")]),
        read=lambda uri: refuse(uri) if "gone" in uri else read(uri),
        captions={"said": "a sentence of the catalog"},
        evaluation=evaluation,
        history=history,
        lineage={"model": "mmva version 1", "command": "mmva annotate x"},
    )


def test_the_report_shows_all_of_its_parts(full: ReportData, tmp_path: Path) -> None:
    path = write_report(tmp_path / "deep" / "report.html", full)
    page = Page(path.read_text(encoding="utf-8"))
    text = " ".join(page.text.split())
    for part in (
        "2 images, 1 music track and 2 captions",
        "2 of 7 items could not be annotated",
        "better than a constant guess on 6 of 6 measures",
        "5 annotated + 2 in quarantine = 7 items",
        "broken stream",
        "a sentence of the catalog",
        "a quiet evening",
        "can no longer be shown",
        "split by clip",
        "33% below",
        "0.0240",
        "cut off below -0.25",
        "mmva annotate x",
        "2:05",
    ):
        assert part in text
    assert len(page.of("audio")) == 1
    assert [image["alt"] for image in page.of("img")] == ["Thumbnail of sun.jpg"]
    assert list(tmp_path.joinpath("deep").iterdir()) == [path]


def test_the_page_needs_no_network_and_runs_no_script(full: ReportData) -> None:
    html = render(full)
    page = Page(html)
    assert page.of("script") == page.of("link") == page.of("iframe") == []
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "data:").startswith("data:"), tag
    assert "@import" not in html
    assert "url(" not in html
    policies = [each["content"] for each in page.of("meta") if each.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"]


def test_hostile_text_stays_text_everywhere(evaluation: dict[str, Any]) -> None:
    rows = [annotation(f"{HOSTILE}{index}", modality, 0.9, 0.9) for index, modality in enumerate(MODALITIES)]
    data = ReportData(
        **tables(rows, [quarantined(HOSTILE, HOSTILE, HOSTILE)]),
        read=refuse,
        captions={f"{HOSTILE}2": HOSTILE},
        evaluation=evaluation | {"warnings": [HOSTILE], "retrieval": {HOSTILE: {HOSTILE: {"value": 1.0}}}},
        history=[{"epoch": 0, "loss": 1.0, HOSTILE: 2.0}],
        lineage={HOSTILE: HOSTILE},
        title=HOSTILE,
    )
    html = render(data)
    page = Page(html)
    assert page.of("script") == []
    assert page.of("img") == []
    assert "<script" not in html
    assert "{{ 7*7 }}" in page.text


def test_tables_have_headers_and_pictures_have_words(full: ReportData) -> None:
    page = Page(render(full))
    assert page.of("html") == [{"lang": "en"}]
    assert all(header.get("scope") in {"col", "row"} for header in page.of("th"))
    for svg in page.of("svg"):
        assert svg.get("aria-hidden") == "true" or svg.get("role") == "img"
        assert svg.get("aria-hidden") or svg.get("aria-label") or svg.get("aria-labelledby")


def test_an_all_quarantined_catalog_still_has_a_report() -> None:
    page = Page(render(ReportData(**tables([], [quarantined("a", "empty-file")]), read=read)))
    assert "1 of 1 items could not be annotated" in " ".join(page.text.split())
    assert "How good the model is" not in page.text


def test_a_catalog_without_quarantine_says_so() -> None:
    page = Page(render(ReportData(**tables([annotation("sun.jpg", "image", 0.5, 0.5)]), read=read)))
    assert "Every item of the catalog could be annotated" in page.text
    assert "1 image, each" in " ".join(page.text.split())


def test_a_failed_write_leaves_the_old_report(
    full: ReportData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    path.write_text("the old one")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_report(path, full)
    assert path.read_text() == "the old one"
    assert list(tmp_path.iterdir()) == [path]


def test_points_stand_where_their_values_are() -> None:
    plane = build_plane(
        tables([annotation("a", "image", 1.0, 1.0), annotation("b", "music", 0.25, 0.0)])["annotations"]
    )
    assert {(point.modality, point.x, point.y) for point in plane.points} == {
        ("image", SIDE, 0.0),
        ("music", SIDE / 4, SIDE),
    }
    assert not plane.is_sample


def test_a_large_catalog_is_sampled_without_losing_a_small_modality() -> None:
    rows = [annotation(f"i{index}", "image", 0.6, 0.6) for index in range(MAX_POINTS + 500)]
    rows += [annotation(f"c{index}", "caption", 0.1, 0.2) for index in range(7)]
    plane = build_plane(tables(rows)["annotations"])
    assert plane.is_sample
    assert len(plane.points) == MAX_POINTS
    assert [point.modality for point in plane.points[-7:]] == ["caption"] * 7
    images, captions = plane.spreads
    assert images.items == MAX_POINTS + 500
    assert {name: share for name, _, share in captions.quadrants}["sad"] == 1.0


def test_the_spread_is_of_all_items_and_knows_missing_intervals() -> None:
    bounds = {"valence_low": 0.1, "valence_high": 0.5, "arousal_low": 0.2, "arousal_high": 0.4}
    rows = [annotation("a", "image", 0.2, 0.4, **bounds), annotation("b", "image", 0.4, 0.4, **bounds)]
    (spread,) = build_plane(tables(rows)["annotations"]).spreads
    assert spread.mean == pytest.approx((0.3, 0.4))
    assert spread.deviation == pytest.approx((0.1, 0.0), abs=1e-6)
    assert spread.half_width == pytest.approx((0.2, 0.1))
    (unknown,) = build_plane(tables([annotation("a", "image", 0.2, 0.4)])["annotations"]).spreads
    assert unknown.half_width is None


def test_corners_show_the_nearest_item_of_their_own_quadrant_once() -> None:
    rows = [
        annotation("best", "caption", 0.95, 0.95),
        annotation("second", "caption", 0.8, 0.8),
        annotation("edge", "caption", 0.49, 0.99),
        annotation("middle", "caption", 0.51, 0.51),
    ]
    captions = {row["id"]: row["id"] for row in rows}
    regions = corner_examples(ReportData(**tables(rows), read=refuse, captions=captions))
    shown = {region.name: [example.id for example in region.examples] for region in regions}
    assert shown == {"excited": ["best"], "tense": ["edge"], "calm": [], "sad": [], "neutral": ["middle"]}


def test_only_a_few_items_are_read_however_large_the_catalog() -> None:
    asked: list[str] = []

    def count(uri: str) -> bytes:
        asked.append(uri)
        return jpeg()

    generator = np.random.default_rng(0)
    rows = [annotation(f"{index}.jpg", "image", *generator.random(2)) for index in range(500)]
    corner_examples(ReportData(**tables(rows), read=count))
    assert len(asked) == len(set(asked)) == 10


@pytest.mark.parametrize(
    ("modality", "make", "kind"),
    [("image", jpeg, "image/jpeg"), ("music", wav, "audio/mpeg"), ("music", lambda: wav(0.1), "audio/mpeg")],
)
def test_previews_are_small_and_decode(modality: str, make: Callable[[], bytes], kind: str) -> None:
    made = preview(modality, make())
    uri = made.image or made.audio
    assert uri is not None
    assert uri.startswith(f"data:{kind};base64,")
    decoded = base64.b64decode(uri.partition(",")[2])
    assert len(decoded) < 50_000
    if modality == "image":
        assert Image.open(io.BytesIO(decoded)).size == (made.width, made.height)
        assert max(made.width, made.height) == THUMBNAIL_PX
    else:
        assert soundfile.info(io.BytesIO(decoded)).duration <= 6.2
        assert max(made.bars) == 1.0


def test_a_waveform_follows_the_loudness() -> None:
    bars = preview("music", wav()).bars
    assert all(later >= earlier - 0.02 for earlier, later in itertools.pairwise(bars))
    assert bars[0] < 0.05


def test_a_long_caption_is_cut() -> None:
    text = preview("caption", "word " * 500).text
    assert text is not None
    assert len(text) <= CAPTION_CHARACTERS
    assert text.endswith("…")


@pytest.mark.parametrize(
    ("value", "high", "verdict", "words"),
    [
        (0.02, 0.025, "better", "33% below"),
        (0.02, 0.031, "unsure", "33% below, unsure"),
        (0.03, 0.04, "worse", "0% above"),
    ],
)
def test_an_error_is_judged_against_its_floor(
    evaluation: dict[str, Any], value: float, high: float, verdict: str, words: str
) -> None:
    evaluation["metrics"]["image"]["valence"]["mse"] = {"value": value, "low": 0.01, "high": high}
    row = error_rows(evaluation)[0]
    assert (row.verdict, row.comparison) == (verdict, words)
    assert 0 <= row.low_x <= row.value_x <= row.high_x <= SCALE
    assert row.floor_x / row.value_x == pytest.approx(row.floor / row.mse[0], rel=0.01)


def test_what_an_evaluation_lacks_is_left_out(evaluation: dict[str, Any]) -> None:
    evaluation["metrics"]["image"]["valence"]["mse"]["value"] = None
    del evaluation["floors"]["music"]
    assert [(row.modality, row.axis) for row in error_rows(evaluation)] == [
        ("image", "arousal"),
        ("caption", "valence"),
        ("caption", "arousal"),
    ]
    assert error_rows({}) == ()
    assert retrieval_rows({}) == ((), ())


def test_retrieval_stands_beside_chance_in_order_of_rank(evaluation: dict[str, Any]) -> None:
    measures, (row,) = retrieval_rows(evaluation)
    assert measures == ("ndcg@10", "recall@5", "recall@10")
    assert (row.query, row.gallery) == ("image", "music")
    assert row.cells == (("0.800", "0.500"), ("0.300", ""), ("0.400", ""))


def test_curves_go_down_where_the_numbers_do_and_stay_inside() -> None:
    history = [{"epoch": e, "loss": 1.0 / (e + 1), "val_r2/music/arousal": [-9.0, math.nan, 0.5][e]} for e in range(3)]
    loss, r2 = training_charts(history)
    points = [tuple(map(float, point.split(","))) for point in loss.lines[0].points.split()]
    assert [x for x, _ in points] == [0.0, WIDTH / 2, WIDTH]
    assert points[0][1] < points[1][1] < points[2][1] < HEIGHT
    assert len(r2.lines[0].points.split()) == 2
    assert all(0 <= float(point.split(",")[1]) <= HEIGHT for point in r2.lines[0].points.split())
    assert r2.note
    assert training_charts([]) == ()


def test_a_single_epoch_has_a_chart() -> None:
    (chart,) = training_charts([{"epoch": 0, "loss": 0.5}])
    assert chart.lines[0].last == 0.5
    assert len({tick.at for tick in chart.y_ticks}) >= 2
