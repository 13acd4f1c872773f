"""A real SLURM on one machine: munged, slurmctld and one slurmd per node.

Each node has its own network namespace.

          bridge dgbr 10.97.41.1: slurmctld, munged, this process
             │ veth                    │ veth
    node1 10.97.41.11: slurmd     node2 10.97.41.12: slurmd     ...

It changes nothing outside `folder` but the bridge, the namespaces and the freezer groups
slurm_node*.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

NETWORK, BRIDGE = "10.97.41", "dgbr"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "ip", "nsenter", "unshare")
FREEZER = Path("/sys/fs/cgroup/freezer")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"

# Shorter waits than the defaults of SLURM: SlurmdTimeout 300 s, and cred_expire 120 s,
# for which a requeued job waits.
CONF = """
ClusterName=distgan
SlurmctldHost={host}({network}.1)
SlurmctldPort=27817
SlurmdPort=27818
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/{proctrack}
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
MailProg=/bin/true
KillWait=30
SlurmdTimeout=10
MinJobAge=3600
TaskProlog={folder}/task-prolog
ReturnToService=2
SlurmdParameters=config_overrides
PropagateResourceLimits=NONE
NodeName=DEFAULT CPUs=8 RealMemory=4000 State=UNKNOWN
{nodes}
PartitionName=DEFAULT Nodes=ALL MaxTime=INFINITE DefaultTime=30 State=UP
PartitionName=spare Default=YES PriorityTier=1 GraceTime=15
PartitionName=urgent PriorityTier=9 PreemptMode=OFF
"""


def missing() -> str | None:
    """Return why no cluster can be started here, or None."""
    absent = [program for program in PROGRAMS if shutil.which(program, path=PATH) is None]
    if absent:
        packages = "slurm-wlm slurmctld slurmd slurm-client munge iproute2"
        return f"no {', '.join(absent)}: apt-get install {packages}"
    if os.geteuid() != 0:
        return "network namespaces need root"
    probe = run(
        ["unshare", "-n", "-u", "-m", "ip", "link", "add", "dgprobe", "type", "bridge"], check=False
    )
    return None if probe.returncode == 0 else f"no network namespaces here: {probe.stderr.strip()}"


def run(
    command: Sequence[str], *, check: bool = True, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a short command; a failure shows its output."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PATH": PATH} | environment,
    )
    assert done.returncode == 0 or not check, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done


def wait_until(true: Callable[[], object], what: str, timeout: float = 300) -> float:
    """Wait, and return for how many seconds; AssertionError after `timeout` seconds."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < timeout, f"waited {timeout:g} s for {what}"
        time.sleep(0.1)
    return time.monotonic() - began


