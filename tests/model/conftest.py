"""Fixtures of the tests that train."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tests_model_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def synthetic() -> ModuleType:
    """The module synthetic.py beside this file: features to train on, and the training of one rank."""
    return _module("synthetic")


@pytest.fixture(scope="session")
def media_world() -> ModuleType:
    """The module media_world.py beside this file: media to train on."""
    return _module("media_world")
