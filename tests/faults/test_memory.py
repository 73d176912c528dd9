"""The memory of a worker follows from the size of a chunk, not from how many structures there are."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from tests.workflow.project import CONFIG, Project
from tests.workflow.test_bad_input import stage

FEW, MANY = 1000, 20_000
ATOMS = 24

MEASURE = """
import resource, sys
from atomloom.cli import main
status = main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
sys.exit(status)
"""


@pytest.fixture(scope="module")
def projects(tmp_path_factory) -> dict[int, Project]:
    """Two projects of the same kind of structures, one twenty times as large, and their plans."""
    made = {}
    for count in (FEW, MANY):
        project = Project.create(tmp_path_factory.mktemp("memory") / "project", structures=1)
        rng = np.random.default_rng(count)
        grid = np.stack(np.meshgrid(*[np.arange(3)] * 3), axis=-1).reshape(-1, 3)[:ATOMS] * 2.5
        with open(project.folder / "data" / "all.extxyz", "w") as file:
            for _ in range(count):
                places = grid + rng.normal(scale=0.1, size=grid.shape)
                rows = "\n".join(f"Si {x:.6f} {y:.6f} {z:.6f}" for x, y, z in places)
                file.write(
                    f'{ATOMS}\nLattice="7.5 0 0 0 7.5 0 0 0 7.5" Properties=species:S:1:pos:R:3 '
                    f"energy={rng.normal():.6f}\n{rows}\n"
                )
        dataset = {"name": "tiny", "source": "data/all.extxyz", "target": "energy"}
        dataset["chunks"] = {"mean": 250, "min": 200, "max": 300}
        project.write_config({**CONFIG, "dataset": dataset, "graph": {"max_neighbors": 12}})
        assert stage(project, "plan").returncode == 0
        made[count] = project
    return made


def peak(project: Project, name: str) -> float:
    """MiB of one process that does all chunks one after the other."""
    arguments = [name, "--config", "my.yaml", "--workers", "1"]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *arguments],
        cwd=project.folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.parametrize("name", ["convert", "graphs"])
def test_twenty_times_the_structures_take_no_more_memory(projects, name):
    if name == "graphs":
        for project in projects.values():
            assert stage(project, "convert").returncode == 0
    few, many = (peak(projects[count], name) for count in (FEW, MANY))
    written = sum(p.stat().st_size for p in projects[MANY].folder.rglob("*.zarr.zip")) / 2**20
    assert written > 10, "too little data to tell"
    assert many < few + 12, f"{few:.0f} MiB for {FEW:,} structures, {many:.0f} for {MANY:,}"
