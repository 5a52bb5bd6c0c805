"""Make a registered version champion if it passes the gate: python jobs/promote.py --set version=3 --set reason=..."""

from typing import Any

from mmva_platform.cli.job import run_job
from mmva_platform.settings import Config, Settings
from mmva_platform.tracking.gate.policy import GatePolicy
from mmva_platform.tracking.promotion import promote as promote_version


class PromoteJob(Config):
    """Make a registered version champion if it passes the gate."""

    version: int | str
    reason: str = ""
    policy: GatePolicy = GatePolicy()


def promote(job: PromoteJob, settings: Settings) -> dict[str, Any]:
    """Returns the gate's verdict; the exit code is 3 if the version fails the gate."""
    return promote_version(job.version, settings, job.reason, job.policy).to_json()


if __name__ == "__main__":
    run_job(PromoteJob, promote)
