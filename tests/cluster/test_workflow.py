"""The workflow on a cluster: the same files as on one machine, and nothing twice."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import yaml

from tests.cluster.conftest import products
from tests.workflow.project import Project


def test_a_cluster_makes_what_one_machine_makes_and_neither_makes_it_again(project, tmp_path):
    local = type(project)(project.copy(tmp_path / "local").folder, project.cluster)
    project.on_cluster()
    local.snakemake()
    made = products(project.folder)
    assert any("model.safetensors" in name for name in made)
    assert made == products(local.folder)
    assert project.jobs() == {}
    assert "Nothing to be done" in local.on_cluster()


@pytest.mark.parametrize(
    ("training", "train", "evaluate"),
    [
        ({}, {"gpu": "0", "threads": "4", "slurm_partition": "cpu"}, {"gpu": "0"}),
        (
            {"device": "cuda", "devices": 2, "threads": 6},
            {"gpu": "2", "threads": "6", "slurm_partition": "big", "gpu_model": "a100"},
            {"gpu": "1", "slurm_partition": "big"},
        ),
        (
            {"device": "cuda", "devices": 2, "nodes": 3, "threads": 8},
            {"gpu": "6", "nodes": "3", "tasks_per_node": "2", "cpus_per_task": "4", "mpi": "srun"},
            {"gpu": "1"},
        ),
        ({"device": "cpu", "nodes": 2}, {"gpu": "0", "tasks": "2", "slurm_account": "me"}, {}),
    ],
)
def test_jobs_ask_for_what_the_config_and_the_site_say(prepared, training, train, evaluate):
    """And not for the cores of the machine where snakemake runs."""
    asked = asked_for(prepared, training)
    assert train.items() <= asked["train"].items()
    assert evaluate.items() <= asked["evaluate"].items()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A project whose training comes next, on a cluster with two partitions."""
    made = Project.create(tmp_path_factory.mktemp("asked") / "project", structures=24)
    made.snakemake("prepare")
    for file in (made.folder / "workflow" / "rules").glob("*.smk"):
        # A job with a message prints nothing else.
        file.write_text(re.sub(r"\n    message:\n.*", "", file.read_text()))
    (made.folder / "config").mkdir()
    (made.folder / "config" / "cluster.yaml").write_text(
        "{account: me, partition: cpu, gpu_partition: big, gpu_model: a100}"
    )
    return made


def asked_for(project, training):
    """Resources of each rule of a dry run on a cluster."""
    config = yaml.safe_load((project.folder / "my.yaml").read_text())
    config["training"] |= training
    (project.folder / "asked.yaml").write_text(yaml.safe_dump(config))
    call = [sys.executable, "-m", "snakemake", "-n", "--workflow-profile", "profiles/slurm"]
    done = subprocess.run(
        [*call, "--configfile", "asked.yaml"],
        cwd=project.folder,
        capture_output=True,
        text=True,
        check=True,
    )
    asked = {}
    for block in re.split(r"\n(?=rule |checkpoint )", done.stdout + done.stderr):
        found = re.search(r"\n    resources: (.*)", block)
        name = block.split(":")[0].removeprefix("rule ")
        if found:
            asked[name] = dict(item.split("=", 1) for item in found[1].split(", "))
            threads = re.search(r"\n    threads: (\d+)", block)
            asked[name]["threads"] = threads[1] if threads else "1"
    return asked
