"""`distgan report`: the page of a run, or a table and a page of all runs in a folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distgan.errors import UserError
from distgan.reporting.comparison import COMPARED, comparison_row, write_comparison
from distgan.reporting.page import REPORT_FILE, write_report
from distgan.reporting.run_record import find_runs, is_run, read_story


@dataclass(frozen=True)
class Report:
    """The page that was written; a head and rows for the console where it compares runs."""

    page: Path
    head: Sequence[str] = ()
    rows: Sequence[list[str]] = ()


def report(folder: Path, *, out: Path | None) -> Report:
    """Write the page of a run folder, or of the runs in a folder; raises UserError where there are none."""
    if not folder.exists():
        raise UserError(f"no such file or folder: {folder}")
    page = out or folder / REPORT_FILE
    try:
        if is_run(folder):
            return Report(write_report(folder, out=page))
        runs = find_runs(folder)
        if not runs:
            raise UserError(
                f"{folder} is no run folder and holds none; give one that training wrote"
            )
        stories = [read_story(run) for run in runs]
        write_comparison(stories, page)
    except OSError as error:
        raise UserError(
            f"cannot write {page}: {error.strerror}; choose another place with --out"
        ) from None
    return Report(
        page, COMPARED, [[text for text, _ in comparison_row(story)] for story in stories]
    )
