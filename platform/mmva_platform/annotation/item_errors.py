"""What went wrong with an item, as the error that its quarantine row names; and what is no item's fault."""

from __future__ import annotations

from typing import Final

from mmva.errors import CheckFailed, MediaError, OperationFailed, UsageError
from mmva_platform.storage import StorageDenied, StorageError, StorageNotFound, StorageTooLargeError

# A model that cannot be loaded, storage that is away.
NOBODYS_FAULT: Final = (OperationFailed, CheckFailed, UsageError)


def as_media_error(error: Exception, stage: str) -> MediaError:
    """The error as it is, or one that says what nobody foresaw."""
    if isinstance(error, MediaError):
        return error
    return MediaError("unexpected-error", described(error), stage=stage)


def fetch_error(error: Exception) -> MediaError:
    """Why an item's bytes are not there."""
    if isinstance(error, StorageNotFound):
        return MediaError("not-found", str(error), stage="fetch")
    if isinstance(error, StorageDenied):
        return MediaError("access-denied", str(error), stage="fetch")
    if isinstance(error, StorageTooLargeError):
        return MediaError("too-many-bytes", str(error), stage="fetch")
    if isinstance(error, (StorageError, UsageError)):
        return MediaError("unreadable", str(error), stage="fetch")
    return as_media_error(error, "fetch")


def described(error: Exception) -> str:
    """Class and message of an error that nobody foresaw."""
    return f"{type(error).__name__}: {error}"
