"""The driver of an annotation job on the bulk cluster: `python -m mmva_platform.serving.jobs.work`.

The last line of its log says why a job failed; then the exit code is 1. Any other code is a driver that was killed.
"""

from __future__ import annotations

import os
import sys

from mmva.errors import CheckFailed, MediaError, OperationFailed, UsageError
from mmva_platform.annotation import annotate
from mmva_platform.annotation.plan import plan_file, read_plan
from mmva_platform.serving.jobs.cluster import JOB_VARIABLE, NICE_VARIABLE, SETTINGS_VARIABLE
from mmva_platform.serving.jobs.queue import JobSpec
from mmva_platform.settings import Settings
from mmva_platform.storage import open_storage

_EXPECTED = (UsageError, CheckFailed, OperationFailed, MediaError)


def main() -> int:
    """Annotate the catalog of the environment's job; the exit code."""
    lower_priority()
    spec = JobSpec.model_validate_json(os.environ[JOB_VARIABLE])
    settings = Settings.model_validate_json(os.environ[SETTINGS_VARIABLE])
    options = {} if settings.serving.bulk.workers is None else {"workers": settings.serving.bulk.workers}
    try:
        annotate(
            spec.catalog,
            settled_model(spec, settings),
            spec.out,
            settings,
            max_errors=spec.max_errors,
            engine=settings.serving.engine,
            **options,
        )
    except _EXPECTED as error:
        sys.stdout.write(" ".join(str(error).split()) + "\n")
        return 1
    return 0


def settled_model(spec: JobSpec, settings: Settings) -> str:
    """The model to go on with: that of the run directory, if it has begun, whatever its alias means by now."""
    storage = open_storage(spec.out, settings.storage)
    if "@" in spec.model and storage.exists(plan_file(0)):
        begun = read_plan(storage).model
        return f"models:/{begun.name}/{begun.version}"
    return spec.model


def lower_priority() -> None:
    """Called by Ray in each worker of the job, so that interactive requests come first on a shared node."""
    os.nice(int(os.environ.get(NICE_VARIABLE, "0")))


if __name__ == "__main__":
    sys.exit(main())
