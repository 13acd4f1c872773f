"""The `distgan` command: one thin function per subcommand.

Heavy imports wait until they are needed, so that `--help` answers at once.
"""

# isort: off
from distgan.cli.app import app
from distgan.cli import data, training, results, sharing  # in the order of `distgan --help`

__all__ = ["app", "data", "results", "sharing", "training"]
