"""Following a job: its stream is not the only sign of its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from ray.job_submission import JobDetails, JobStatus, JobType

from mmva.errors import OperationFailed
from mmva_platform.submission import Jobs, JobState, client


class Stream:
    """Stands in for Ray's client: one piece of the log comes, then nothing more, and nobody closes the stream."""

    def __init__(self, *states: str) -> None:
        self.states = list(states)

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        yield "begun\n"
        await asyncio.Event().wait()

    def get_job_info(self, job: str) -> JobDetails:
        if not self.states:
            raise ConnectionError("no route to host")
        return JobDetails(
            type=JobType.SUBMISSION, submission_id=job, status=JobStatus(self.states.pop(0)), entrypoint="true"
        )

    def get_job_logs(self, job: str) -> str:
        return "begun\nended\n"


def followed(monkeypatch: pytest.MonkeyPatch, *states: str) -> tuple[JobState, str]:
    monkeypatch.setattr(client, "_LOOK_S", 0.01)
    monkeypatch.setattr(client, "_SILENCE_S", 0.05)
    jobs = Jobs.__new__(Jobs)
    jobs.address, jobs._client = "http://head", Stream(*states)  # type: ignore[assignment]
    said: list[str] = []
    return jobs.follow("a", said.append), "".join(said)


def test_following_ends_with_the_job_though_its_stream_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    state, said = followed(monkeypatch, "RUNNING", "RUNNING", "SUCCEEDED")
    assert (state.status, said) == ("SUCCEEDED", "begun\nended\n")


def test_following_ends_when_the_cluster_is_silent_and_says_how_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OperationFailed, match=r"lost the connection .* `mmva jobs logs a --follow` shows it again"):
        followed(monkeypatch, "RUNNING", "RUNNING")
