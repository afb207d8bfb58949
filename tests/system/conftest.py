"""The cluster that the system tests share: started once, healed before each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from lab.cluster import Cluster
from lab.lab import Lab

NODES = 3
RATE = 60.0  # Mbit/s of every link: an image of 12 MiB takes long enough to be in the middle of


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Lab(logs=tmp_path_factory.mktemp("cluster-logs")) as lab:
        yield Cluster(lab, NODES, rate=RATE)


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Cluster:
    """Everything runs, whatever the test before has stopped."""
    shared_cluster.heal()
    return shared_cluster


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A laboratory of the test's own, empty; its logs are among pytest's temporary files."""
    with Lab(logs=tmp_path / "logs") as own:
        yield own
