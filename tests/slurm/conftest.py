"""One cluster for all tests in this folder."""

from collections.abc import Iterator

import pytest

from tests.slurm.cluster import Cluster


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Start four idle nodes."""
    with Cluster(tmp_path_factory.mktemp("slurm"), nodes=4) as cluster:
        yield cluster
