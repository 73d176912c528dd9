"""What goes wrong on clusters changes no byte of a result."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.cluster.conftest import ClusterProject, products
from tests.cluster.slurm import has_pending
from tests.workflow.project import Project

EPOCHS = 100
AWAY = 20.0
"""Seconds; the tests' Snakemake looks at its jobs each second."""


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


@dataclass(frozen=True)
class Training:
    """A training that stands still in the middle, so that it is not done before something happens to it."""

    job: str
    node: str
    pid: int

    def go_on(self) -> None:
        """Let it train on, if it has not ended."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)


def in_training(project: ClusterProject) -> Training:
    """Stop the training of the job that runs, as soon as it has saved a state."""
    cluster, runs = project.cluster, project.folder / "results" / "tiny" / "runs"
    cluster.wait_for(lambda: list(runs.glob("*/state/last.ckpt")), "a state is saved")
    (running,) = [line for line in cluster.queue("%A %N %k", states="RUNNING") if "train" in line]
    job, node, _ = running.split(maxsplit=2)
    training = Training(job, node, project.training_on(node))
    os.kill(training.pid, signal.SIGSTOP)
    assert not list(runs.glob("*/run.json")), "it was not done yet"
    return training


def finish(project: ClusterProject, process: subprocess.Popen, trained: Project) -> str:
    """Wait for the end, compare with the undisturbed project, return what Snakemake said."""
    status = process.wait()
    said = (project.folder / "said.txt").read_text()
    assert status == 0, said
    assert products(project.folder) == products(trained.folder)
    return said


def test_a_cancelled_job_is_submitted_again_and_resumes(project, trained):
    process = project.started()
    project.cluster.cancel(in_training(project).job)
    finish(project, process, trained)
    assert project.told("resuming at epoch")


def test_a_job_moves_to_another_node_when_the_power_of_its_own_is_cut(project, trained):
    cluster = project.cluster
    process = project.started()
    training = in_training(project)
    node = training.node
    cluster.cut_power(node)
    try:
        cluster.wait_for(lambda: cluster.release(training.job), "the job is queued again")
        finish(project, process, trained)
    finally:
        cluster.start_node(node)
        cluster.wait_for(lambda: cluster.states().get(node) == "idle", "the node is back")
    assert project.told("resuming at epoch")


NO_LOCKS = """
import errno, fcntl


def flock(*_):
    raise OSError(errno.ENOLCK, "No locks available")


fcntl.flock = flock
"""
"""Module that Python imports at its start: as on nodes that share files, but no locks."""


@pytest.mark.parametrize("locks", ["locks", "no locks"])
def test_a_copy_that_lives_on_where_the_daemon_was_killed_harms_nothing(
    project, trained, tmp_path, locks
):
    """Slurm gives the node up and starts the job again on the other, while the old copy trains on."""
    cluster, path = (
        project.cluster,
        os.pathsep.join([str(tmp_path), project.variables["PYTHONPATH"]]),
    )
    if locks == "no locks":
        (tmp_path / "sitecustomize.py").write_text(NO_LOCKS)
    process = project.started(PYTHONPATH=path)
    training = in_training(project)
    node = training.node
    try:
        cluster.kill_daemon(node)
        cluster.wait_for(lambda: cluster.release(training.job), "the job is queued again")
        said = "waiting for it" if locks == "locks" else "resuming at epoch"
        cluster.wait_for(lambda: project.told(said), "the second copy is there")
        assert training.pid in cluster.processes_on(node)
        training.go_on()
        finish(project, process, trained)
        cluster.wait_for(lambda: not cluster.processes_on(node), "the first copy has ended")
        assert project.told("has taken this run over") == (locks == "no locks")
    finally:
        cluster.start_node(node)
        cluster.wait_for(lambda: cluster.states().get(node) == "idle", "the node is back")
    assert products(project.folder) == products(trained.folder)


def test_a_second_copy_of_a_training_waits_for_the_first(project, trained):
    """Snakemake is killed while its job runs, and started again."""
    process = project.started()
    training = in_training(project)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process = project.started()
    project.cluster.wait_for(lambda: project.told("waiting for it"), "the second copy is there")
    training.go_on()
    finish(project, process, trained)


def test_a_controller_that_is_away_for_a_while_is_waited_for(project, trained):
    """The training ends meanwhile, and Snakemake asks for it in vain many times."""
    process, cluster = project.started(), project.cluster
    training = in_training(project)
    cluster.stop_controller()
    try:
        training.go_on()
        runs = project.folder / "results" / "tiny" / "runs"
        cluster.wait_for(lambda: list(runs.glob("*/run.json")), "the training has ended")
        time.sleep(AWAY)
        assert process.poll() is None
        assert not cluster.queue()
    finally:
        cluster.start_controller()
    finish(project, process, trained)


def test_a_job_with_too_little_memory_gets_more(project, trained):
    process = project.started({"train:mem_mb": "300*attempt**2"})
    cluster, first = project.cluster, []

    def job_is_known() -> bool:
        first.extend(line.split()[0] for line in cluster.queue("%A %k") if "train" in line)
        return bool(first)

    cluster.wait_for(job_is_known, "the training is submitted")
    finish(project, process, trained)
    assert cluster.killed_for_memory(first[0])


def test_a_training_is_warned_of_its_time_limit_and_resumes(project, trained):
    (project.folder / "config").mkdir(exist_ok=True)
    Path(project.folder / "config" / "cluster.yaml").write_text('extra: "--signal=TERM@50"\n')
    process, cluster = project.started(), project.cluster
    training = in_training(project)
    (elapsed,) = cluster.queue("%M", states="RUNNING")
    cluster.set_time_limit(training.job, int(elapsed.split(":")[0]) + 2)
    stopped = "stopped by SIGTERM; the state is saved"
    cluster.wait_for(
        lambda: has_pending(training.pid, signal.SIGTERM) or project.told(stopped), "it is warned"
    )
    training.go_on()
    finish(project, process, trained)
    assert project.told(stopped)
    assert project.told("resuming at epoch")


def test_a_job_that_is_queued_again_resumes(project, trained):
    process, cluster = project.started(), project.cluster
    training = in_training(project)
    cluster.requeue(training.job)
    cluster.wait_for(lambda: cluster.release(training.job), "the job is queued again")
    finish(project, process, trained)
    assert project.told("resuming at epoch")
