"""Keys on disk, the model that follows its alias, and the record of a challenger's differences."""

from __future__ import annotations

import hmac
import json
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from mmva.errors import CheckFailed, UsageError
from mmva_platform.annotation.plan import ModelInfo
from mmva_platform.serving import keys
from mmva_platform.serving.host import ModelHost
from mmva_platform.serving.keys import Keyring, add_key, first_key, keys_file, scopes_of
from mmva_platform.serving.model import ServedModel
from mmva_platform.serving.services import ItemRequest
from mmva_platform.serving.shadow import differences, record
from mmva_platform.settings import ServingSettings, Settings
from mmva_platform.storage import StorageUnavailable, open_storage
from mmva_platform.tracking.resolve import ResolvedModel, resolve_model

from .serving_world import key_settings


def test_a_key_is_kept_as_its_digest_and_found_without_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "_LOOK_AGAIN_S", -1.0)
    file = tmp_path / "deep" / "keys.yaml"
    ring = Keyring((), file)
    assert ring.find("Bearer anything", "GET") is None
    secret = add_key(file, "studio", ("read", "annotate"))
    assert secret not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    caller = ring.find(f"Bearer {secret}", "POST")
    assert caller is not None
    assert (caller.name, caller.scopes) == ("studio", {"read", "annotate"})
    other = add_key(file, "lab", ("read",))
    assert ring.find(f"bearer {other}", "GET") is not None
    file.write_text("keys: [")
    assert ring.find(f"Bearer {other}", "GET") is not None  # a slip of the editor locks nobody out
    file.write_text("keys: []")
    assert ring.find(f"Bearer {other}", "GET") is None


@pytest.mark.parametrize("name", ["reader", "other", "boss", "nobody"])
def test_whoever_asks_is_compared_with_all_keys_in_constant_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compared, compare = [], hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda one, other: compared.append(other) or compare(one, other))
    caller = Keyring(key_settings()).find(f"Bearer {name}-key", "GET")
    assert (caller.name if caller else "nobody") == name
    assert compared == [key.sha256 for key in key_settings()]


def test_names_and_scopes_of_keys_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    add_key(file, "a", ("read",))
    with pytest.raises(UsageError, match="already"):
        add_key(file, "a", ("read",))
    with pytest.raises(UsageError, match="letters"):
        add_key(file, "a b", ("read",))
    with pytest.raises(UsageError, match="'write' is unknown"):
        scopes_of(["write"])


