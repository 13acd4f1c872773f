"""Training and packing survive SIGKILL at random moments; `campaign` tries many more."""

import random

import pytest

from tests.faults.campaign import KINDS, Campaign
from tests.faults.ledger import record_fault

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    """Pack shards, and make an undisturbed run and an undisturbed pack to compare with."""
    return Campaign(tmp_path_factory.mktemp("kills"))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", KINDS)
def test_restart_after_sigkill_is_bit_identical(kind: str, seed: int, campaign: Campaign) -> None:
    """The result equals the undisturbed one bit for bit; no image is lost or repeated."""
    row = campaign.kill(kind, random.Random(seed))
    record_fault(kind, **row)
    assert row["survived"], row
