"""The cluster's job server through Ray's own client: submit, list, follow, stop."""

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from mmva.errors import OperationFailed, UsageError
from mmva_platform.submission.packing import write_package
from mmva_platform.submission.request import Submission

_ENDED: Final = {"SUCCEEDED", "FAILED", "STOPPED"}
_POLL_S: Final = 0.5
_LOOK_S: Final = 5.0  # how often the state of a followed job is checked
_SILENCE_S: Final = 120.0  # following ends if the cluster does not answer for this long
_AGENT_WAIT_S: Final = 60.0  # a cluster that has just started answers before it can accept jobs


@dataclass(frozen=True)
class JobState:
    """A job as the cluster reports it."""

    id: str
    status: str  # PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED
    entrypoint: str
    begun: datetime | None  # when it was submitted, if known
    exit_code: int | None  # of the driver, if it ended by itself
    message: str  # the cluster's reason for the status

    @property
    def ended(self) -> bool:
        """Whether the job has ended."""
        return self.status in _ENDED

    def to_json(self) -> dict[str, Any]:
        """Plain values for --json."""
        return asdict(self) | {"begun": self.begun.isoformat() if self.begun else None}


class Jobs:
    """Jobs of one cluster. RAY_AUTH_MODE=token with RAY_AUTH_TOKEN or its file authenticates, as for Ray's tools."""

    def __init__(self, address: str, token: str | None = None) -> None:
        """Connect; `token` replaces this process's own.

        Raises UsageError if no job server answers at the address, or it does not accept the token.
        """
        from ray.job_submission import JobSubmissionClient

        self.address = address
        with self._explained():
            headers = {"Authorization": f"Bearer {token}"} if token else None
            self._client = JobSubmissionClient(address, headers=headers)

    def submit(self, submission: Submission) -> str:
        """Upload the package, unless the cluster already has it, and start the job; returns its id.

        Raises UsageError if the name is taken, or the cluster refuses the submission.
        """
        with tempfile.TemporaryDirectory(prefix="mmva-job-") as folder:
            archive = Path(folder) / "working-dir.zip" if submission.package.files else None
            if archive:
                write_package(submission.package, archive)
            deadline = time.monotonic() + _AGENT_WAIT_S
            while True:
                try:
                    return self._submitted(submission, archive)
                except RuntimeError as error:
                    if "try again later" not in str(error) or time.monotonic() > deadline:
                        raise UsageError(f"{self.address}: the job was refused ({_first_line(error)})") from error
                time.sleep(_POLL_S)

    def list(self) -> list[JobState]:
        """The submitted jobs, newest first."""
        with self._explained():
            details = self._client.list_jobs()
        states = [_state(job) for job in details if job.submission_id]
        return sorted(states, key=lambda state: state.begun or datetime.min.replace(tzinfo=UTC), reverse=True)

    def state(self, job: str) -> JobState:
        """The state of a job. Raises UsageError if the cluster does not know it."""
        try:
            with self._explained():
                return _state(self._client.get_job_info(job))
        except RuntimeError as error:
            raise UsageError(f"{self.address}: no job {job} ({_first_line(error)})") from error

    def logs(self, job: str) -> str:
        """All output of the driver so far; raises as `state`."""
        self.state(job)
        return str(self._client.get_job_logs(job))

    def follow(self, job: str, write: Callable[[str], object]) -> JobState:
        """Pass the driver's output to `write` until the job ends; returns the final state.

        Raises OperationFailed if the cluster stops answering meanwhile; the job continues.
        """
        from aiohttp import ClientError

        self.state(job)
        try:
            state, written = asyncio.run(self._follow(job, write))
            write(str(self._client.get_job_logs(job))[written:])
        except (OSError, RuntimeError, ClientError, UsageError) as error:
            raise OperationFailed(
                f"{self.address}: lost the connection ({_first_line(error)}); the job continues, and "
                f"`mmva jobs logs {job} --follow` shows it again"
            ) from error
        return state

    async def _follow(self, job: str, write: Callable[[str], object]) -> tuple[JobState, int]:
        """Return the job's final state, and how many characters were written.

        Also polls the state, because neither Ray nor a lost connection always closes the stream.
        """
        written = 0

        async def tail() -> None:
            nonlocal written
            async for text in self._client.tail_job_logs(job):
                write(text)
                written += len(text)

        tailing = asyncio.create_task(tail())
        heard_at = time.monotonic()
        while True:
            await asyncio.wait({tailing}, timeout=_LOOK_S)
            if tailing.done():
                await tailing
                return await asyncio.to_thread(self.wait, job), written
            try:
                state = await asyncio.to_thread(self.state, job)
                heard_at = time.monotonic()
            except UsageError:
                if time.monotonic() - heard_at > _SILENCE_S:
                    raise
                continue
            if state.ended:
                await asyncio.wait({tailing}, timeout=_LOOK_S)
                tailing.cancel()
                return state, written

    def wait(self, job: str) -> JobState:
        """Wait until a job has ended, and return its state."""
        while not (state := self.state(job)).ended:
            time.sleep(_POLL_S)
        return state

    def stop(self, job: str) -> None:
        """Ask a job to end: its driver gets SIGTERM; `mmva annotate` then finishes and commits the running shards."""
        self.state(job)
        with self._explained():
            self._client.stop_job(job)

    def _submitted(self, submission: Submission, archive: Path | None) -> str:
        directory = {"working_dir": str(archive)} if archive else {}
        with self._explained():
            return str(
                self._client.submit_job(
                    entrypoint=submission.entrypoint,
                    runtime_env={**submission.runtime_env, **directory},
                    metadata=submission.metadata,
                    submission_id=submission.submission_id,
                    **submission.resources,
                )
            )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Raise UsageError, in one line, for errors that a user can fix."""
        try:
            yield
        except ConnectionError as error:
            raise UsageError(
                f"{self.address}: no Ray job server answers ({_first_line(error)}); --address or "
                "RAY_API_SERVER_ADDRESS names the cluster's dashboard"
            ) from error
        except Exception as error:
            refused = any(f"status code {code}" in str(error) for code in (401, 403))
            if refused or type(error).__name__ == "AuthenticationError":
                raise UsageError(
                    f"{self.address}: the cluster does not accept this token; set RAY_AUTH_MODE=token and "
                    "RAY_AUTH_TOKEN_PATH (or RAY_AUTH_TOKEN)"
                ) from error
            raise


def _state(details: Any) -> JobState:
    begun = details.start_time and datetime.fromtimestamp(details.start_time / 1000, UTC)
    return JobState(
        id=details.submission_id,
        status=str(getattr(details.status, "value", details.status)),
        entrypoint=details.entrypoint,
        begun=begun or None,
        exit_code=details.driver_exit_code,
        message=_first_line(details.message or ""),
    )


def _first_line(reason: object) -> str:
    with contextlib.suppress(StopIteration):
        return next(line.strip() for line in str(reason).splitlines() if line.strip())
    return ""
