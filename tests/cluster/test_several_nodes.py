"""Processes on two nodes take the steps of one, and a wrong number of them takes none."""

from __future__ import annotations

import os
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


def same(one, other):
    """Whether two runs learn the same, to rounding."""
    left, right = (pd.read_csv(folder / "history.csv") for folder in (one, other))
    for name in ("train_loss", "val_loss"):
        assert left[name].to_list() == pytest.approx(right[name].to_list(), rel=1e-9)
    left, right = (load_file(folder / "model.safetensors") for folder in (one, other))
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=1e-7, atol=1e-9)
    return True


def test_two_nodes_learn_what_one_process_learns(project, tmp_path):
    settings(project)
    alone = type(project)(project.copy(tmp_path / "alone").folder, project.cluster)
    alone.snakemake()
    settings(project, nodes=2)
    project.on_cluster()
    said = (project.folder / "results" / "tiny" / "logs" / "train").glob("*.log")
    assert sum("already trained" in file.read_text() for file in said) == 0
    assert same(run_of(alone), run_of(project))


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
