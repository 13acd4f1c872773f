"""Where probes and reference features are kept between runs, and how a file gets there whole."""

import os
import tempfile
from pathlib import Path


def cache_dir() -> Path:
    """Where probes and reference features lie: $DISTGAN_CACHE, or distgan/ in the user's cache folder."""
    if own := os.environ.get("DISTGAN_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distgan"


def write_atomically(path: Path, content: bytes) -> None:
    """The whole file or nothing, whoever else writes it at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(content)
            file.close()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
