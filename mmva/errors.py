"""The kinds of failure a caller can tell apart; everything else is a bug and keeps its traceback."""

from __future__ import annotations


class UsageError(ValueError):
    """A user's mistake. Its message is one line that says what is wrong, where, and what to change (exit code 2)."""


class CheckFailed(RuntimeError):  # noqa: N818 - the word people use at the gate, not an accident
    """A gate or a check said no; the message says which rule and with what numbers (exit code 3)."""


class OperationFailed(RuntimeError):  # noqa: N818 - names what happened, like CheckFailed
    """The world did not play along (storage away, cluster stalled): one line that names the stage (exit code 1)."""


class EnvironmentFault(OperationFailed):  # noqa: N818 - named like OperationFailed
    """The machine or its access to storage is at fault, not an item."""


class MediaError(ValueError):
    """One item cannot be used; its neighbours are not concerned. Becomes a quarantine row, never a crash.

    Attributes:
        code: Stable kebab-case cause, the one people group by ("corrupt-image", "too-many-pixels", ...).
        stage: Where it happened: "fetch", "decode" or "infer".
    """

    def __init__(self, code: str, message: str, *, stage: str = "decode") -> None:
        super().__init__(message)
        self.code = code
        self.stage = stage

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the trip out of a Ray worker with code and stage intact."""
        return (_rebuild_media_error, (self.code, str(self), self.stage))


def _rebuild_media_error(code: str, message: str, stage: str) -> MediaError:
    return MediaError(code, message, stage=stage)
