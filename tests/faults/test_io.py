"""Every file operation of a command fails in turn; `tests.faults.io.harness` tries more."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.io.disk import Disk, Record, cut_power
from tests.faults.io.harness import ALL_FAULTS, COMMANDS, Harness, compiler

needs_compiler = pytest.mark.skipif(compiler() is None, reason="needs a C compiler (cc)")
NUM_OPERATIONS = 230  # at least as many as any command has


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    """Commands that do without PyTorch, so that their server starts at once."""
    harness = Harness(tmp_path_factory.mktemp("io"), ("pack", "cache"))
    yield harness
    harness.close()


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    """All commands."""
    harness = Harness(tmp_path_factory.mktemp("io"))
    yield harness
    harness.close()


@needs_compiler
def test_a_sample_of_faults_is_mended_by_the_same_command(light: Harness) -> None:
    """A few operations of each fault, chosen by its name."""
    for command in ("pack", "cache"):
        for fault in random.Random(command).sample(ALL_FAULTS, 3):
            first = random.Random(fault).randint(1, 30)
            for row in light.trials(command, [fault], first=first, every=NUM_OPERATIONS):
                assert row["survived"], row


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("fault", ALL_FAULTS)
@pytest.mark.parametrize("command", COMMANDS)
def test_every_fault_is_mended_by_the_same_command(
    command: str, fault: str, heavy: Harness
) -> None:
    """Of the commands that train, every tenth operation."""
    every = 10 if command in ("train", "resume") else 1
    lost = [row for row in heavy.trials(command, [fault], every=every) if not row["survived"]]
    assert lost == []


def test_a_power_cut_leaves_what_was_synced(tmp_path: Path) -> None:
    """Content is lost without a sync of the file, and a name without a sync of its folder."""
    before, place = tmp_path / "before", tmp_path / "place"
    before.mkdir()
    (before / "old").write_bytes(b"old")
    records = [
        Record("o", place / "new", b"", 1, 0),
        Record("w", place / "new", b"12345", 1, 0),
        Record("s", place / "new", b"", 1, 0),
        Record("w", place / "new", b"67", 1, 5),
        Record("r", place / "new", bytes(place / "old"), 0, 0),
        Record("s", place, b"", 9, 0),
        Record("u", place / "old", b"", 0, 0),
    ]
    expected = [
        {"old": b"old"}, {"old": b"old"}, {"old": b"old"}, {"old": b"old"}, {"old": b"old"},
        {"old": b"12345"}, {"old": b"12345"},
    ]  # fmt: skip
    for number, files in enumerate(expected, start=1):
        after = tmp_path / str(number)
        cut_power(
            before, records[:number], recorded_at=place, after=after, survives=0.0,
            draw=random.Random(0),
        )  # fmt: skip
        assert {path.name: path.read_bytes() for path in after.iterdir()} == files
    disk = Disk(before)
    for record in records[:-1]:
        disk.apply(record, root=place)
    assert {name: bytes(file.now) for name, file in disk.root.now.items()} == {"old": b"1234567"}
