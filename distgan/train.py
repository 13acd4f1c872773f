"""The door of a training run: command line -> Config -> Trainer -> exit code.

    accelerate launch distgan/train.py [--preset NAME] [--data SHARDS] [section.field=value ...]

Exit codes: 0 done, 2 what a user can mend, 75 interrupted and saved, 76 collapsed, 1 anything else. Behind a
launcher read status.json.
"""

import os
import sys
from pathlib import Path

if Path(sys.path[0] or ".").resolve() == Path(__file__).resolve().parent:
    # Started by path: this folder must not stand where its modules could hide other libraries'.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from distgan.runtime.signals import (
    Interrupt,
)  # before the slow imports, so that a signal during them is not lost

INTERRUPT = Interrupt()
if __name__ == "__main__":
    INTERRUPT.install()

from typing import Annotated

import typer

from distgan.config.flat import changed_from_defaults
from distgan.config.load import load_config, preset_names
from distgan.errors import RunFailed, UserError
from distgan.reporting.console import complain, show_table
from shards.errors import ShardError

EXIT_CODES = {"done": 0, "preempted": 75, "collapsed": 76}


def train(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings as section.field=value.", metavar="SETTING..."),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(preset_names())}, or a .toml file.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Folder of packed shards (distgan pack); none: handwritten digits."),
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="Where to write; the same command resumes.")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Show the settings and stop.")] = False,
) -> None:
    """Train a DCGAN. Settings: default < preset < command line."""
    if preset is None and data is None:
        preset = "digits"
    is_main = os.environ.get("RANK", "0") == "0"
    speaks = os.environ.get("LOCAL_RANK", "0") == "0"  # a mistake may lie in one node's files only
    try:
        config = load_config(preset, overrides or (), data=data or None)
        if dry_run:
            if is_main:
                show_table(
                    "settings that differ from the defaults",
                    list(changed_from_defaults(config).items()),
                )
            return
        from distgan.per_class import PerClassTrainer
        from distgan.runtime.distributed import leave_world
        from distgan.trainer import Trainer

        name = Path(preset).stem if preset else "run"
        kind = PerClassTrainer if config.networks.per_class else Trainer
        state = kind(
            config, name=name, run_dir=run_dir, interrupt=INTERRUPT, command=sys.argv
        ).run()
        leave_world()
    except (UserError, ShardError) as error:
        if speaks:
            complain(str(error))
        raise SystemExit(2) from None
    except RunFailed as error:
        if is_main or error.must_report:
            complain(str(error))
        raise SystemExit(1) from None
    INTERRUPT.ignore()
    raise SystemExit(EXIT_CODES[state])


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(train)
    app(prog_name="train.py")
