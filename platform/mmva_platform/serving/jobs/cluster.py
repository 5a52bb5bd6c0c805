"""The bulk cluster: each job is a Ray job there, with a driver, resources and a priority of its own."""

from __future__ import annotations

import shlex
import sys
from typing import Any, Final

from mmva_platform.serving.jobs.queue import Job
from mmva_platform.serving.jobs.runner import Submitted
from mmva_platform.settings import Settings
from mmva_platform.submission.client import Jobs, JobState
from mmva_platform.submission.packing import Package
from mmva_platform.submission.request import SECRETS_VARIABLE, Submission

JOB_VARIABLE: Final = "MMVA_ANNOTATION_JOB"  # the job as JSON; names, never secrets
SETTINGS_VARIABLE: Final = "MMVA_ANNOTATION_SETTINGS"
NICE_VARIABLE: Final = "MMVA_NICE"
_EXPECTED_EXIT: Final = 1


class BulkCluster:
    """See runner.Cluster. Connects on first use, and again after an error."""

    def __init__(self, settings: Settings, own_address: str) -> None:
        """Bind to a cluster.

        Args:
            settings: Of the API; `serving.bulk` names the cluster.
            own_address: Of the cluster that serves, where jobs run if the settings name no other.
        """
        self._settings, self._address = settings, settings.serving.bulk.address or own_address
        self._connected: Jobs | None = None

    def submit(self, job: Job, submission_id: str) -> None:
        """Start a job; the same id again changes nothing."""
        if self.state(submission_id).state == "lost":
            self._jobs().submit(submission_of(job, submission_id, self._settings))

    def state(self, submission_id: str) -> Submitted:
        """What became of a submission."""
        known = {state.id: state for state in self._jobs().list()}
        found = known.get(submission_id)
        return Submitted("lost") if found is None else self._outcome(found)

    def stop(self, submission_id: str) -> None:
        """End it; nothing happens if it has ended."""
        if self.state(submission_id).state == "running":
            self._jobs().stop(submission_id)

    def _outcome(self, state: JobState) -> Submitted:
        if not state.ended:
            return Submitted("running")
        if state.status == "SUCCEEDED":
            return Submitted("succeeded")
        if state.status == "STOPPED":
            return Submitted("failed", "stopped on the cluster")
        if state.exit_code != _EXPECTED_EXIT:  # killed, or its node is gone
            return Submitted("lost")
        lines = [line for line in self._jobs().logs(state.id).splitlines() if line.strip()]
        return Submitted("failed", lines[-1].strip()[:2000] if lines else state.message)

    def _jobs(self) -> Jobs:
        if self._connected is None:
            file = self._settings.serving.bulk.token_file
            self._connected = Jobs(self._address, file.read_text().strip() if file else None)
        return self._connected


def submission_of(job: Job, submission_id: str, settings: Settings) -> Submission:
    """The Ray job of an annotation job."""
    bulk = settings.serving.bulk
    variables = {
        JOB_VARIABLE: job.spec.model_dump_json(),
        SETTINGS_VARIABLE: bulk_settings(settings).model_dump_json(),
        NICE_VARIABLE: str(bulk.nice),
        "RAY_JOB_STOP_WAIT_TIME_S": "60",
        **{name: f"${{{name}}}" for name in bulk.secrets},
    }
    if bulk.secrets:
        variables[SECRETS_VARIABLE] = ",".join(bulk.secrets)
    runtime_env: dict[str, Any] = {"env_vars": variables}
    if bulk.nice:
        runtime_env["worker_process_setup_hook"] = "mmva_platform.serving.jobs.work.lower_priority"
    python = sys.executable if bulk.address is None else "python"
    return Submission(
        entrypoint=shlex.join([python, "-m", "mmva_platform.serving.jobs.work"]),
        runtime_env=runtime_env,
        package=Package(settings.home, (), 0),
        resources={"entrypoint_num_cpus": bulk.driver_cpus},
        metadata={"mmva_verb": "annotate", "mmva_job": job.id},
        submission_id=submission_id,
    )


def bulk_settings(settings: Settings) -> Settings:
    """The settings of a job: no keys and limits of the API, and the cluster that it is submitted to."""
    serving, bulk = settings.serving, settings.serving.bulk
    cluster = settings.cluster.model_copy(
        update={"address": None, "max_cpus": bulk.max_cpus, "max_gpus": bulk.max_gpus}
    )  # the address is in the job's environment
    roots = (*settings.annotation.roots, *serving.roots)
    annotation = settings.annotation.model_copy(update={"roots": roots})
    own = type(serving)(engine=serving.engine, bulk=bulk)
    home = settings.home if bulk.address is None else bulk.home or settings.home
    return settings.model_copy(update={"home": home, "cluster": cluster, "annotation": annotation, "serving": own})
