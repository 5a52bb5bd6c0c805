"""One whole system for all tests here, and on it a champion that the main job made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import own_network
from main_job import Annotation, champion_from_files, put_catalog
from serve_api import deploy
from topology import Topology


@pytest.fixture(scope="session")
def topology() -> Iterator[Topology]:
    """All hosts, up; they are killed at the end, whatever happens."""
    with own_network():
        hosts = Topology()
        try:
            try:
                hosts.start()
            except AssertionError as error:
                pytest.fail(f"{error}\n{hosts.logs()}")
            yield hosts
        finally:
            hosts.stop()


@pytest.fixture(scope="session")
def champion(topology: Topology) -> Topology:
    """The hosts with an imported dataset, a first version that is champion, and a catalog."""
    champion_from_files(topology)
    put_catalog(topology)
    return topology


@pytest.fixture(scope="session")
def calm(champion: Topology) -> Annotation:
    """The catalog, annotated while nothing goes wrong."""
    annotation = Annotation(champion, "calm")
    champion.job(*annotation.command)
    return annotation


@pytest.fixture(scope="session")
def api_key(calm: Annotation) -> Path:
    """The file of a key for the API, which answers from here on."""
    return deploy(calm.topology)
