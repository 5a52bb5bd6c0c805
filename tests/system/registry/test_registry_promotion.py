"""Promotion on both back ends: judged, recorded, moved; forced, raced, cut off, rolled back, named challenger."""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from registry_cases import aliases, records

from mmva.errors import CheckFailed, UsageError
from mmva_platform.settings import Settings
from mmva_platform.tracking import promotion
from mmva_platform.tracking.audit import AuditLog
from mmva_platform.tracking.gate import evidence
from mmva_platform.tracking.gate.policy import GatePolicy
from mmva_platform.tracking.gate.verdict import Verdict
from mmva_platform.tracking.promotion import promote, rollback
from mmva_platform.tracking.registry import list_versions, show_version
from mmva_platform.tracking.store import open_client, quiet

pytestmark = [pytest.mark.slow, pytest.mark.system]
REAL_EXAM = evidence.examine


def test_a_first_champion_needs_the_absolute_rules_only_and_is_recorded(
    settings: Settings, registered: Callable[..., int]
) -> None:
    version = registered(mse=0.02)
    before = len(records(settings))
    verdict = promote(version, settings, "first model")
    assert aliases(settings) == {"champion": 1}
    assert (verdict.champion, verdict.passed, verdict.why) == (None, True, "first model")
    (record,) = records(settings)[before:]
    none = {"champion": None, "previous": None, "challenger": None}
    assert record == json.loads(json.dumps(verdict.to_json())) | {
        "model": settings.tracking.model_name, "number": 1, "prior": "0" * 64, "before": none,
        "after": none | {"champion": 1},
    }  # fmt: skip
    client = open_client(settings)
    tags = client.get_model_version(settings.tracking.model_name, "1").tags
    assert (tags["mmva.verdict"], tags["mmva.verdict_reason"]) == ("passed", "first model")
    run_id = list_versions(settings)[0].run_id
    artifacts = [entry.path for entry in client.list_artifacts(run_id, "verdicts")]
    assert artifacts == [tags["mmva.verdict_file"].replace(".json", ".html"), tags["mmva.verdict_file"]]
    with pytest.raises(UsageError, match="champion already"):
        promote(version, settings)


def test_a_model_worse_than_a_constant_never_becomes_champion(
    settings: Settings, registered: Callable[..., int]
) -> None:
    version = registered(mse=0.04)
    before = len(records(settings))
    with pytest.raises(CheckFailed, match=r"below-constant image/valence: 0\.0400, needs < 0\.0") as caught:
        promote(version, settings, "please")
    assert "\n" not in str(caught.value)
    assert aliases(settings) == {}
    assert [record["passed"] for record in records(settings)[before:]] == [False]
    assert list_versions(settings)[0].verdict == "refused"


def test_champion_moves_to_an_equal_challenger_not_to_a_worse_one_and_back(
    settings: Settings, registered: Callable[..., int]
) -> None:
    first, equal, worse = registered(mse=0.02), registered(mse=0.02), registered(mse=0.025)
    promote(first, settings)
    with pytest.raises(UsageError, match="no previous champion"):
        rollback(settings)
    with pytest.raises(CheckFailed, match="non-inferior image"):
        promote(worse, settings)
    assert aliases(settings) == {"champion": first}
    promote(equal, settings, "retrained")
    assert aliases(settings) == {"champion": equal, "previous": first}
    before = len(records(settings))
    rollback(settings, "complaints")
    assert aliases(settings) == {"champion": first, "previous": equal}
    (record,) = records(settings)[before:]
    assert (record["action"], record["candidate"], record["why"]) == ("rollback", first, "complaints")


