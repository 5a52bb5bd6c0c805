"""The page of a shadow comparison: how differences spread, and the items that differ most, to look at."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from mmva_platform.reporting.html import report_environment, write_text
from mmva_platform.reporting.previews import Preview, preview
from mmva_platform.reporting.shadow import BINS, Apart, Shadow

logger = logging.getLogger(__name__)


def write_shadow_page(path: Path, shadow: Shadow, read: Callable[[str], bytes], captions: Mapping[str, str]) -> None:
    """Write the page, complete or not at all.

    `read` fetches the bytes of an item by its URI; if it raises, the item has no picture. `captions` are texts by id,
    for captions whose text is in the catalog.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    items = [(item, _preview(item, read, captions)) for item in shadow.furthest]
    page = report_environment().get_template("shadow.html.j2").render(shadow=shadow, items=items, bins=BINS)
    write_text(path, page)


def _preview(item: Apart, read: Callable[[str], bytes], captions: Mapping[str, str]) -> Preview | None:
    try:
        text = captions.get(item.id) if item.modality == "caption" else None
        if item.modality == "video" or (text is None and item.uri is None):
            return None
        return preview(item.modality, text if text is not None else read(str(item.uri)))
    except Exception as error:  # noqa: BLE001 - a file that has gone since must not cost the page
        logger.warning("compare: no preview of %s (%s)", item.id, " ".join(str(error).split()))
        return None
