"""Commands about images: `pack`, `verify`, `info` and `probe`."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Argument, Option

from distgan.cli.app import Shards, command, flag, parse_numbers, parse_size
from distgan.errors import UserError
from distgan.reporting.console import say, show_error, show_table


@command
def pack(
    source: Annotated[
        str,
        Argument(
            help="Folder, .tar or .zip of images, also at a URL, folder of WebDataset tars or "
            "Parquet files, or one of digits, cifar10, mnist, stacked-mnist, stacked-digits."
        ),
    ],
    out: Annotated[Path, Argument(help="Folder to write the shards to.")],
    size: Annotated[
        str | None,
        Option(help="Pixels per side, or HEIGHTxWIDTH. Default: 64 for your images."),
    ] = None,
    channels: Annotated[
        int | None, Option(help="1 (grey), 3 (colour), 4 (with alpha), or up to 16.")
    ] = None,
    bits: Annotated[int | None, Option(help="8 or 16. Default: those of the first image.")] = None,
    bands: Annotated[
        str | None, Option(help="Channels to pack, such as 4,3,2; the first three are shown.")
    ] = None,
    background: Annotated[str, Option(help="Colour behind transparent images.")] = "white",
    fit: Annotated[
        Literal["crop", "stretch"],
        Option(help="Images of other proportions: crop to the centre, or stretch."),
    ] = "crop",
    shard_size_mb: Annotated[int, Option(help="Megabytes of raw pixels per shard.")] = 32,
    encoding: Annotated[
        Literal["raw", "jpeg", "png"],
        Option(help="raw trains fastest; png and jpeg need less disk space."),
    ] = "raw",
    quality: Annotated[int | None, Option(help="JPEG quality, 1 to 100. Default: 95.")] = None,
    workers: Annotated[int | None, Option(help="Processes. Default: one per core.")] = None,
    bad_images: Annotated[
        Literal["fail", "skip"],
        Option(help="At a broken image: stop, or skip and list it in rejected.jsonl."),
    ] = "fail",
    labels: Annotated[
        str,
        Option(
            metavar="keep|ignore|FILE",
            help="keep: every image needs a label, or none has one; ignore: pack no labels; or a "
            "CSV file of path and label.",
        ),
    ] = "keep",
    image_column: Annotated[
        str | None, Option(help="Column of images in Parquet or Arrow files. Default: found.")
    ] = None,
    label_column: Annotated[
        str | None, Option(help="Column of labels in Parquet or Arrow files. Default: found.")
    ] = None,
    cls: Annotated[bool, flag(help="Write class numbers, for other readers.")] = True,
    split: Annotated[
        Literal["train", "test", "validation"],
        Option(help="Split of cifar10 or mnist (train, test) or of Parquet files."),
    ] = "train",
    root: Annotated[
        Path | None,
        Option(help="Folder with the files of cifar10 or mnist. Default: download them."),
    ] = None,
    preview: Annotated[
        Path | None, Option(help="PNG file of some images as they would be packed; packs nothing.")
    ] = None,
    part: Annotated[
        str | None,
        Option(metavar="K/N", help="Pack the K-th of N parts, on as many machines; then --join."),
    ] = None,
    join: Annotated[bool, flag("--join", help="Check the packed parts, write the index.")] = False,
) -> None:
    """Pack images into WebDataset shards.

    Images are cropped and resized to the training size, which is a square by default.
    Repeat the command to resume an interrupted pack.
    """
    from distgan.commands.pack import write_packing
    from shards.pack import label_file, plan_packing
    from shards.sources.registry import open_source
    from shards.sources.tables import TableColumns

    if preview is not None and (join or part is not None):
        option = "--join" if join else f"--part {part}"
        raise UserError(f"--preview packs nothing, so {option} would be ignored: leave out one")
    sides = None if size is None else parse_size(size)
    chosen = None if bands is None else parse_numbers("--bands", bands)
    opened = open_source(
        source, split=split, root=root, with_labels=labels != "ignore",
        label_file=label_file(labels), columns=TableColumns(image_column, label_column),
    )  # fmt: skip
    packing = plan_packing(
        opened, size=sides, channels=channels, bits=bits, bands=chosen, background=background,
        fit=fit, shard_size_mb=shard_size_mb, encoding=encoding, quality=quality, cls=cls,
    )  # fmt: skip
    if preview is not None:
        from distgan.commands.preview import write_preview

        say(write_preview(packing, preview))
        return
    write_packing(packing, out, part=part, join=join, workers=workers, bad_images=bad_images)


@command
def verify(
    shards: Shards,
    part: Annotated[
        str, Option(metavar="K/N", help="Check only the K-th of N parts, every N-th shard.")
    ] = "1/1",
    workers: Annotated[int | None, Option(help="Processes. Default: one per core.", min=1)] = None,
) -> None:
    """Check shards for damage.

    Prints what is damaged and exits with code 1.
    """
    from shards.parts import parse_part
    from shards.verify import verify as verify_shards

    which = parse_part(part)
    problems = verify_shards(shards, part=which, workers=workers)
    for problem in problems:
        show_error(str(problem))
    if problems:
        raise typer.Exit(1)
    say(f"{shards}: all shards {f'of part {which} ' if which.total > 1 else ''}are intact")


@command
def info(shards: Shards) -> None:
    """Show the images, classes, encoding and fingerprint of shards."""
    from distgan.commands.info import describe
    from shards.format.index import read_index

    show_table(str(shards), describe(read_index(shards)))


@command
def probe(
    shards: Annotated[str, Argument(help="Packed shards with class labels.")],
    flip: Annotated[bool, flag(help="Mirror images at random; not for digits.")] = False,
    seed: Annotated[int, Option(help="Seed of the training.", min=0)] = 0,
    minutes: Annotated[
        float | None,
        Option(
            help="Maximum minutes of this call. Default: until the accuracy stops improving.",
            min=0,
        ),
    ] = None,
) -> None:
    """Train a classifier of the images, for better evaluations that name missing classes.

    Repeat the command to resume an interrupted training.
    """
    from distgan.commands.probe import probe as train_probe

    train_probe(shards, flip=flip, seed=seed, minutes=minutes)
