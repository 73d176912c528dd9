"""What goes wrong on clusters changes no byte of a result."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.cluster.conftest import ClusterProject, products
from tests.workflow.project import Project

EPOCHS = 400


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Project:
    """A project that this machine has taken to the end, without disturbance."""
    made = Project.create(tmp_path_factory.mktemp("faults") / "trained", structures=24)
    config = yaml.safe_load((made.folder / "my.yaml").read_text())
    config["training"] |= {"epochs": EPOCHS, "checkpoint_minutes": 1e-6, "threads": 1}
    made.write_config(config)
    made.snakemake()
    return made


@pytest.fixture
def project(cluster, trained, tmp_path) -> ClusterProject:
    """The same project before training."""
    copy = ClusterProject(trained.copy(tmp_path / "project").folder, cluster)
    for path in (copy.folder / "results" / "tiny").glob("runs/*/*"):
        if path.is_file():
            path.unlink()
        else:
            for file in path.rglob("*"):
                file.unlink()
    (copy.folder / "results" / "tiny" / "report.html").unlink()
    return copy


def in_training(project: ClusterProject) -> str:
    """Job that trains, as soon as it has saved a state."""
    saved = project.folder / "results" / "tiny" / "runs"
    project.cluster.wait_for(lambda: list(saved.glob("*/state/last.ckpt")), "a state is saved")
    (job,) = [
        line.split()[0]
        for line in project.cluster.queue("%A %k", states="RUNNING")
        if "train" in line
    ]
    return job


def finish(project: ClusterProject, process: subprocess.Popen, trained: Project) -> str:
    """Wait for the end, compare with the undisturbed project, return what Snakemake said."""
    status = process.wait()
    said = (project.folder / "said.txt").read_text()
    assert status == 0, said
    assert products(project.folder) == products(trained.folder)
    return said


def training_log(project: ClusterProject) -> str:
    (log,) = (project.folder / "results" / "tiny" / "logs" / "train").glob("*.log")
    return log.read_text()


def test_a_cancelled_job_is_submitted_again_and_resumes(project, trained):
    process = project.started()
    job = in_training(project)
    project.cluster.cancel(job)
    finish(project, process, trained)
    assert "resuming at epoch" in training_log(project)


def test_a_job_moves_to_another_node_when_the_power_of_its_own_is_cut(project, trained):
    cluster = project.cluster
    process = project.started()
    job = in_training(project)
    (node,) = cluster.queue("%N", states="RUNNING")
    cluster.cut_power(node)
    try:
        cluster.wait_for(lambda: cluster.states().get(node) != "allocated", "the node is missed")
        cluster.wait_for(
            lambda: cluster.release(job) or process.poll() is not None, "the job is queued again"
        )
        finish(project, process, trained)
    finally:
        cluster.start_node(node)
        cluster.wait_for(lambda: cluster.states().get(node) == "idle", "the node is back")
    assert "resuming at epoch" in training_log(project)


def test_a_second_copy_of_a_training_waits_for_the_first(project, trained):
    """Snakemake is killed while its job runs, and started again."""
    process = project.started()
    in_training(project)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finish(project, project.started(), trained)


def test_a_controller_that_is_away_for_a_while_is_waited_for(project, trained):
    process = project.started()
    in_training(project)
    project.cluster.stop_controller()
    project.cluster.start_controller()
    finish(project, process, trained)


def test_a_job_with_too_little_memory_gets_more(project, trained):
    process = project.started(mem_mb="400*attempt**2")
    finish(project, process, trained)


def test_a_training_is_warned_of_its_time_limit_and_resumes(project, trained):
    (project.folder / "config").mkdir(exist_ok=True)
    Path(project.folder / "config" / "cluster.yaml").write_text('extra: "--signal=TERM@50"\n')
    process = project.started(runtime="attempt")
    finish(project, process, trained)
