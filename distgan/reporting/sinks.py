"""What a service that shows the metrics of a run has to provide."""

from pathlib import Path
from typing import Any, Protocol


class Sink(Protocol):
    """Receives everything that rank zero reports. No method raises, and none waits for a network."""

    def log(self, row: dict[str, Any], images: dict[str, tuple[Path, str]] | None = None) -> None:
        """Log a row, which has `progress/kimg`, and image files with captions."""

    def summarize(self, values: dict[str, Any]) -> None:
        """Set values that describe the whole run."""

    def alert(self, title: str, text: str) -> None:
        """Send a warning to whoever watches the run."""

    def keep_generator(self, folder: Path, *, metadata: dict[str, Any]) -> None:
        """Store the generator's files in a run folder."""

    def close(self, *, has_failed: bool = False) -> None:
        """Send everything, within a bounded time."""
