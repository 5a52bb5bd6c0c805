"""The page of a shadow comparison: how differences spread, and the items that differ most, to look at."""

from collections.abc import Callable, Mapping
from pathlib import Path

from mmva.files import write_atomically
from mmva_platform.reporting.html import report_environment
from mmva_platform.reporting.previews import preview_if_readable
from mmva_platform.reporting.shadow import BINS, Shadow


def write_shadow_page(path: Path, shadow: Shadow, read: Callable[[str], bytes], captions: Mapping[str, str]) -> None:
    """Write the page, complete or not at all.

    `read` fetches the bytes of an item by its URI; if it raises, the item has no picture. `captions` are texts by id,
    for captions whose text is in the catalog.
    """
    items = [(item, preview_if_readable(item.modality, item.id, item.uri, read, captions)) for item in shadow.furthest]
    page = report_environment().get_template("shadow.html.j2").render(shadow=shadow, items=items, bins=BINS)
    write_atomically(path, page.encode())
