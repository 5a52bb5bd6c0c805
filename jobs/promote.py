"""Make a registered version champion if the gate lets it: python jobs/promote.py --set version=3 --set reason=..."""

from typing import Any

from mmva_platform.cli.job import run_job
from mmva_platform.settings import Config, Settings
from mmva_platform.tracking.gate.policy import GatePolicy
from mmva_platform.tracking.promotion import promote as promote_version


class PromoteJob(Config):
    """Make a registered version champion if the gate lets it."""

    version: int | str
    reason: str = ""
    policy: GatePolicy = GatePolicy()


def promote(job: PromoteJob, settings: Settings) -> dict[str, Any]:
    """The gate's verdict; exit code 3 when it says no."""
    return promote_version(job.version, settings, job.reason, job.policy).to_json()


if __name__ == "__main__":
    run_job(PromoteJob, promote)
