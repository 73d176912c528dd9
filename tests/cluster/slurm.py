"""A real Slurm on this machine alone, for tests: virtual nodes, loopback, no systemd, no cgroups.

It needs Debian's packages slurmctld, slurmd, slurm-client and munge. Everything lives in one folder and belongs
to the user who starts it. For root there are GPUs: character devices that no driver knows, enough to be counted,
given and named.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "srun", "sbatch", "squeue", "scancel", "munged")
MUNGE_KEY = 1024

CONFIG = """\
ClusterName=atomloom
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
CommunicationParameters=NoAddrCache,NoCtldInAddrAny,NoInAddrAny
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
StateSaveLocation={folder}/state
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdLogFile={folder}/slurmd.%n.log
SlurmdSpoolDir={folder}/spool/%n
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
PropagateResourceLimits=NONE
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
GresTypes=gpu
KillWait=5
MessageTimeout=5
SlurmdTimeout=8
SlurmctldTimeout=10
MinJobAge=300
ReturnToService=2
JobRequeue=1
{nodes}
PartitionName=main Nodes=n[1-{count}] Default=YES MaxTime=24:00:00 DefaultTime=10:00 DefMemPerCPU=100 State=UP
PartitionName=gpu Nodes=n[1-{count}] MaxTime=24:00:00 DefaultTime=10:00 DefMemPerCPU=100 State=UP
"""

NODE = (
    "NodeName={name} NodeHostname={name} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} "
    "RealMemory={memory} {gpus}State=UNKNOWN"
)


def why_not() -> str | None:
    """Reason why no cluster can be started here; None if one can."""
    missing = [name for name in PROGRAMS if _program(name) is None]
    if missing:
        return f"no {', '.join(missing)} here: make test-cluster installs them"
    return None


class Cluster:
    """Controller and nodes n1, n2, ...

    Args:
        folder: where everything of the cluster lives; short, since sockets have short names.
        nodes: number of virtual nodes.
        cpus: cores that each node claims.
        memory: MiB that each node claims.
        gpus: pretended GPUs per node; none where the user may not make devices.
    """

    def __init__(
        self, folder: Path, nodes: int = 2, cpus: int = 4, memory: int = 8000, gpus: int = 2
    ) -> None:
        self.folder, self.count = folder, nodes
        self.gpus = gpus if os.geteuid() == 0 else 0
        given_gpus = f"Gres=gpu:fake:{self.gpus} " if self.gpus else ""
        self.port = _free_ports(nodes + 1)
        names = [f"n{number}" for number in range(1, nodes + 1)]
        self.nodes = dict(zip(names, range(self.port + 1, self.port + 1 + nodes), strict=True))
        for name in ("state", "spool", "bin"):
            (folder / name).mkdir(parents=True)
        lines = [
            NODE.format(name=name, port=port, cpus=cpus, memory=memory, gpus=given_gpus)
            for name, port in self.nodes.items()
        ]
        given = {"host": socket.gethostname().partition(".")[0], "port": self.port}
        given["user"] = pwd.getpwuid(os.geteuid()).pw_name
        text = CONFIG.format(folder=folder, nodes="\n".join(lines), count=nodes, **given)
        (folder / "slurm.conf").write_text(text)
        (folder / "cgroup.conf").write_text("")
        if self.gpus:
            self._pretend_gpus()
        self._write_programs()

    @property
    def variables(self) -> dict[str, str]:
        """Environment of users of the cluster; their processes know no other."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
        path = os.pathsep.join([str(self.folder / "bin"), str(Path(sys.executable).parent)])
        return {
            **kept,
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "PATH": os.pathsep.join([path, kept.get("PATH", ""), "/usr/sbin", "/usr/bin", "/bin"]),
            "GLOO_SOCKET_IFNAME": "lo",
            "MASTER_ADDR": "127.0.0.1",  # virtual nodes have no names of their own
        }

    def start(self) -> None:
        """Start everything and wait until all nodes take jobs."""
        key, socket_name = self.folder / "munge.key", self.folder / "munge.socket"
        key.write_bytes(os.urandom(MUNGE_KEY))
        key.chmod(0o600)
        self.folder.chmod(0o755)
        files = {"key-file": key, "socket": socket_name, "pid-file": self.folder / "munged.pid"}
        files |= {"log-file": self.folder / "munged.log", "seed-file": self.folder / "munged.seed"}
        self._run("munged", *(f"--{option}={file}" for option, file in files.items()))
        self.start_controller()
        for name in self.nodes:
            self.start_node(name)
        self.wait_for(lambda: self.states() == dict.fromkeys(self.nodes, "idle"), "nodes are idle")

    def stop(self) -> None:
        """Cancel all jobs and stop all processes of the cluster."""
        for job in self.queue():
            self._run("scancel", "--quiet", job, check=False)
        ends = time.monotonic() + 20
        while time.monotonic() < ends and self.queue():  # steps outlive daemons that end before
            time.sleep(0.2)
        pids = [int(file.read_text()) for file in sorted(self.folder.glob("*.pid"))]
        for pid in pids:
            _signal(pid, signal.SIGTERM)
        ends = time.monotonic() + 20
        while time.monotonic() < ends and any(map(_alive, pids)):
            time.sleep(0.1)
        for pid in pids:
            _signal(pid, signal.SIGKILL)

    def start_controller(self) -> None:
        """Start slurmctld, which recovers the jobs that it knew."""
        self._run("slurmctld")

    def stop_controller(self) -> None:
        """Stop slurmctld; jobs go on."""
        self._kill("slurmctld", signal.SIGTERM)

    def start_node(self, name: str) -> None:
        """Start the daemon of a node."""
        (self.folder / "spool" / name).mkdir(exist_ok=True)
        self._run("slurmd", "-N", name)

    def kill_daemon(self, name: str) -> None:
        """Kill the daemon of a node; what runs there lives on, which the controller cannot know."""
        self._kill(f"slurmd.{name}", signal.SIGKILL)

    def cut_power(self, name: str) -> None:
        """Kill the daemon of a node and everything that runs there."""
        self.kill_daemon(name)
        for pid in self.processes_on(name):
            _signal(pid, signal.SIGKILL)

    def processes_on(self, name: str) -> list[int]:
        """Processes that Slurm started on a node, with all that these started."""
        children: dict[int, list[int]] = {}
        steps, on_node = [], set()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                stat = (folder / "stat").read_text()
                content = (folder / "environ").read_bytes() + b"\0"
            except OSError:
                continue
            parent = int(stat.rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
            if "(slurmstepd)" in stat:
                steps.append(int(folder.name))
            if (
                f"SLURMD_NODENAME={name}\0".encode() in content
                and str(self.folder).encode() in content
            ):
                on_node.add(int(folder.name))
        found: set[int] = set()  # a step may have started another
        for step in steps:  # which has the environment of its daemon, that of all nodes
            family = [step]
            for pid in family:
                family += children.get(pid, [])
            if on_node.intersection(family):
                found.update(family)
        return sorted(found)

    def states(self) -> dict[str, str]:
        """State of each node."""
        lines = self._run("sinfo", "-h", "-N", "-p", "main", "-o", "%N %T", check=False)
        return dict(line.split() for line in lines.splitlines())

    def queue(self, format: str = "%A", states: str = "") -> list[str]:
        """One line per job in the queue, in the format of squeue."""
        more = ("--states", states) if states else ()
        told = self._run("squeue", "-h", "-o", format, *more, check=False)
        return told.splitlines()

    def cancel(self, job: str) -> None:
        """Cancel a job as its owner would."""
        self._run("scancel", job)

    def requeue(self, job: str) -> None:
        """Queue a running job again as its administrator would, for another one that goes first."""
        self._run("scontrol", "requeue", job)

    def set_time_limit(self, job: str, minutes: int) -> None:
        """Change the time limit of a running job."""
        self._run("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")

    def killed_for_memory(self, job: str) -> bool:
        """Whether a node has killed a step of this job because it took more memory than it asked for."""
        logs = [file.read_text() for file in self.folder.glob("slurmd.*.log")]
        lines = [line for text in logs for line in text.splitlines() if f"StepId={job}." in line]
        return any("exceeded memory limit" in line for line in lines)

    def release(self, job: str) -> bool:
        """Let a job that was queued again start at once, not after two minutes; False if it is not there."""
        if f"{job} PENDING" not in self.queue("%A %T"):
            return False
        self._run("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)
        return True

    def wait_for(self, ready: Callable[[], object], what: str, seconds: float = 900) -> None:
        """Wait until `ready()` is true.

        Raises:
            TimeoutError: when it is not for so long that something is broken.
        """
        ends = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > ends:
                raise TimeoutError(f"{what}: not after {seconds} s; see {self.folder}")
            time.sleep(0.2)

    def _pretend_gpus(self) -> None:
        # Plain files would not do: Slurm wants character devices. These are clones of /dev/null.
        for number in range(self.gpus):
            os.mknod(self.folder / f"gpu{number}", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        files = f"{self.folder}/gpu[0-{self.gpus - 1}]"
        names = f"n[1-{self.count}]"
        text = f"AutoDetect=off\nNodeName={names} Name=gpu Type=fake File={files}\n"
        (self.folder / "gres.conf").write_text(text)

    def _write_programs(self) -> None:
        """Write the srun and sacct that jobs find first.

        The executor drops SLURM_CONF before its own srun, which then finds no cluster; on a real one it
        stands in /etc/slurm. Without accounting, sacct answers from the queue.
        """
        conf = self.folder / "slurm.conf"
        programs = {
            "srun": f'SLURM_CONF={conf} exec {_program("srun")} "$@"',
            "sacct": f"export SLURM_CONF={conf}\n"
            'while [ $# -gt 0 ]; do [ "$1" = --name ] && exec squeue --format="%i|%T" '
            '--states=all --noheader --name "$2"; shift; done',
        }
        for name, text in programs.items():
            (self.folder / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
            (self.folder / "bin" / name).chmod(0o755)

    def _run(self, name: str, *arguments: str, check: bool = True) -> str:
        program = _program(name)
        assert program is not None
        done = subprocess.run(
            [program, *arguments], env=self.variables, capture_output=True, text=True, check=False
        )
        if check and done.returncode:
            raise RuntimeError(f"{name}: {done.stderr.strip()}; see {self.folder}")
        return done.stdout

    def _kill(self, name: str, how: signal.Signals) -> None:
        file = self.folder / f"{name}.pid"
        pid = int(file.read_text())
        _signal(pid, how)
        self.wait_for(lambda: not _alive(pid), f"{name} is gone")
        file.unlink(missing_ok=True)


def _program(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"]))


def _free_ports(count: int) -> int:
    """First of so many neighbouring ports that nobody listens at."""
    for first in range(16_800, 17_800, count):
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise OSError("no free ports")


def command_of(pid: int) -> list[str]:
    """Words of the command line of a process; none if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


def has_pending(pid: int, number: int) -> bool:
    """Whether a signal has reached a process that is there, and has not looked at it yet."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    masks = [line.split()[1] for line in status.splitlines() if line[:7] in ("SigPnd:", "ShdPnd:")]
    return any(int(mask, 16) >> (number - 1) & 1 for mask in masks)


def _signal(pid: int, how: signal.Signals) -> None:
    try:
        os.kill(pid, how)
    except ProcessLookupError:
        return


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
