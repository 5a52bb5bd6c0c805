"""What the registry refuses and what its log shows, on both back ends: sources, surplus files, promotion by hand."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from registry_cases import aliases, make_bundle, records

from mmva.errors import CheckFailed, UsageError
from mmva.models.bundle import read_bundle_info
from mmva_platform.settings import Settings
from mmva_platform.storage import open_storage
from mmva_platform.tracking import promotion
from mmva_platform.tracking.audit import AuditLog, audit
from mmva_platform.tracking.model import BUNDLE_PATH
from mmva_platform.tracking.promotion import challenge, compare, promote, rollback
from mmva_platform.tracking.registry import list_versions
from mmva_platform.tracking.resolve import resolve_model
from mmva_platform.tracking.store import open_client, quiet

pytestmark = [pytest.mark.slow, pytest.mark.system]


class Canary:
    """Leaves a trace if anything unpickles it."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.trace,))


def test_a_pickle_beside_a_registered_bundle_is_refused_and_never_runs(
    settings: Settings, registered: Callable[..., int], tmp_path: Path
) -> None:
    name, version = settings.tracking.model_name, registered()
    shutil.rmtree(settings.home / "cache" / "models", ignore_errors=True)  # of another test's equal bundle
    location = open_client(settings).get_model_version_download_uri(name, str(version))
    place = open_storage(location, settings.storage)
    place.write(f"{BUNDLE_PATH}/model.pkl", pickle.dumps(Canary(tmp_path / "ran")))
    with pytest.raises(CheckFailed, match=r"model\.pkl: not listed in SHA256SUMS"):
        resolve_model(f"models:/{name}/{version}", settings)
    place.delete(f"{BUNDLE_PATH}/model.pkl")
    place.write(f"{BUNDLE_PATH}/card.md", b"another card")
    with pytest.raises(CheckFailed, match=r"card\.md: changed"):
        resolve_model(f"models:/{name}/{version}", settings)
    assert not (tmp_path / "ran").exists()
    assert not any((settings.home / "cache" / "models").glob("*"))


@pytest.mark.parametrize(
    ("settings", "way_out"),
    [("sqlite", ""), ("sqlite", "mmva/../../../"), ("server", "")],  # MLflow's server refuses the second itself
    indirect=["settings"],
)
def test_a_source_outside_the_allowed_roots_is_refused(
    settings: Settings, registered: Callable[..., int], tmp_path: Path, way_out: str
) -> None:
    """A whole, sound bundle with the digest that the registry knows: only its place is wrong."""
    registered()
    digest = read_bundle_info(make_bundle(tmp_path / "elsewhere" / BUNDLE_PATH, seed=7)).digest
    root = settings.tracking.artifact_roots or (str(settings.home / "artifacts"),)
    elsewhere = f"{root[0]}/{way_out}elsewhere" if way_out else f"s3://another/{tmp_path.name}"
    name = settings.tracking.model_name
    with quiet():
        client = open_client(settings)
        made = client.create_model_version(name, source=elsewhere, tags={"mmva.model_digest": digest})
    with pytest.raises(CheckFailed, match=r"outside the allowed roots .*tracking\.artifact_roots") as caught:
        resolve_model(f"models:/{name}/{made.version}", settings)
    assert "\n" not in str(caught.value)


def test_previous_champion_and_challenger_follow_each_other(settings: Settings, registered: Callable[..., int]) -> None:
    first, second, third = registered(), registered(), registered()
    promote(first, settings)
    challenge(second, settings, "trained on more")
    assert aliases(settings) == {"champion": first, "challenger": second}
    assert list_versions(settings)[1].verdict == "", "nobody judged it yet"
    with pytest.raises(UsageError, match="challenger already"):
        challenge("challenger", settings)
    assert compare("challenger", "champion", settings).passed
    assert aliases(settings) == {"champion": first, "challenger": second}
    promote("challenger", settings)
    assert aliases(settings) == {"champion": second, "previous": first}
    challenge(third, settings)
    rollback(settings)
    assert aliases(settings) == {"champion": first, "previous": second, "challenger": third}
    assert [each["action"] for each in records(settings)] == [
        "promote", "challenge", "promote", "challenge", "rollback",
    ]  # fmt: skip
    assert audit(settings).agrees


def test_comparing_says_what_the_gate_would_say_and_records_nothing(
    settings: Settings, registered: Callable[..., int]
) -> None:
    better, worse = registered(mse=0.02), registered(mse=0.025)
    verdict = compare(worse, better, settings)
    assert (verdict.action, verdict.passed, verdict.champion) == ("compare", False, better)
    assert {finding.rule for finding in verdict.failures} == {"non-inferior", "slice"}
    assert "would be refused" in verdict.to_text()
    assert records(settings) == []
    assert aliases(settings) == {}
    with pytest.raises(UsageError, match="both are version"):
        compare(better, better, settings)


def test_a_replay_agrees_and_names_what_was_done_past_the_log(
    settings: Settings, registered: Callable[..., int]
) -> None:
    assert audit(settings).agrees
    first, second = registered(), registered(mse=0.025)
    promote(first, settings)
    with pytest.raises(CheckFailed):
        promote(second, settings)
    promote(second, settings, "a drill", force=True)
    report = audit(settings)
    assert report.agrees, report.to_text()
    assert "forced  (a drill)" in report.to_text()
    client, name = open_client(settings), settings.tracking.model_name
    with quiet():
        client.set_registered_model_alias(name, "champion", str(first))
        client.delete_model_version_tag(name, str(second), "mmva.forced")
        client.set_model_version_tag(name, str(first), "mmva.verdict_reason", "something else")
        run_id = list_versions(settings)[0].run_id
        client.log_text(run_id, "{}", "verdicts/00000001-promote-v1.json")
    found = {difference.where: difference for difference in audit(settings).differences}
    assert set(found) == {
        "alias champion", f"version {second}'s tag mmva.forced", f"version {first}'s tag mmva.verdict_reason",
        "artifact verdicts/00000001-promote-v1.json",
    }  # fmt: skip
    assert str(found["alias champion"]) == f"alias champion: the log says {second}, the registry has {first}"
    json.dumps(audit(settings).to_json(), allow_nan=False)
    promote(second, settings, "again", force=True)
    where = [difference.where for difference in audit(settings).differences]
    assert "alias champion before record 4" in where, "what was done past the gate stays in sight"
    assert "alias champion" not in where


def test_a_replay_says_what_a_crash_left_and_leaves_it(
    settings: Settings, registered: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(registered(), settings)
    second = registered()
    log = AuditLog.of(settings)
    with monkeypatch.context() as patched:
        patched.setattr(promotion, "_apply", lambda *_: None)
        promote(second, settings)
    for _ in range(2):
        found = [difference.where for difference in audit(settings).differences]
        assert {"alias champion", "alias previous", "record 2"} <= set(found)
    promotion.reconcile(settings)
    assert audit(settings).agrees
    assert len(log.read()) == 2
