"""The bulk cluster: each job is a Ray job there, like one of `mmva jobs submit annotate`, with a lower priority."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from mmva_platform.annotation.plan.plan import plan_file, read_plan
from mmva_platform.cluster import NICE_VARIABLE
from mmva_platform.serving.jobs.queue import Job, JobSpec
from mmva_platform.settings import Settings
from mmva_platform.storage import open_storage
from mmva_platform.submission.client import Jobs, JobState
from mmva_platform.submission.request import JobRequest, Submission, make_submission

_EXPLAINED = {1, 2, 3}  # exit codes of mmva's own errors; any other means that the driver was killed


class Submitted(NamedTuple):
    """The state of a submission: "lost" if the cluster does not know it, or it ended without an error message."""

    state: Literal["running", "succeeded", "failed", "lost"]
    message: str = ""


class BulkCluster:
    """The cluster on which jobs run. Connects on first use, and again after an error, because the head may be new."""

    def __init__(self, settings: Settings, own_address: str) -> None:
        """Bind to the cluster of `serving.bulk`, or to the serving one (`own_address`) if that has no address."""
        self._settings, self._address = settings, settings.serving.bulk.address or own_address
        self._connected: Jobs | None = None

    def submit(self, job: Job, submission_id: str) -> None:
        """Start a job; repeating it with the same id changes nothing."""
        if self.state(submission_id).state == "lost":
            with tempfile.TemporaryDirectory(prefix="mmva-job-") as folder:
                self._jobs().submit(submission_of(job, submission_id, self._settings, Path(folder)))

    def state(self, submission_id: str) -> Submitted:
        """The state of a submission."""
        try:
            found = {state.id: state for state in self._jobs().list()}.get(submission_id)
            return Submitted("lost") if found is None else self._outcome(found)
        except Exception:
            self._connected = None
            raise

    def stop(self, submission_id: str) -> None:
        """Stop a submission, unless it has ended."""
        if self.state(submission_id).state == "running":
            self._jobs().stop(submission_id)

    def _outcome(self, state: JobState) -> Submitted:
        if not state.ended:
            return Submitted("running")
        if state.status == "SUCCEEDED":
            return Submitted("succeeded")
        if state.status == "STOPPED":
            return Submitted("failed", "stopped on the cluster")
        if state.exit_code not in _EXPLAINED:  # killed, or its node was lost
            return Submitted("lost")
        lines = [line for line in self._jobs().logs(state.id).splitlines() if line.strip()]
        return Submitted("failed", lines[-1].strip().removeprefix("mmva: ")[:2000] if lines else state.message)

    def _jobs(self) -> Jobs:
        if self._connected is None:
            file = self._settings.serving.bulk.token_file
            self._connected = Jobs(self._address, file.read_text().strip() if file else None)
        return self._connected


def submission_of(job: Job, submission_id: str, settings: Settings, folder: Path) -> Submission:
    """The Ray job of an annotation job. Writes its settings into `folder`, an empty folder, which is sent."""
    bulk, spec = settings.serving.bulk, job.spec
    file = folder / "settings.yaml"
    file.write_text(bulk_settings(settings).model_dump_json(), encoding="utf-8")  # JSON is YAML
    arguments = ["annotate", spec.catalog, "--model", settled_model(spec, settings), "--out", spec.out]
    arguments += ["--engine", settings.serving.engine]
    for option, value in (("--max-errors", spec.max_errors), ("--workers", bulk.workers)):
        arguments += [] if value is None else [option, str(value)]
    request = JobRequest(
        arguments=tuple(arguments), settings=file, working_dir=folder, cpus=bulk.driver_cpus, secrets=bulk.secrets,
        name=submission_id,
    )  # fmt: skip
    made = make_submission(request)
    entrypoint, runtime_env = made.entrypoint, dict(made.runtime_env)
    if bulk.address is None:  # where `python` may be a different one
        entrypoint = sys.executable + entrypoint.removeprefix("python")
    if bulk.nice:
        entrypoint = f"nice -n {bulk.nice} {entrypoint}"
        runtime_env["env_vars"] = {**runtime_env["env_vars"], NICE_VARIABLE: str(bulk.nice)}
        runtime_env["worker_process_setup_hook"] = "mmva_platform.cluster.lower_priority"
    return replace(made, entrypoint=entrypoint, runtime_env=runtime_env, metadata={**made.metadata, "mmva_job": job.id})


def settled_model(spec: JobSpec, settings: Settings) -> str:
    """The model of a job: that of its run directory if it has started, even if the alias has moved since."""
    storage = open_storage(spec.out, settings.storage)
    if "@" in spec.model and storage.exists(plan_file(0)):
        begun = read_plan(storage).model
        return f"models:/{begun.name}/{begun.version}"
    return spec.model


def bulk_settings(settings: Settings) -> Settings:
    """The settings of a job: without keys and limits of the API, and for the cluster to which it is submitted."""
    serving, bulk = settings.serving, settings.serving.bulk
    cluster = settings.cluster.model_copy(
        update={"address": None, "max_cpus": bulk.max_cpus, "max_gpus": bulk.max_gpus}
    )  # the address is in the job's environment
    roots = (*settings.annotation.roots, *serving.roots)
    annotation = settings.annotation.model_copy(update={"roots": roots})
    own = type(serving)(engine=serving.engine, bulk=bulk)
    home = settings.home if bulk.address is None else bulk.home or settings.home
    return settings.model_copy(update={"home": home, "cluster": cluster, "annotation": annotation, "serving": own})