def test_no_alias_moves_without_the_record(
    settings: Settings, registered: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    version = registered()

    def disk_full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(AuditLog, "append", disk_full)
    with pytest.raises(OSError, match="no space"):
        promote(version, settings)
    assert aliases(settings) == {}


def tags_of(settings: Settings, version: int) -> dict[str, str]:
    client = open_client(settings)
    return dict(client.get_model_version(settings.tracking.model_name, str(version)).tags)


def test_a_candidate_of_another_dataset_is_judged_on_the_champions_exam(
    settings: Settings, registered: Callable[..., int]
) -> None:
    promote(registered(mse=0.02), settings)
    verdict = promote(registered(mse=0.0201, digest="e" * 64), settings)
    assert verdict.exam is not None
    assert (verdict.dataset_digest, verdict.exam["digest"]) == ("e" * 64, "d" * 64)


def test_the_policy_given_is_the_one_that_judges_and_stands_in_the_record(
    settings: Settings, registered: Callable[..., int]
) -> None:
    promote(registered(), settings)
    policy = GatePolicy(smallest_groups=61)
    with pytest.raises(CheckFailed, match="enough-groups image: 60, needs >= 61"):
        promote(registered(), settings, policy=policy)
    assert records(settings)[-1]["policy"] == policy.model_dump(mode="json")


def test_force_needs_a_reason_and_shows_for_ever(settings: Settings, registered: Callable[..., int]) -> None:
    first, worse = registered(mse=0.02), registered(mse=0.025)
    promote(first, settings)
    for nothing in ("", "  "):
        with pytest.raises(UsageError, match="--reason"):
            promote(worse, settings, nothing, force=True)
    assert len(records(settings)) == 1
    verdict = promote(worse, settings, "the old one has a licence problem", force=True)
    assert (verdict.passed, verdict.forced, verdict.outcome) == (False, True, "forced")
    assert "FORCED against the gate" in verdict.to_text()
    assert aliases(settings) == {"champion": worse, "previous": first}
    rollback(settings, "back")
    promote(
        worse,
        settings,
        "and again",
        GatePolicy.model_validate({"margins": {"default": 0.5}, "slices": {"margin": 0.5}}),
    )
    shown = show_version(worse, settings)
    assert shown.version.verdict == "passed"
    for text in (shown.to_text(), shown.version.to_text(), json.dumps(shown.to_json())):
        assert "the old one has a licence problem" in text
    assert [each["forced"] for each in records(settings)] == [False, True, False, False]


def test_force_that_was_not_needed_is_no_stain(settings: Settings, registered: Callable[..., int]) -> None:
    version = registered()
    assert not promote(version, settings, "sure", force=True).forced
    assert list_versions(settings)[0].forced == ""


def test_without_the_dataset_the_gate_refuses_and_force_may_still(
    settings: Settings, registered: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(registered(), settings)
    challenger = registered()
    monkeypatch.setattr(evidence, "examine", REAL_EXAM)  # it looks for the dataset
    with pytest.raises(CheckFailed, match=r"exam-taken all versions: missing, needs - .*no dataset there"):
        promote(challenger, settings)
    assert promote(challenger, settings, "the data set's disk is gone", force=True).forced


class Died(BaseException):
    """The process ends here."""


@pytest.mark.parametrize(
    ("settings", "call", "survived", "command"),
    [
        ("sqlite", "log_text", 0, "reconcile"),
        ("sqlite", "set_model_version_tag", 3, "reconcile"),
        ("sqlite", "set_registered_model_alias", 0, "reconcile"),
        ("sqlite", "set_registered_model_alias", 0, "promote"),
        ("sqlite", "set_registered_model_alias", 1, "rollback"),
        ("server", "set_registered_model_alias", 1, "reconcile"),
        ("server", "set_registered_model_alias", 0, "promote"),
    ],
    indirect=["settings"],
)
def test_a_crash_after_the_log_is_finished_by_the_next_command(
    settings: Settings, registered: Callable[..., int], call: str, survived: int, command: str
) -> None:
    first, second = registered(), registered()
    promote(first, settings)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(f"mlflow.MlflowClient.{call}", dying_after(survived, call))
        with pytest.raises(Died):
            promote(second, settings, "cut off")
    assert aliases(settings)["champion"] == first
    assert records(settings)[-1]["candidate"] == second
    if command == "promote":
        third = registered()
        promote(third, settings)
        assert aliases(settings) == {"champion": third, "previous": second}
    elif command == "rollback":
        rollback(settings)
        assert aliases(settings) == {"champion": first, "previous": second}
    else:
        promotion.reconcile(settings)
        assert aliases(settings) == {"champion": second, "previous": first}
    assert tags_of(settings, second)["mmva.verdict_settled"]
    assert len(records(settings)) == (2 if command == "reconcile" else 3), "the interrupted one is not logged twice"


def dying_after(count: int, call: str) -> Callable[..., Any]:
    import mlflow

    real, calls = getattr(mlflow.MlflowClient, call), iter(range(count))

    def method(*args: Any, **kwargs: Any) -> Any:
        if next(calls, None) is None:
            raise Died
        return real(*args, **kwargs)

    return method


def test_reconciling_twice_does_nothing_and_nothing_is_opened_without_a_log(
    settings: Settings, registered: Callable[..., int], tmp_path: Path
) -> None:
    promote(registered(), settings)
    second = registered()
    promote(second, settings)
    client = open_client(settings)
    with quiet():  # somebody moves it past the gate: that is no crash, and not ours to undo
        client.set_registered_model_alias(settings.tracking.model_name, "champion", "1")
    promotion.reconcile(settings)
    assert aliases(settings)["champion"] == 1
    promotion.reconcile(settings.model_copy(update={"home": tmp_path / "empty"}))
    assert not (tmp_path / "empty").exists()


@pytest.fixture
def lenient_warnings() -> Iterator[None]:
    """Filters are the process's, not a thread's: what two threads set and reset ends here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.usefixtures("lenient_warnings")
@pytest.mark.parametrize("champion", [True, False])
def test_of_two_promotions_at_once_one_wins_and_both_are_logged(
    settings: Settings,
    registered: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    champion: bool,
) -> None:
    if champion:
        promote(registered(), settings)
    holder = aliases(settings).get("champion")
    rivals, before = [registered(), registered()], len(records(settings))
    judged = threading.Barrier(2)  # neither moves before both were judged
    real = promotion.settle

    def meet(*args: Any) -> Verdict:
        judged.wait(timeout=60)
        return real(*args)

    monkeypatch.setattr("mmva_platform.tracking.promotion.settle", meet)

    def attempt(version: int) -> str:
        try:
            return promote(version, settings).outcome
        except CheckFailed as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        said = list(pool.map(attempt, rivals))
    (winner,) = [version for version, text in zip(rivals, said, strict=True) if text == "passed"]
    (loss,) = [text for text in said if text != "passed"]
    assert f"champion-unchanged alias: version {winner}, needs" in loss
    assert aliases(settings) == {"champion": winner} | ({"previous": holder} if holder else {})
    logged = {each["candidate"]: each["passed"] for each in records(settings)[before:]}
    assert logged == {version: version == winner for version in rivals}
