"""Keys on disk, the model that follows its alias, the port, and items through a loaded model."""

from __future__ import annotations

import asyncio
import hmac
import socket
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from mmva.errors import CheckFailed, UsageError
from mmva_platform.annotation.plan.plan import ModelInfo
from mmva_platform.cli.serving import add_key, first_key
from mmva_platform.serving import auth
from mmva_platform.serving.auth import Keyring, keys_file
from mmva_platform.serving.context import ItemRequest, Row
from mmva_platform.serving.model import ModelHost, ServedModel
from mmva_platform.serving.prepare import ByteBudget, Preparing
from mmva_platform.settings import ServingSettings, Settings
from mmva_platform.storage import StorageUnavailable
from mmva_platform.tracking.resolve import ResolvedModel, resolve_model

from ...helpers.serving_world import key_settings


def test_a_key_is_kept_as_its_digest_and_found_without_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "_LOOK_AGAIN_S", -1.0)
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
    with pytest.raises(UsageError, match="new key: name"):
        add_key(file, "a b", ("read",))
    with pytest.raises(UsageError, match="new key: scopes"):
        add_key(file, "b", ("write",))


def test_the_first_key_is_shown_once_and_stored_nowhere(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    secret = first_key(settings)
    assert secret is not None
    caller = Keyring((), keys_file(settings)).find(f"Bearer {secret}", "GET")
    assert caller is not None
    assert "admin" in caller.scopes
    assert first_key(settings) is None
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and secret in file.read_text()]


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


def host_of(registry: Registry, **serving: Any) -> ModelHost:
    settings = Settings(serving=ServingSettings(**serving))
    return ModelHost(settings, resolve=registry.resolve, load=registry.load)


def test_the_champion_is_followed_there_and_back_and_a_bad_one_changes_nothing() -> None:
    registry = Registry()
    host = host_of(registry)
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


def test_a_champion_may_come_later_and_then_stays() -> None:
    registry = Registry()
    registry.error = UsageError("no such alias")
    host = host_of(registry, wait_for_model=True)
    assert host.model is None
    registry.error = None
    assert host.look()
    registry.error = UsageError("no such alias")
    with pytest.raises(UsageError):
        host.look()
    assert host.model is not None
    with pytest.raises(UsageError):
        host_of(registry)


def test_following_goes_on_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry()
    host = host_of(registry, follow_s=0.01)
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


def test_looking_for_models_and_jobs_goes_on_after_any_error() -> None:
    from mmva_platform.serving.deploy import ApiReplica

    looks: list[int] = []

    async def look() -> None:
        looks.append(1)
        if len(looks) == 3:
            raise asyncio.CancelledError  # as at the end of the replica
        raise ValueError("a file that is no job")

    replica = object.__new__(ApiReplica)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(replica._look(0.0, "jobs", look))
    assert len(looks) == 3


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    from mmva_platform.serving.deploy import await_port

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(UsageError, match=rf"serving: port {port} on 127\.0\.0\.1: Address already in use"):
            await_port("127.0.0.1", port, 0.0)
    await_port("127.0.0.1", port, 0.0)


def test_bytes_that_are_held_are_bounded_and_a_large_item_is_held_alone() -> None:
    async def most_at_once(sizes: list[int]) -> int:
        budget, held, most = ByteBudget(10), 0, 0

        async def one(size: int) -> None:
            nonlocal held, most
            async with budget.hold(size):
                held += size
                most = max(most, held)
                await asyncio.sleep(0)
                held -= size

        await asyncio.gather(*map(one, sizes))
        return most

    assert asyncio.run(most_at_once([4] * 9)) == 8
    assert asyncio.run(most_at_once([4, 25, 4])) == 25


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    (home / "media").mkdir()
    Image.new("RGB", (80, 60), (200, 90, 10)).save(home / "media" / "a.png")
    (home / "secret.txt").write_text("calm")
    return home


@pytest.fixture(scope="module")
def served(tiny_bundle: Path, home: Path) -> ServedModel:
    settings = settings_of(home)
    return ServedModel(resolve_model(str(tiny_bundle), settings), settings)


def settings_of(home: Path) -> Settings:
    return Settings(home=home, serving=ServingSettings(engine="torch", roots=(str(home / "media"),), decoders=1))


def answered(served: ServedModel, home: Path, items: list[ItemRequest], fetch: Any = None) -> list[Row]:
    """Items as a replica answers them, each in a batch of its own."""

    async def run() -> list[Row]:
        preparing = Preparing(settings_of(home))
        if fetch is not None:
            preparing._fetch = fetch
        rows = []
        for one in items:
            async with preparing(served.spec, one) as prepared:
                rows.append(served.row_of_long(prepared) if prepared.long else served.rows([prepared])[0])
        preparing.close()
        return rows

    return asyncio.run(run())


def item(**values: Any) -> ItemRequest:
    return ItemRequest(**({"id": "x", "uri": None, "modality": None, "caption": None, "data": None} | values))


@pytest.mark.slow  # starts processes
def test_a_served_model_answers_uploads_uris_and_captions_alike(served: ServedModel, home: Path) -> None:
    data = (home / "media" / "a.png").read_bytes()
    rows = answered(served, home, [
        item(id="up", modality="image", data=data),
        item(id="uri", modality="image", uri=str(home / "media" / "a.png")),
        item(id="words", modality="caption", caption="a calm piano"),
        item(id="bad", modality="image", data=b"no picture"),
        item(id="film", modality="video", data=b"no film"),
        item(id="secret", modality="caption", uri=str(home / "secret.txt")),
        item(id="what", modality="image", uri="upload:1"),
        item(id="none"),
        item(id="nothing", modality="music"),
        item(id="http", modality="image", uri="http://127.0.0.1/a.png"),
    ])  # fmt: skip
    found = {row["id"]: row.get("error", {}).get("code") for row in rows}
    assert found == {
        "up": None, "uri": None, "words": None, "bad": "not-an-image", "film": "not-video",
        "secret": "outside-roots", "what": "outside-roots", "none": "unknown-modality", "nothing": "no-media",
        "http": "outside-roots",
    }  # fmt: skip
    by_id = {row["id"]: row for row in rows}
    assert by_id["up"]["valence"] == by_id["uri"]["valence"]
    assert by_id["up"]["interval"]["valence"][0] <= by_id["up"]["valence"]
    assert {row["model_digest"] for row in rows} == {served.info.digest}


@pytest.mark.slow  # starts processes
def test_storage_that_is_away_is_the_error_of_those_items_alone(served: ServedModel, home: Path) -> None:
    def away(*_arguments: object) -> bytes:
        raise StorageUnavailable("the bucket does not answer")

    items = [item(modality="image", uri="/x.png"), item(modality="caption", caption="calm")]
    gone, words = answered(served, home, items, away)
    assert (gone["error"]["code"], gone["error"]["stage"]) == ("storage-unavailable", "fetch")
    assert words["status"] == "ok"
