"""Stacked digits."""

from pathlib import Path

import numpy as np

from shards.pack import pack
from shards.reader import ShardReader
from shards.sources.registry import open_source


def test_each_channel_is_the_digit_of_its_place() -> None:
    """Channel c shows digit c of the stack's class; all modes are about equally frequent."""
    digits, stacks = open_source("digits"), open_source("stacked-digits")
    singles = {digits.read(item).tobytes(): int(digits.labels[item]) for item in range(len(digits))}
    for item in range(0, len(stacks), 997):
        pixels = stacks.read(item)
        named = "".join(
            str(singles[np.ascontiguousarray(pixels[:, :, channel]).tobytes()])
            for channel in range(3)
        )
        assert stacks.class_names[stacks.labels[item]] == named
    counts = np.bincount(stacks.labels, minlength=1000)
    assert counts.min() >= 5 and counts.max() <= 45


def test_stacks_are_packed_at_the_size_of_the_networks(tmp_path: Path, monkeypatch) -> None:
    """32 pixels and three channels, 1,000 classes."""
    monkeypatch.setattr("shards.sources.stacked.NUM_STACKED_DIGITS", 300)
    index = pack("stacked-digits", tmp_path / "out")
    assert index.image_shape == (3, 32, 32)
    assert len(index.class_names) == 1000
    assert ShardReader(index).gather(np.arange(3)).max() > 200
