"""The batch script on a real SLURM of two nodes, under everything that can happen to a job.

Every run ends having seen each image once, with the weights of an undisturbed run. Much of the time
SLURM waits. Therefore jobs that leave the nodes alone run side by side, unless DISTGAN_FAULT_ROWS
asks for the seconds that they take.
"""

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.faults.ledger import count_images, record_fault
from tests.slurm.cluster import Cluster, kill, missing, wait_until
from tests.slurm.faults import preempt
from tests.slurm.job import BATCH, Job
from tests.worlds import checkpoint_digest

REASON = missing()
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(REASON is not None, reason=f"no SLURM cluster: {REASON}"),
]


Submit = Callable[..., Job]


@pytest.fixture(scope="module")
def submit(cluster: Cluster, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Submit:
    """Return a function that submits a job of two nodes with one process each."""
    runs = tmp_path_factory.mktemp("runs")

    def submit(name: str, *options: str, **more: Any) -> Job:
        nodes = ("--nodes=2", "--nodelist=node1,node2", "--cpus-per-task=2")
        return Job(cluster, shards, runs / name, *nodes, *options, **more)

    return submit


@pytest.fixture(scope="module")
def undisturbed(submit: Submit) -> Job:
    """Submit a run on two nodes that nothing disturbs."""
    return submit("undisturbed")


# ----------------------------------------------------------------------- jobs that run side by side


def cancelled(submit: Submit, cluster: Cluster, undisturbed: Job) -> None:
    """A cancelled job is saved and not requeued; submitted again, it resumes the run."""
    job = submit("cancelled")
    job.until_images(600)
    cluster.slurm("scancel", job.number)
    detect = job.until("CANCELLED")
    wait_until(
        lambda: "stopped by SLURM or scancel" in job.log.read_text(), "the script's last line"
    )
    assert (job.status["state"], job.restarts) == ("preempted", 0)
    again = submit("cancelled")
    resume = again.until_images(int(job.status["images_seen"]) + BATCH)
    assert (job.state, job.restarts) == ("CANCELLED", 0)
    again.survived(
        "scancel, then submitted again", undisturbed, detect_sec=detect, resume_sec=resume
    )


def restarted(
    job: Job, kind: str, command: tuple[str, ...], cluster: Cluster, undisturbed: Job
) -> None:
    """A job that the command ends is saved at once and restarted; no step is computed twice."""
    job.until_images(600)
    cluster.slurm(*command, job.number)
    detect = job.until_restart(1)
    events = [json.loads(line) for line in (job.run / "events.jsonl").read_text().splitlines()]
    saved = next(event["images_seen"] for event in events if event["kind"] == "preempted")
    resume = job.until_images(saved + BATCH)
    job.survived(kind, undisturbed, detect_sec=detect, resume_sec=resume, images_again=0)


def warned(submit: Submit, cluster: Cluster, undisturbed: Job) -> None:
    """USR1 to the batch script."""
    command = ("scancel", "--signal=USR1", "--batch")
    restarted(submit("warned"), "USR1 to the batch script", command, cluster, undisturbed)


def requeued(submit: Submit, cluster: Cluster, undisturbed: Job) -> None:
    """`scontrol requeue`."""
    command = ("scontrol", "requeue")
    restarted(submit("requeued"), "scontrol requeue", command, cluster, undisturbed)


def warned_early(submit: Submit, cluster: Cluster, undisturbed: Job) -> None:
    """USR1 before there is anything to save does not kill the job."""
    job = submit("early")
    wait_until(
        lambda: job.log.exists() and "starts on" in job.log.read_text(), "the script to listen"
    )
    cluster.slurm("scancel", "--signal=USR1", "--batch", job.number)
    detect = job.until_restart(1)
    assert job.status["state"] == "preempted"
    job.survived("USR1 during start-up", undisturbed, detect_sec=detect)


def out_of_time(submit: Submit, cluster: Cluster, undisturbed: Job) -> None:
    """SLURM warns before the limit, the run is saved, and the job resumes under a new limit."""
    job = submit("limit", "--time=2", "--signal=B:USR1@60")
    job.until_images(600)

    def slowed_down() -> bool:
        """Suspend one rank most of the time, so that the run takes longer."""
        for worker in job.workers("node2"):
            kill(worker, signal.SIGSTOP)
            time.sleep(5)
            kill(worker, signal.SIGCONT)
        return job.restarts == 1 or job.status["state"] == "preempted"

    wait_until(slowed_down, "the warning")
    job.until_restart(1)
    cluster.slurm("scontrol", "update", f"JobId={job.number}", "TimeLimit=30")
    job.survived("time limit", undisturbed, images_again=0)


def killed(submit: Submit, cluster: Cluster, undisturbed: Job) -> None:
    """The status names the killed rank at once, and the job resumes from its last checkpoint."""
    job = submit("killed")
    job.until_images(600)
    began = time.monotonic()
    kill(job.workers("node2")[0], signal.SIGKILL)
    wait_until(lambda: job.status["state"] == "failed", "the run to fail")
    detect, images = time.monotonic() - began, int(job.status["images_seen"])
    assert job.status["reason"] == "lost rank 1 on node2: its process has ended (connection closed)"
    job.until_restart(1)
    resume = job.until_images(images + BATCH)
    assert "error: lost rank 1 on node2" in job.log.read_text()
    job.survived(
        "kill -9 of a worker",
        undisturbed,
        detect_sec=detect,
        resume_sec=resume,
        images_again=images % 240,
    )


SIDE_BY_SIDE = (out_of_time, warned, cancelled, requeued, killed, warned_early)
Scenario = Callable[[Submit, Cluster, Job], None]


@pytest.fixture(scope="module")
def started(
    request: pytest.FixtureRequest, submit: Submit, cluster: Cluster, undisturbed: Job
) -> Iterator[dict[Scenario, Future[None]]]:
    """Start the scenarios of the tests that were chosen."""
    chosen = [
        item.callspec.params["scenario"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and "scenario" in getattr(item, "fixturenames", ())
    ]
    with ThreadPoolExecutor(1 if "DISTGAN_FAULT_ROWS" in os.environ else 2) as pool:
        yield {each: pool.submit(each, submit, cluster, undisturbed) for each in chosen}


@pytest.mark.parametrize("scenario", SIDE_BY_SIDE, ids=lambda scenario: scenario.__name__)
def test_a_job_survives(scenario: Scenario, started: dict[Scenario, Future[None]]) -> None:
    """Each scenario ends with the weights of the undisturbed run."""
    started[scenario].result()


def test_two_nodes_form_one_world(undisturbed: Job) -> None:
    """One process per node, rank zero on the first, and every image seen once."""
    undisturbed.until("COMPLETED")
    provenance = json.loads((undisturbed.run / "provenance.json").read_text())
    assert provenance["world"] == {"processes": 2, "nodes": 2, "device": "cpu"}
    assert (provenance["host"], provenance["slurm"]["SLURM_JOB_ID"]) == (
        "node1",
        undisturbed.number,
    )
    assert not any(
        count_images(undisturbed.run, batch_size=BATCH, total=undisturbed.total).values()
    )
    assert undisturbed.restarts == 0


# ------------------------------------------------------------- faults that other jobs would notice


def test_a_job_survives_a_preemption_and_network_failures(
    submit: Submit, cluster: Cluster, undisturbed: Job
) -> None:
    """It waits during a short failure, and resumes after a long one when the node is back."""
    job = submit("cable")
    job.until_images(600)
    preempt(job, random.Random())
    preempted: dict[str, Any] = {"detect_sec": job.until_restart(1)}
    preempted["resume_sec"] = job.until_images(job.images + BATCH)
    job.until_images(1200)
    cluster.cable("node2", "down")
    time.sleep(5)
    images = job.images
    cluster.cable("node2", "up")
    waited: dict[str, Any] = {"resume_sec": job.until_images(images + 10 * BATCH)}
    assert job.restarts == 1
    began = time.monotonic()
    cluster.cable("node2", "down")
    wait_until(lambda: job.restarts == 2, "SLURM to give the node up")
    detect, images = time.monotonic() - began, job.images
    cluster.cable("node2", "up")
    job.until_restart(2)
    resume = job.until_images(images + BATCH)
    job.survived(
        "cable pulled until the node is given up",
        undisturbed,
        detect_sec=detect,
        resume_sec=resume,
        images_again=images % 240,
    )
    counted: dict[str, Any] = {"survived": True, "images_lost": 0, "images_repeated": 0}
    record_fault("SLURM: preempted by another partition", images_again=0, **counted, **preempted)
    record_fault("SLURM: cable pulled for 5 s", **counted, **waited)


def test_each_task_of_an_array_is_a_run_of_its_own(
    cluster: Cluster, shards: Path, tmp_path: Path
) -> None:
    """`{task}` is replaced by the number of the task."""
    job = Job(
        cluster,
        shards,
        tmp_path / "run-{task}",
        "--array=1-2",
        f"--output={tmp_path}/%a.log",
        "--cpus-per-task=2",
        kimg=0.12,
        words=("train.seed={task}",),
    )
    folders = [tmp_path / f"run-{task}" for task in (1, 2)]

    def done(folder: Path) -> bool:
        status = folder / "status.json"
        return status.exists() and json.loads(status.read_text())["state"] == "done"

    wait_until(lambda: all(map(done, folders)), f"both tasks of {job.number}")
    for task, folder in enumerate(folders, start=1):
        assert f"seed = {task}" in (folder / "config.toml").read_text()
    assert checkpoint_digest(folders[0]) != checkpoint_digest(folders[1])
