"""Entry point of `accelerate launch`: command line -> Config -> Trainer -> exit code.

    accelerate launch distgan/train.py [--preset NAME] [--data SHARDS] [section.field=value ...]

Exit codes: 0 done, 2 a user's mistake, 75 interrupted and saved, 76 collapsed, 1 anything else.
Launchers return a code of their own; scripts that use one should read status.json.
"""

import os
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
if Path(sys.path[0] or ".").resolve() == FOLDER:
    # Python has put this folder first, where our modules could hide installed ones of that name.
    sys.path[0] = str(FOLDER.parent)

from distgan.runtime.signals import Interrupt

INTERRUPT = Interrupt()
if __name__ == "__main__":
    INTERRUPT.install()  # before the slow imports, so that a signal during them is not lost

from typing import Annotated

import typer

from distgan.config.flat import changed_from_defaults
from distgan.config.load import load_config, preset_names
from distgan.config.schema import Config
from distgan.errors import RunFailed, UserError
from distgan.reporting.console import show_error, show_table
from shards.errors import ShardError

EXIT_CODES = {"done": 0, "preempted": 75, "collapsed": 76}


def train(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="SETTING", help="Settings to change: section.field=value."),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help=f"{', '.join(preset_names())}, or a .toml file.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Packed shards: a folder or a URL. Default: handwritten digits."),
    ] = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(help="Folder of the run. Default: one in runs/, chosen by settings and data."),
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Show the settings and stop.")] = False,
) -> None:
    """Train a DCGAN. Repeat the command to resume an interrupted run."""
    if preset is None and data is None:
        preset = "digits"
    rank, local_rank = (os.environ.get(name, "0") for name in ("RANK", "LOCAL_RANK"))
    try:
        config = load_config(preset, overrides or (), data=data or None)
        if dry_run:
            if rank == "0":
                changes = changed_from_defaults(config)
                show_table("settings that differ from the defaults", list(changes.items()))
            return
        state = run(config, name=Path(preset).stem if preset else "run", run_dir=run_dir)
    except (UserError, ShardError) as error:
        if local_rank == "0":  # one process per node, since files may differ between nodes
            show_error(str(error))
        raise SystemExit(2) from None
    except RunFailed as error:
        if rank == "0" or error.must_report:
            show_error(str(error))
        raise SystemExit(1) from None
    INTERRUPT.ignore()
    raise SystemExit(EXIT_CODES[state])


def run(config: Config, *, name: str, run_dir: Path | None) -> str:
    """Train until the run is done, preempted or collapsed, and return which it is."""
    from distgan.per_class import PerClassTrainer
    from distgan.runtime.distributed import leave_world
    from distgan.trainer import Trainer

    kind = PerClassTrainer if config.networks.per_class else Trainer
    trainer = kind(config, name=name, run_dir=run_dir, interrupt=INTERRUPT, command=sys.argv)
    state = trainer.run()
    leave_world()
    return state


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(train)
    app(prog_name="train.py")
