"""What may happen to a job of four nodes: one function per kind of fault.

Each does the damage, repairs what outlives it (nodes, cables), and returns what it did in a few
words. None of them waits until the job has recovered.
"""

import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.io.harness import compiler
from tests.slurm.cluster import Cluster, kill, wait_until
from tests.slurm.job import Job
from tests.worlds import ROOT

Fault = Callable[[Job, random.Random], str]
LOST_SEC = 120  # until SLURM gives up a node that does not answer


def names(nodes: list[str]) -> str:
    """Return nodes as text."""
    return " and ".join(nodes)


# -------------------------------------------------------------------------------------- processes


def kill_rank(job: Job, draw: random.Random) -> str:
    """SIGKILL one of all ranks."""
    node, worker = draw.choice(job.all_workers() or [("no node", 0)])
    return f"{kill_all([worker])} of {node}"


def kill_ranks(job: Job, _: random.Random) -> str:
    """SIGKILL all ranks."""
    return kill_all([worker for _, worker in job.all_workers()])


def kill_at_checkpoint(job: Job, draw: random.Random) -> str:
    """SIGKILL a rank on another node while rank zero writes a checkpoint."""
    others = [(node, worker) for node, worker in job.all_workers() if node != "node1"]
    node, worker = draw.choice(others or [("no node", 0)])
    is_saving = until_saving(job, seconds=30)
    return f"{kill_all([worker])} of {node}, {'during' if is_saving else 'not during'} saving"


