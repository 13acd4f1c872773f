"""The `distgan` command: one thin function a command; heavy imports wait until they are needed."""

import shlex
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from distgan.errors import UserError
from distgan.reporting.console import (
    complain,
    counting_progress,
    say,
    share_progress,
    show_columns,
    show_table,
)
from shards.errors import ShardError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Pack images; score, sample, report and export DCGANs; vary their training.",
)


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Register a command whose user mistakes are one line and exit code 2."""

    @app.command()
    @wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except (UserError, ShardError) as error:
            complain(str(error))
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            complain(
                "stopped"
                + (
                    "; the same command goes on from here"
                    if function.__name__ in ("pack", "sweep")
                    else ""
                )
            )
            raise typer.Exit(75) from None

    return guarded


@command
def pack(
    source: Annotated[
        str,
        typer.Argument(
            help="Image folder, .tar or .zip of images, folder of WebDataset tars, or one of "
            "digits, cifar10, mnist, stacked-mnist, stacked-digits."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="Folder for the shards.")],
    size: Annotated[
        int | None, typer.Option(help="Pixels a side; 64 for folders and archives.")
    ] = None,
    channels: Annotated[int | None, typer.Option(help="1 or 3.")] = None,
    shard_size_mb: Annotated[
        int, typer.Option(help="Size of a shard of raw pixels, in MB; encoded ones get smaller.")
    ] = 32,
    encoding: Annotated[
        Literal["raw", "jpeg", "png"],
        typer.Option(help="Of the pixels: raw trains fastest, png and jpeg stay small."),
    ] = "raw",
    quality: Annotated[
        int | None, typer.Option(help="Of jpeg, 1 to 100; 95 where not given.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; none means all cores.")] = None,
    bad_images: Annotated[
        Literal["fail", "skip"],
        typer.Option(help="Stop at a broken image, or list it in rejected.jsonl."),
    ] = "fail",
    cls: Annotated[
        bool, typer.Option(help="Write class numbers into the tars for other readers.")
    ] = True,
    split: Annotated[
        Literal["train", "test"], typer.Option(help="Of cifar10 and mnist.")
    ] = "train",
    root: Annotated[
        Path | None,
        typer.Option(
            help="Where the official files of cifar10 and mnist lie; none downloads them."
        ),
    ] = None,
) -> None:
    """Pack images into WebDataset shards at the training size. A stopped pack goes on when called again."""
    from shards.pack import pack as pack_shards

    with counting_progress("packing") as show:
        index = pack_shards(
            source, out, size=size, channels=channels, shard_size_mb=shard_size_mb, encoding=encoding, quality=quality,
            workers=workers, bad_images=bad_images, cls=cls, split=split, root=root, progress=show,
        )  # fmt: skip
    show_table(f"packed {out}", describe(index))


@command
def verify(shards: Annotated[Path, typer.Argument(help="Folder of packed shards.")]) -> None:
    """Check every count and checksum; exit 1 and the names of what is damaged."""
    from shards.verify import verify as verify_shards

    problems = verify_shards(shards)
    for problem in problems:
        complain(str(problem))
    if problems:
        raise typer.Exit(1)
    say(f"{shards}: every shard is as it was packed")


@command
def info(shards: Annotated[Path, typer.Argument(help="Folder of packed shards.")]) -> None:
    """Show samples, classes, encoding, size and fingerprint."""
    from shards.format.index import read_index

    show_table(str(shards), describe(read_index(shards)))


def describe(index: Any) -> list[tuple[str, Any]]:
    """A dataset in rows for a person."""
    channels, height, width = index.image_shape
    encoding = index.encoding + (
        f" of quality {index.quality}" if index.quality is not None else ""
    )
    of_raw = f", {index.num_bytes / index.raw_num_bytes:.0%} of raw" if index.is_encoded else ""
    rows = [
        ("samples", f"{index.num_samples:,}"),
        (
            "images",
            f"{width}x{height}, {channels} channel{'s' if channels > 1 else ''}, {encoding}",
        ),
        ("shards", f"{len(index.shards)}, {index.num_bytes / 1e6:,.1f} MB{of_raw}"),
        ("fingerprint", index.fingerprint),
    ]
    if index.num_rejected:
        left_out = f"{index.num_rejected:,} broken image{'s' if index.num_rejected > 1 else ''}, listed in rejected.jsonl"
        rows.insert(1, ("left out", left_out))
    if index.class_names:
        classes = ", ".join(
            f"{name} {count:,}"
            for name, count in zip(index.class_names, index.class_counts, strict=True)
        )
        count = len(index.class_names)
        rows.insert(-2, ("classes", f"{count}: {classes}" if count <= 100 else count))
    return rows


@command
def sample(
    sources: Annotated[
        list[Path],
        typer.Argument(
            help="Run folder, checkpoint folder or generator.safetensors; of several, a row each."
        ),
    ],
    num: Annotated[
        int | None,
        typer.Option(
            help="How many images; none means 64, 16 in a video, 8 with --progress.", min=1
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Which images.", min=0)] = 0,
    truncation: Annotated[
        float | None,
        typer.Option(
            help="Cut latents off at this value: more typical images, fewer kinds; 1.5, say.",
            min=0.01,
        ),
    ] = None,
    class_name: Annotated[
        str | None,
        typer.Option(
            "--class", help="The one class to sample of a generator of networks.per_class=true."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="PNG file for a grid.")] = Path("samples.png"),
    files: Annotated[
        Path | None, typer.Option(help="Folder for single PNG files in place of a grid.")
    ] = None,
    interpolate: Annotated[
        bool, typer.Option("--interpolate", help="Each row goes over from one image to another.")
    ] = False,
    video: Annotated[
        Path | None, typer.Option(help=".gif or .mp4 of a walk from image to image.")
    ] = None,
    progress: Annotated[
        bool,
        typer.Option(
            "--progress", help="The same images in all checkpoints of a run, a column each."
        ),
    ] = False,
) -> None:
    """Write images from a trained generator: a grid, files, an interpolation, a video or its progress."""
    from distgan.commands import sample as job

    kinds = [bool(files), interpolate, bool(video), progress]
    if sum(kinds) > 1:
        raise UserError(
            "--files, --interpolate, --video and --progress each make something else; choose one"
        )
    if len(sources) > 1 and any(kinds):
        raise UserError("only a grid can show several generators; give one of them")
    selection = job.Selection(num, seed, truncation, class_name)
    if files:
        say(f"wrote {job.sample_files(sources[0], files, selection)} images to {files}")
    elif interpolate:
        say(f"wrote {job.interpolate(sources[0], selection, out=out)}")
    elif video:
        say(f"wrote {job.video(sources[0], selection, out=video)}")
    elif progress:
        path, kimg = job.progress(sources[0], selection, out=out)
        say(f"wrote {path}; columns: {', '.join(kimg)} kimg")
    else:
        say(f"wrote {job.sample(sources, selection, out=out)}")


@command
def report(
    folder: Annotated[Path, typer.Argument(help="Run folder, or a folder of runs.")],
    out: Annotated[
        Path | None, typer.Option(help="HTML file to write; none means report.html in the folder.")
    ] = None,
) -> None:
    """Write one page that tells a run, or a table and a page that compare runs."""
    from distgan.commands.report import report as write_report

    written = write_report(folder, out=out)
    if written.rows:
        show_columns(list(written.head), [list(row) for row in written.rows])
    say(f"wrote {written.page}")


@command
def export(
    run: Annotated[
        Path, typer.Argument(help="Run folder, checkpoint folder or generator.safetensors.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    format: Annotated[
        Literal["safetensors", "onnx"], typer.Option(help="Of the weights.")
    ] = "safetensors",
    license: Annotated[
        str,
        typer.Option(
            help="Licence of the model, as Hugging Face names it: mit, cc-by-4.0, other ..."
        ),
    ] = "unknown",
) -> None:
    """Write a generator to be used without distgan, with a model card."""
    from distgan.commands.export import export as write_export

    for sentence in write_export(run, out, format=format, license=license):
        say(sentence)


@command
def probe(
    shards: Annotated[str, typer.Argument(help="Packed shards with class labels.")],
    flip: Annotated[
        bool, typer.Option(help="Mirror images at random: right for photographs, wrong for digits.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the training.", min=0)] = 0,
) -> None:
    """Train the small classifier in whose features generators of these images are scored."""
    from distgan.commands.probe import probe as train_probe

    with share_progress("training the probe") as show:
        trained, path = train_probe(shards, flip=flip, seed=seed, progress=show)
    card = trained.card
    if card.is_weak:
        complain(
            "that is hardly better than a guess: `auto` will take random features, for these classes do not look different"
        )
    say(
        f"{card.accuracy:.1%} of {card.num_held_out:,} held-out images named rightly; probe {trained.version} in {path}"
    )


@command
def evaluate(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            help="Run folders, checkpoints, generator files, folders of images, or packed shards."
        ),
    ],
    data: Annotated[str, typer.Option(help="Packed shards of the real images.")],
    num: Annotated[
        int,
        typer.Option(
            help="Fakes to score; without --reference at most half as many as reals.", min=12
        ),
    ] = 10_000,
    reference: Annotated[
        int | None,
        typer.Option(help="Real images to compare with; none means as many as fakes.", min=12),
    ] = None,
    extractor: Annotated[
        str, typer.Option(help="auto, random, probe, inception, or the file of a probe.")
    ] = "auto",
    inception_weights: Annotated[
        Path | None, typer.Option(help="File of Inception weights.")
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(help="Names of metrics, with commas; none means all.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the latents.", min=0)] = 0,
    json: Annotated[Path | None, typer.Option(help="File for the numbers.")] = None,
) -> None:
    """Score generated images against real ones: a table and a verdict."""
    from distgan.commands.evaluate import evaluate_inputs
    from distgan.config.schema import Evaluation

    settings = Evaluation(
        num_samples=num,
        extractor=extractor,
        inception_weights=None if inception_weights is None else str(inception_weights),
        metrics=None if metrics is None else tuple(metrics.split(",")),
    )
    scored = evaluate_inputs(
        inputs, data, settings=settings, seed=seed, num_reference=reference, json_file=json
    )
    reals = scored[0].result.reals
    rows = [
        [
            name,
            *(f"{each.result.values[name]:.4g}" for each in scored),
            f"{reals[name]:.4g}" if name in reals else "",
        ]
        for name in scored[0].result.values
    ]
    show_columns(["", *(each.name for each in scored), "real images"], rows)
    for each in scored:
        say(
            f"{each.name}: {each.verdict}",
            style="bold red" if each.verdict.is_trouble else "bold green",
        )
    say(scored[0].result.protocol.line())


@command
def sweep(
    file: Annotated[
        Path, typer.Argument(help="What to vary: docs/sweep.md says how it is written.")
    ],
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="Settings of every run as section.field=value.", metavar="SETTING..."),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="For the runs; none means runs/ and the file's name.")
    ] = None,
    show: Annotated[
        bool, typer.Option("--list", help="Show the runs with their numbers and states, and stop.")
    ] = False,
    index: Annotated[
        int | None,
        typer.Option(
            help="Take this one run only, for one task of an array.",
            min=0,
            envvar="SLURM_ARRAY_TASK_ID",
        ),
    ] = None,
    words: Annotated[
        bool, typer.Option("--words", help="Print that run's words for distgan/train.py, and stop.")
    ] = False,
    board: Annotated[
        bool, typer.Option("--board", help="Write the leaderboard of what is there, and stop.")
    ] = False,
) -> None:
    """Train many runs and rank them. A stopped sweep goes on when called again."""
    from distgan.commands import sweep as job
    from distgan.reporting import leaderboard
    from distgan.run.files import read_status
    from distgan.runtime.signals import Interrupt

    asked = job.read_sweep(file)
    folder = folder or Path("runs") / file.stem
    runs = job.plan_runs(asked, folder=folder, words=settings or ())
    if index is not None and not index < len(runs):
        raise UserError(
            f"--index {index}: there are {len(runs)} runs, numbers 0 to {len(runs) - 1}; see them with --list"
        )
    chosen = runs if index is None else [runs[index]]
    if words:
        typer.echo("\n".join(chosen[0].words))
        return
    if show:
        rows = [[str(i), run.entry.label, str(run.entry.seed), read_status(run.entry.folder)["state"]]
                for i, run in enumerate(runs)]  # fmt: skip
        show_columns(["number", "cell", "seed", "state"], rows)
        say(
            f"as an array: sbatch --array=0-{len(runs) - 1} launch/sweep.sbatch {shlex.join([str(file), *(settings or ())])}"
        )
        return
    interrupt = Interrupt()
    if not board:
        interrupt.install()
        job.run_all(chosen, group=file.stem, launcher=asked.launcher, interrupt=interrupt)
    if interrupt.raised:
        complain(f"{interrupt.signal_name}; saved, and the same command goes on from here")
        raise typer.Exit(75)
    if index is None:
        ranked = leaderboard.gather_cells([run.entry for run in runs], rank_by=asked.rank_by)
        head, table = leaderboard.table(ranked, rank_by=asked.rank_by)
        show_columns(head, table)
        if note := leaderboard.unlike(ranked):
            complain(note)
        files = leaderboard.write_leaderboard(ranked, folder, rank_by=asked.rank_by)
        say(f"wrote {', '.join(map(str, files))}")
    if not board and not all(run.is_finished for run in chosen):
        raise typer.Exit(1)


@command
def bench(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings as section.field=value.", metavar="SETTING..."),
    ] = None,
    preset: Annotated[str | None, typer.Option(help="A preset or a .toml file.")] = None,
    size: Annotated[int, typer.Option(help="Pixels a side of the images: 32, 64 or 128.")] = 64,
    channels: Annotated[int, typer.Option(help="1 or 3.")] = 3,
    quick: Annotated[bool, typer.Option(help="Fewer repeats, nothing compiled.")] = False,
    json: Annotated[Path | None, typer.Option(help="File for the numbers.")] = None,
) -> None:
    """Measure how fast this machine packs, loads and trains, in a few minutes on generated images."""
    from distgan.commands.bench import bench as measure
    from distgan.config.load import load_config
    from distgan.run.folder import check_writable, write_json

    if size not in (32, 64, 128) or channels not in (1, 3):
        raise UserError(
            f"--size {size} --channels {channels} cannot be: give 32, 64 or 128 and 1 or 3"
        )
    config = load_config(preset, list(overrides or []))
    if json is not None:
        check_writable(json)
    found = measure(
        config, size=size, channels=channels, quick=quick, progress=lambda what: say(f"{what} ...")
    )
    show_columns(["", "median (least to most)", ""], [list(row) for row in found.rows])
    say(", ".join(f"{name} {value}" for name, value in found.machine.items()))
    if json is not None:
        write_json(json, {"machine": found.machine, "measured": found.values})
        say(f"wrote {json}")
