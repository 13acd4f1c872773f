"""Entry point of `accelerate launch`; `distgan train` is the same for a single process.

    accelerate launch distgan/train.py [--preset NAME] [--data SHARDS] [section.field=value ...]

Exit codes: 0 done, 2 a user's mistake, 75 interrupted and saved, 76 collapsed, 1 anything else.
Launchers return a code of their own; scripts that use one should read status.json.
"""

import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
if Path(sys.path[0] or ".").resolve() == FOLDER:
    # Python has put this folder first, where our modules could hide installed ones of that name.
    sys.path[0] = str(FOLDER.parent)

from distgan.runtime.signals import INTERRUPT

if __name__ == "__main__":
    INTERRUPT.install()  # before the slow imports, so that a signal during them is not lost

import typer

from distgan.cli.training import SETTINGS, train

__all__ = ["train"]

if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(context_settings=SETTINGS)(train)
    app(prog_name="train.py")
