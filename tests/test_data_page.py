"""The commands of docs/data.md work in order, on a source of each kind."""

from pathlib import Path

import pytest

from shards.format.index import read_index
from tests.test_commands import call
from tests.test_docs import DOCS, commands_of, photographs


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write what the page calls its sources, and go to their folder."""
    monkeypatch.chdir(tmp_path)
    photographs(tmp_path / "photographs", num=8)
    return tmp_path


def test_commands_of_the_data_page_work_in_order(sources: Path) -> None:
    """Every command succeeds, and what is joined is what the parts hold."""
    lines = commands_of(DOCS / "data.md")
    assert lines
    for line in lines:
        code, said = call(*line.split()[1:])
        assert code == 0, f"{line}\n{said}"
    assert read_index("data/photographs").num_samples == 8


def test_parts_and_joins_are_not_mixed(sources: Path) -> None:
    """One line says what to type."""
    code, said = call("pack", "photographs", "out", "--part", "1/2", "--join")
    assert (code, said.count("\n")) == (2, 1) and "do not go together" in said
    code, said = call("verify", "photographs", "--part", "3/2")
    assert (code, said.count("\n")) == (2, 1) and "--part 3/2 is not possible" in said
