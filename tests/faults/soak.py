"""One long job on four nodes, under random faults of all kinds until its run has finished.

python -m tests.faults.soak --hours 2               one line per fault, and one at the end
python -m tests.faults.soak --minutes 30 --record   also adds a row to tests/faults/soak.jsonl

A real SLURM is started on this machine (tests/slurm/cluster.py), with two ranks per node. The
shards come from an HTTP server, and W&B is a stand-in. The last checkpoint must be that of a run
with the same settings that nothing disturbed.
"""

import argparse
import random
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from distgan.run.files import read_rows
from shards.pack import pack
from shards.sources.official import ArraySource
from tests.faults.ledger import SOAK_ROWS, count_images, record_fault
from tests.shards.servers import Server, serving
from tests.slurm.cluster import NETWORK, Cluster, missing
from tests.slurm.faults import FAULTS, requeue
from tests.slurm.job import Job
from tests.wandb_server import WandbServer
from tests.worlds import ROOT, checkpoint_digest

BATCH = 16
TRAINING_SHARE = 0.2  # of the time: most of it goes into starts, and into noticing faults
HANG_SEC = 600  # without a new image
SHARDS_AWAY, WANDB_AWAY = "shard server away", "W&B away"
OURS = rf'File "{ROOT}/(distgan|shards)/'  # torch's launchers end in tracebacks of their own
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "OUT_OF_MEMORY")


def pack_shards(folder: Path) -> Path:
    """Pack 2,000 grey images of noise into several shards."""
    images = np.random.default_rng(0).integers(0, 256, (2000, 32, 32, 1), dtype=np.uint8)
    source = ArraySource(
        names=[f"{number:04d}" for number in range(len(images))],
        sizes=np.full(len(images), images[0].size, np.int64),
        labels=np.zeros(len(images), np.int32),
        class_names=("noise",),
        digest="0" * 64,
        default_size=32,
        in_memory=True,
        images=images,
    )
    return pack(source, folder, size=32, channels=1, shard_size_mb=1, workers=1).path


@dataclass
class Soak:
    """The cluster, the servers and what has happened so far."""

    folder: Path
    cluster: Cluster
    shards: Server
    wandb: WandbServer
    draw: random.Random
    began: float = field(default_factory=time.monotonic)
    counts: Counter[str] = field(default_factory=Counter)
    restarts: int = 0
    submissions: int = 0

    def submit(self, name: str, *, images: int, wandb: str) -> Job:
        """Submit a job of four nodes with two ranks each."""
        options = ("--nodes=4", "--cpus-per-task=4", "--time=UNLIMITED")
        words = [f"log.wandb={wandb}", "evaluation.every_kimg=8", "log.samples_every_kimg=8"]
        return Job(
            self.cluster,
            self.shards.url,
            self.folder / name,
            *options,
            "--export=ALL,PROCESSES_PER_NODE=2",
            kimg=images / 1000,
            batch=BATCH,
            words=words,
            WANDB_BASE_URL=self.wandb.url,
            WANDB_API_KEY="0" * 40,
            WANDB_MODE="online",
            NO_PROXY="*",
            no_proxy="*",
        )

    def say(self, text: str) -> None:
        """Print a line with the time since the start."""
        print(f"{(time.monotonic() - self.began) / 60:6.1f} min  {text}", flush=True)

    def kinds(self) -> Iterator[str]:
        """Yield kinds of faults: all of them in a random order, then all in another, and so on."""
        while True:
            kinds = [*FAULTS, SHARDS_AWAY, WANDB_AWAY]
            self.draw.shuffle(kinds)
            yield from kinds

    def disturb(self, job: Job, kind: str) -> None:
        """Let a fault of this kind happen."""
        images = job.images
        outages = {SHARDS_AWAY: self.outage_of_shards, WANDB_AWAY: self.outage_of_wandb}
        fault = (FAULTS | outages)[kind]
        what = fault(job, self.draw)
        self.counts[kind] += 1
        self.say(f"{images / 1000:7.3f} kimg  {kind}: {what}")

    def outage_of_wandb(self, _: Job, draw: random.Random) -> str:
        """Let the stand-in for W&B hang up, and not answer for a while."""
        seconds = draw.uniform(20, 60)
        self.wandb.is_away = True
        self.wandb.hang_up()
        time.sleep(seconds)
        self.wandb.is_away = False
        return f"for {seconds:.0f} s"

    def outage_of_shards(self, job: Job, draw: random.Random) -> str:
        """Restart the job with empty caches while the shard server does not answer."""
        for node in self.cluster.addresses:
            shutil.rmtree(self.cache(node), ignore_errors=True)
        seconds = draw.uniform(20, 60)
        self.shards.is_away = True
        requeue(job, draw)
        time.sleep(seconds)
        self.shards.is_away = False
        return f"for {seconds:.0f} s, from a requeue on, with empty caches"

    def cache(self, node: str) -> Path:
        """Return the folder of a node's own cache."""
        return self.folder / "caches" / node

    def recover(self, job: Job) -> None:
        """Wait until the job has trained on for a while; submit it again if it has ended.

        Sometimes the next fault comes earlier: after some seconds, whatever the job does then.
        """
        if self.draw.random() < 0.2:
            time.sleep(self.draw.uniform(0, 30))
            return
        wanted = min(job.images + BATCH * self.draw.randint(1, 150), job.total)
        newest, since = job.images, time.monotonic()
        while job.images < wanted:
            state = job.state
            if state in ENDED and job.images < job.total:
                self.submit_again(job, state)
            if job.images > newest:
                newest, since = job.images, time.monotonic()
            assert time.monotonic() - since < HANG_SEC, f"no image for {HANG_SEC} s: {job.log}"
            time.sleep(0.5)

    def submit_again(self, job: Job, state: str) -> None:
        """Type the same command as a user does whose job was not restarted by SLURM."""
        last = job.log.read_text().splitlines()[-1:]
        self.say(f"the job has ended as {state}, and is submitted again; its last line: {last}")
        self.restarts += job.restarts
        self.submissions += 1
        job.submit()

    def finish(self, job: Job) -> None:
        """Wait until the run is done."""
        while not (job.state == "COMPLETED" and job.status["state"] == "done"):
            self.recover(job)
            if job.images >= job.total:
                while (state := job.state) not in ENDED:
                    time.sleep(1)
                if state != "COMPLETED":
                    self.submit_again(job, state)
        self.restarts += job.restarts


