"""The Typer application, how commands are registered, and parameters that several have."""

import platform
from collections.abc import Callable
from functools import partial, wraps
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from distgan.errors import UserError
from distgan.networks.sizes import pyramid
from distgan.reporting.console import say, say_in_terminal, show_error
from shards.errors import ShardError, describe_system_error
from shards.files import expand_user

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    help="Pack images; train DCGANs; sample, evaluate, report, export and compare them.\n\n"
    "Train with several processes: accelerate launch distgan/train.py",
)
SLOW_TO_START = ("sample", "report", "export", "demo", "bench", "probe", "sweep")
RESUMABLE = ("pack", "probe", "sweep")

Overrides = Annotated[
    list[str] | None,
    Argument(metavar="SETTING", help="Settings to change: section.field=value."),
]
flag = partial(Option, metavar="")  # an option without a value
Shards = Annotated[Path, Argument(help="Folder of packed shards.")]


@app.callback()
def options(
    version: Annotated[bool, flag("--version", help="Show the versions and exit.")] = False,
) -> None:
    """Handle the options that come before a command."""
    if version:
        say(versions())
        raise typer.Exit


def parse_size(text: str) -> tuple[int, int]:
    """Return (height, width) of `64` or `64x96`; raises UserError if no networks make that size."""
    height, _, width = text.partition("x")
    try:
        size = (int(height), int(width or height))
    except ValueError:
        raise UserError(f"--size {text}: give pixels per side, or HEIGHTxWIDTH") from None
    try:
        pyramid(size)
    except ValueError as error:
        raise UserError(f"--size {text}: {error}") from None
    return size


def parse_numbers(option: str, text: str) -> list[int]:
    """Return the numbers of `4,3,2`; raises UserError."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise UserError(
            f"{option} {text}: give numbers with commas between, such as 4,3,2"
        ) from None


def versions() -> str:
    """Return the versions of distgan, Python and torch."""
    python = f"Python {platform.python_version()}"
    return f"distgan {metadata.version('distgan')}, {python}, torch {metadata.version('torch')}"


def expand_paths(value: Any) -> Any:
    """Return a path, or each of a list, with its `~` replaced, which shells keep in `--out=~/x`.

    Other values are returned unchanged. Raises ShardError.
    """
    if isinstance(value, list):
        return [expand_paths(each) for each in value]
    return expand_user(value) if isinstance(value, Path) else value


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Register a command. A user's mistake prints one line and exits with code 2."""

    @app.command()
    @wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> None:
        if function.__name__ in SLOW_TO_START:
            say_in_terminal("starting ...")
        try:
            function(*args, **{name: expand_paths(value) for name, value in kwargs.items()})
        except (UserError, ShardError) as error:
            show_error(str(error))
            raise typer.Exit(2) from None
        except OSError as error:
            show_error(describe_system_error(error))
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            resume = "; repeat the command to resume" if function.__name__ in RESUMABLE else ""
            show_error(f"stopped{resume}")
            raise typer.Exit(75) from None

    return guarded
