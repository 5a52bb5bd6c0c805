"""The cause of an item's failure as a MediaError, and which failures are the environment's."""

from typing import Final

from mmva.errors import CheckFailed, EnvironmentFault, MediaError, OperationFailed, UsageError

# Raised where no item can be the cause, such as a model that cannot be loaded.
NOT_AN_ITEM: Final = (OperationFailed, CheckFailed, UsageError)
_CUDA_MARKS: Final = ("CUDA error", "CUBLAS_STATUS", "CUDNN_STATUS")


def as_media_error(error: Exception, stage: str) -> MediaError:
    """The error itself if it is a MediaError, else one with the cause "unexpected-error"."""
    if isinstance(error, MediaError):
        return error
    return MediaError("unexpected-error", described(error), stage=stage)


def fetch_error(error: Exception) -> MediaError:
    """An item's MediaError for an error of reading its bytes."""
    if isinstance(error, FileNotFoundError):
        return MediaError("not-found", str(error), stage="fetch")
    if isinstance(error, PermissionError):
        return MediaError("access-denied", str(error), stage="fetch")
    if isinstance(error, (OSError, UsageError, OperationFailed)):
        return MediaError("unreadable", str(error), stage="fetch")
    return as_media_error(error, "fetch")


def is_environment_fault(error: Exception) -> bool:
    """Whether a failed fetch shows that storage as a whole is not accessible (expired credentials, no such bucket)."""
    return isinstance(error, EnvironmentFault) or bool(getattr(error, "environment", False))


def is_device_fault(error: Exception) -> bool:
    """Whether the GPU's context is lost, so that no later call in this process can work."""
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in _CUDA_MARKS)


def described(error: Exception) -> str:
    """Class and message of an unexpected error."""
    return f"{type(error).__name__}: {error}"