class Cluster:
    """Nodes and SLURM's commands. Use it as `with Cluster(folder, nodes=4) as cluster`."""

    def __init__(self, folder: Path, *, nodes: int) -> None:
        self.folder, self.conf = folder, folder / "slurm.conf"
        self.addresses = {f"node{i}": f"{NETWORK}.1{i}" for i in range(1, nodes + 1)}
        self.environment: dict[str, dict[str, str]] = {node: {} for node in self.addresses}

    def __enter__(self) -> "Cluster":
        try:
            self.up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def up(self) -> None:
        """Write the configuration, create the network and start the daemons of all nodes."""
        folder = self.folder
        for name in ("state", *(f"spool-{node}" for node in self.addresses)):
            (folder / name).mkdir(parents=True)
        # As on real clusters: with cgroups a step's signals reach its tasks, but not the processes
        # that these have started.
        proctrack = "cgroup" if FREEZER.is_dir() and os.access(FREEZER, os.W_OK) else "linuxproc"
        host = socket.gethostname()
        nodes = "\n".join(
            f"NodeName={node} NodeAddr={address}" for node, address in self.addresses.items()
        )
        self.conf.write_text(
            CONF.format(host=host, network=NETWORK, folder=folder, proctrack=proctrack, nodes=nodes)
        )
        prolog = folder / "task-prolog"
        prolog.write_text(f'#!/bin/sh\ncat "{folder}/environment-$SLURMD_NODENAME"\n')
        prolog.chmod(0o755)
        for node in self.addresses:
            self.set_environment(node)
        (folder / "cgroup.conf").write_text(
            "CgroupPlugin=cgroup/v1\nCgroupAutomount=no\nCgroupMountpoint=/sys/fs/cgroup\n"
        )
        names = "".join(
            f"{address} {name}\n::ffff:{address} {name}\n"
            for name, address in {host: f"{NETWORK}.1", **self.addresses}.items()
        )
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        key = folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        run(["ip", "link", "add", BRIDGE, "type", "bridge"])
        run(["ip", "addr", "add", f"{NETWORK}.1/24", "dev", BRIDGE])
        run(["ip", "link", "set", BRIDGE, "up"])
        for node, address in self.addresses.items():
            run(["ip", "netns", "add", f"dg-{node}"])
            run(
                [
                    "ip",
                    "link",
                    "add",
                    f"dgv-{node}",
                    "type",
                    "veth",
                    "peer",
                    "name",
                    "eth0",
                    "netns",
                    f"dg-{node}",
                ]
            )
            run(["ip", "link", "set", f"dgv-{node}", "master", BRIDGE, "up"])
            for words in ("addr add {}/24 dev eth0", "link set eth0 up", "link set lo up"):
                run(["ip", "-n", f"dg-{node}", *words.format(address).split()])
        munge = {
            "key-file": "munge.key",
            "socket": "munge.sock",
            "pid-file": "munged.pid",
            "log-file": "munged.log",
        }
        munge["seed-file"] = "munge.seed"
        # --force: munged would refuse a socket in a folder that only root may enter.
        run(["munged", "--force", *(f"--{name}={folder / file}" for name, file in munge.items())])
        self.daemon("slurmctld")
        for node in self.addresses:
            self.start_node(node)

    def daemon(self, *command: str) -> None:
        """Start a daemon, with its output in a file of its own."""
        with (self.folder / f"{command[-1]}.out").open("a") as output:
            environment = os.environ | {"PATH": PATH, "SLURM_CONF": str(self.conf)}
            subprocess.run(
                command,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                env=environment,
                check=True,
                timeout=30,
            )

    def start_node(self, node: str) -> None:
        """Start a node and wait until it accepts jobs."""
        # nsenter, because `ip netns exec` mounts a /sys without cgroups.
        enter = [
            "nsenter",
            f"--net=/run/netns/dg-{node}",
            "unshare",
            "-u",
            "-m",
            "--propagation",
            "private",
            "--",
        ]
        name = f'hostname {node}; mount --bind "{self.folder / "hosts"}" /etc/hosts; exec "$@"'
        self.daemon(*enter, "bash", "-c", name, "bash", "slurmd", "-N", node)
        wait_until(lambda: self.is_up(node), f"{node} to be up", 60)

    def set_environment(self, node: str, **values: str) -> None:
        """Set environment variables of the tasks that will be started on a node, besides others."""
        self.environment[node] |= values
        lines = (f"export {name}={value}\n" for name, value in self.environment[node].items())
        (self.folder / f"environment-{node}").write_text("".join(lines))

    def pids(self, node: str) -> list[int]:
        """Return the process ids of all that runs on a node."""
        return [
            int(pid)
            for pid in run(["ip", "netns", "pids", f"dg-{node}"], check=False).stdout.split()
        ]

    def kill_node(self, node: str) -> None:
        """Kill all processes of a node at once, as a crash does."""
        for _ in range(10):
            for pid in self.pids(node):
                kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    def cable(self, node: str, state: str) -> None:
        """Disconnect a node from the network (`down`) or connect it again (`up`)."""
        run(["ip", "link", "set", f"dgv-{node}", state])

    def workers(self, node: str, run: Path) -> list[int]:
        """Return the process ids of a run's trainers on a node, without their launchers."""
        return [pid for pid, is_launcher in self.trainers(node, run) if not is_launcher]

    def launchers(self, node: str, run: Path) -> list[int]:
        """Return the process id of a run's launcher on a node, in a list; empty if it has none."""
        return [pid for pid, is_launcher in self.trainers(node, run) if is_launcher]

    def trainers(self, node: str, run: Path) -> Iterator[tuple[int, bool]]:
        """Yield the process id of each trainer and launcher of a run, and whether it launches."""
        for pid in self.pids(node):
            words = command_line(pid)
            is_launcher = b"launch" in words[1:4]
            if os.fsencode(run) in words and (is_launcher or b"distgan/train.py" in words[1:4]):
                yield pid, is_launcher

    def slurm(self, *command: str, check: bool = True) -> str:
        """Run one of SLURM's commands and return its output."""
        return run(command, check=check, SLURM_CONF=str(self.conf)).stdout.strip()

    def node_state(self, node: str) -> str:
        """Return IDLE, MIXED, DOWN, ... with flags; * means that the node does not answer."""
        shown = self.slurm("scontrol", "-o", "show", "node", node, check=False)
        return next(iter(re.findall(r" State=(\S+)", shown)), "unknown")

    def is_up(self, node: str) -> bool:
        """Return whether a node accepts jobs."""
        state = self.node_state(node)
        return state.startswith(("IDLE", "MIXED", "ALLOCATED")) and "*" not in state

    def is_down(self, node: str) -> bool:
        """Return whether SLURM has given a node up."""
        return self.node_state(node).startswith("DOWN")

    def submit(self, *words: str, cwd: Path, **environment: str) -> str:
        """Submit a job with sbatch and return its number."""
        # Variables of SLURM and accelerate that belong to an outer job must not get in.
        exported = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SLURM_", "ACCELERATE_"))
        }
        exported |= {"SLURM_CONF": str(self.conf), "PATH": PATH} | environment
        done = subprocess.run(
            ["sbatch", "--parsable", *words],
            cwd=cwd,
            env=exported,
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """Return what SLURM knows about a job: JobState, Restarts, ..."""
        return dict(re.findall(r"(\w+)=(\S*)", self.slurm("scontrol", "-o", "show", "job", number)))

    def __exit__(self, *_: object) -> None:
        """Stop everything, and remove what is outside the folder."""
        self.slurm(
            "scancel", "--signal=KILL", "--full", "--state=RUNNING", "--user=root", check=False
        )
        for name in ("slurmctld", *(f"slurmd-{node}" for node in self.addresses), "munged"):
            file = self.folder / f"{name}.pid"
            if file.exists() and file.read_text().strip():
                kill(int(file.read_text()), signal.SIGTERM)
        for node in self.addresses:
            self.kill_node(node)
            run(["ip", "link", "del", f"dgv-{node}"], check=False)
            run(["ip", "netns", "del", f"dg-{node}"], check=False)
            for group in sorted(FREEZER.glob(f"slurm_{node}/**/"), reverse=True):
                run(["rmdir", str(group)], check=False)
        run(["ip", "link", "del", BRIDGE], check=False)


def kill(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may have ended already."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def command_line(pid: int) -> list[bytes]:
    """Return the words of a process's command, none if it has ended already."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return []
