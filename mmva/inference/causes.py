"""Classify failures: those of an item, as a MediaError, and those of the environment."""

from typing import Final

from mmva.errors import CheckFailed, EnvironmentFault, MediaError, OperationFailed, UsageError

# Errors that no item can cause, such as a model that cannot be loaded.
NOT_AN_ITEM: Final = (OperationFailed, CheckFailed, UsageError)
_CUDA_MARKS: Final = ("CUDA error", "CUBLAS_STATUS", "CUDNN_STATUS")


def as_media_error(error: Exception, stage: str) -> MediaError:
    """The error itself if it is a MediaError, else a MediaError "unexpected-error"."""
    if isinstance(error, MediaError):
        return error
    return MediaError("unexpected-error", described(error), stage=stage)


def fetch_error(error: Exception) -> MediaError:
    """The MediaError for an error while reading an item's bytes."""
    if isinstance(error, FileNotFoundError):
        return MediaError("not-found", str(error), stage="fetch")
    if isinstance(error, PermissionError):
        return MediaError("access-denied", str(error), stage="fetch")
    if isinstance(error, (OSError, UsageError, OperationFailed)):
        return MediaError("unreadable", str(error), stage="fetch")
    return as_media_error(error, "fetch")


def is_environment_fault(error: Exception) -> bool:
    """Whether a failed fetch means that storage as a whole is not accessible (expired credentials, no such bucket)."""
    return isinstance(error, EnvironmentFault) or bool(getattr(error, "environment", False))


def is_device_fault(error: Exception) -> bool:
    """Whether the GPU's context is lost, so that all later calls in this process fail."""
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in _CUDA_MARKS)


def described(error: Exception) -> str:
    """Class and message of an unexpected error."""
    return f"{type(error).__name__}: {error}"
