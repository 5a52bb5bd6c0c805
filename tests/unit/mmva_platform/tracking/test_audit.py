"""The audit log: numbered records, one winner a number, a chain that shows what was changed."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mmva.errors import CheckFailed
from mmva_platform.settings import Settings, TrackingSettings
from mmva_platform.storage import open_storage
from mmva_platform.tracking.audit import AuditLog, digest


def log_in(folder: Path, model: str = "mmva") -> AuditLog:
    return AuditLog(open_storage(folder), model)


def filled(folder: Path) -> AuditLog:
    log = log_in(folder)
    for word in ("a\nb ü", "second", "third"):
        assert log.append({"why": word}, log.read()) is not None
    return log


def test_the_log_keeps_every_record_in_order_each_knowing_the_one_before(tmp_path: Path) -> None:
    assert log_in(tmp_path).read() == []
    records = filled(tmp_path).read()
    assert [record["number"] for record in records] == [1, 2, 3]
    assert records[0]["why"] == "a\nb ü"
    assert records[2]["prior"] == digest(records[1])
    assert log_in(tmp_path, "another").read() == []


def test_of_two_that_read_the_same_one_appends(tmp_path: Path) -> None:
    log = filled(tmp_path)
    read = log.read()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda word: log.append({"why": word}, read), "abcd"))
    (winner,) = [record for record in found if record is not None]
    assert log.read()[3:] == [winner]
    again = log.append({"why": "e"}, log.read())
    assert again is not None
    assert again["number"] == 5


def change(path: Path) -> None:
    path.write_text(path.read_text().replace("second", "secund"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "00000002.json").unlink(), "record 2 is missing"),
        (lambda folder: (folder / "00000002.json").write_text("not json"), r"00000002\.json: is not a JSON object"),
        (lambda folder: change(folder / "00000002.json"), r"00000003\.json: does not match the record before it"),
        (lambda folder: (folder / "00000003.json").rename(folder / "00000004.json"), "record 3 is missing"),
        (
            lambda folder: (folder / "00000003.json").write_text(json.dumps({"number": 3, "prior": "0" * 64})),
            r"00000003\.json: does not match the record before it",
        ),
    ],
)
def test_a_log_that_was_changed_is_named_by_record(tmp_path: Path, damage: object, message: str) -> None:
    log = filled(tmp_path)
    assert callable(damage)
    damage(tmp_path / "mmva")
    with pytest.raises(CheckFailed, match=message):
        log.read()


def test_the_settings_say_where_it_lies(tmp_path: Path) -> None:
    assert AuditLog.of(Settings(home=tmp_path)).uri == str(tmp_path / "registry-audit" / "mmva")
    elsewhere = Settings(home=tmp_path, tracking=TrackingSettings(audit="s3://bucket/audit", model_name="other"))
    assert AuditLog.of(elsewhere).uri == "s3://bucket/audit/other"
