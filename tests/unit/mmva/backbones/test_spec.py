"""Specs and presets: what is refused, and with which words."""

from __future__ import annotations

import json

import pytest

from mmva.backbones import PRESETS, BackboneSpec, preset
from mmva.errors import UsageError

CLIP = {"modality": "image", "family": "clip", "source": "hf:openai/clip-vit-base-patch32"}


def test_spec_survives_json():
    spec = BackboneSpec(**CLIP, revision="0" * 40, sha256="a" * 64, trust_remote_code=True)
    assert BackboneSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert BackboneSpec.from_json(json.dumps(spec.to_json())) == spec


def test_layers_survive_json_and_the_default_has_none_there():
    chosen = preset("compact-layers").image
    assert BackboneSpec.from_json(json.dumps(chosen.to_json())) == chosen
    assert "layers" not in preset("compact").image.to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modality": "video"}, "modality 'video' is unknown"),
        ({"family": "clipp"}, "did you mean 'clip'"),
        ({"family": "musicnn"}, "reads music items, not image items"),
        ({"source": "hf:not a name"}, "hf:owner/name"),
        ({"source": "random:0"}, "random:SEED is for tiny families"),
        ({"family": "tiny-image", "source": "random:x"}, "random:0"),
        ({"family": "tiny-image"}, "random:SEED is for tiny families"),
        ({"source": " "}, "source is empty"),
        ({"revision": "main"}, "commit of 40 hex digits"),
        ({"sha256": "A" * 64}, "64 lower-case hex digits"),
        ({"colour": "red"}, "unknown key 'colour'"),
        ({"revision": 7}, "revision cannot be 7"),
        ({"trust_remote_code": "no"}, "trust_remote_code cannot be 'no'"),
        ({"layers": "last"}, "layers cannot be 'last'"),
        ({"layers": ["last"]}, "family 'clip' has no choice of layers"),
        ({"family": "efficientnet-lite", "layers": ["block-16"]}, "has no 'block-16'; it has last|crops"),
        ({"family": "efficientnet-lite", "layers": ["last", "last"]}, "name each layer once"),
    ],
)
def test_bad_spec_is_one_line_naming_the_field(change, message):
    with pytest.raises(UsageError, match=message) as caught:
        BackboneSpec.from_json(CLIP | change)
    assert "\n" not in str(caught.value)


def test_missing_key_is_named():
    with pytest.raises(UsageError, match="'source' is missing"):
        BackboneSpec.from_json({"modality": "image", "family": "clip"})


@pytest.mark.parametrize(
    ("source", "scheme", "name"),
    [
        ("hf:a/b", "hf", "a/b"),
        ("wheel:musicnn", "wheel", "musicnn"),
        ("s3://bucket/clip", "s3", "s3://bucket/clip"),
        ("file:///srv/clip", "file", "file:///srv/clip"),
        ("/srv/clip", "", "/srv/clip"),
        ("models/clip", "", "models/clip"),
    ],
)
def test_source_splits_into_scheme_and_name(source, scheme, name):
    spec = BackboneSpec("image", "clip", source)
    assert (spec.scheme, spec.name) == (scheme, name)


def test_preset_with_a_typo_names_the_nearest_and_the_known():
    with pytest.raises(UsageError, match=r"known: paper, compact, compact-layers, tiny.*did you mean 'compact'"):
        preset("compcat")


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_preset_has_one_spec_for_each_modality(name):
    specs = preset(name).specs
    assert {modality: spec.modality for modality, spec in specs.items()} == {
        m: m for m in ("image", "music", "caption")
    }


def test_everything_that_is_not_random_is_pinned():
    for spec in (spec for chosen in PRESETS.values() for spec in chosen.specs.values() if spec.scheme != "random"):
        assert spec.sha256 is not None
        assert spec.revision is not None or spec.scheme == "wheel"
        assert not spec.trust_remote_code
