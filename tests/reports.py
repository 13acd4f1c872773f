"""The pages of runs, written and read by tests."""

import json
import re
from pathlib import Path

from distgan.reporting.page import write_report
from distgan.reporting.run_record import read_record

# Of a run that has everything that a page shows.
REPORT_SETTINGS = [
    "log.report=true",
    "train.kimg=0.06",
    "log.samples_every_kimg=0.02",
    "evaluation.every_kimg=0.02",
]


def report_text(run: Path) -> str:
    """Write the page of a run and return its text."""
    return write_report(read_record(run), run / "report.html").read_text()


def frames_in(text: str) -> list[tuple[str, str]]:
    """Return the timeline of samples in a page."""
    return json.loads(re.findall(r'id="frames">(.*?)</script>', text)[0])
