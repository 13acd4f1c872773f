"""launch/pack.sbatch on a real SLURM of two nodes."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.pack import pack
from shards.sources.registry import open_source
from tests.shards.images import contents
from tests.slurm.cluster import Cluster, missing, wait_until
from tests.worlds import ROOT

REASON = missing()
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(REASON is not None, reason=f"no SLURM cluster: {REASON}"),
]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Write pictures that take long to decode; several names each, to be written quickly."""
    noise = np.random.default_rng(0)
    for number in range(4):
        first = tmp_path / "pictures" / f"class{number % 2}" / f"{number}-0.png"
        first.parent.mkdir(parents=True, exist_ok=True)
        pixels = noise.integers(0, 256, (1400, 1200, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(first, compress_level=1)
        for copy in range(1, 60):
            os.link(first, first.with_name(f"{number}-{copy}.png"))
    return tmp_path / "pictures"


def test_an_array_with_requeues_writes_the_bytes_of_one_machine(
    cluster: Cluster, pictures: Path, tmp_path: Path
) -> None:
    """One task is warned of its time limit and one is requeued, each between two of its shards.

    Finished shards are kept, and the job that depends on the array joins them.
    """
    out, options = tmp_path / "shards", ("--size", "128", "--shard-size-mb", "1")
    words = ("launch/pack.sbatch", str(pictures), str(out), *options, "--workers", "1")
    log = f"--output={tmp_path}/%A-%a.log"
    array = cluster.submit("--array=1-2", "--cpus-per-task=2", log, *words, cwd=ROOT)
    join = cluster.submit(
        f"--dependency=afterok:{array}", f"--output={tmp_path}/join.log", *words, "--join", cwd=ROOT
    )
    kept = {}
    commands = (("scancel", "--signal=USR1", "--batch"), ("scontrol", "requeue"))
    for task, command in enumerate(commands, start=1):
        record = out / ".packing" / f"{task - 1:06d}.json"
        wait_until(record.exists, f"the first shard of task {task}")
        cluster.slurm(*command, f"{array}_{task}")
        kept[task] = (out / f"{task - 1:06d}.tar").stat().st_ino
    wait_until(lambda: cluster.job(join)["JobState"] in ("COMPLETED", "FAILED"), "the join")
    logs = {path.name: path.read_text() for path in tmp_path.glob("*.log")}
    assert cluster.job(join)["JobState"] == "COMPLETED", logs
    for task in (1, 2):
        assert cluster.job(f"{array}_{task}")["Restarts"] == "1", logs
        assert (out / f"{task - 1:06d}.tar").stat().st_ino == kept[task]
    index = pack(open_source(pictures), tmp_path / "whole", size=128, shard_size_mb=1)
    assert len(index.shards) > 8, "the requeues were between shards"
    assert contents(out) == contents(index.path)


def test_the_task_with_the_id_of_its_array_requeues_only_itself(
    cluster: Cluster, pictures: Path, tmp_path: Path
) -> None:
    """One task of every array has it as job id; the other task packs its part in one start."""
    out, options = tmp_path / "shards", ("--size", "128", "--shard-size-mb", "1", "--workers", "1")
    log = f"--output={tmp_path}/%A-%a.log"
    words = ("--array=1-2", log, "launch/pack.sbatch", str(pictures), str(out), *options)
    array = cluster.submit(*words, cwd=ROOT)
    tasks = [f"{array}_1", f"{array}_2"]
    for record in ("000000.json", "000001.json"):
        wait_until((out / ".packing" / record).exists, "the first shards of both tasks")
    [last] = [task for task in tasks if cluster.job(task)["JobId"] == array]
    cluster.slurm("scancel", "--signal=USR1", "--batch", last)
    wait_until(lambda: cluster.job(last)["Restarts"] == "1", "the requeue")
    for task in tasks:
        wait_until(lambda task=task: cluster.job(task)["JobState"] == "COMPLETED", task)
    logs = {path.name: path.read_text() for path in tmp_path.glob("*.log")}
    assert {task: cluster.job(task)["Restarts"] == "1" for task in tasks} == {
        task: task == last for task in tasks
    }, logs
