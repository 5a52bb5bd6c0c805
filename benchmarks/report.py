"""Result tables of the benchmarks, as Markdown and JSON, with the environment that they were measured in."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
from harness import git

PACKAGES = ("ray", "torch", "onnxruntime", "pyarrow", "numpy", "pillow")

Row = Mapping[str, float]


def environment() -> dict[str, Any]:
    """Where and with what a benchmark ran."""
    try:
        commit = git("describe", "--always", "--dirty", "--exclude=*")
    except (SystemExit, FileNotFoundError):
        commit = "unknown"
    versions = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit,
        "cores": psutil.cpu_count(),
        "machine": f"{platform.machine()}, {_processor()}",
        "load before": round(os.getloadavg()[0], 2),
        "memory GB": round(psutil.virtual_memory().total / 1e9, 1),
        "python": platform.python_version(),
        **versions,
    }


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


class Report:
    """A table of medians over rounds. Make it before the first run: it records the load of the machine."""

    def __init__(self, name: str, **settings: Any) -> None:
        self.name, self.environment, self.settings = name, environment(), settings
        self.rows: list[dict[str, Any]] = []
        self.details: dict[str, Any] = {}  # in the JSON file only

    def add(self, what: str, value: float | str | None, wanted: str = "", spread: Sequence[float] = ()) -> None:
        """One line; None if it was not measured."""
        self.rows.append({"what": what, "value": value, "range": list(spread), "wanted": wanted})

    def add_rounds(self, rounds: Sequence[Row], wanted: Mapping[str, str] | None = None) -> None:
        """One line for each column of the rounds: its median, smallest and largest."""
        for key in rounds[0]:
            values = [row[key] for row in rounds]
            self.add(key, statistics.median(values), (wanted or {}).get(key, ""), (min(values), max(values)))

    def to_markdown(self) -> str:
        """Environment, settings and table."""
        own = [f"{key} {value}" for key, value in {**self.environment, **self.settings}.items()]
        lines = [f"{self.name}: {', '.join(own)}", "", "| what | median | range | wanted |", "|---|---|---|---|"]
        for row in self.rows:
            spread = " to ".join(map(_shown, row["range"]))
            lines.append(f"| {row['what']} | {_shown(row['value'])} | {spread} | {row['wanted']} |")
        return "\n".join(lines)

    def show(self, file: Path | None = None) -> None:
        """Print the table; write the same as JSON."""
        print(self.to_markdown(), flush=True)
        if file is not None:
            found = {"name": self.name, "environment": self.environment, "settings": self.settings, "rows": self.rows}
            found["details"] = self.details
            file.write_text(json.dumps(found, indent=1, default=str))


def _shown(value: float | str | None) -> str:
    if value is None:
        return "not measured"
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
