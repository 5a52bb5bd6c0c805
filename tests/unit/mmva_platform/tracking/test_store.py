"""A busy database is asked again, and for how long."""

from __future__ import annotations

import pytest

from mmva_platform.tracking.store import retry_while_busy


@pytest.mark.slow  # imports MLflow
@pytest.mark.parametrize(
    "busy", ["(sqlite3.OperationalError) database is locked", "duplicate key value violates unique constraint"]
)
def test_a_busy_database_is_asked_again_and_another_error_is_not(monkeypatch: pytest.MonkeyPatch, busy: str) -> None:
    from mlflow.exceptions import MlflowException

    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    answers = iter([MlflowException(busy), None])

    def call() -> str:
        error = next(answers)
        if error is not None:
            raise error
        return "done"

    assert retry_while_busy(call) == "done"
    assert len(waits) == 1
    tries: list[int] = []

    def never() -> None:
        tries.append(1)
        raise MlflowException(busy)

    with pytest.raises(MlflowException):
        retry_while_busy(never)
    assert len(tries) == 7
    answers = iter([MlflowException("no such table")])
    with pytest.raises(MlflowException, match="no such table"):
        retry_while_busy(call)
