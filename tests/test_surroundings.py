"""Ordinary surroundings: no home folder, long names, too few open files, folders of others."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import distgan.data
import shards.files
from distgan import cli
from distgan.data import packed_digits
from shards.errors import ShardError
from shards.files import cache_folder, expand_user, locked, read_regular
from shards.pack import pack
from tests.worlds import SMALL, run_code, run_script

ROOT = Path(__file__).parent.parent


def call(*words: object) -> tuple[int, str]:
    """Run a command; return its exit code and its output on one line."""
    result = CliRunner().invoke(cli.app, [str(word) for word in words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output.strip()


@pytest.mark.parametrize(
    "words",
    [
        ("info", "~nouser/shards"),
        ("pack", "~nouser/images", "out"),
        ("pack", "digits", "~nouser/out"),
        ("info", "x" * 300),
        ("pack", "x" * 300, "out"),
        ("report", "x" * 300),
        ("sample", "x" * 300),
        ("evaluate", "x" * 300, "--data", "x" * 300),
        ("export", "x" * 300, "--out", "out"),
        ("sweep", "x" * 300),
        ("sweep", "~nouser/sweep.toml"),
        ("export", "digits", "--out=~nouser/out"),
        ("train", "--run-dir=~nouser/run"),
        ("train", "--preset=~nouser/preset.toml"),
    ],
)
def test_names_that_cannot_exist_are_one_line(words: tuple[str, ...]) -> None:
    """There is no traceback, and the name is in the line."""
    code, said = call(*words)
    assert code in (1, 2)
    said = said.splitlines()[-1]  # `evaluate` first says what it compares
    assert said.startswith("error: ")
    assert "no home folder of ~nouser" in said or "File name too long" in said


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder, which the working directory is not."""
    for name in ("home", "elsewhere"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "home"


def test_commands_read_and_write_in_the_home_folder(home: Path) -> None:
    """A shell leaves `~` as it is after `--folder=`; a folder of that name would be dangerous."""
    (home / "some.toml").write_text("kimg = 1")
    arguments = ("sweep", "~/some.toml", "--folder=~/runs", "--index=0", "--words")
    code, said = call(*arguments)
    assert (code, (home / "runs" / "sweep.json").exists()) == (0, True), said
    assert not Path("~").exists()


@pytest.mark.parametrize(
    "words",
    [("pack", "digits", "s3://bucket/x"), ("info", "https://me:secret@host/x?token=secret")],
)
def test_a_url_in_place_of_a_folder_is_refused(home: Path, words: tuple[str, ...]) -> None:
    """It would be a folder here; its password is not shown."""
    code, said = call(*words)
    assert (code, "://... is a URL, and a file or folder" in said) == (2, True), said
    assert "secret" not in said and not list(Path.cwd().iterdir())


def test_names_are_shown_as_they_are(home: Path) -> None:
    """`:100:` is no picture."""
    code, said = call("info", "photos:100:a")
    assert (code, "no folder photos:100:a" in said) == (2, True), said


def test_sources_are_found_in_the_home_folder(home: Path) -> None:
    """Each of several."""
    code, said = call("sample", "~/first", "~/second")
    assert (code, f"no such file or folder: {home / 'first'}" in said) == (2, True), said


@pytest.mark.parametrize("script", ["distgan", str(ROOT / "distgan" / "train.py")])
def test_a_run_may_lie_in_the_home_folder(script: str, home: Path, shards: Path) -> None:
    """Its preset too."""
    (home / "own.toml").write_text("train.kimg = 0.012")
    words = ["--preset=~/own.toml", "--data", str(shards), "--run-dir=~/run", *SMALL]
    words = ["train", *words] if script == "distgan" else words
    code, said = run_script(script, words, Path.cwd())
    assert (code, (home / "run" / "status.json").exists()) == (0, True), said


def test_a_run_of_the_python_api_may_lie_in_the_home_folder(home: Path, shards: Path) -> None:
    """The result names the folder itself, and another run begins with its weights."""
    code = f"""
import distgan
words = {[*SMALL, "train.kimg=0.012"]!r}
for folder, beginning in (("~/run", []), ("~/next", ["train.init_from=~/run"])):
    config = distgan.load_config("classic", words + beginning, data={str(shards)!r})
    print(distgan.train(config, run_dir=folder).run_dir)
"""
    said = run_code(code, Path.cwd()).splitlines()
    assert str(home / "run") in said and said[-1] == str(home / "next")


def test_user_without_a_home_folder_is_told_what_to_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a home there is no default cache."""
    for name in ("HOME", "XDG_CACHE_HOME", "DISTGAN_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for an unknown user
    with pytest.raises(ShardError, match="no home folder for a cache: set DISTGAN_CACHE"):
        cache_folder()
    with pytest.raises(ShardError, match="no home folder of ~"):
        expand_user("~/x")


def test_too_few_open_files_are_one_line(tmp_path: Path) -> None:
    """The line says how to allow more."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(map(int, os.listdir("/proc/self/fd"))) + 1 if Path("/proc/self/fd").exists() else 64
    held = [os.dup(1) for _ in range(used)]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(held) + 1, limits[1]))
        code, said = call("pack", "digits", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for handle in held:
            os.close(handle)
    assert code in (1, 2) and "Too many open files" in said and "ulimit -n" in said


def test_output_removed_while_packing_is_one_line(tmp_path: Path) -> None:
    """The file that is gone is named."""

    def remove(done: int, _total: int) -> None:
        if done:
            (tmp_path / "out" / ".packing").rename(tmp_path / "elsewhere")

    with pytest.raises(ShardError, match=r"cannot pack into .*No such file or directory"):
        pack("digits", tmp_path / "out", workers=1, progress=remove)


def test_packed_digits_of_another_user_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there is read without writing anything, as from a read-only disk."""
    monkeypatch.setenv("DISTGAN_CACHE", str(tmp_path))
    digits = packed_digits()

    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr(shards.files.os, "open", refuse)
    monkeypatch.setattr(distgan.data, "locked", refuse)
    assert packed_digits() == digits


def test_lock_of_another_user_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that may only be read works too; where none can be created it is an error."""
    real_open = os.open

    def open_of_other(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_RDWR:
            raise PermissionError(13, os.strerror(13), str(path))
        return real_open(path, flags, mode)

    (tmp_path / "lock").touch()
    monkeypatch.setattr(os, "open", open_of_other)
    with (
        locked(tmp_path / "lock", busy=None),
        pytest.raises(ShardError, match="busy"),
        locked(tmp_path / "lock", busy="busy"),
    ):
        pass
    with pytest.raises(PermissionError), locked(tmp_path / "missing", busy=None):
        pass


def test_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """Only regular files are read."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        read_regular(tmp_path / "pipe")


def test_full_temporary_folder_is_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An index is fetched to the temporary folder, not to the cache."""
    pytest.importorskip("aiohttp")
    from shards.remote import folder

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(folder.tempfile, "TemporaryDirectory", full)
    with pytest.raises(ShardError, match=r"temporary folder \(No space left.*set TMPDIR"):
        folder.RemoteFolder("http://127.0.0.1:9/x").read_index()


def test_locks_of_worker_processes_are_blamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full /dev/shm is not the output folder."""
    from shards import processes

    def full(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(processes, "ProcessPoolExecutor", full)
    with pytest.raises(ShardError, match=r"/dev/shm \(No space left.*--workers 1"):
        pack("digits", tmp_path / "out", workers=2)


@pytest.mark.slow
def test_training_without_a_home_folder(tmp_path: Path) -> None:
    """A user that no file knows trains to the end, with a cache where the environment says."""
    script = (
        "import pwd, runpy, sys\n"
        "def unknown(_): raise KeyError\n"
        "pwd.getpwuid = unknown\n"
        f"runpy.run_path({str(ROOT / 'distgan' / 'train.py')!r}, run_name='__main__')"
    )
    settings = ["train.kimg=0.1", "train.batch_size=32", "evaluation.num_samples=12",
                "networks.generator_width=4", "networks.discriminator_width=4"]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name != "HOME"}
    done = subprocess.run(
        [sys.executable, "-c", script, *settings, "--run-dir", "run"],
        cwd=tmp_path, capture_output=True, text=True, env=environment | {"DISTGAN_CACHE": "cache"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run" / "losses.png").exists(), done.stderr
