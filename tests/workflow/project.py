"""A small project in a folder of its own: the workflow's files, a data set of rocksalt cells, a config.

Tests change one thing in it and count the jobs of a dry run.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from atomloom.commands.status import status_of
from atomloom.config import load_config
from atomloom.pipeline.paths import Layout

ROOT = Path(__file__).resolve().parents[2]
CATIONS = ("Li", "Na", "K", "Rb", "Mg", "Ca")
ANIONS = ("F", "Cl", "Br", "O")

PROJECT_FILES = ("Snakefile", "workflow/Snakefile", "workflow/rules", "workflow/report")
PROJECT_FILES += ("envs", "profiles", "config")
"""Files that an installed package carries besides itself."""

TARGETS = ("all", "default", "prepare")

CONFIG = {
    "dataset": {
        "name": "tiny",
        "source": "data/cif",
        "labels": {"file": "data/labels.csv", "id_column": "id"},
        "target": "energy",
        "unit": "eV",
        "chunks": {"mean": 10, "min": 4, "max": 20},
    },
    "graph": {"cutoff": 8, "max_neighbors": 6},
    "model": {"name": "icomformer", "width": 8, "layers": 2},
    "training": {"epochs": 2, "batch": {"structures": 8}, "learning_rate": 0.001},
}


@dataclass(frozen=True)
class Project:
    """A folder with everything a call of snakemake needs."""

    folder: Path

    @classmethod
    def create(cls, folder: Path, structures: int = 48) -> Project:
        """Lay out the workflow and `structures` cells with labels."""
        folder.mkdir(parents=True)
        shutil.copy(ROOT / "Snakefile", folder)
        for name in ("rules", "report"):
            shutil.copytree(ROOT / "workflow" / name, folder / "workflow" / name)
        shutil.copy(ROOT / "workflow" / "Snakefile", folder / "workflow")
        for name in ("profiles", "envs"):
            shutil.copytree(ROOT / name, folder / name)
        (folder / "data" / "cif").mkdir(parents=True)
        (folder / "data" / "labels.csv").write_text("id,energy,note\n")
        project = cls(folder)
        project.append(structures)
        project.write_config(CONFIG)
        return project

    def copy(self, folder: Path) -> Project:
        """The whole folder elsewhere, with old time stamps."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Project(folder)

    @property
    def cifs(self) -> list[Path]:
        """Structure files in the order of the records."""
        return sorted((self.folder / "data" / "cif").glob("*.cif"))

    def append(self, count: int) -> None:
        """Add `count` structures and their labels at the end."""
        first = len(self.cifs)
        pairs = list(itertools.product(CATIONS, ANIONS))
        with open(self.folder / "data" / "labels.csv", "a") as labels:
            for number in range(first, first + count):
                cation, anion = pairs[number % len(pairs)]
                length = 4.0 + 0.013 * number
                path = self.folder / "data" / "cif" / f"s{number:03d}.cif"
                path.write_text(cif_text(cation, anion, length))
                labels.write(f"s{number:03d},{np.sin(number) - 0.1 * number:.6f},x\n")

    def write_config(self, config: dict, text: str | None = None) -> None:
        """Write `my.yaml`."""
        (self.folder / "my.yaml").write_text(text or yaml.safe_dump(config))

    def snakemake(self, *arguments: str, check: bool = True, **environment: str) -> str:
        """Run snakemake here and return what it printed."""
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "snakemake",
                "--configfile",
                "my.yaml",
                "--cores",
                "2",
                *arguments,
            ],
            cwd=self.folder,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
        )
        output = done.stdout + done.stderr
        if check and done.returncode:
            raise AssertionError(f"snakemake failed\n{output}")
        return output

    def command(self, *arguments: str) -> None:
        """Run a command of atomloom here, with the config."""
        command = [sys.executable, "-m", "atomloom", *arguments, "--config", "my.yaml"]
        subprocess.run(command, cwd=self.folder, check=True, capture_output=True)

    def jobs(self, **environment: str) -> dict[str, int]:
        """Jobs that a call would run, by rule; the plan is brought up to date first if it must be.

        Jobs after the plan can be counted only once the plan is there, so a stale plan is made
        anew and counted as one job. `atomloom status` says the same beforehand, and writes nothing.
        """
        told, said = self.status()
        counted = counts(self.snakemake("-n", **environment))
        if "plan" in counted:
            assert counted == {"plan": 1, "report": 1}, "what lies between only the plan knows"
            self.snakemake("--until", "plan", **environment)
            counted = {"plan": 1} | counts(self.snakemake("-n", **environment))
        assert told == counted, said
        return counted

    def status(self) -> tuple[dict[str, int], str]:
        """Jobs that `atomloom status --dry` counts, and everything it says."""
        before = {path: path.stat().st_mtime_ns for path in self.folder.rglob("*")}
        with contextlib.chdir(self.folder):
            status = status_of(Layout(load_config("my.yaml")), print, dry=True)
        after = {path: path.stat().st_mtime_ns for path in self.folder.rglob("*")}
        assert after == before, "status --dry writes nothing"
        return status.jobs, "\n".join(status.lines())


def counts(output: str) -> dict[str, int]:
    """The table of job counts that snakemake prints, without targets and the total."""
    if "Nothing to be done" in output:
        return {}
    table = re.search(r"^job\s+count\n-+\s+-+\n(.*?)^total", output, re.M | re.S)
    assert table, output
    rows = dict(re.findall(r"^(\w+)\s+(\d+)", table.group(1), re.M))
    return {rule: int(count) for rule, count in rows.items() if rule not in TARGETS}


def cif_text(cation: str, anion: str, length: float) -> str:
    """The conventional rocksalt cell of lattice constant `length` (A), as P1 CIF."""
    sites = [
        (cation, x, y, z) for x, y, z in ((0, 0, 0), (0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0))
    ]
    sites += [(anion, x + 0.5, y, z) for _, x, y, z in sites[:4]]
    rows = "\n".join(
        f"{symbol}{i} {symbol} {x:.8f} {y:.8f} {z:.8f} 1"
        for i, (symbol, x, y, z) in enumerate(sites)
    )
    cell = "\n".join(f"_cell_length_{axis} {length:.8f}" for axis in "abc")
    angles = "\n".join(f"_cell_angle_{angle} 90" for angle in ("alpha", "beta", "gamma"))
    return (
        f"data_{cation}{anion}\n_symmetry_space_group_name_H-M 'P 1'\n{cell}\n{angles}\nloop_\n"
        "_atom_site_label\n_atom_site_type_symbol\n_atom_site_fract_x\n_atom_site_fract_y\n"
        f"_atom_site_fract_z\n_atom_site_occupancy\n{rows}\n"
    )
