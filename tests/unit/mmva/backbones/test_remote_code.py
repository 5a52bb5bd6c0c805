"""Code from a repository runs only if the spec asks, the user names the repository, and the commit is pinned."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmva.backbones import BackboneSpec, load_encoder, preset
from mmva.backbones.tiny import load as load_tiny
from mmva.errors import UsageError

CODE = """
from pathlib import Path
from transformers import HubertConfig, HubertModel
Path({canary!r}).write_text("ran")
class AcmeConfig(HubertConfig):
    model_type = "acme"
class AcmeModel(HubertModel):
    config_class = AcmeConfig
"""
SPEC = BackboneSpec("music", "mert", "hf:acme/net", revision="0" * 40, trust_remote_code=True)


@pytest.fixture
def canary(tmp_path) -> Path:
    return tmp_path / "canary"


@pytest.fixture
def mirror(tmp_path, canary, monkeypatch) -> str:
    """A mirror of one repository whose model type is known to its own code alone."""
    folder = tmp_path / "mirror" / "acme" / "net"
    encoder = load_tiny(preset("tiny").music)
    encoder.network.save_pretrained(folder)
    encoder._extractor.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "acme", "auto_map": {"AutoConfig": "acme.AcmeConfig", "AutoModel": "acme.AcmeModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "acme.py").write_text(CODE.format(canary=str(canary)))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    return str(tmp_path / "mirror")


@pytest.mark.parametrize(
    ("spec", "trusted", "message"),
    [
        (replace(SPEC, trust_remote_code=False), ["acme/net"], "needs code from its repository"),
        (SPEC, [], "wants to run code of acme/net; .* add 'acme/net' to trust_remote_code"),
        (SPEC, ["acme/other"], "wants to run code of acme/net"),
        (replace(SPEC, revision=None), ["acme/net"], "needs an hf: source with a pinned revision"),
    ],
)
def test_refused_before_any_code_runs(spec, trusted, message, mirror, canary):
    with pytest.raises(UsageError, match=message):
        load_encoder(spec, mirror=mirror, trusted_repos=trusted)
    assert not canary.exists()


def test_a_local_folder_never_runs_code(mirror, canary):
    source = f"{mirror}/acme/net"
    with pytest.raises(UsageError, match="needs an hf: source"):
        load_encoder(replace(SPEC, source=source), trusted_repos=[source])
    assert not canary.exists()


def test_opted_in_by_name_it_runs(mirror, canary):
    encoder = load_encoder(SPEC, mirror=mirror, trusted_repos=["acme/net"])
    assert canary.read_text() == "ran"
    samples = [np.sin(np.arange(8_000, dtype=np.float32))]
    expected = load_encoder(preset("tiny").music).encode(samples)
    np.testing.assert_allclose(encoder.encode(samples), expected, atol=1e-6)
