"""`distgan report`: the page of a run, or a table and a page that compare the runs of a folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distgan.errors import UserError
from distgan.reporting.comparison import COMPARED, comparison_row, write_comparison
from distgan.reporting.page import REPORT_FILE, write_report
from distgan.reporting.run_record import find_runs, is_run, read_story


@dataclass(frozen=True)
class Report:
    """The page that was written, and the table for the console if it compares runs."""

    page: Path
    head: Sequence[str] = ()
    rows: Sequence[list[str]] = ()


def report(folder: Path, *, out: Path | None) -> Report:
    """Write the page of a run folder, or one that compares the runs in a folder.

    Raises UserError if there are no runs or the page cannot be written.
    """
    if not folder.exists():
        raise UserError(f"no such file or folder: {folder}")
    page = out or folder / REPORT_FILE
    try:
        if is_run(folder):
            return Report(write_report(folder, out=page))
        runs = find_runs(folder)
        if not runs:
            raise UserError(
                f"{folder} is not a run folder and contains none; give one that training wrote"
            )
        stories = [read_story(run) for run in runs]
        write_comparison(stories, page)
    except OSError as error:
        raise UserError(
            f"cannot write {page}: {error.strerror}; choose another place with --out"
        ) from None
    rows = [[text for text, _ in comparison_row(story)] for story in stories]
    return Report(page, COMPARED, rows)