def until_saving(job: Job, *, seconds: float) -> bool:
    """Wait for the moment at which a checkpoint is written; return whether there was one."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        if any((job.run / "checkpoints").glob(".*.tmp")):
            return True
        time.sleep(0.001)  # writing one takes some hundredths of a second
    return False


def kill_launcher(job: Job, draw: random.Random) -> str:
    """SIGKILL the launcher of one node, which leaves its ranks behind."""
    node = draw.choice(job.nodes)
    return f"{kill_all(job.cluster.launchers(node, job.run))} on {node}"


def suspend_rank(job: Job, draw: random.Random) -> str:
    """SIGSTOP one rank for some seconds; after half a minute it counts as lost."""
    node, worker = draw.choice(job.all_workers() or [("no node", 0)])
    seconds = draw.uniform(5, 45)
    if worker:
        kill(worker, signal.SIGSTOP)
        time.sleep(seconds)
        kill(worker, signal.SIGCONT)
    return f"{int(bool(worker))} of {node} for {seconds:.0f} s"


def kill_all(processes: list[int]) -> str:
    """SIGKILL processes and return their number as text."""
    found = [process for process in processes if process]
    for process in found:
        kill(process, signal.SIGKILL)
    return f"{len(found)} process{'es'[: 2 * (len(found) != 1)]}"


# ------------------------------------------------------------------------------ nodes and network


def lose_nodes(job: Job, nodes: list[str]) -> str:
    """Kill nodes at once, and start them again when SLURM has given them up."""
    for node in nodes:
        job.cluster.kill_node(node)
    until_down(job.cluster, nodes)
    for node in nodes:
        job.cluster.start_node(node)
    return names(nodes)


def until_down(cluster: Cluster, nodes: list[str]) -> None:
    """Wait until SLURM has given nodes up."""
    wait_until(
        lambda: all(map(cluster.is_down, nodes)),
        f"SLURM to give up {names(nodes)}",
        LOST_SEC,
    )


def kill_node(job: Job, draw: random.Random) -> str:
    """Kill a node other than that of rank zero."""
    return lose_nodes(job, [draw.choice(job.nodes[1:])])


def kill_first_node(job: Job, _: random.Random) -> str:
    """Kill the node of rank zero and of the batch script."""
    return lose_nodes(job, [job.nodes[0]])


def kill_two_nodes(job: Job, draw: random.Random) -> str:
    """Kill two nodes at once."""
    return lose_nodes(job, sorted(draw.sample(job.nodes, 2)))


def reboot_node(job: Job, draw: random.Random) -> str:
    """Kill a node that is back before SLURM has missed it."""
    node = draw.choice(job.nodes)
    job.cluster.kill_node(node)
    job.cluster.start_node(node)
    return node


def pull_cable(job: Job, draw: random.Random) -> str:
    """Disconnect a node for some seconds."""
    node, seconds = draw.choice(job.nodes), draw.uniform(2, 8)
    job.cluster.cable(node, "down")
    time.sleep(seconds)
    job.cluster.cable(node, "up")
    return f"{node} for {seconds:.0f} s"


def pull_cable_long(job: Job, draw: random.Random) -> str:
    """Disconnect a node until SLURM has given it up."""
    node = draw.choice(job.nodes)
    job.cluster.cable(node, "down")
    until_down(job.cluster, [node])
    job.cluster.cable(node, "up")
    return node


# ------------------------------------------------------------------------------------------ SLURM


def warn(job: Job, _: random.Random) -> str:
    """Send USR1 to the batch script, as before a time limit."""
    job.cluster.slurm("scancel", "--signal=USR1", "--batch", job.number, check=False)
    return job.state


def requeue(job: Job, _: random.Random) -> str:
    """Requeue the job."""
    state = job.state
    job.cluster.slurm("scontrol", "requeue", job.number, check=False)
    return state


def preempt(job: Job, _: random.Random) -> str:
    """Preempt the job by another that needs all its nodes."""
    options = ("--partition=urgent", f"--nodes={len(job.nodes)}", "--exclusive")
    job.cluster.submit(*options, "--output=/dev/null", "--wrap=sleep 1", cwd=ROOT)
    return job.state


# -------------------------------------------------------------------------- clocks and file system


def compile_shim(folder: Path) -> Path:
    """Compile the library that changes what a node sees, unless it is in the folder already."""
    shim = folder / "node.so"
    if not shim.exists():
        source = Path(__file__).with_name("node.c")
        command = [compiler() or "cc", "-shared", "-fPIC", "-O1", "-o", shim, source, "-ldl"]
        subprocess.run(list(map(str, command)), check=True)
    return shim


def change_view(job: Job, node: str, **values: str) -> None:
    """Set what a node sees from the next start on."""
    shim = compile_shim(job.cluster.folder)
    job.cluster.set_environment(node, LD_PRELOAD=str(shim), **values)


def shift_clocks(job: Job, draw: random.Random) -> str:
    """Let the clocks of some nodes be a minute ahead from the next start on."""
    ahead = sorted(draw.sample(job.nodes, draw.choice([1, 2, 3])))
    for node in job.nodes:
        change_view(job, node, NODE_CLOCK_SEC=str(60 * (node in ahead)))
    requeue(job, draw)
    return f"{names(ahead)}, then requeued"


def show_old_folder(job: Job, draw: random.Random) -> str:
    """Hide what rank zero has created in the last seconds from other nodes, from the next start."""
    seconds = draw.choice([3, 10, 30])
    for node in job.nodes[1:]:
        change_view(job, node, NODE_STALE_FOLDER=str(job.run), NODE_STALE_SEC=str(seconds))
    requeue(job, draw)
    return f"by {seconds} s, then requeued"


FAULTS: dict[str, Fault] = {
    "SIGKILL of one rank": kill_rank,
    "SIGKILL of all ranks": kill_ranks,
    "SIGKILL of a rank while another saves a checkpoint": kill_at_checkpoint,
    "SIGKILL of a launcher": kill_launcher,
    "a rank suspended": suspend_rank,
    "a node killed": kill_node,
    "rank zero's node killed": kill_first_node,
    "two nodes killed at once": kill_two_nodes,
    "a node that reboots at once": reboot_node,
    "cable pulled for some seconds": pull_cable,
    "cable pulled until the node is given up": pull_cable_long,
    "USR1 to the batch script": warn,
    "scontrol requeue": requeue,
    "preempted by another partition": preempt,
    "clocks that differ by a minute": shift_clocks,
    "an old view of the run folder": show_old_folder,
}
