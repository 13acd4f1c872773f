"""Commands about trained generators: `sample`, `evaluate` and `report`."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from distgan.cli.app import command, flag
from distgan.errors import UserError
from distgan.reporting.console import say
from shards.errors import without_secrets


@command
def sample(
    sources: Annotated[
        list[Path],
        Argument(
            help="Run folder, checkpoint folder, generator.safetensors, or USER/NAME on the "
            "Hugging Face Hub. If there are several, the grid has one row for each."
        ),
    ],
    num: Annotated[
        int | None,
        Option(help="Number of images. Default: 64; 16 for --video, 8 for --progress.", min=1),
    ] = None,
    seed: Annotated[int, Option(help="Seed of the latents.", min=0)] = 0,
    truncation: Annotated[
        float | None,
        Option(help="0 to 1. Below 1: more typical, less varied images.", min=0.0, max=1.0),
    ] = None,
    class_name: Annotated[
        str | None, Option("--class", help="Class to sample, if the generator has classes.")
    ] = None,
    labels: Annotated[
        str | None,
        Option(
            help="Of a conditional generator: the class of each image, separated by commas. "
            "With --interpolate: classes that each row leads through."
        ),
    ] = None,
    out: Annotated[Path | None, Option(help="PNG file to write. Default: samples.png.")] = None,
    files: Annotated[
        Path | None, Option(help="Folder for one PNG (or .npy) file per image.")
    ] = None,
    interpolate: Annotated[
        bool, flag("--interpolate", help="Rows that morph one image into another.")
    ] = False,
    video: Annotated[Path | None, Option(help=".gif or .mp4 of morphing images.")] = None,
    progress: Annotated[
        bool, flag("--progress", help="The same latents in each checkpoint of a run.")
    ] = False,
) -> None:
    """Generate images: a grid, single files, an interpolation or a video."""
    from distgan.commands.sample import Selection, write_images

    names = tuple(name.strip() for name in labels.split(",")) if labels else ()
    selection = Selection(num, seed, truncation, class_name, names)
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
    data: Annotated[
        str | None, Option(help="Packed shards of the real images. Default: those of the run.")
    ] = None,
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
    from distgan.run.files import RunData, data_of

    real = RunData(data) if data else data_of(inputs)
    # Before the slow imports: nothing else is printed until the numbers are there.
    where = without_secrets(real.shards or "the handwritten digits")
    classes = f", classes {', '.join(real.classes)}" if real.classes else ""
    say(f"comparing {', '.join(map(str, inputs))} with {where}{classes} ...")
    from distgan.commands.evaluate import evaluate_inputs, show_scores
    from distgan.config.schema import Evaluation

    settings = Evaluation(
        num_samples=num,
        extractor=extractor,
        inception_weights=None if inception_weights is None else str(inception_weights),
        metrics=None if metrics is None else tuple(name.strip() for name in metrics.split(",")),
    )
    show_scores(
        evaluate_inputs(
            inputs, real, settings=settings, seed=seed, num_reference=reference, json_file=json
        ),
        wanted=settings.metrics or (),
    )


@command
def report(
    folder: Annotated[Path, Argument(help="Run folder, or a folder of runs.")],
    out: Annotated[
        Path | None, Option(help="HTML file to write. Default: report.html in the folder.")
    ] = None,
    live: Annotated[
        bool, flag("--live", help="Serve a page that follows a run, on this machine only.")
    ] = False,
    port: Annotated[
        int | None, Option(help="Port of the live page. Default: any free one.", min=0, max=65535)
    ] = None,
) -> None:
    """Write an HTML report of a run, or a comparison of several runs."""
    from distgan.commands import report as commands

    if live:
        return commands.serve(folder, out=out, port=port or 0, announce=say)
    if port is not None:
        raise UserError(f"--port {port} is that of the live page; add --live, or leave it out")
    return commands.show_report(commands.report(folder, out=out))
