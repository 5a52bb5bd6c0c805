"""Jobs on a cluster: what is sent, how it is sent, and what becomes of it. All of it is Ray's own job submission."""

from mmva_platform.submission.client import Jobs, JobState
from mmva_platform.submission.packing import Package, choose_files, write_package
from mmva_platform.submission.request import JobRequest, Submission, make_submission

__all__ = [
    "JobRequest",
    "JobState",
    "Jobs",
    "Package",
    "Submission",
    "choose_files",
    "make_submission",
    "write_package",
]
