"""Killed at random moments, a run goes on as if nothing had happened. `python -m tests.faults.campaign` for many more."""

import random

import pytest

from tests.faults.campaign import KINDS, Campaign
from tests.faults.ledger import note

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    """Shards, and a run and a pack that nothing happens to."""
    return Campaign(tmp_path_factory.mktemp("kills"))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_started_again(kind: str, seed: int, campaign: Campaign) -> None:
    """Bit for bit what it would have been: no image lost, none twice."""
    row = campaign.kill(kind, random.Random(seed))
    note(kind, **row)
    assert row["survived"], row
