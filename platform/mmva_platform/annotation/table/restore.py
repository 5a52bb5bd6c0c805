"""`restore`: after another program has committed to the table, adds a version with the files of our last one.

Nothing is annotated or deleted: what the other program wrote stays in the versions that it made.
"""

import logging
import time
import uuid
from datetime import UTC, datetime

from mmva.errors import CheckFailed
from mmva_platform.annotation.plan.plan import Base, read_plan
from mmva_platform.annotation.plan.planning import settled
from mmva_platform.annotation.table.delta import latest_own_version, latest_version
from mmva_platform.annotation.table.publish import AnnotationSummary, publish, summarize
from mmva_platform.annotation.table.reader import open_annotation
from mmva_platform.settings import Settings
from mmva_platform.storage import open_storage

logger = logging.getLogger(__name__)


def restore(out: str, settings: Settings, command: tuple[str, ...] = ()) -> AnnotationSummary:
    """Add a version with exactly the data files of the newest version that mmva made; none if that is the newest.

    The same call again finishes a restore that was interrupted. Raises UsageError if nothing is published or that
    version was cleaned, CheckFailed if no version is mmva's, or data files of that version are missing.
    """
    begun = time.monotonic()
    storage = open_storage(out, settings.storage)
    own = latest_own_version(storage)
    before = open_annotation(storage, version=own)  # if no version is ours, the newest one, and that is refused
    latest = latest_version(storage) or 0
    if latest == before.version:
        logger.info("%s: mmva made the newest version, %d; there is nothing to restore", storage.uri, before.version)
        return summarize(storage.uri, before.record, None, seconds=time.monotonic() - begun)
    there = {entry.path for entry in storage.walk("status=")}
    if lost := [file.path for file in before.all_files if file.path not in there]:
        raise CheckFailed(
            f"{storage.uri}: {len(lost)} data files of version {before.version} are missing, such as {lost[0]}; "
            "restore them from a backup, or annotate to another output"
        )
    items = sum(file.rows for file in before.all_files)
    unchanged = Base(
        replaced=(), same_model=True, kept=items, unchanged=items, new=0, changed=0, removed=0, restores=before.version
    )
    changes = {
        "run_id": uuid.uuid4().hex,
        "created_at": datetime.now(UTC),
        "version": latest + 1,
        "kind": "restore",
        "base": unchanged,
        "command": command,
        "parts": (),
    }
    plan = settled(storage, read_plan(storage, before.version).model_copy(update=changes))
    record = publish(storage, plan, [])
    return summarize(storage.uri, record, plan, seconds=time.monotonic() - begun)
