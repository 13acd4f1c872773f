"""The batch script on a real SLURM of two nodes, under everything that can happen to a job.

Every run ends having seen each image once, with the weights of an undisturbed run.
"""

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.ledger import count_images, record_fault
from tests.slurm.cluster import Cluster, kill, missing, wait_until
from tests.worlds import SMALL, checkpoint_digest, rows

REASON = missing()
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(REASON is not None, reason=f"no SLURM cluster: {REASON}"),
]
ROOT = Path(__file__).parent.parent.parent
BATCH, KIMG = 12, 9.6


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Start two idle nodes."""
    with Cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


class Job:
    """A job of the batch script and its run folder."""

    def __init__(
        self,
        cluster: Cluster,
        shards: Path,
        run: Path,
        *options: str,
        kimg: float = KIMG,
        words: tuple[str, ...] = (),
    ) -> None:
        self.cluster, self.run, self.total = cluster, run, round(kimg * 1000)
        self.log = run.with_suffix(".log")
        settings = [*SMALL, f"train.kimg={kimg}", "checkpoint.every_kimg=0.24", *words]
        data = ["--preset", "classic", "--data", str(shards)]
        command = [f"--output={self.log}", *options, "launch/slurm.sbatch", *data]
        self.number = cluster.submit(*command, "--run-dir", str(run), *settings, cwd=ROOT)

    @property
    def state(self) -> str:
        """PENDING, RUNNING, COMPLETING, COMPLETED, FAILED, CANCELLED, TIMEOUT, ..."""
        return self.cluster.job(self.number)["JobState"]

    @property
    def restarts(self) -> int:
        """How often SLURM has restarted it."""
        return int(self.cluster.job(self.number)["Restarts"])

    @property
    def images(self) -> int:
        """Images seen at the newest row of metrics.jsonl."""
        return (
            rows(self.run)[-1]["progress/images"]
            if (self.run / "metrics.jsonl").exists() and rows(self.run)
            else 0
        )

    @property
    def status(self) -> dict[str, Any]:
        """status.json."""
        return json.loads((self.run / "status.json").read_text())

    def wait(self, true: Callable[[], object], what: str) -> float:
        """Wait for a condition, and return for how many seconds; a failure shows the log."""
        try:
            return wait_until(true, what)
        except AssertionError as error:
            log = self.log.read_text()[-4000:]
            raise AssertionError(f"{error}; {self.state}, {self.images} images\n{log}") from None

    def until(self, state: str) -> float:
        """Wait for one of SLURM's states."""
        return self.wait(lambda: self.state == state, f"{self.number} to be {state}")

    def until_images(self, number: int) -> float:
        """Wait until the run has seen so many images."""
        return self.wait(lambda: self.images >= number, f"{number} images")

    def until_restart(self, count: int) -> float:
        """Wait until SLURM has restarted the job `count` times; returns for how many seconds."""
        began = time.monotonic()
        self.wait(lambda: self.restarts >= count, f"restart {count}")
        self.until("RUNNING")
        return time.monotonic() - began

    def survived(self, kind: str, digest: str, **seconds: float | None) -> None:
        """Check that it saw every image once and ends with the weights of the undisturbed run."""
        self.until("COMPLETED")
        counted = count_images(self.run, batch_size=BATCH, total=self.total)
        same = checkpoint_digest(self.run) == digest
        record_fault(
            f"SLURM: {kind}", survived=same and not any(counted.values()), **counted, **seconds
        )
        assert counted == {"images_lost": 0, "images_repeated": 0}
        assert same
        assert self.status["state"] == "done"


Submit = Callable[..., Job]


