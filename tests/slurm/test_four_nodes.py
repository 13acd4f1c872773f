"""The batch script on four nodes with two ranks each.

`python -m tests.faults.soak` lets all kinds of faults happen to such a job, which takes long.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, missing
from tests.slurm.faults import change_view, until_down, until_saving
from tests.slurm.job import Job

REASON = missing()
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(REASON is not None, reason=f"no SLURM cluster: {REASON}"),
]
OPTIONS = ("--nodes=4", "--cpus-per-task=4", "--export=ALL,PROCESSES_PER_NODE=2")
BATCH, KIMG, CHECKPOINT = 16, 1.44, 240


@pytest.fixture
def changed_cluster(cluster: Cluster) -> Iterator[Cluster]:
    """Undo afterwards what a test has changed in what the nodes see."""
    yield cluster
    for node in cluster.addresses:
        cluster.environment[node].clear()
        cluster.set_environment(node)


def test_a_job_survives_the_loss_of_two_of_four_nodes(
    changed_cluster: Cluster, shards: Path, tmp_path: Path
) -> None:
    """They die while a checkpoint is saved, one of them with rank zero and the batch script.

    When they are back, the clocks of two nodes are a minute ahead, and all nodes but that of rank
    zero see the run folder as it was ten seconds ago. The clocks change nothing for the undisturbed
    run, which is trained at the same time to save time.
    """

    cluster = changed_cluster

    def submit(name: str) -> Job:
        return Job(cluster, shards, tmp_path / name, *OPTIONS, kimg=KIMG, batch=BATCH)

    job, lost = submit("disturbed"), ["node1", "node3"]
    job.until_images(2 * CHECKPOINT)
    assert until_saving(job, seconds=300), "no checkpoint is written"
    for node in lost:
        cluster.kill_node(node)
    began, images = time.monotonic(), job.images
    for node in job.nodes:
        change_view(job, node, NODE_CLOCK_SEC=str(60 * (node in ("node2", "node3"))))
    for node in job.nodes[1:]:
        change_view(job, node, NODE_STALE_FOLDER=str(job.run), NODE_STALE_SEC="10")
    until_down(cluster, lost)
    detect = time.monotonic() - began
    for node in lost:
        cluster.start_node(node)
    undisturbed = submit("undisturbed")
    job.until_restart(1)
    resume = job.until_images(images + BATCH)
    job.survived(
        "two of four nodes killed",
        undisturbed,
        detect_sec=detect,
        resume_sec=resume,
        images_again=images % CHECKPOINT,
    )
    assert undisturbed.restarts == 0
    provenance = json.loads((job.run / "provenance.json").read_text())
    assert provenance["world"] == {"processes": 8, "nodes": 4, "device": "cpu"}
