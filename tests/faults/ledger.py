"""The record of injected faults: a .jsonl file with one row each, and docs/reliability.md."""

import json
import os
import platform
import textwrap
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from distgan.run.files import read_rows
from tests.faults.limits import MAX_BYTES, MAX_SECONDS

ROOT = Path(__file__).parent.parent.parent
ROWS = ROOT / "tests" / "faults" / "rows.jsonl"
PAGE = ROOT / "docs" / "reliability.md"
IO_ROWS = ROOT / "tests" / "faults" / "io" / "pass.jsonl"
SOAK_ROWS = ROOT / "tests" / "faults" / "soak.jsonl"
FUZZ_ROWS = ROOT / "tests" / "faults" / "fuzz.jsonl"
FUZZ_HEAD = """\
| read | minutes | inputs | failed |
| --- | ---: | ---: | ---: |"""
IO_HEAD = """\
| command | fault | every | operations | survived | lost | repeated rows | tracebacks |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"""
SOAK_HEAD = """\
| hours | faults | restarts by SLURM | submitted again | images | lost | repeated \
| lines of tracebacks | last row at W&B | same weights |
| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |"""
ANSWERS = {True: "yes", False: "no", None: "-"}
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


def record_operations(row: dict[str, Any]) -> None:
    """Record the sums of a pass over one command with one fault, in place of earlier ones."""
    replace_row(IO_ROWS, row, keys=("command", "fault"))


def replace_row(path: Path, row: dict[str, Any], *, keys: tuple[str, ...]) -> None:
    """Write a row with date and machine in place of the one with the same values of `keys`."""
    others = [each for each in read_rows(path) if any(each[key] != row[key] for key in keys)]
    dated = row | {"date": time.strftime("%Y-%m-%d"), "machine": machine()}
    path.write_text("".join(json.dumps(each) + "\n" for each in [*others, dated]))


def record_fuzzing(target: str, *, minutes: float, tried: int, failed: int) -> None:
    """Record how many inputs of a kind were tried, in place of an earlier row."""
    row = {"target": target, "minutes": round(minutes, 1), "tried": tried, "failed": failed}
    replace_row(FUZZ_ROWS, row, keys=("target",))


def fuzz_section(rows: list[dict[str, Any]]) -> str:
    """Return the table of inputs that were tried, by what was read, and when."""
    names = ("target", "minutes", "tried", "failed")
    lines = [f"| {' | '.join(str(row[name]) for name in names)} |" for row in rows]
    total = {name: sum(row[name] for row in rows) for name in names[1:]}
    found = [findings(rows), ""] if any("found" in row for row in rows) else []
    last = f"| all | {total['minutes']:.0f} | {total['tried']} | {total['failed']} |"
    return "\n".join([FUZZ_HEAD, *lines, last, "", *found, measured(rows), "", ""])


def findings(rows: list[dict[str, Any]]) -> str:
    """Return what rows say was found, as a list."""
    return "\n".join(
        textwrap.fill(f"- {finding}.", 120, subsequent_indent="  ")
        for row in rows
        for finding in row.get("found", ())
    )


def io_table(rows: Iterable[dict[str, Any]]) -> str:
    """Return the table of operations that failed, by command and fault."""
    lines = []
    for row in rows:
        lost = row["operations"] - row["survived"]
        figures = (row[name] for name in ("command", "fault", "every", "operations", "survived"))
        cells = (*figures, lost, row["repeated_rows"], row["tracebacks"])
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([IO_HEAD, *lines])


def soak_section(soaks: list[dict[str, Any]]) -> str:
    """Return the section about long runs under faults of all kinds."""
    names = (
        "restarts",
        "submissions",
        "images",
        "images_lost",
        "images_repeated",
        "traceback_lines",
    )
    lines, kinds = [], Counter[str]()
    for row in soaks:
        kinds.update(row["faults"])
        cells = [f"{row['hours']:.2f}", sum(row["faults"].values()), *map(row.get, names)]
        answers = [ANSWERS[row.get(name)] for name in ("wandb_has_the_end", "survived")]
        lines.append(f"| {' | '.join(map(str, [*cells, *answers]))} |")
    listed = ", ".join(f"{kind} ({number})" for kind, number in sorted(kinds.items()))
    return SOAK_TEXT.format(
        table="\n".join([SOAK_HEAD, *lines]),
        kinds=textwrap.fill(f"The faults were: {listed}.", 120),
        found=findings(soaks) or "Nothing.",
        measured=measured(soaks),
    )


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


def operations_section(passes: list[dict[str, Any]]) -> str:
    """Return the section about single file operations."""
    return OPERATIONS_TEXT.format(io_table=io_table(passes), measured=measured(passes))


def measured(rows: list[dict[str, Any]]) -> str:
    """Return a sentence about when and on which machines rows were measured."""
    dates = ", ".join(sorted({row["date"] for row in rows}))
    machines = "; ".join(sorted({row["machine"] for row in rows}))
    return textwrap.fill(f"Measured {dates} on {machines}.", 120)


