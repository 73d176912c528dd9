"""Processes on two nodes take the steps of one, and a wrong number of them takes none."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

EXACT = {"precision": "64", "device": "cpu", "threads": 1}


@pytest.fixture
def prepared(project):
    """A project with everything before training, by this machine."""
    project.snakemake("prepare")
    return project


def settings(project, **training):
    """Config of a run in which no layer sees only one process's part of a batch."""
    config = yaml.safe_load((project.folder / "my.yaml").read_text())
    config["model"] = {"name": "painn", "width": 8, "layers": 1}
    config["graph"] = {"cutoff": 5.0}
    config["training"] = {**config["training"], **EXACT, **training}
    project.write_config(config)


def run_of(project):
    (card,) = (project.folder / "results" / "tiny" / "runs").glob("*/run.json")
    return card.parent


def equal(one, other):
    """Whether two runs learn the same, to the bit."""
    return same(one, other, rtol=0.0, atol=0.0, losses=0.0)


def same(one, other, rtol=1e-7, atol=1e-9, losses=1e-9):
    """Whether two runs learn the same, to rounding."""
    left, right = (pd.read_csv(folder / "history.csv") for folder in (one, other))
    for name in ("train_loss", "val_loss"):
        assert left[name].to_list() == pytest.approx(right[name].to_list(), rel=losses, abs=0.0)
    left, right = (load_file(folder / "model.safetensors") for folder in (one, other))
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=rtol, atol=atol)
    return True


def test_two_nodes_learn_what_one_process_learns_also_with_sharded_weights(project, tmp_path):
    settings(project)
    alone = type(project)(project.copy(tmp_path / "alone").folder, project.cluster)
    alone.snakemake()
    settings(project, nodes=2)
    project.on_cluster()
    said = (project.folder / "results" / "tiny" / "logs" / "train").glob("*.log")
    assert sum("already trained" in file.read_text() for file in said) == 0
    assert same(run_of(alone), run_of(project))
    settings(project, nodes=2, strategy="fsdp")
    shutil.rmtree(run_of(project))
    by_hand = ["srun", "--mpi=none", "--nodes=2", "--ntasks-per-node=1", "--mem=3000"]
    subprocess.run(
        [*by_hand, sys.executable, "-m", "atomloom", "train", "--config", "my.yaml"],
        cwd=project.folder,
        env={**os.environ, **project.variables},
        check=True,
        capture_output=True,
    )
    assert same(run_of(alone), run_of(project))


def test_a_job_on_two_nodes_ends_when_a_process_is_killed_and_resumes_to_the_same_bits(
    project, tmp_path
):
    often = {"epochs": 60, "checkpoint_minutes": 1e-6}
    settings(project, devices=2, **often)
    undisturbed = type(project)(project.copy(tmp_path / "undisturbed").folder, project.cluster)
    undisturbed.snakemake()
    settings(project, nodes=2, devices=1, **often)
    process, runs = project.started(), project.folder / "results" / "tiny" / "runs"
    project.cluster.wait_for(lambda: list(runs.glob("*/state/last.ckpt")), "a state is saved")
    os.kill(project.training_on("n2"), signal.SIGKILL)
    status = process.wait()
    assert status == 0, (project.folder / "said.txt").read_text()
    assert project.told("has lost another one")
    assert project.told("resuming at epoch")
    assert equal(run_of(undisturbed), run_of(project))


def test_processes_that_are_not_as_many_as_the_config_says_take_no_step(prepared):
    train = [sys.executable, "-m", "atomloom", "train", "--config", "my.yaml"]
    for start, reason in (
        (["srun", "--mpi=none", "-n", "2", "--mem=3000"], "srun started 2 processes"),
        (
            [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--no-python"],
            "torchrun started 2",
        ),
    ):
        done = subprocess.run(
            [*start, *train],
            cwd=prepared.folder,
            env={**os.environ, **prepared.variables},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode != 0
        assert reason in done.stderr
        assert not list(prepared.folder.rglob("model.safetensors"))


def test_torchrun_starts_what_training_would_start_itself(project, tmp_path):
    settings(project, devices=2)
    own = type(project)(project.copy(tmp_path / "own").folder, project.cluster)
    own.snakemake()
    project.snakemake("prepare")
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "atomloom"]
    subprocess.run(
        [*start, "train", "--config", "my.yaml"],
        cwd=project.folder,
        env={**os.environ, **project.variables},
        check=True,
        capture_output=True,
    )
    assert same(run_of(own), run_of(project))
