"""One cluster for all tests in this folder."""

from collections.abc import Iterator

import pytest

from tests.slurm.cluster import Cluster


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Start two idle nodes."""
    with Cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster
