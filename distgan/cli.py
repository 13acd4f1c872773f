"""The `distgan` command: one thin function per subcommand.

Heavy imports wait until they are needed, so that `--help` answers at once.
"""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer import Argument, Option

from distgan.errors import UserError
from distgan.reporting.console import counting_progress, say, show_columns, show_error, show_table
from shards.errors import ShardError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Pack images; sample, evaluate, report, export and compare trained DCGANs.\n\n"
    "Train with: accelerate launch distgan/train.py",
)
RESUMABLE = ("pack", "probe", "sweep")

Overrides = Annotated[
    list[str] | None,
    Argument(metavar="SETTING", help="Settings to change: section.field=value."),
]
Shards = Annotated[Path, Argument(help="Folder of packed shards.")]


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Register a command. A user's mistake prints one line and exits with code 2."""

    @app.command()
    @wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except (UserError, ShardError) as error:
            show_error(str(error))
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            resume = "; repeat the command to resume" if function.__name__ in RESUMABLE else ""
            show_error(f"stopped{resume}")
            raise typer.Exit(75) from None

    return guarded


@command
def pack(
    source: Annotated[
        str,
        Argument(
            help="Folder, .tar or .zip of images, folder of WebDataset tars, or one of "
            "digits, cifar10, mnist, stacked-mnist, stacked-digits."
        ),
    ],
    out: Annotated[Path, Argument(help="Folder to write the shards to.")],
    size: Annotated[
        int | None, Option(help="Pixels per side. Default: 64 for your images.")
    ] = None,
    channels: Annotated[int | None, Option(help="1 (gray) or 3 (color).")] = None,
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
        Literal["keep", "ignore"],
        Option(help="keep: every image needs a label, or none has one; ignore: pack no labels."),
    ] = "keep",
    cls: Annotated[bool, Option(help="Write class numbers, for other readers.")] = True,
    split: Annotated[Literal["train", "test"], Option(help="Split of cifar10 or mnist.")] = "train",
    root: Annotated[
        Path | None,
        Option(help="Folder with the files of cifar10 or mnist. Default: download them."),
    ] = None,
) -> None:
    """Pack images into WebDataset shards.

    Images are cropped to squares and resized to the training size.
    Repeat the command to resume an interrupted pack.
    """
    from distgan.commands.info import describe
    from shards.pack import pack as pack_shards

    with counting_progress("packing") as progress:
        index = pack_shards(
            source, out, size=size, channels=channels, shard_size_mb=shard_size_mb,
            encoding=encoding, quality=quality, workers=workers, bad_images=bad_images,
            labels=labels, cls=cls, split=split, root=root, progress=progress,
        )  # fmt: skip
    show_table(f"packed {out}", describe(index))


@command
def verify(shards: Shards) -> None:
    """Check shards for damage.

    Prints what is damaged and exits with code 1.
    """
    from shards.verify import verify as verify_shards

    problems = verify_shards(shards)
    for problem in problems:
        show_error(str(problem))
    if problems:
        raise typer.Exit(1)
    say(f"{shards}: all shards are intact")


@command
def info(shards: Shards) -> None:
    """Show the images, classes, encoding and fingerprint of shards."""
    from distgan.commands.info import describe
    from shards.format.index import read_index

    show_table(str(shards), describe(read_index(shards)))


@command
def probe(
    shards: Annotated[str, Argument(help="Packed shards with class labels.")],
    flip: Annotated[bool, Option(help="Mirror images at random; not for digits.")] = False,
    seed: Annotated[int, Option(help="Seed of the training.", min=0)] = 0,
    minutes: Annotated[
        float | None,
        Option(help="Most minutes to train. Default: until more does not help.", min=0),
    ] = None,
) -> None:
    """Train a classifier of the images, for better evaluations that name missing classes.

    Repeat the command to resume an interrupted training.
    """
    from distgan.commands.probe import probe as train_probe

    train_probe(shards, flip=flip, seed=seed, minutes=minutes)


@command
def sample(
    sources: Annotated[
        list[Path],
        Argument(
            help="Run folder, checkpoint folder or generator.safetensors. "
            "If there are several, the grid has one row for each."
        ),
    ],
    num: Annotated[
        int | None,
        Option(help="Number of images. Default: 64; 16 for --video, 8 for --progress.", min=1),
    ] = None,
    seed: Annotated[int, Option(help="Seed of the latents.", min=0)] = 0,
    truncation: Annotated[
        float | None,
        Option(help="Limit of the latents, such as 1.5: typical, less varied images.", min=0.01),
    ] = None,
    class_name: Annotated[
        str | None, Option("--class", help="Class to sample, if networks.per_class=true.")
    ] = None,
    out: Annotated[Path, Option(help="PNG file to write.")] = Path("samples.png"),
    files: Annotated[Path | None, Option(help="Folder for one PNG file per image.")] = None,
    interpolate: Annotated[
        bool, Option("--interpolate", help="Rows that morph one image into another.")
    ] = False,
    video: Annotated[Path | None, Option(help=".gif or .mp4 of morphing images.")] = None,
    progress: Annotated[
        bool, Option("--progress", help="The same latents in each checkpoint of a run.")
    ] = False,
) -> None:
    """Generate images: a grid, single files, an interpolation or a video."""
    from distgan.commands.sample import Selection, write_images

    selection = Selection(num, seed, truncation, class_name)
    say(
        write_images(
            sources,
            selection,
            out=out,
            files=files,
            interpolates=interpolate,
            video_file=video,
            shows_progress=progress,
        )
    )


