"""Whole shards, and copies to be damaged."""

import shutil
from pathlib import Path

import pytest

from shards.format.index import ShardIndex, read_index
from tests.shards.servers import pack_noise

NUM_SHARDS = 3


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    """Pack three shards, to be read only."""
    return pack_noise(tmp_path_factory.mktemp("whole") / "data", num_shards=NUM_SHARDS)


@pytest.fixture
def copy(whole: ShardIndex, tmp_path: Path) -> ShardIndex:
    """Copy the shards, for a test that damages them."""
    return read_index(shutil.copytree(whole.path, tmp_path / "data"))
