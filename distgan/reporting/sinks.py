"""The interface of the services that a run logs to: W&B and TensorBoard."""

from pathlib import Path
from typing import Any, Protocol


class Sink(Protocol):
    """A receiver of rank zero's log. No method raises; only `close` waits for a network."""

    def log(self, row: dict[str, Any], images: dict[str, tuple[Path, str]] | None = None) -> None:
        """Log a row, which has `progress/kimg`, and image files with captions."""

    def summarize(self, values: dict[str, Any]) -> None:
        """Set values that describe the whole run."""

    def alert(self, title: str, text: str) -> None:
        """Send an alert to the people who watch the run."""

    def keep_generator(self, folder: Path, *, metadata: dict[str, Any]) -> None:
        """Store the generator that is in a run folder."""

    def close(self, *, has_failed: bool = False) -> None:
        """Send everything, within a bounded time."""
