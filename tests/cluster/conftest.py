"""One cluster and one project for all tests here, each in a copy of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.slurm import Cluster, command_of, why_not
from tests.workflow.project import ROOT, Project

SOONER = """
import asyncio, sys
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake.cli import main
RemoteExecutor.sleep = lambda self: asyncio.sleep(1)
sys.exit(main())
"""
"""Snakemake that looks at its jobs each second; the executor's own interval grows to minutes."""

PRODUCTS = ("*.zarr.zip", "model.safetensors", "predictions.parquet", "split.json", "index.json")
"""Files that do not depend on when and where they were made."""

QUICKLY = ("--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "10")

MODEST = {
    "train:mem_mb": "2000*attempt",
    "evaluate:mem_mb": "2000",
    "split:mem_mb": "2000",
    "index:mem_mb": "2000",
}
"""Resources as tests need them, on nodes that pretend to be large."""


def products(folder: Path) -> dict[str, bytes]:
    """Content of all such files below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for kind in PRODUCTS
        for path in sorted(folder.rglob(kind))
    }


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    if reason := why_not():
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # sockets have short names
    running = Cluster(folder)
    try:
        running.start()
        yield running
    finally:
        running.stop()
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class ClusterProject(Project):
    """A project whose jobs can run on a cluster."""

    cluster: Cluster | None = None

    def started(
        self, resources: Mapping[str, str] | None = None, **environment: str
    ) -> subprocess.Popen:
        """Start snakemake on the cluster; its words go to `said.txt`.

        Args:
            resources: by rule and name, instead of those of MODEST.
            environment: more variables, which jobs inherit.
        """
        given = MODEST | dict(resources or {})
        own = ["--workflow-profile", "profiles/slurm", "--configfile", "my.yaml", *QUICKLY]
        own += ["--set-resources", *(f"{name}={value}" for name, value in given.items())]
        with open(self.folder / "said.txt", "w") as said:
            return subprocess.Popen(
                [sys.executable, "-c", SOONER, *own],
                cwd=self.folder,
                env=self.variables | environment,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def on_cluster(self) -> str:
        """Run snakemake on the cluster and return what it said."""
        status = self.started().wait()
        said = (self.folder / "said.txt").read_text()
        assert status == 0, said
        return said

    def stop(self) -> None:
        """End what a test that failed has left: jobs, and processes in the project's folder."""
        assert self.cluster is not None
        for job in self.cluster.queue("%A"):
            self.cluster.cancel(job)
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if (process / "cwd").resolve().is_relative_to(self.folder):
                    os.kill(int(process.name), signal.SIGKILL)

    def training_on(self, node: str) -> int:
        """Process that trains on a node."""
        (found,) = [
            pid
            for pid in self.cluster.processes_on(node)
            if "train" in (words := command_of(pid))
            and any(Path(word).name == "atomloom" for word in words[:2])
        ]
        return found

    def told(self, words: str) -> bool:
        """Whether a training has said this: in its log, or in that of a job that failed.

        Snakemake removes the log of a job that it starts again.
        """
        logs = [*(self.folder / "results" / "tiny" / "logs" / "train").glob("*.log")]
        logs += (self.folder / ".snakemake" / "slurm_logs" / "rule_train").rglob("*.log")
        return any(words in log.read_text() for log in logs)

    @property
    def variables(self) -> dict[str, str]:
        assert self.cluster is not None
        paths = os.pathsep.join([str(ROOT / "workflow"), str(ROOT)])
        return {**self.cluster.variables, "PYTHONPATH": paths}


@pytest.fixture
def project(cluster, tmp_path) -> Iterator[ClusterProject]:
    made = Project.create(tmp_path / "project", structures=24)
    (made.folder / "config").mkdir()
    shutil.copy(ROOT / "config" / "cluster.yaml", made.folder / "config" / "cluster.yaml")
    project = ClusterProject(made.folder, cluster)
    yield project
    project.stop()
