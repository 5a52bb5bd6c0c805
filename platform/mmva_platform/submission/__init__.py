"""Jobs on a cluster, through Ray's own job submission: package, submit, follow."""

from mmva_platform.submission.client import Jobs, JobState
from mmva_platform.submission.packing import Package, choose_files, write_package
from mmva_platform.submission.request import JobRequest, Submission, make_submission

__all__ = [
    "JobRequest", "JobState", "Jobs", "Package", "Submission", "choose_files", "make_submission", "write_package",
]  # fmt: skip