def undisturbed(soak: Soak, name: str, images: int) -> Job:
    """Train without a fault."""
    job = soak.submit(name, images=images, wandb="offline")
    while job.state != "COMPLETED":
        assert job.state not in ENDED, job.log.read_text()[-4000:]
        time.sleep(1)
    return job


def images_for(soak: Soak, minutes: float) -> int:
    """Return how many images are trained in a share of the time, from the speed of a short run."""
    trial = undisturbed(soak, "trial", 60 * BATCH)
    first, *_, last = read_rows(trial.run / "metrics.jsonl")[10:]
    seconds = last["time/train_sec"] - first["time/train_sec"]
    speed = (last["progress/images"] - first["progress/images"]) / seconds
    images = round(speed * 60 * minutes * TRAINING_SHARE / BATCH) * BATCH
    soak.say(f"{speed:.0f} images/s without faults: training on {images / 1000:g} kimg with them")
    return images


def soak_once(folder: Path, *, minutes: float, seed: int) -> dict[str, Any]:
    """Run the job under faults for about so many minutes; return the row for the record."""
    with ExitStack() as stack:
        cluster = stack.enter_context(Cluster(folder / "slurm", nodes=4))
        shards = pack_shards(folder / "shards")
        server = stack.enter_context(serving(shards, address=f"{NETWORK}.1"))
        wandb = WandbServer(f"{NETWORK}.1")
        stack.callback(wandb.die)
        soak = Soak(folder, cluster, server, wandb, random.Random(seed))
        for node in cluster.addresses:
            cluster.set_environment(node, DISTGAN_CACHE=str(soak.cache(node)))
        images = images_for(soak, minutes)
        began, kinds = time.monotonic(), soak.kinds()
        job = soak.submit("run", images=images, wandb="online")
        job.until_images(BATCH)
        while time.monotonic() - began < 60 * minutes and job.images < job.total:
            soak.disturb(job, next(kinds))
            soak.recover(job)
        soak.say("no more faults")
        soak.finish(job)
        hours = (time.monotonic() - began) / 3600
        soak.say("the run is done; the same without faults")
        for node in cluster.addresses:
            cluster.set_environment(node, NODE_CLOCK_SEC="0", NODE_STALE_SEC="0")
        reference = undisturbed(soak, "undisturbed", images)
        same = checkpoint_digest(job.run) == checkpoint_digest(reference.run)
        counted = count_images(job.run, batch_size=BATCH, total=job.total)
        return {
            "hours": round(hours, 2),
            "faults": dict(sorted(soak.counts.items())),
            "restarts": soak.restarts,
            "submissions": soak.submissions,
            "images": job.total,
            **counted,
            "traceback_lines": len(re.findall(OURS, job.log.read_text())),
            "wandb_has_the_end": job.total in (row.get("progress/images") for row in wandb.history),
            "survived": same and not any(counted.values()),
            "seed": seed,
        }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hours", type=float, default=0.0, help="time under faults")
    parser.add_argument("--minutes", type=float, default=0.0, help="added to --hours")
    parser.add_argument("--seed", type=int, default=1, help="of the faults and their moments")
    parser.add_argument("--record", action="store_true", help=f"add a row to {SOAK_ROWS}")
    options = parser.parse_args()
    minutes = 60 * options.hours + options.minutes
    if reason := missing():
        parser.error(f"no SLURM cluster: {reason}")
    if minutes <= 0:
        parser.error("give --hours or --minutes")
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    print(f"seed {options.seed}, all files in {folder}", flush=True)
    row = soak_once(folder, minutes=minutes, seed=options.seed)
    if options.record:
        record_fault("soak", SOAK_ROWS, **row)
    print(", ".join(f"{name}: {value}" for name, value in row.items()))
    if not row["survived"]:
        raise SystemExit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