@pytest.fixture(scope="module")
def submit(cluster: Cluster, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Submit:
    """Return a function that submits a job of two nodes with one process each."""
    runs = tmp_path_factory.mktemp("runs")

    def submit(name: str, *options: str, **more: Any) -> Job:
        nodes = ("--nodes=2", "--cpus-per-task=2")
        return Job(cluster, shards, runs / name, *nodes, *options, **more)

    return submit


@pytest.fixture(scope="module")
def undisturbed(submit: Submit) -> Job:
    """Finish a run on two nodes without any disturbance."""
    job = submit("undisturbed")
    job.until("COMPLETED")
    return job


@pytest.fixture(scope="module")
def digest(undisturbed: Job) -> str:
    """Return the sha256 of its last checkpoint."""
    return checkpoint_digest(undisturbed.run)


def test_two_nodes_form_one_world(undisturbed: Job) -> None:
    """One process per node, rank zero on the first, and every image seen once."""
    provenance = json.loads((undisturbed.run / "provenance.json").read_text())
    assert provenance["world"] == {"processes": 2, "device": "cpu"}
    assert (provenance["host"], provenance["slurm"]["SLURM_JOB_ID"]) == (
        "node1",
        undisturbed.number,
    )
    assert not any(
        count_images(undisturbed.run, batch_size=BATCH, total=undisturbed.total).values()
    )
    assert undisturbed.restarts == 0


def test_a_cancelled_job_is_saved_and_not_requeued(
    submit: Submit, cluster: Cluster, digest: str
) -> None:
    """The same command, submitted again, resumes the run."""
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
    again.survived("scancel, then submitted again", digest, detect_sec=detect, resume_sec=resume)


@pytest.mark.parametrize(
    ("kind", "command"),
    [
        ("USR1 to the batch script", ["scancel", "--signal=USR1", "--batch"]),
        ("scontrol requeue", ["scontrol", "requeue"]),
    ],
)
def test_a_warned_or_requeued_job_resumes_by_itself(
    kind: str, command: list[str], submit: Submit, cluster: Cluster, digest: str
) -> None:
    """It is saved at once and restarted, and no step is computed twice."""
    job = submit(command[-1].strip("-"))
    job.until_images(600)
    cluster.slurm(*command, job.number)
    detect = job.until_restart(1)
    events = [json.loads(line) for line in (job.run / "events.jsonl").read_text().splitlines()]
    saved = next(event["images_seen"] for event in events if event["kind"] == "preempted")
    resume = job.until_images(saved + BATCH)
    job.survived(kind, digest, detect_sec=detect, resume_sec=resume, images_again=0)


def test_a_warning_during_start_up_is_not_lost(
    submit: Submit, cluster: Cluster, digest: str
) -> None:
    """USR1 before there is anything to save does not kill the job."""
    job = submit("early")
    wait_until(
        lambda: job.log.exists() and "starts on" in job.log.read_text(), "the script to listen"
    )
    cluster.slurm("scancel", "--signal=USR1", "--batch", job.number)
    detect = job.until_restart(1)
    assert job.status["state"] == "preempted"
    job.survived("USR1 during start-up", digest, detect_sec=detect)


def test_a_job_resumes_after_its_time_limit(submit: Submit, cluster: Cluster, digest: str) -> None:
    """SLURM warns before the limit, the run is saved, and the job resumes under a new limit."""
    job = submit("limit", "--time=2", "--signal=B:USR1@60")
    job.until_images(600)

    def slowed_down() -> bool:
        """Suspend one rank most of the time, so that the run takes longer."""
        for worker in cluster.workers("node2"):
            kill(worker, signal.SIGSTOP)
            time.sleep(5)
            kill(worker, signal.SIGCONT)
        return job.restarts == 1 or job.status["state"] == "preempted"

    wait_until(slowed_down, "the warning", 300)
    job.until_restart(1)
    job.survived("time limit", digest, images_again=0)


def test_a_job_resumes_after_kill_9_of_a_rank(
    submit: Submit, cluster: Cluster, digest: str
) -> None:
    """The status names the rank at once, and the job resumes from its last checkpoint."""
    job = submit("killed")
    job.until_images(1200)
    began = time.monotonic()
    kill(cluster.workers("node2")[0], signal.SIGKILL)
    wait_until(lambda: job.status["state"] == "failed", "the run to fail")
    detect, images = time.monotonic() - began, int(job.status["images_seen"])
    assert job.status["reason"] == "lost rank 1 on node2: its process has ended (connection closed)"
    job.until_restart(1)
    resume = job.until_images(images + BATCH)
    assert "error: lost rank 1 on node2" in job.log.read_text()
    job.survived(
        "kill -9 of a worker",
        digest,
        detect_sec=detect,
        resume_sec=resume,
        images_again=images % 240,
    )


def test_a_job_survives_network_failures(submit: Submit, cluster: Cluster, digest: str) -> None:
    """It waits during a short one, and resumes after a long one when the node is back."""
    job = submit("cable")
    job.until_images(600)
    cluster.cable("node2", "down")
    time.sleep(5)
    images = job.images
    cluster.cable("node2", "up")
    resume = job.until_images(images + 10 * BATCH)
    assert job.restarts == 0
    record_fault(
        "SLURM: cable pulled for 5 s",
        survived=True,
        images_lost=0,
        images_repeated=0,
        resume_sec=resume,
    )
    began = time.monotonic()
    cluster.cable("node2", "down")
    wait_until(lambda: job.restarts == 1, "SLURM to give the node up")
    detect, images = time.monotonic() - began, job.images
    cluster.cable("node2", "up")
    job.until_restart(1)
    resume = job.until_images(images + BATCH)
    job.survived(
        "cable pulled until the node is given up",
        digest,
        detect_sec=detect,
        resume_sec=resume,
        images_again=images % 240,
    )


def test_a_job_survives_two_preemptions_and_a_dead_node(
    submit: Submit, cluster: Cluster, digest: str
) -> None:
    """Its weights are then those of the undisturbed run."""
    job, preemptions = submit("story"), []
    for restart in (1, 2):
        job.until_images(restart * 1200)
        urgent = (
            "--partition=urgent",
            "--nodes=2",
            "--exclusive",
            "--output=/dev/null",
            "--wrap=sleep 1",
        )
        cluster.submit(*urgent, cwd=ROOT)
        detect = job.until_restart(restart)
        preemptions.append((detect, job.until_images(job.images + BATCH)))
    job.until_images(4800)
    began = time.monotonic()
    cluster.kill_node("node2")
    wait_until(lambda: job.restarts == 3, "SLURM to give the node up")
    detect, images = time.monotonic() - began, job.images
    cluster.start_node("node2")
    job.until_restart(3)
    resume = job.until_images(images + BATCH)
    job.survived(
        "a node killed", digest, detect_sec=detect, resume_sec=resume, images_again=images % 240
    )
    for detect, resume in preemptions:
        record_fault(
            "SLURM: preempted by another partition",
            survived=True,
            images_lost=0,
            images_repeated=0,
            images_again=0,
            detect_sec=detect,
            resume_sec=resume,
        )


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
