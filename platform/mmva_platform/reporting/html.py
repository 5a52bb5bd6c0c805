"""The report: one HTML file without network and scripts, with all text of the catalog escaped."""

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
from jinja2 import Environment

from mmva.errors import UsageError
from mmva.files import write_atomically
from mmva.modalities import MEDIA_KINDS
from mmva_platform.annotation.table.publish import HOW
from mmva_platform.pages import page_environment
from mmva_platform.reporting.charts import HEIGHT, WIDTH, training_charts
from mmva_platform.reporting.data import ReportData
from mmva_platform.reporting.examples import corner_examples
from mmva_platform.reporting.figures import SCALE, error_rows, retrieval_rows, text
from mmva_platform.reporting.plane import SIDE, WORD_RADIUS, build_plane
from mmva_platform.reporting.previews import HEARD_S
from mmva_platform.reporting.runcard import to_json

_QUARANTINE_EXAMPLES: Final = 5
NAMES: Final = {"image": "images", "music": "music tracks", "caption": "captions", "video": "videos"}
_ONE: Final = {"image": "image", "music": "music track", "caption": "caption", "video": "video"}


@dataclass(frozen=True)
class Cause:
    """The quarantined items of one cause, with a few examples."""

    error: str
    stage: str
    items: int
    examples: Sequence[Mapping[str, Any]]


def write_report(path: Path | str, data: ReportData) -> Path:
    """Write the HTML report, and its facts as JSON next to it, with the suffix .json; each file is complete or missing.

    Reads the media of some twenty examples only. Raises UsageError if the path ends in .json or is a folder.
    """
    path = Path(path)
    if path.suffix == ".json":
        raise UsageError(f"{path}: name an HTML file; the facts are written next to it as JSON")
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; name an HTML file in it")
    page = render(data)
    if data.facts:
        write_atomically(path.with_suffix(".json"), to_json(data.facts).encode())
    write_atomically(path, page.encode())
    return path


def report_environment() -> Environment:
    """This package's templates, with filters for numbers and commands."""
    environment = page_environment("mmva_platform.reporting")
    environment.filters["number"] = text
    environment.filters["how"] = lambda kind: {"media": "from their media", **HOW}.get(kind, kind)
    environment.filters["shell"] = shlex.join
    environment.globals["count_of"] = _count_of
    return environment


def render(data: ReportData) -> str:
    """The report as text."""
    annotated, quarantined = data.annotations.num_rows, data.quarantine.num_rows
    measures, retrieval = retrieval_rows(data.evaluation)
    counts = Counter(data.annotations["modality"].to_pylist())
    template = report_environment().get_template("report.html.j2")
    return template.render(
        data=data,
        names=NAMES,
        annotated=annotated,
        quarantined=quarantined,
        items=annotated + quarantined,
        by_modality={modality: counts[modality] for modality in MEDIA_KINDS if counts[modality]},
        plane=build_plane(data.annotations),
        side=SIDE,
        word_radius=WORD_RADIUS,
        heard_s=HEARD_S,
        regions=corner_examples(data),
        causes=tuple(_causes(data.quarantine)),
        charts=training_charts(data.history),
        chart_width=WIDTH,
        chart_height=HEIGHT,
        errors=error_rows(data.evaluation),
        error_scale=SCALE,
        measures=measures,
        retrieval=retrieval,
        facts=data.facts,
    )


def _count_of(modality: str, count: int) -> str:
    """Such as "1 image" or "2,310 music tracks"."""
    return f"{count:,} {(_ONE if count == 1 else NAMES).get(modality, modality)}"


def _causes(quarantine: pa.Table) -> Iterator[Cause]:
    """Most frequent first, a few examples each."""
    counts = Counter(zip(quarantine["error"].to_pylist(), quarantine["stage"].to_pylist(), strict=True))
    for (error, stage), items in counts.most_common():
        mask = pc.and_(pc.equal(quarantine["error"], error), pc.equal(quarantine["stage"], stage))
        examples = quarantine.select(["id", "message"]).filter(mask).slice(0, _QUARANTINE_EXAMPLES).to_pylist()
        yield Cause(error, stage, items, examples)
