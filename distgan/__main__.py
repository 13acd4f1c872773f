"""Entry point of `distgan` and `python -m distgan`."""

import sys

from distgan.runtime.signals import INTERRUPT


def main() -> None:
    """Run the command line. A signal that arrives during the imports is not lost."""
    if sys.argv[1:2] == ["train"]:
        INTERRUPT.install()
    from distgan.cli import app

    app(prog_name="distgan")


if __name__ == "__main__":
    main()