def test_the_first_key_is_left_for_its_owner_alone(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    first_key(settings)
    place = keys_file(settings).with_name("first-key")
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    caller = Keyring((), keys_file(settings)).find(f"Bearer {place.read_text().strip()}", "GET")
    assert caller is not None
    assert "admin" in caller.scopes
    place.unlink()
    first_key(settings)
    assert not place.exists()


class Registry:
    """An alias that a test moves."""

    def __init__(self) -> None:
        self.version, self.error = "1", None  # type: str, Exception | None
        self.loaded: list[str] = []

    def resolve(self, uri: str, _settings: Settings) -> ResolvedModel:
        if self.error is not None:
            raise self.error
        return ResolvedModel(Path("/x"), "mmva", self.version, self.version * 64, uri)

    def load(self, resolved: ResolvedModel, _settings: Settings) -> Any:
        if resolved.version == "3":
            raise CheckFailed("not what was registered")
        self.loaded.append(str(resolved.version))
        return SimpleNamespace(info=ModelInfo(name="mmva", version=resolved.version, digest=resolved.digest))


def test_the_champion_is_followed_there_and_back_and_a_bad_one_changes_nothing() -> None:
    registry = Registry()
    host = ModelHost("models:/mmva@champion", Settings(), resolve=registry.resolve, load=registry.load)
    first = host.model
    assert not host.look()
    assert host.model is first
    for version in ("2", "1"):
        registry.version = version
        assert host.look()
        assert host.model is not None
        assert host.model.info.version == version
    registry.version = "3"
    with pytest.raises(CheckFailed):
        host.look()
    assert host.model.info.version == "1"
    registry.error = UsageError("gone")
    with pytest.raises(UsageError):
        host.look()
    assert host.model is not None
    assert registry.loaded == ["1", "2", "1"]


@pytest.mark.parametrize(
    ("kind", "stays"),
    [pytest.param("optional", False, id="a challenger goes"), pytest.param("wait", True, id="a champion stays")],
)
def test_a_model_may_come_later(kind: str, stays: bool) -> None:
    registry = Registry()
    registry.error = UsageError("no such alias")
    may_be_missing: dict[str, Any] = {kind: True}
    host = ModelHost("models:/mmva@x", Settings(), resolve=registry.resolve, load=registry.load, **may_be_missing)
    assert host.model is None
    registry.error = None
    assert host.look()
    registry.error = UsageError("no such alias")
    with pytest.raises(UsageError):
        host.look()
    assert (host.model is not None) == stays
    with pytest.raises(UsageError):
        ModelHost("models:/mmva@x", Settings(), resolve=registry.resolve, load=registry.load)


def test_following_goes_on_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry()
    settings = Settings(serving=ServingSettings(follow_s=0.01))
    host = ModelHost("models:/mmva@champion", settings, resolve=registry.resolve, load=registry.load)
    looks: list[int] = []

    def look() -> bool:
        looks.append(1)
        if len(looks) == 1:
            raise OSError("the registry is away")
        host.stop()
        return False

    monkeypatch.setattr(host, "look", look)
    host._follow()
    assert len(looks) == 2


def test_differences_are_challenger_minus_champion_and_are_kept(tmp_path: Path) -> None:
    ok = {"status": "ok", "modality": "image", "sha256": "s", "valence": 0.5, "arousal": 0.4, "model_version": "1"}
    new = ok | {"valence": 0.6, "arousal": 0.1, "model_version": "2"}
    failed = {"status": "error", "modality": "image", "model_version": "2"}
    found = differences([ok, ok], [new, failed])
    assert found[0]["valence_difference"] == pytest.approx(0.1)
    assert found[0]["arousal_difference"] == pytest.approx(-0.3)
    assert (found[1]["valence_difference"], found[1]["challenger_status"]) == (None, "error")
    storage = open_storage(tmp_path)
    path = record(storage, found, "c" * 64, ModelInfo(name="mmva", version="2", digest="e" * 64))
    assert path.startswith("cccccccccccc-eeeeeeeeeeee/")
    rows = [json.loads(line) for line in storage.read(path).decode().splitlines()]
    assert [row["challenger_version"] for row in rows] == ["2", "2"]


@pytest.fixture(scope="module")
def served(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    home = tmp_path_factory.mktemp("home")
    (home / "media").mkdir()
    Image.new("RGB", (80, 60), (200, 90, 10)).save(home / "media" / "a.png")
    (home / "secret.txt").write_text("calm")
    settings = Settings(home=home, serving=ServingSettings(engine="torch", roots=(str(home / "media"),)))
    return ServedModel(resolve_model(str(tiny_bundle), settings), settings)


def item(**values: Any) -> ItemRequest:
    return ItemRequest(**({"id": "x", "uri": None, "modality": None, "caption": None, "data": None} | values))


def test_a_served_model_answers_uploads_uris_and_captions_alike(served: ServedModel) -> None:
    home = Path(served._settings.home)
    data = (home / "media" / "a.png").read_bytes()
    rows = served.annotate([
        item(id="up", modality="image", data=data),
        item(id="uri", modality="image", uri=str(home / "media" / "a.png")),
        item(id="words", modality="caption", caption="a calm piano"),
        item(id="bad", modality="image", data=b"no picture"),
        item(id="secret", modality="caption", uri=str(home / "secret.txt")),
        item(id="what", modality="image", uri="upload:1"),
        item(id="none"),
        item(id="nothing", modality="music"),
        item(id="http", modality="image", uri="http://127.0.0.1/a.png"),
    ])  # fmt: skip
    found = {row["id"]: row.get("error", {}).get("code") for row in rows}
    assert found == {
        "up": None, "uri": None, "words": None, "bad": "not-an-image", "secret": "outside-roots",
        "what": "outside-roots", "none": "unknown-modality", "nothing": "no-media", "http": "outside-roots",
    }  # fmt: skip
    by_id = {row["id"]: row for row in rows}
    assert by_id["up"]["valence"] == by_id["uri"]["valence"]
    assert by_id["up"]["interval"]["valence"][0] <= by_id["up"]["valence"]
    assert {row["model_digest"] for row in rows} == {served.info.digest}


def test_one_request_never_sees_another_ones_upload(served: ServedModel) -> None:
    served.annotate([item(modality="caption", data=b"a secret of somebody else")])
    assert served._items._uploads == {}
    message = served.annotate([item(modality="image", data=b"x")])[0]["error"]["message"]
    assert "upload:" not in message


def test_storage_that_is_away_is_the_error_of_those_items_alone(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_arguments: object) -> bytes:
        raise StorageUnavailable("the bucket does not answer")

    monkeypatch.setattr(served._items, "_fetcher", away)
    gone, words = served.annotate([item(modality="image", uri="/x.png"), item(modality="caption", caption="calm")])
    assert (gone["error"]["code"], gone["error"]["stage"]) == ("storage-unavailable", "fetch")
    assert words["status"] == "ok"
