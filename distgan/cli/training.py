"""Commands that train: `train`, `sweep` and `bench`."""

import os
import sys
from collections.abc import Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from distgan.cli.app import Overrides, app, command, expand_paths, flag
from distgan.config.load import build_config, load_config, preset_names
from distgan.config.recipe import recipe_for
from distgan.errors import RunFailed, UserError
from distgan.reporting.console import say_in_terminal, show_error
from distgan.runtime.signals import INTERRUPT
from distgan.runtime.streams import keep_streams
from shards.errors import ShardError, describe_system_error

EXIT_CODES = {"done": 0, "preempted": 75, "collapsed": 76}
SETTINGS = {"ignore_unknown_options": True}  # `load_config` explains them, as in --lr 1e-4


def train(
    overrides: Overrides = None,
    preset: Annotated[
        str | None,
        Option(
            help=f"{', '.join(preset_names())}, or a .toml file. Default: what suits the images."
        ),
    ] = None,
    data: Annotated[
        str | None,
        Option(help="Packed shards: a folder or a URL. Default: handwritten digits."),
    ] = None,
    run_dir: Annotated[
        Path | None,
        Option(help="Folder of the run. Default: one in runs/, chosen by settings and data."),
    ] = None,
    dry_run: Annotated[
        bool, flag("--dry-run", help="Check all, measure the first steps, and stop.")
    ] = False,
) -> None:
    """Train a DCGAN. Repeat the command to resume an interrupted run."""
    keep_streams()
    rank, local_rank = (os.environ.get(name, "0") for name in ("RANK", "LOCAL_RANK"))
    try:
        folder = expand_paths(run_dir)
        state = run(preset, overrides or (), data=data or None, run_dir=folder, dry=dry_run)
    except (UserError, ShardError) as error:
        if local_rank == "0":  # one process per node, since files may differ between nodes
            show_error(str(error))
        raise SystemExit(2) from None
    except RunFailed as error:
        if rank == "0" or error.must_report:
            show_error(str(error))
        raise SystemExit(1) from None
    except OSError as error:
        show_error(describe_system_error(error))
        raise SystemExit(1) from None
    INTERRUPT.ignore()
    raise SystemExit(EXIT_CODES[state])


@app.command(context_settings=SETTINGS)
@wraps(train)
def train_in_this_process(*args: Any, **kwargs: Any) -> None:
    INTERRUPT.install()
    train(*args, **kwargs)


def run(
    preset: str | None,
    overrides: Sequence[str],
    *,
    data: str | None,
    run_dir: Path | None,
    dry: bool,
) -> str:
    """Train until the run is done, preempted or collapsed, and return which it is.

    A `dry` run only measures its first steps, and is `done`.
    """
    check_settings(preset, overrides, data=data)
    if os.environ.get("RANK", "0") == "0":
        say_in_terminal("starting ...")
    from distgan.per_class import PerClassTrainer
    from distgan.run.settings import choose_settings
    from distgan.runtime.distributed import leave_world
    from distgan.trainer import Trainer

    chosen = choose_settings(preset, overrides, data=data, run_dir=run_dir)
    kind = PerClassTrainer if chosen.config.networks.per_class else Trainer
    trainer = kind(
        chosen.config,
        name=chosen.name,
        recipe=chosen.recipe,
        run_dir=run_dir,
        interrupt=INTERRUPT,
        command=sys.argv,
        dry=dry,
    )
    state = "done"
    if dry:
        trainer.dry_run()
    else:
        state = trainer.run()
    leave_world()
    return state


def check_settings(preset: str | None, overrides: Sequence[str], *, data: str | None) -> None:
    """Find most mistakes before the slow imports, which must not take the time; raises UserError.

    Without a preset the overrides must fit the plain DCGAN or the recipe, whose size is unknown.
    """
    try:
        load_config(preset, overrides, data=data)
    except UserError:
        if preset is not None:
            raise
        build_config(recipe_for(64, 64, num_images=1), overrides, data=data)


@command
def sweep(
    file: Annotated[Path, Argument(help="TOML file of the sweep; see docs/sweep.md.")],
    overrides: Overrides = None,
    folder: Annotated[
        Path | None, Option(help="Folder of the runs. Default: runs/ and the file's name.")
    ] = None,
    show_list: Annotated[
        bool, flag("--list", help="List the runs with their numbers and states, and stop.")
    ] = False,
    index: Annotated[
        int | None,
        Option(help="Train only the run with this number.", min=0, envvar="SLURM_ARRAY_TASK_ID"),
    ] = None,
    show_arguments: Annotated[
        bool, flag("--words", help="Print that run's arguments for distgan/train.py, and stop.")
    ] = False,
    board: Annotated[
        bool, flag("--board", help="Write the leaderboard of the runs so far, and stop.")
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
    size: Annotated[int, Option(help="Height and width of the images.", min=1)] = 64,
    channels: Annotated[int, Option(help="1 (grey) or 3 (colour).")] = 3,
    quick: Annotated[bool, flag(help="Fewer repeats, without torch.compile.")] = False,
    estimate: Annotated[
        bool,
        flag("--estimate", help="Measure nothing; estimate what a step costs on some GPUs."),
    ] = False,
    json: Annotated[Path | None, Option(help="JSON file to write the numbers to.")] = None,
) -> None:
    """Measure in a few minutes how fast this machine packs, loads and trains."""
    from distgan.commands.bench import settings_to_measure, show_bench
    from distgan.commands.estimate import show_estimate
    from distgan.run.folder import check_writable

    config = settings_to_measure(preset, overrides or (), size=size)
    if json is not None:
        check_writable(json)
    if estimate:
        show_estimate(config, size=size, channels=channels, json=json)
    else:
        show_bench(config, size=size, channels=channels, quick=quick, json=json)
