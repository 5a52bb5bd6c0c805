"""Made-up labels and media for tests of sources."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from mmva_platform.datasets.dataset import Dataset
from mmva_platform.datasets.importing.report import ImportReport
from mmva_platform.datasets.importing.run import ImportConfig, import_dataset
from mmva_platform.datasets.sources.config import LAYOUTS
from mmva_platform.settings import validate


def picture(path: Path, seed: int = 0) -> None:
    """A noisy picture of its own content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng([seed, *path.name.encode()]).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def sound(path: Path, seconds: float = 1.0, rate: int = 8000, channels: int = 1) -> None:
    """A noise of its own content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_noise(path.name, seconds, rate, channels))


@cache
def _noise(name: str, seconds: float, rate: int, channels: int) -> bytes:
    noise = np.random.default_rng([*name.encode()]).normal(0, 0.1, (round(seconds * rate), channels))
    buffer = io.BytesIO()
    soundfile.write(buffer, noise, rate, format=name.rpartition(".")[2])
    return buffer.getvalue()


def table(path: Path, header: str, rows: Sequence[Sequence[object]], separator: str = ",") -> None:
    """A CSV as it is written by hand."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [header, *(separator.join(str(cell) for cell in row) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def config_of(*sources: Mapping[str, Any], **options: Any) -> ImportConfig:
    """An import of sources, given as in their files; it comes back from JSON as it does in a job."""
    made = [validate(LAYOUTS[source.get("layout", "table")], source, "source") for source in sources]
    config = validate(ImportConfig, {"sources": made, **options}, "import")
    return ImportConfig.model_validate_json(config.model_dump_json())


def imported(out: Path, *sources: Mapping[str, Any], **options: Any) -> tuple[ImportReport, list[dict[str, Any]]]:
    """Import, and the rows of the dataset without media."""
    report = import_dataset(config_of(*sources, **options), str(out))
    return report, Dataset.open(str(out)).labels().to_pylist()