@command
def evaluate(
    inputs: Annotated[
        list[Path],
        Argument(
            help="Run folders, checkpoints, generator files, folders of images, or packed shards."
        ),
    ],
    data: Annotated[str, Option(help="Packed shards of the real images.")],
    num: Annotated[
        int,
        Option(help="Generated images; without --reference at most half the real ones.", min=12),
    ] = 10_000,
    reference: Annotated[
        int | None, Option(help="Real images to compare with. Default: as --num.", min=12)
    ] = None,
    extractor: Annotated[
        str, Option(help="Features: auto, random, probe, inception, or the file of a probe.")
    ] = "auto",
    inception_weights: Annotated[
        Path | None, Option(help="File of Inception weights. Default: download them.")
    ] = None,
    metrics: Annotated[
        str | None, Option(help="Metrics to compute, separated by commas. Default: all.")
    ] = None,
    seed: Annotated[int, Option(help="Seed of the latents.", min=0)] = 0,
    json: Annotated[Path | None, Option(help="JSON file to write the numbers to.")] = None,
) -> None:
    """Compare generated with real images: metrics and a verdict."""
    from distgan.commands.evaluate import evaluate_inputs, show_scores
    from distgan.config.schema import Evaluation

    settings = Evaluation(
        num_samples=num,
        extractor=extractor,
        inception_weights=None if inception_weights is None else str(inception_weights),
        metrics=None if metrics is None else tuple(metrics.split(",")),
    )
    show_scores(
        evaluate_inputs(
            inputs, data, settings=settings, seed=seed, num_reference=reference, json_file=json
        )
    )


@command
def report(
    folder: Annotated[Path, Argument(help="Run folder, or a folder of runs.")],
    out: Annotated[
        Path | None, Option(help="HTML file to write. Default: report.html in the folder.")
    ] = None,
    live: Annotated[
        bool, Option("--live", help="Serve a page that follows a run, on this machine only.")
    ] = False,
    port: Annotated[
        int, Option(help="Port of the live page. Default: any free one.", min=0, max=65535)
    ] = 0,
) -> None:
    """Write an HTML report of a run, or a comparison of several runs."""
    from distgan.commands.report import report as write_report
    from distgan.commands.report import serve, show_report

    if live and out is not None:
        raise UserError("--live writes no file; leave out --out")
    if live:
        serve(folder, port=port, announce=lambda url: say(f"{folder}: {url} (Ctrl-C to stop)"))
    else:
        show_report(write_report(folder, out=out))


@command
def export(
    run: Annotated[Path, Argument(help="Run folder, checkpoint folder or generator.safetensors.")],
    out: Annotated[Path, Option(help="Folder to write.")],
    format: Annotated[
        Literal["safetensors", "onnx"], Option(help="File format of the weights.")
    ] = "safetensors",
    license: Annotated[
        str, Option(help="Hugging Face name of the model's license, such as mit.")
    ] = "unknown",
) -> None:
    """Export a generator for use without distgan, with a model card."""
    from distgan.commands.export import export as write_export

    for sentence in write_export(run, out, format=format, license=license):
        say(sentence)


@command
def sweep(
    file: Annotated[Path, Argument(help="TOML file of the sweep; see docs/sweep.md.")],
    overrides: Overrides = None,
    folder: Annotated[
        Path | None, Option(help="Folder of the runs. Default: runs/ and the file's name.")
    ] = None,
    show_list: Annotated[
        bool, Option("--list", help="List the runs with their numbers and states, and stop.")
    ] = False,
    index: Annotated[
        int | None,
        Option(help="Train only the run with this number.", min=0, envvar="SLURM_ARRAY_TASK_ID"),
    ] = None,
    show_arguments: Annotated[
        bool, Option("--words", help="Print that run's arguments for distgan/train.py, and stop.")
    ] = False,
    board: Annotated[
        bool, Option("--board", help="Write the leaderboard of the runs so far, and stop.")
    ] = False,
) -> None:
    """Train many runs with different settings and rank them.

    Repeat the command to resume an interrupted sweep.
    """
    from distgan.commands import sweep as commands

    plan = commands.plan_sweep(file, overrides or (), folder=folder, index=index, board=board)
    if show_arguments:
        typer.echo("\n".join(commands.arguments_of_run(plan)))
    elif show_list:
        commands.list_runs(plan)
    elif board:
        raise typer.Exit(0 if commands.write_board(plan) else 2)
    else:
        raise typer.Exit(commands.train_runs(plan))


@command
def bench(
    overrides: Overrides = None,
    preset: Annotated[str | None, Option(help="Name of a preset, or a .toml file.")] = None,
    size: Annotated[int, Option(help="Height and width of the images: 32, 64 or 128.")] = 64,
    channels: Annotated[int, Option(help="1 (gray) or 3 (color).")] = 3,
    quick: Annotated[bool, Option(help="Fewer repeats, without torch.compile.")] = False,
    json: Annotated[Path | None, Option(help="JSON file to write the numbers to.")] = None,
) -> None:
    """Measure in a few minutes how fast this machine packs, loads and trains."""
    from distgan.commands.bench import bench as measure
    from distgan.config.load import load_config
    from distgan.run.folder import check_writable, write_json

    config = load_config(preset, overrides or ())
    if json is not None:
        check_writable(json)
    results = measure(
        config, size=size, channels=channels, quick=quick, progress=lambda what: say(f"{what} ...")
    )
    show_columns(["", "median (least to most)", ""], [list(row) for row in results.rows])
    say(", ".join(f"{name} {value}" for name, value in results.machine.items()))
    if json is not None:
        write_json(json, {"machine": results.machine, "measured": results.values})
        say(f"wrote {json}")
