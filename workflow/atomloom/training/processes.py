"""Processes that take part in a run: one, several that this one starts, or those of torchrun or srun.

The launcher is named, never guessed. Inside a cluster's allocation there are many variables that
look like a distributed job; only the two launchers below start several processes of one training, and
a training whose processes are not as many as its config says would be another one under the same key.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from lightning_fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning_fabric.plugins.environments.lightning import find_free_network_port
from typing_extensions import override

from atomloom.errors import AtomloomError

OTHER_LAUNCHERS = {"OMPI_COMM_WORLD_SIZE": "mpirun", "PMI_SIZE": "mpiexec"}
"""Number of processes by launchers whose processes cannot find each other here -> their command."""


FIRST = "another process (LOCAL_RANK is set)"
"""Launcher of processes that the first process of a training starts by itself."""


def launched_by(devices: int, nodes: int = 1) -> ClusterEnvironment:
    """Environment of the launcher that started this process.

    Args:
        devices: processes per node.
        nodes: nodes.

    Raises:
        AtomloomError: when the launcher started another number of processes, or none and several nodes
            are wanted, or is not one of torchrun and srun.
    """
    launcher, processes = _launcher(os.environ)
    wanted = devices * nodes
    if launcher in OTHER_LAUNCHERS.values():
        raise AtomloomError(
            f"{launcher} started {processes} processes, which cannot find each other",
            where="training.devices",
            todo="start one process, or several by torchrun or srun",
        )
    if launcher and processes != wanted:
        raise AtomloomError(
            f"{launcher} started {processes} process{'es' if processes > 1 else ''}, "
            f"but training.devices x training.nodes is {devices} x {nodes}",
            where="training.devices",
            todo="start as many as the config says, or change the config",
        )
    if launcher == "torchrun":
        return TorchElasticEnvironment()
    if launcher == "srun":
        return Srun()
    if nodes > 1:
        raise AtomloomError(
            f"this is one process on one node, not one of {nodes} nodes",
            where="training.nodes",
            todo=f"start it by `srun --nodes={nodes} --ntasks-per-node={devices}`, or by torchrun",
        )
    return OwnProcesses()


def _launcher(variables: Mapping[str, str]) -> tuple[str, int]:
    """Name of the launcher that started several processes, and their number; no name for one alone."""
    if "TORCHELASTIC_RUN_ID" in variables:
        return "torchrun", _number(variables, "WORLD_SIZE")
    # Of the step, not of the job: a batch script and a step of one task have their job's tasks in
    # SLURM_NTASKS, and are one process all the same.
    if (tasks := _number(variables, "SLURM_STEP_NUM_TASKS")) > 1:
        return "srun", tasks
    if "LOCAL_RANK" in variables:
        # Set by Fabric for the processes that the first one starts, and by nobody else here.
        return FIRST, _number(variables, "WORLD_SIZE")
    for name, command in OTHER_LAUNCHERS.items():
        if (processes := _number(variables, name)) > 1:
            return command, processes
    return "", 1


def _number(variables: Mapping[str, str], name: str, default: int = 1) -> int:
    """Number that a launcher has set."""
    value = variables.get(name, default)
    try:
        return int(value)
    except ValueError:
        raise AtomloomError(
            f"is {value!r}, not a number",
            where=name,
            todo="unset it, or start anew by the launcher",
        ) from None


class OwnProcesses(LightningEnvironment):
    """Processes on one node that the first of them starts.

    Unlike its parent the first takes nothing from its shell: an address that was left there by something
    else would be waited for.
    """

    @property
    @override
    def main_address(self) -> str:
        return "127.0.0.1"

    @property
    @override
    def main_port(self) -> int:
        if self._main_port == -1 and not self.creates_processes_externally:
            self._main_port = find_free_network_port()
        return super().main_port

    @override
    def node_rank(self) -> int:
        return 0


class Srun(SLURMEnvironment):
    """Tasks of one step of srun; MASTER_ADDR and MASTER_PORT are honoured where they are set.

    Unlike its parent it takes everything from the step, so that steps in one allocation are apart.
    """

    def __init__(self) -> None:  # not the parent's, whose checks are of the job
        ClusterEnvironment.__init__(self)
        self.auto_requeue = False
        self.requeue_signal = None

    @override
    def world_size(self) -> int:
        return _number(os.environ, "SLURM_STEP_NUM_TASKS")

    @property
    @override
    def main_address(self) -> str:
        nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST", "")
        first = self.resolve_root_node_address(nodes) or "127.0.0.1"
        return os.environ.get("MASTER_ADDR", first)

    @property
    @override
    def main_port(self) -> int:
        """Port above those of services and below those that systems give away, by job and step."""
        numbers = [_number(os.environ, name, 0) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID")]
        port = 12_000 + (numbers[0] * 31 + numbers[1]) % 20_000
        return _number(os.environ, "MASTER_PORT", port)

    @override
    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        nodes = _number(os.environ, "SLURM_STEP_NUM_NODES", num_nodes)
        if nodes != num_nodes:
            raise AtomloomError(
                f"srun started processes on {nodes} nodes, not {num_nodes}",
                where="training.nodes",
                todo="give srun --nodes and --ntasks-per-node as the config says",
            )