def page(rows: Iterable[dict[str, Any]]) -> str:
    """Return the text of docs/reliability.md."""
    rows, passes, soaks = list(rows), read_rows(IO_ROWS), read_rows(SOAK_ROWS)
    fuzzed = read_rows(FUZZ_ROWS)
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
        soak=soak_section(soaks) if soaks else "",
        operations=operations_section(passes) if passes else "",
        fuzz=fuzz_section(fuzzed) if fuzzed else "",
        max_seconds=MAX_SECONDS,
        max_megabytes=MAX_BYTES // 10**6,
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

{soak}{operations}## What a power cut may cost

Data that is written but not synced (`fsync`) may be lost when the power fails. A run writes in this
order, and each step is on the disk before the next one begins:

1. `config.toml` and `provenance.json`, then `status.json` with the state `running`.
2. Rows are appended to `metrics.jsonl`, `evaluations.jsonl` and `events.jsonl` without a sync.
   Sample grids are synced.
3. Before a checkpoint, all rows and the names of their files.
4. The three files of the checkpoint and their folder, under a temporary name.
5. The checkpoint gets its name, and `checkpoints/` is synced.
6. Older checkpoints are renamed and then removed, and `checkpoints/` is synced. A power cut before
   that may bring one back, in part; the same command removes it.
7. At the end, the last checkpoint, `generator.safetensors` and `generator.json`. If the run is done
   or has collapsed, `losses.png` and `report.html` follow, and `status.json` comes last; otherwise
   `status.json` comes before these two.

Every file but the three with rows is written under a temporary name, synced, renamed, and then its
folder is synced, so it has either its old or its new content. A power cut therefore costs at most
the steps since the last checkpoint. The same command drops their rows, which may be there in part,
and trains these steps again, with the same result. Events since the last checkpoint may be lost.

`distgan pack` syncs each shard, renames it, syncs the folder, and then records the shard in
`.packing/`. `labels.npy`, `spans.npy` and `rejected.jsonl` follow, `index.json` comes after them
and makes the dataset, and `.packing/` is removed last. A power cut costs at most the shard that was
being written.

The cache of remote shards syncs a file before it gets its name. Probes and measured references are
synced, too.

## Damaged files

    python -m tests.faults.fuzz --minutes 60 --record

changes bytes and values of everything that distgan reads from files: archives, index, spans,
checkpoint manifests, generators and their descriptions, probes, `status.json`, `.jsonl`, TOML and
sweep files. Each must be read or refused with one line, within {max_seconds} s and {max_megabytes}
MB of memory. Inputs that fail are saved in `tests/faults/corpus/`, and the tests read them again.

{fuzz}## Measure it yourself

    python -m tests.faults.campaign --kills 20    # adds 20 random kills to the file of results
    DISTGAN_FAULT_ROWS=tests/faults/rows.jsonl pytest -n 0 -m slurm tests/slurm
    python -m tests.faults.campaign --report      # writes this page
"""

SOAK_TEXT = """## A long job under all faults

One job on four nodes with two ranks each, on a real SLURM of which all nodes are network namespaces
on one machine. Its shards came from an HTTP server, and its metrics went to a stand-in for W&B. One
fault after another, of a kind and at a moment drawn at random, happened to it until the run had
finished. Some faults came before the job had recovered from the last one, so some signals found no
process.

{table}

{kinds}

Found on the way:

{found}

The columns:

- **submitted again**: the job ended, and the same command was typed again. SLURM restarts a job
  that lost a rank only if it has saved a checkpoint since its last start.
- **lost**, **repeated**: images, counted in the rows of the finished run.
- **lines of tracebacks**: those in the log of the job that name a file of distgan. The launchers
  of torch end in tracebacks of their own when a rank was lost.
- **last row at W&B**: whether the stand-in has it, although it was away at times.
- **same weights**: the last checkpoint is that of a run with the same settings on four nodes that
  nothing disturbed.

{measured}

    python -m tests.faults.soak --minutes 30 --record

"""

OPERATIONS_TEXT = """## Every file operation

Each file operation of a command (open, read, write, sync, truncate, rename, remove, create) in its
run folder or output folder was disturbed: it failed once, or it and all later ones failed, or it
wrote only half, or the process was killed before or in the middle of it, or the power failed after
it and all or a random half of what was not synced was lost. Then the same command was run again,
undisturbed.

{io_table}

**Survived**: the same command ended without an error, with the same files as a command that was
never disturbed: the same bytes of shards, weights, samples and settings, every row once, and
nothing left over but empty lock files. Of checkpoints the newest one counts, because a run that
cannot write an earlier one says so and continues. **Lost** are all others. **Tracebacks** counts
commands that ended in one instead of in one line. **Every** is 1 if each operation was disturbed,
and n if only each n-th was.

{measured}

The command below disturbs each operation of all commands that it knows: `pack`, `checkpoint` (three
checkpoints with their rows, without training), `train` (three steps with a checkpoint after each),
`resume` (the same run, killed half-way before), `report`, `export` and `cache`.

    python -m tests.faults.io.harness --record

"""
