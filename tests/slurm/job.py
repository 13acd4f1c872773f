"""A job of the batch script in tests: what SLURM and the run folder say about it."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from distgan.run.files import read_rows
from tests.faults.ledger import count_images, record_fault
from tests.slurm.cluster import Cluster, wait_until
from tests.worlds import ROOT, SMALL, checkpoint_digest

BATCH, KIMG = 12, 4.8


class Job:
    """A job of the batch script and its run folder."""

    def __init__(
        self,
        cluster: Cluster,
        shards: Path | str,
        run: Path,
        *options: str,
        kimg: float = KIMG,
        batch: int = BATCH,
        words: Sequence[str] = (),
        **environment: str,
    ) -> None:
        self.cluster, self.run, self.batch, self.total = cluster, run, batch, round(kimg * 1000)
        self.log = run.with_suffix(".log")
        sizes = (f"train.batch_size={batch}", f"log.every_kimg={batch / 1000}")
        settings = [*SMALL, *sizes, f"train.kimg={kimg}", "checkpoint.every_kimg=0.24", *words]
        data = ["--preset", "classic", "--data", str(shards)]
        command = [f"--output={self.log}", *options, "launch/slurm.sbatch", *data]
        self.command = [*command, "--run-dir", str(run), *settings]
        self.environment = environment
        self.submit()

    def submit(self) -> None:
        """Submit the job, or once more the same command as a new job."""
        self.number = self.cluster.submit(*self.command, cwd=ROOT, **self.environment)

    @property
    def nodes(self) -> list[str]:
        """All nodes of the cluster."""
        return list(self.cluster.addresses)

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
        """Images seen at the newest whole row of metrics.jsonl, which is written meanwhile."""
        found = read_rows(self.run / "metrics.jsonl")
        return int(found[-1]["progress/images"]) if found else 0

    @property
    def status(self) -> dict[str, Any]:
        """status.json."""
        return json.loads((self.run / "status.json").read_text())

    def workers(self, node: str) -> list[int]:
        """Return the process ids of its trainers on a node, without their launchers."""
        return self.cluster.workers(node, self.run)

    def all_workers(self) -> list[tuple[str, int]]:
        """Return (node, process id) of its trainers on all nodes."""
        return [(node, worker) for node in self.nodes for worker in self.workers(node)]

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

    def survived(self, kind: str, undisturbed: "Job", **seconds: float | None) -> None:
        """Check that it saw every image once and ends with the weights of the undisturbed run."""
        for job in (self, undisturbed):
            job.until("COMPLETED")
        counted = count_images(self.run, batch_size=self.batch, total=self.total)
        same = checkpoint_digest(self.run) == checkpoint_digest(undisturbed.run)
        record_fault(
            f"SLURM: {kind}", survived=same and not any(counted.values()), **counted, **seconds
        )
        assert counted == {"images_lost": 0, "images_repeated": 0}
        assert same
        assert self.status["state"] == "done"
