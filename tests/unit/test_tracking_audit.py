"""The audit log: every record, in order, whole; its lock; a busy database is asked again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mmva.errors import CheckFailed
from mmva_platform.tracking import audit, moves


def test_the_audit_log_keeps_every_record_in_order(tmp_path: Path) -> None:
    assert audit.read(tmp_path / "home") == []
    for number in range(3):
        audit.append(tmp_path / "home", {"number": number, "why": "a\nb ü"})
    assert [record["number"] for record in audit.read(tmp_path / "home")] == [0, 1, 2]


def test_a_damaged_audit_log_is_named_by_line(tmp_path: Path) -> None:
    path = audit.append(tmp_path, {"number": 0})
    path.write_text(path.read_text() + "not json\n")
    with pytest.raises(CheckFailed, match="line 2"):
        audit.read(tmp_path)


def test_records_written_at_once_never_interleave(tmp_path: Path) -> None:
    def append_many(writer: int) -> None:
        for number in range(50):
            audit.append(tmp_path, {"writer": writer, "number": number, "filler": "x" * 2000})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(append_many, range(4)))
    records = audit.read(tmp_path)
    for writer in range(4):
        assert [record["number"] for record in records if record["writer"] == writer] == list(range(50))


def test_the_lock_lets_one_at_a_time_in(tmp_path: Path) -> None:
    inside: list[int] = []

    def count(_: int) -> None:
        for _round in range(20):
            with audit.locked(tmp_path):
                inside.append(1)
                assert len(inside) == 1
                inside.pop()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(count, range(4)))


@pytest.mark.slow  # imports MLflow
def test_a_busy_database_is_asked_again_and_another_error_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.exceptions import MlflowException

    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    answers = iter([MlflowException("(sqlite3.OperationalError) database is locked"), None])

    def call() -> str:
        error = next(answers)
        if error is not None:
            raise error
        return "done"

    assert moves.patiently(call) == "done"
    assert len(waits) == 1
    tries: list[int] = []

    def never() -> None:
        tries.append(1)
        raise MlflowException("database is locked")

    with pytest.raises(MlflowException):
        moves.patiently(never)
    assert len(tries) == 7
    answers = iter([MlflowException("no such table")])
    with pytest.raises(MlflowException, match="no such table"):
        moves.patiently(call)
