"""The failures that callers handle; any other exception is a bug and keeps its traceback."""

from functools import partial


class UsageError(ValueError):
    """A user's mistake. The message is one line: what is wrong, where, and what to change (exit code 2)."""


class CheckFailed(RuntimeError):  # noqa: N818 - the established name
    """A gate or a check failed; the message names the rule and the numbers (exit code 3)."""


class OperationFailed(RuntimeError):  # noqa: N818 - named like CheckFailed
    """Something outside the program failed (storage, cluster); the message is one line with the stage (exit code 1)."""


class EnvironmentFault(OperationFailed):
    """The machine or its access to storage failed; no item is at fault."""


def error_line(error: BaseException) -> str:
    """An error's text on one line of at most 200 characters."""
    return " ".join(str(error).split())[:200]


class MediaError(ValueError):
    """One item cannot be used; other items are not affected. It becomes a quarantine row, never a crash.

    `code` is a stable cause in kebab case ("corrupt-image"). `stage` is "catalog", "fetch", "decode" or "infer".
    """

    def __init__(self, code: str, message: str, *, stage: str = "decode") -> None:
        super().__init__(message)
        self.code = code
        self.stage = stage

    def __reduce__(self) -> tuple[object, ...]:
        """Keep code and stage when the error is pickled."""
        return (partial(MediaError, stage=self.stage), (self.code, str(self)))
