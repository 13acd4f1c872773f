"""Commands that share results: `export`, `demo` and `wandb-workspace`."""

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from distgan.cli.app import command, flag
from distgan.errors import UserError
from distgan.reporting.console import say

Source = Annotated[
    Path,
    Argument(
        metavar="RUN",
        help="Run folder, checkpoint folder, generator.safetensors, or USER/NAME on the "
        "Hugging Face Hub.",
    ),
]
Out = Annotated[Path, Option(help="Folder to write.")]


@command
def export(
    run: Source,
    out: Out,
    format: Annotated[
        Literal["safetensors", "onnx"], Option(help="File format of the weights.")
    ] = "safetensors",
    license: Annotated[
        str, Option(help="Hugging Face name of the model's license, such as mit.")
    ] = "unknown",
    push: Annotated[
        str | None,
        Option(
            metavar="USER/NAME",
            help="Also upload the generator, its card and a demo to the Hugging Face Hub.",
        ),
    ] = None,
    private: Annotated[bool, flag("--private", help="With --push: visible to you alone.")] = False,
) -> None:
    """Export a generator for use without distgan, with a model card."""
    from distgan.commands.export import export as write_export
    from distgan.commands.push import push as push_export

    if push is None:
        if private:
            raise UserError("--private says who sees an upload; add --push USER/NAME")
        sentences = write_export(run, out, format=format, license=license)
    elif format != "safetensors":
        raise UserError("--push uploads safetensors for Python and ONNX in the demo; omit --format")
    else:
        sentences = push_export(run, out, push, license=license, private=private)
    for sentence in sentences:
        say(sentence)


@command
def demo(
    run: Source,
    out: Out,
    title: Annotated[str | None, Option(help="Heading. Default: the run's name.")] = None,
    offline: Annotated[
        bool,
        flag("--offline", help="Copy ONNX Runtime Web, which browsers get from a CDN otherwise."),
    ] = False,
) -> None:
    """Write a page on which everyone can play with a generator in the browser."""
    from distgan.commands.demo import demo as write_demo

    for sentence in write_demo(run, out, title=title, offline=offline):
        say(sentence)


@command
def wandb_workspace(
    project: Annotated[str, Option(help="W&B project, as in log.project.")] = "distgan",
    entity: Annotated[
        str | None, Option(help="W&B user or team. Default: your default one.")
    ] = None,
    name: Annotated[str, Option(help="Name of the workspace.")] = "distgan",
) -> None:
    """Save a workspace in Weights & Biases: samples, quality, diversity, balance, speed."""
    from distgan.reporting.wandb_workspace import save_workspace

    say(f"saved the workspace {name}: {save_workspace(project, entity=entity, name=name)}")
