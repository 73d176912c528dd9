"""Who started a process is read from named variables, and their number must be the config's."""

from __future__ import annotations

import os

import pytest
from lightning_fabric.plugins.environments import TorchElasticEnvironment

from atomloom.errors import AtomloomError
from atomloom.training.processes import OwnProcesses, Srun, launched_by

KNOWN = (
    *("LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"),
    *("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    *("SLURM_STEP_NUM_NODES", "SLURM_STEP_NODELIST", "SLURM_NODELIST", "SLURM_JOB_NAME"),
    *("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "NODE_RANK", "GROUP_RANK"),
)


@pytest.fixture
def variables(monkeypatch):
    """Set variables in an environment without any of a launcher."""
    for name in KNOWN:
        monkeypatch.delenv(name, raising=False)

    def set_all(**values):
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))

    return set_all


def step_of(tasks, nodes=1, **more):
    return {
        "SLURM_JOB_ID": 123456,
        "SLURM_STEP_ID": 2,
        "SLURM_NTASKS": tasks,
        "SLURM_STEP_NUM_TASKS": tasks,
        "SLURM_STEP_NUM_NODES": nodes,
        "SLURM_PROCID": 0,
        **more,
    }


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize(
    "around",
    [
        {},
        # A step of one task, as the executor of Snakemake starts; a batch script for four; a shell.
        step_of(1),
        {"SLURM_JOB_ID": 7, "SLURM_NTASKS": 4, "SLURM_PROCID": 0, "SLURM_LOCALID": 0},
        step_of(1, SLURM_JOB_NAME="bash", SLURM_NTASKS=4),
        {"OMPI_COMM_WORLD_SIZE": 1},
    ],
)
def test_a_process_alone_starts_the_others_itself(variables, around, devices):
    variables(**around)
    launcher = launched_by(devices)
    assert isinstance(launcher, OwnProcesses)
    assert not launcher.creates_processes_externally


def test_processes_of_one_node_meet_at_it_whatever_their_shell_has_left(variables):
    variables(MASTER_ADDR="10.255.0.1", MASTER_PORT=1, NODE_RANK=3)
    first = launched_by(2)
    assert first.main_address == "127.0.0.1"
    assert first.main_port == first.main_port != 1
    assert first.node_rank() == 0
    variables(MASTER_ADDR="127.0.0.1", MASTER_PORT=first.main_port, LOCAL_RANK=1, WORLD_SIZE=2)
    assert launched_by(2).main_port == first.main_port


def test_processes_of_torchrun_are_taken(variables):
    variables(TORCHELASTIC_RUN_ID="none", WORLD_SIZE=6, LOCAL_RANK=1)
    assert type(launched_by(3, nodes=2)) is TorchElasticEnvironment


def test_tasks_of_srun_are_taken_from_their_step(variables):
    variables(**step_of(4, 2, SLURM_STEP_NODELIST="node[07-08]", SLURM_NODELIST="node[01-08]"))
    launcher = launched_by(2, nodes=2)
    assert type(launcher) is Srun
    assert launcher.creates_processes_externally
    assert launcher.world_size() == 4
    assert launcher.main_address == "node07"
    assert "MASTER_ADDR" not in os.environ
    assert 12_000 <= launcher.main_port < 32_000
    launcher.validate_settings(2, 2)
    with pytest.raises(AtomloomError, match="on 2 nodes, not 1"):
        launcher.validate_settings(4, 1)


def test_two_steps_of_a_job_meet_at_different_ports(variables):
    ports = []
    for step in (0, 1):
        variables(**step_of(2, SLURM_STEP_ID=step))
        ports.append(Srun().main_port)
    assert "MASTER_PORT" not in os.environ
    assert ports[0] != ports[1]


def test_a_given_address_is_honoured(variables):
    variables(**step_of(2), MASTER_ADDR="127.0.0.1", MASTER_PORT=23456)
    assert (Srun().main_address, Srun().main_port) == ("127.0.0.1", 23456)


@pytest.mark.parametrize(
    ("around", "devices", "nodes", "said"),
    [
        (step_of(4), 1, 1, "srun started 4 processes, but training.devices x training.nodes is 1"),
        (step_of(2), 4, 1, "srun started 2 processes, but .* is 4 x 1"),
        ({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": 2}, 1, 1, "torchrun started 2 processes"),
        ({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": 1}, 2, 1, "torchrun started 1 process, but"),
        ({"LOCAL_RANK": 1, "WORLD_SIZE": 2}, 1, 1, "another process .* started 2 processes"),
        ({"OMPI_COMM_WORLD_SIZE": 2}, 2, 1, "mpirun started 2 processes"),
        ({}, 2, 2, "one process on one node, not one of 2 nodes.*srun --nodes=2"),
        (step_of(1), 1, 3, "not one of 3 nodes"),
    ],
)
def test_another_number_of_processes_stops_the_run(variables, around, devices, nodes, said):
    variables(**around)
    with pytest.raises(AtomloomError, match=said):
        launched_by(devices, nodes)


@pytest.mark.parametrize(
    ("around", "name"),
    [
        ({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "two"}, "WORLD_SIZE"),
        ({"LOCAL_RANK": 1, "WORLD_SIZE": "two"}, "WORLD_SIZE"),
        ({"SLURM_STEP_NUM_TASKS": "x"}, "SLURM_STEP_NUM_TASKS"),
        ({"PMI_SIZE": ""}, "PMI_SIZE"),
    ],
)
def test_a_number_of_processes_that_is_none_is_one_line(variables, around, name):
    variables(**around)
    with pytest.raises(AtomloomError, match=f"{name}: is '.*', not a number"):
        launched_by(1)


def test_an_address_without_a_number_is_one_line(variables):
    variables(**step_of(2), MASTER_PORT="http")
    with pytest.raises(AtomloomError, match="MASTER_PORT: is 'http', not a number"):
        _ = Srun().main_port
