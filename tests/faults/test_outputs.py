"""Files of a run that were emptied, edited or half written, and ways to end at a bad moment."""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from distgan.config.load import load_config
from distgan.config.schema import Config, total_images
from distgan.errors import UserError
from distgan.reporting.leaderboard import Entry, gather_cells, write_leaderboard
from distgan.reporting.page import render_report
from distgan.reporting.run_logger import RunLogger
from distgan.reporting.run_record import read_record
from distgan.run import checkpoints
from distgan.run.files import read_status
from distgan.run.folder import RunFolder, explained
from distgan.runtime.signals import Interrupt
from tests.test_commands import call
from tests.worlds import rows, run_world, train_run

SETTINGS = ["train.kimg=0.036", "checkpoint.every_kimg=0.012"]


@pytest.fixture(scope="module")
def finished(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three steps."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    run_world(1, train_run, shards, folder, SETTINGS)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def contents(run: Path) -> dict[str, str]:
    """Return the sha256 of all files that a repeated command must not change."""
    left_out = (".lock", "status.json", "events.jsonl")
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(run.rglob("*"))
        if path.is_file() and path.name not in left_out
    }


def test_damaged_outputs_of_a_finished_run_are_made_again(shards: Path, run: Path) -> None:
    """The same command restores them as they were, and trains nothing."""
    before = contents(run)
    (run / "generator.safetensors").write_bytes(b"")
    reals = run / "samples" / "reals.png"
    reals.write_bytes(reals.read_bytes()[: reals.stat().st_size // 2])
    unfinished = run / "checkpoints" / ".00000000.012.tmp"  # of a prune that was killed
    unfinished.mkdir()
    (unfinished / "state.json").touch()
    assert run_world(1, train_run, shards, run, SETTINGS)[0]["start"] == 36
    assert contents(run) == before
    assert not unfinished.exists()


def test_empty_grid_of_real_images_is_made_again(shards: Path, run: Path) -> None:
    """A power cut may leave an empty file, which a longer run must not keep."""
    (run / "samples" / "reals.png").write_bytes(b"")
    run_world(1, train_run, shards, run, ["train.kimg=0.048"])
    assert (run / "samples" / "reals.png").stat().st_size > 100


@pytest.mark.parametrize(("state", "recorded"), [("done", "running"), ("preempted", "preempted")])
def test_outcome_of_a_finished_run_is_recorded_last(
    state: str, recorded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is killed while it writes its plot is not done, but it may be preempted."""
    folder = RunFolder(tmp_path / "run")
    folder.write_status("running", "training", images_seen=1)
    logger = RunLogger(
        folder, name="x", config=Config(), wandb_id=None, total_images=1, images_per_epoch=1
    )

    def kill() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(logger, "plot", kill)
    with pytest.raises(KeyboardInterrupt):
        logger.close(state, "why", images_seen=1)
    folder.close()
    assert read_status(folder.path).state == recorded


def fail_last_status(shards: Path, run_dir: Path) -> Any:
    """Train while the outcome cannot be written."""
    write_status = RunFolder.write_status

    def write(self: RunFolder, state: str, *arguments: Any, **options: Any) -> None:
        if state == "done":
            with explained(self.path):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_status(self, state, *arguments, **options)

    RunFolder.write_status = write
    return train_run(shards, run_dir, SETTINGS)


def test_run_whose_outcome_cannot_be_recorded_fails(shards: Path, tmp_path: Path) -> None:
    """Its exit code must not say that all is well. The same command again records it."""
    with pytest.raises(AssertionError, match=r"RunFailed: the outcome could not .*No space left"):
        run_world(1, fail_last_status, shards, tmp_path / "run")
    assert read_status(tmp_path / "run").state == "running"
    run_world(1, train_run, shards, tmp_path / "run", SETTINGS)
    assert read_status(tmp_path / "run").state == "done"


def fail_first_save(shards: Path, run_dir: Path) -> Any:
    """Train while the first checkpoint cannot be written."""
    whole_save = checkpoints.save

    def save(*arguments: Any, **options: Any) -> Path:
        checkpoints.save = whole_save
        raise OSError(5, os.strerror(5))

    checkpoints.save = save
    return train_run(shards, run_dir, SETTINGS)


def test_first_checkpoint_must_succeed(shards: Path, finished: Path, tmp_path: Path) -> None:
    """A rollback may need it. The same command again ends as an undisturbed one."""
    with pytest.raises(AssertionError, match=r"UserError: could not save a checkpoint .*repeat"):
        run_world(1, fail_first_save, shards, tmp_path / "run")
    run_world(1, train_run, shards, tmp_path / "run", SETTINGS)
    names = [path.name for path in checkpoints.list_checkpoints(finished / "checkpoints")]
    found = checkpoints.list_checkpoints(tmp_path / "run" / "checkpoints")
    assert [path.name for path in found] == names
    assert [row["progress/images"] for row in rows(tmp_path / "run")] == [12, 24, 36]


def edit_tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    """Return a function that changes the tensors of a checkpoint."""

    def edit(path: Path) -> None:
        tensors = load_file(path / "tensors.safetensors")
        change(tensors)
        save_file(tensors, path / "tensors.safetensors")

    return edit


def edit_state(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Return a function that changes the state.json of a checkpoint."""

    def edit(path: Path) -> None:
        state = json.loads((path / "state.json").read_text())
        change(state)
        (path / "state.json").write_text(json.dumps(state))

    return edit


EDITS = {
    "a moment is missing": edit_tensors(lambda t: t.pop("optimizer_g.0.exp_avg")),
    "the moments of a weight are missing": edit_tensors(
        lambda t: [t.pop(name) for name in list(t) if name.startswith("optimizer_d.0.")]
    ),
    "a weight is missing": edit_tensors(lambda t: t.pop("ema.project.weight", t.pop(min(t)))),
    "a weight has another shape": edit_tensors(
        lambda t: t.update({"discriminator.head.bias": torch.zeros(7)})
    ),
    "no players": edit_state(lambda s: s.pop("players")),
    "no quality": edit_state(lambda s: s.update(quality=[])),
    "no history": edit_state(lambda s: s["quality"].update(monitor={})),
    "no settings": edit_state(lambda s: s.pop("config")),
    "settings are a list": edit_state(lambda s: s.update(config=[])),
    "no fingerprint": edit_state(lambda s: s.pop("fingerprint")),
    "an odd fingerprint": edit_state(lambda s: s.update(fingerprint=3)),
    "no images": edit_state(lambda s: s.pop("images_seen")),
    "no rollbacks": edit_state(lambda s: s.pop("rollbacks")),
}


def train_edited(shards: Path, runs: list[Path]) -> list[str]:
    """Resume each run in this process; return the types and messages of what each raises."""
    from distgan.runtime.accelerator import reset_accelerator

    said = []
    for run_dir in runs:
        try:
            train_run(shards, run_dir, ["train.kimg=0.048"])
            said.append("no error")
        except Exception as error:
            said.append(f"{type(error).__name__}: {error}")
        reset_accelerator()
    return said


def test_edited_checkpoints_are_one_line(shards: Path, finished: Path, tmp_path: Path) -> None:
    """A checkpoint whose manifest was made to match is refused in one line, whatever it lacks."""
    runs = []
    for name, edit in EDITS.items():
        run = Path(shutil.copytree(finished, tmp_path / name))
        newest = checkpoints.list_checkpoints(run / "checkpoints")[-1]
        edit(newest)
        manifest = json.loads((newest / "manifest.json").read_text())
        manifest["files"] = {
            file: checkpoints.describe(newest / file) for file in checkpoints.FILES
        }
        (newest / "manifest.json").write_text(json.dumps(manifest))
        runs.append(run)
    for name, said in zip(EDITS, run_world(1, train_edited, shards, runs)[0], strict=True):
        assert said.startswith(("UserError: ", "CheckpointError: ")), f"{name}: {said}"
        assert "\n" not in said, name


# ---------------------------------------------------------------------------- signals and settings


def test_hangup_stops_a_run_as_other_signals_do() -> None:
    """Closing the terminal saves the run, except under nohup, which ignores the signal."""
    before = {number: signal.getsignal(number) for number in Interrupt.SIGNALS}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        interrupt = Interrupt().install()
        os.kill(os.getpid(), signal.SIGHUP)
        assert interrupt.signal_name == "SIGHUP"
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        Interrupt().install()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_closed_output_does_not_end_a_process(stream: str) -> None:
    """Neither a closed pipe, nor no stream at all, nor a full disk."""
    code = (
        "import sys; from distgan.runtime.streams import keep_streams; keep_streams()\n"
        f"for _ in range(300): print('x' * 1000, file=sys.{stream}, flush=True)"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, **{"stdout": subprocess.DEVNULL, stream: subprocess.PIPE}
    ) as process:  # fmt: skip
        getattr(process, stream).close()
        assert process.wait(60) == 0
    number = 1 if stream == "stdout" else 2
    shell = f'exec {number}>&-; exec "$@"'
    assert (
        subprocess.run(["sh", "-c", shell, "sh", *command], stdin=subprocess.DEVNULL).returncode
        == 0
    )
    if Path("/dev/full").exists():
        with open("/dev/full", "w") as full:
            assert subprocess.run(command, **{stream: full}).returncode == 0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.kimg=0.0004", "train.kimg=0.0004 is a run of 0.4 images"),
        ("train.epochs=0.001", "train.epochs=0.001 is a run of 0.03 images"),
        ("train.kimg=1e300", "is a run of 1e"),
        ("train.cpu_threads=1000000", "train.cpu_threads=1000000: input should be less than"),
    ],
)
def test_impossible_lengths_and_threads_are_refused(setting: str, message: str) -> None:
    """A run without a step is not done, and PyTorch crashes with a million threads."""
    with pytest.raises(UserError, match=message):
        total_images(load_config(None, [setting]).train, 30)


# -------------------------------------------------------------------------------- damaged folders

DAMAGE = {
    "empty": b"",
    "null": b"null\n",
    "object": b"{}\n",
    "list": b"[[]]\n",
    "text": b'"\\ud800 x"\n{"progress/images": 1e999, "values": 3}\n',
    "bytes": bytes(range(256)),
    "deep": b"[" * 100_000,
    "huge numbers": b'{"images_seen": 1e400, "progress/images": ' + b"9" * 5000 + b"}\n",
}
FILES = (
    "status.json", "config.toml", "metrics.jsonl", "evaluations.jsonl", "events.jsonl",
    "provenance.json", "generator.json", "generator.safetensors", "samples/reals.png",
)  # fmt: skip


@pytest.mark.parametrize(
    "kinds",
    [("object", "pipe"), pytest.param((*DAMAGE, "pipe", "folder"), marks=pytest.mark.slow)],
)
def test_reports_of_damaged_folders_are_pages_or_one_line(
    kinds: tuple[str, ...], finished: Path, tmp_path: Path
) -> None:
    """Also where a file is a pipe or a folder, and also for the page of several runs."""
    runs = tmp_path / "runs"
    for file in FILES:
        for name in kinds:
            run = Path(shutil.copytree(finished, runs / f"{file.replace('/', '-')}-{name}"))
            (run / file).unlink()
            if name == "pipe":
                os.mkfifo(run / file)
            elif name == "folder":
                (run / file).mkdir()
            else:
                (run / file).write_bytes(DAMAGE[name])
            with suppress(UserError, OSError):  # which the command shows in one line
                render_report(read_record(run), nearest_note="not searched")
    code, said = call("report", runs)
    assert code == 0, said
    for number, run in enumerate(sorted(runs.iterdir())):
        with suppress(OSError):  # a pipe or a folder in place of a file, which is one line
            cells = gather_cells([Entry(str(number), {}, 0, run)], rank_by="quality/frechet")
            write_leaderboard(cells, tmp_path / "board", rank_by="quality/frechet")


def test_info_does_not_wait_for_a_pipe(tmp_path: Path) -> None:
    """An index that is no file is one line."""
    os.mkfifo(tmp_path / "index.json")
    code, said = call("info", tmp_path)
    assert (code, "not a regular file" in said) == (2, True), said
