"""`distgan pack`: write a dataset, one part of it, or the index of all parts."""

from pathlib import Path

from distgan.commands.info import describe, describe_other_files
from distgan.errors import UserError
from distgan.reporting.console import counting_progress, say, show_table
from distgan.text import pluralize
from shards.format.index import ShardIndex
from shards.pack import BadImages, write_dataset
from shards.pack_workers import Packing
from shards.parts import PackedPart, Part, join_parts, pack_part, parse_part


def write_packing(
    packing: Packing,
    out: Path,
    *,
    part: str | None,
    join: bool,
    workers: int | None,
    bad_images: BadImages,
) -> None:
    """Pack as the options say, and print what was written."""
    if part is not None and join:
        raise UserError(f"--part {part} and --join do not go together: join once all are packed")
    which = None if part is None else parse_part(part)
    with counting_progress("joining" if join else "packing") as progress:
        if which is not None:
            done = pack_part(
                packing, out, which, workers=workers, bad_images=bad_images, progress=progress
            )
        else:
            write = join_parts if join else write_dataset
            done = write(packing, out, workers=workers, bad_images=bad_images, progress=progress)
    if which is not None and isinstance(done, PackedPart):
        say(describe_part(done, which, out))
    elif isinstance(done, ShardIndex):
        others = describe_other_files(packing.source.other_files)
        show_table(f"packed {out}", describe(done) + others)


def describe_part(done: PackedPart, part: Part, out: Path) -> str:
    """Say in one line what a part holds, and what to do once there are all."""
    left_out = f", {pluralize(done.num_rejected, 'image')} left out" if done.num_rejected else ""
    return (
        f"packed part {part} of {out}: {pluralize(done.num_samples, 'sample')} in "
        f"{pluralize(done.num_shards, 'shard')}{left_out}; once all parts are packed, repeat the "
        "command with --join in place of --part"
    )
