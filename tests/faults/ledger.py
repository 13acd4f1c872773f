"""The record of injected faults: a .jsonl file with one row each, and docs/reliability.md."""

import json
import os
import platform
import textwrap
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from distgan.run.files import read_rows

ROOT = Path(__file__).parent.parent.parent
ROWS = ROOT / "tests" / "faults" / "rows.jsonl"
PAGE = ROOT / "docs" / "reliability.md"
HEAD = """\
| fault | tried | survived | images lost | images repeated | computed again \
| s to detect | s to resume |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"""


def count_images(run_dir: Path, *, batch_size: int, total: int) -> dict[str, int]:
    """Count the images of a finished run that no row of metrics.jsonl has, and those that two have.

    Each row must be one batch.
    """
    rows = [row["progress/images"] for row in read_rows(run_dir / "metrics.jsonl")]
    wanted = set(range(batch_size, total + 1, batch_size))
    return {
        "images_lost": batch_size * len(wanted - set(rows)),
        "images_repeated": batch_size * (len(rows) - len(set(rows)) + len(set(rows) - wanted)),
    }


def machine() -> str:
    """Return the number of cores and the processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), ""
    )
    return f"{os.cpu_count()} cores, {model or platform.machine()}"


def record_fault(kind: str, path: Path | None = None, **figures: Any) -> None:
    """Append a row to `path` or to the file named by DISTGAN_FAULT_ROWS, if there is one."""
    target = path or os.environ.get("DISTGAN_FAULT_ROWS")
    if target:
        row = {"kind": kind} | figures | {"date": time.strftime("%Y-%m-%d"), "machine": machine()}
        with Path(target).open("a") as file:
            file.write(json.dumps(row) + "\n")


def median_and_worst(rows: list[dict[str, Any]], name: str) -> str:
    """Return the median and the largest value of a figure as text, or a dash if no row has it."""
    values = sorted(row[name] for row in rows if row.get(name) is not None)
    return f"{values[len(values) // 2]:.1f} ({values[-1]:.1f})" if values else "-"


def table_row(kind: str, group: list[dict[str, Any]]) -> str:
    """Return the row of one kind of fault in the table of docs/reliability.md."""
    lost, repeated = (
        sum(row.get(name) or 0 for row in group) for name in ("images_lost", "images_repeated")
    )
    again = [row["images_again"] for row in group if row.get("images_again") is not None]
    cells = (
        kind,
        len(group),
        sum(row["survived"] for row in group),
        lost,
        repeated,
        sum(again) // len(again) if again else "-",
        median_and_worst(group, "detect_sec"),
        median_and_worst(group, "resume_sec"),
    )
    return f"| {' | '.join(map(str, cells))} |"


def explain_failure(row: dict[str, Any]) -> str:
    """Return a wrapped list item that says why a fault was not survived."""
    text = f"- {row['kind']}: {row.get('why', 'no reason known')}."
    return textwrap.fill(text, 120, subsequent_indent="  ")


def page(rows: Iterable[dict[str, Any]]) -> str:
    """Return the text of docs/reliability.md."""
    rows = list(rows)
    kinds: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        kinds[row["kind"]].append(row)
    failed = [row for group in kinds.values() for row in group if not row["survived"]]
    dates = sorted({row["date"] for row in rows})
    return PAGE_TEXT.format(
        head=HEAD,
        table="\n".join(table_row(kind, group) for kind, group in sorted(kinds.items())),
        failed="\n".join(map(explain_failure, failed)) or "None.",
        dates=" to ".join(dict.fromkeys([dates[0], dates[-1]])),
        machine="; ".join(sorted({row["machine"] for row in rows})),
    )


PAGE_TEXT = """# Reliability: what failures cost

Training and packing were interrupted by real kills, dead nodes and network failures, and then
resumed. This page lists what was done and what it cost; every row comes from real processes.

{head}
{table}

Not survived:

{failed}

The columns:

- **survived**: the run finished after it was resumed. Its metrics have one row per report,
  without gaps or duplicates, and its last checkpoint (weights, optimizers, moving average) has
  the same sha256 as that of an undisturbed run. For packing, the shards have the same sha256.
- **images lost**, **images repeated**: training images that the finished run skipped or used
  twice, summed over all faults of the row.
- **computed again**: mean number of images between the checkpoint that the run resumed from and
  the fault. Their steps are discarded and taken again. This costs time, and does not change the
  result.
- **s to detect**: seconds from the fault until every other process of the run had ended. Under
  SLURM, until `status.json` reported it (kill -9), or until the job had left its nodes and, if it
  resumes by itself, was started again.
- **s to resume**: seconds from the new start until the first step after the fault; for packing,
  until the end. After a SIGKILL the new process is forked from one that has already imported
  torch; SLURM jobs start from nothing.

Seconds are medians, with the worst case in brackets. Measured {dates} on {machine}
(CPU, gloo; shared with other work, so that seconds are upper bounds). NCCL between several GPUs
was not tested.

## Measure it yourself

    python -m tests.faults.campaign --kills 20    # adds 20 random kills to the file of results
    DISTGAN_FAULT_ROWS=tests/faults/rows.jsonl pytest -n 0 -m slurm tests/slurm
    python -m tests.faults.campaign --report      # writes this page
"""
