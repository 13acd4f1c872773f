"""`distgan report`: the page of a run, also live, or a page that compares the runs in a folder."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from distgan.errors import UserError
from distgan.reporting.comparison import Group, group_runs, write_comparison
from distgan.reporting.console import say, show_columns, show_warning
from distgan.reporting.live import LiveServer
from distgan.reporting.page import REPORT_FILE, write_report
from distgan.reporting.run_record import RunRecord, read_record
from distgan.run.files import find_runs, is_run


@dataclass(frozen=True)
class Report:
    """The page that was written, the groups of runs it compares, and what was damaged."""

    page: Path
    groups: list[Group]
    warnings: list[str]


def report(folder: Path, *, out: Path | None) -> Report:
    """Write the page of a run folder, or of the runs in a folder; raises UserError."""
    if not folder.exists():
        raise UserError(f"no such file or folder: {folder}")
    page = out or folder / REPORT_FILE
    with disk_errors(f"cannot read {folder}"):
        if is_run(folder):
            record = read_record(folder)
            with disk_errors(f"cannot write {page}", "; choose another place with --out"):
                write_report(record, page)
            return Report(page, [], list(record.warnings))
        records, warnings = read_records(find_runs(folder))
    if not records:
        raise UserError(
            f"{folder} is neither a run folder nor a folder of run folders; give one that training "
            f"wrote{''.join(f'; {warning}' for warning in warnings)}"
        )
    groups = group_runs(records)
    with disk_errors(f"cannot write {page}", "; choose another place with --out"):
        write_comparison(groups, page, folder=folder, warnings=warnings)
    return Report(page, groups, warnings)


def show_report(written: Report) -> None:
    """Print the tables of the compared runs, the warnings and the name of the page."""
    for group in written.groups:
        say(group.title, style="bold")
        show_columns(group.columns, [[cell.text for cell in row] for row in group.results])
    for warning in written.warnings:
        show_warning(warning)
    say(f"wrote {written.page}")


def read_records(paths: list[Path]) -> tuple[list[RunRecord], list[str]]:
    """Return the runs that can be read, and a warning for each file or folder that cannot."""
    records, warnings = [], []
    for path in paths:
        try:
            with disk_errors(f"cannot read {path}"):
                records.append(read_record(path))
        except UserError as error:
            warnings.append(str(error))
        else:
            warnings += [f"{path}: {warning}" for warning in records[-1].warnings]
    return records, warnings


def serve(run: Path, *, out: Path | None, port: int, announce: Callable[[str], None]) -> None:
    """Serve the live page of a run until Ctrl-C; `announce` gets its address. Raises UserError."""
    if out is not None:
        raise UserError("--live writes no file; leave out --out")
    with disk_errors(f"cannot read {run}"):
        if not is_run(run):
            raise UserError(f"{run} is not a run folder; --live shows one run")
    with disk_errors(f"cannot use port {port}", "; choose another with --port"):
        server = LiveServer(run, port=port)
    announce(f"{run}: {server.url} (Ctrl-C to stop)")
    with server, suppress(KeyboardInterrupt):
        server.serve_forever()


@contextmanager
def disk_errors(problem: str, remedy: str = "") -> Iterator[None]:
    """Raise UserError if a file or port cannot be used."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{problem}: {error.strerror or error}{remedy}") from None
