"""The profile for several batch systems, on a real Slurm: the same files, and a failure that is noticed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cluster.conftest import MODEST, products

pytest.importorskip(
    "snakemake_executor_plugin_cluster_generic",
    reason="snakemake-executor-plugin-cluster-generic, of the extra cluster, is missing",
)
QUICKLY = ("--seconds-between-status-checks", "1", "--latency-wait", "10")


def test_scripts_for_batch_systems_make_what_one_machine_makes_and_submit_a_cancelled_job_again(
    project, tmp_path
):
    local, cluster = (
        type(project)(project.copy(tmp_path / "local").folder, project.cluster),
        project.cluster,
    )
    given = [f"{name}={value}" for name, value in MODEST.items()]
    call = ["--workflow-profile", "profiles/cluster-generic", "--configfile", "my.yaml", *QUICKLY]
    with open(project.folder / "said.txt", "w") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "snakemake", *call, "--set-resources", *given],
            cwd=project.folder,
            env=project.variables,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
    trainings: list[str] = []

    def training_runs() -> bool:
        running = [line.split() for line in cluster.queue("%A %j", states="RUNNING")]
        trainings.extend(job for job, name in running if name == "train")
        return bool(trainings)

    cluster.wait_for(lambda: process.poll() is not None or training_runs(), "a training runs")
    assert trainings, (project.folder / "said.txt").read_text()
    cluster.cancel(trainings[0])
    status = process.wait()
    told = (project.folder / "said.txt").read_text()
    assert status == 0, told
    ended = [line.split() for line in cluster.queue("%A %T %j", states="all")]
    submitted = {job: state for job, state, name in ended if name == "train"}
    assert submitted.pop(trainings[0]) == "CANCELLED", told
    assert list(submitted.values()) == ["COMPLETED"], told
    local.snakemake()
    assert products(project.folder) == products(local.folder)
    assert project.jobs() == {}
