"""TensorBoard event files in the run folder's `tensorboard/`. The step is the images seen.

tensorboard --logdir runs
"""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from distgan.errors import UserError
from distgan.text import first_line, is_number, markdown_cell

FOLDER = "tensorboard"


def check_installed() -> None:
    """Raise UserError if TensorBoard is not installed."""
    if find_spec("tensorboard") is None:
        raise UserError(
            "log.tensorboard=true needs tensorboard; type: pip install 'distgan[tensorboard]'"
        )


class TensorBoardSink:
    """Event files of one run; a problem is reported to `warn` once and ends the logging."""

    def __init__(
        self,
        folder: Path,
        *,
        config: dict[str, Any],
        images_seen: int,
        warn: Callable[[str], None],
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.warn, self.images_seen, self.summary = warn, images_seen, dict[str, Any]()
        self.writer: SummaryWriter | None = None
        try:
            # A resumed run repeats the steps after its checkpoint. This hides their old values.
            purge_step = images_seen + 1 if images_seen else None
            self.writer = SummaryWriter(str(folder / FOLDER), purge_step=purge_step)
        except (OSError, UnicodeError) as error:
            self.stop(error)
        self.add_table("settings", config)

    def log(self, row: dict[str, Any], images: dict[str, tuple[Path, str]] | None = None) -> None:
        """Log the numbers of a row, and image files."""
        self.images_seen = round(row["progress/kimg"] * 1000)
        for name, value in row.items():
            if is_number(value):
                self.call("add_scalar", name, value)
        for name, (path, _) in (images or {}).items():
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))
            self.call("add_image", name, pixels, dataformats="HWC")

    def summarize(self, values: dict[str, Any]) -> None:
        """Log values that describe the whole run, as a table."""
        self.summary |= values
        self.add_table("summary", self.summary)

    def alert(self, title: str, text: str) -> None:
        """Log a warning as text."""
        self.call("add_text", "alerts", f"**{title}**: {text}")

    def keep_generator(self, folder: Path, *, metadata: dict[str, Any]) -> None:
        """Do nothing: the generator is in the run folder."""

    def close(self, *, has_failed: bool = False) -> None:
        """Write everything to the disk."""
        self.call("close")
        self.writer = None

    def add_table(self, name: str, values: dict[str, Any]) -> None:
        """Log names and values as a Markdown table."""
        rows = [
            f"| {markdown_cell(key)} | {markdown_cell(str(value))} |"
            for key, value in values.items()
        ]
        self.call("add_text", name, "\n".join(["| | |", "| --- | --- |", *rows]))

    def call(self, method: str, *values: Any, **options: Any) -> None:
        """Call a method of the writer at the current step; a full disk ends the logging."""
        if self.writer is None:
            return
        if method != "close":
            options["global_step"] = self.images_seen
        try:
            getattr(self.writer, method)(*values, **options)
        except (OSError, UnicodeError) as error:
            self.stop(error)

    def stop(self, error: Exception) -> None:
        """Log nothing more."""
        self.writer = None
        self.warn(f"TensorBoard logging stopped: {first_line(error)}; training continues")
