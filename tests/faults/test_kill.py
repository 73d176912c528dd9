"""Nothing is lost: jobs killed at random moments leave nothing half-done behind.

Fifty rounds over plan, convert and graphs. After each kill the next call goes on; at the end every
shard has the bytes of an undisturbed run.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.workflow.project import CONFIG, Project

ROUNDS = {"plan": 10, "convert": 20, "graphs": 20}
SEED = 20


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Project:
    project = Project.create(tmp_path_factory.mktemp("kill") / "undisturbed", structures=120)
    dataset = {**CONFIG["dataset"], "chunks": {"mean": 6, "min": 2, "max": 12}}
    project.write_config({**CONFIG, "dataset": dataset})
    for stage in ROUNDS:
        finish(project, stage)
    return project


def command(stage: str) -> list[str]:
    workers = [] if stage == "plan" else ["--workers", "2"]
    return [sys.executable, "-m", "atomloom", stage, "--config", "my.yaml", *workers]


def finish(project: Project, stage: str) -> None:
    done = subprocess.run(command(stage), cwd=project.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def kill_at(project: Project, stage: str, seconds: float) -> bool:
    """Start the stage and kill it with its workers; True if it was still running."""
    process = subprocess.Popen(
        command(stage),
        cwd=project.folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def content(project: Project, pattern: str) -> dict[str, bytes]:
    """Bytes of all finished files; leftovers of killed writers have names of their own."""
    folder = project.folder
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.glob(pattern))
        if p.is_file()
    }


def duration(project: Project, folder: Path, stage: str) -> float:
    copy = project.copy(folder)
    shutil.rmtree(
        copy.folder / "store" / {"convert": "structures"}.get(stage, stage), ignore_errors=True
    )
    started = time.monotonic()
    finish(copy, stage)
    return time.monotonic() - started


@pytest.mark.slow
def test_50_kills_of_plan_convert_and_graphs_change_no_byte(undisturbed, tmp_path):
    moments = random.Random(SEED)
    project = undisturbed.copy(tmp_path / "disturbed")
    shutil.rmtree(project.folder / "results")
    shutil.rmtree(project.folder / "store")
    killed = 0
    for stage, rounds in ROUNDS.items():
        length = duration(undisturbed, tmp_path / stage, stage)
        for _ in range(rounds):
            if not kill_at(project, stage, moments.uniform(0.3, 1.0) * length):
                length *= 0.8  # measured while the machine was busier
                # It got through: take some of its work away so that the next kill has something to hit.
                for path in (
                    sorted(project.folder.glob("store/*/**/*.zarr.zip"))[::2]
                    if stage != "plan"
                    else []
                ):
                    if (stage == "graphs") == ("graphs" in path.parts):
                        path.unlink()
            else:
                killed += 1
        finish(project, stage)
    assert killed >= sum(ROUNDS.values()) // 2, "too few kills hit a running job to mean anything"
    for pattern in ("store/**/*.zarr.zip", "results/tiny/plan/*/[!.]*"):
        assert content(project, pattern) == content(undisturbed, pattern)


@pytest.mark.slow
def test_snakemake_killed_in_the_middle_goes_on_without_unlocking(tmp_path):
    project = Project.create(tmp_path / "project", structures=60)
    moments = random.Random(SEED)
    for _ in range(3):
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "snakemake",
                "--configfile",
                "my.yaml",
                "--cores",
                "2",
                "prepare",
            ],
            cwd=project.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(moments.uniform(4, 9))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    project.snakemake("prepare")
    assert list((project.folder / "results" / "tiny" / "index").glob("*/index.json"))
    verified = subprocess.run(
        [sys.executable, "-m", "atomloom", "verify", "store"],
        cwd=project.folder,
        capture_output=True,
        text=True,
    )
    assert verified.returncode == 0, verified.stdout
