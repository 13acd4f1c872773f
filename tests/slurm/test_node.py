"""node.c, the library that changes the clock of a node and its view of a folder."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.io.harness import compiler
from tests.slurm.faults import compile_shim

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C compiler")
CODE = """
import json, os, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
def look():
    return sorted(os.listdir(folder)), [(folder / name).exists() for name in ("file", "part")]
first = look()
while not (folder / "file").exists():
    time.sleep(0.05)
print(json.dumps([first, look(), Path(sys.argv[1] + "-other/file").exists(), time.time()]))
"""


def test_a_node_sees_an_old_folder_and_a_fast_clock(tmp_path: Path) -> None:
    """New names are missing for as long as asked, only below the folder; time is a minute ahead."""
    folder, other = tmp_path / "run", tmp_path / "run-other"
    for place in (folder / "part", other):
        place.mkdir(parents=True)
    (folder / "file").touch()
    (other / "file").touch()
    environment = os.environ | {
        "LD_PRELOAD": str(compile_shim(tmp_path)), "NODE_CLOCK_SEC": "60",
        "NODE_STALE_FOLDER": str(folder), "NODE_STALE_SEC": "2",
    }  # fmt: skip
    command = [sys.executable, "-c", CODE, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    first, later, sees_other, now = json.loads(done.stdout)
    assert first == [[], [False, False]]
    assert later == [["file", "part"], [True, True]]
    assert sees_other
    assert 59 < now - time.time() < 61
