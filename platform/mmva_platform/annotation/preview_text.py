"""A PlanPreview in fewer than twenty lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmva_platform.annotation.preview import EngineView, Needs, PlanPreview

_MORE = 3


def preview_text(found: PlanPreview) -> str:
    """One line for each thing a person asks before starting: what, from where, how much, with what, how long."""
    lines = {
        "catalog": f"{found.catalog}: {_items(found.items)}",
        "left out": _left_out(found),
        "roots": _roots(found),
        "output": _output(found),
        "refused": _few(found.refused, "; "),
        "base": _base(found),
        "to fetch": _bytes(found),
        "model": found.model,
        "engines": "; ".join(_engine(tower, view) for tower, view in found.engines.items()),
        "workers": _workers(found.needs) if found.shards_left else "",
        "time": _time(found),
    }
    return "\n".join(f"{name:<9} {text}" for name, text in lines.items() if text)


def _items(counts: Mapping[str, int]) -> str:
    kinds = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    return f"{sum(counts.values()):,} items ({kinds})" if counts else "0 items"


def _left_out(found: PlanPreview) -> str:
    parts = [f"{found.duplicates:,} rows whose id was seen before"] if found.duplicates else []
    if found.skipped:
        most = sorted(found.skipped.items(), key=lambda pair: -pair[1])
        parts.append("files that are no media: " + _few([f"{count:,} {kind}" for kind, count in most]))
    return "; ".join(parts)


def _roots(found: PlanPreview) -> str:
    about = "about " if found.roots_checked < sum(found.items.values()) and found.roots_checked else ""
    outside = f"; {about}{found.outside:,} items lie outside and would be quarantined" if found.outside else ""
    return _few(found.roots) + outside


def _output(found: PlanPreview) -> str:
    if found.state == "published":
        return f"{found.out}: published, nothing left to do"
    if found.state == "new":
        return f"{found.out}: new, {found.shards:,} shards"
    done = found.shards - found.shards_left
    left = sum(found.items_left.values()) + found.base_left
    return (
        f"{found.out}: {done:,} of {found.shards:,} shards done, left: {found.shards_left:,} with {left:,} items"
        if left
        else f"{found.out}: all {found.shards:,} shards done, only publishing is left"
    )


def _base(found: PlanPreview) -> str:
    if found.base is None:
        return ""
    how = "rows carried over" if found.base.same_model else "towers over its embeddings"
    items = sum(found.items.values())
    return f"{found.base.uri} saves {found.base.items:,} of {items:,} items their media ({how})"


def _bytes(found: PlanPreview) -> str:
    if not found.items_left:
        return ""
    size = found.bytes
    if not size.unknown:
        return as_size(size.total)
    if not size.asked:
        return f"{as_size(size.total)} and {size.unknown:,} files of unknown size"
    return f"about {as_size(size.total)} ({size.unknown:,} sizes not known, reckoned from {size.asked} that were asked)"


def _engine(tower: str, view: EngineView) -> str:
    if not view.name:
        return f"{tower}: will be calibrated"
    speed = f" {view.items_per_s:,.0f}/s a core" if view.items_per_s else ""
    return f"{tower}: {view.name}{speed}{'' if view.settled else ' (to be confirmed)'}"


def _workers(needs: Needs) -> str:
    gpus = f" and {needs.gpus:g} GPUs" if needs.gpus else ""
    text = f"{needs.workers}, for which {needs.where} must have {needs.cpus:g} CPUs{gpus}"
    if needs.cpus_there is None:
        return f"{text}; {needs.problem}"
    there = f"{needs.cpus_there:g}" + (f" and {needs.gpus_there:g}" if needs.gpus else "")
    return f"{text}: it has {there}{'' if needs.enough else ', TOO FEW'}"


def _time(found: PlanPreview) -> str:
    if not found.shards_left:
        return ""
    parts = [f"{name} {as_duration(seconds)}" for name, seconds in found.seconds.items()]
    missing = [name for name, took in found.times.items() if took.seconds is None]
    text = f"about {as_duration(sum(found.seconds.values()))}"
    if len(parts) > 1:
        text += f" ({', '.join(parts)})"
    text += f", and {as_duration(found.start_s)} to start"
    if any(not view.name for view in found.engines.values()):
        text += ", and the calibration"
    if missing:
        text += f"; no estimate for {', '.join(missing)}: none of the sampled items could be read"
    return text


def as_size(count: int) -> str:
    """Bytes in decimal units."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.1f} TB"


def as_duration(seconds: float) -> str:
    """Seconds, minutes, hours or days."""
    for limit, divisor, unit in ((99.5, 1, "s"), (5970, 60, "min"), (172_000, 3600, "h")):
        if seconds < limit:
            return f"{max(1, round(seconds / divisor))} {unit}"
    return f"{seconds / 86400:.1f} days"


def _few(parts: list[str] | tuple[str, ...], separator: str = ", ") -> str:
    more = f"{separator}{len(parts) - _MORE} more" if len(parts) > _MORE else ""
    return separator.join(parts[:_MORE]) + more
