"""A run of a few epochs on lattices of copper, made once; tests that change files copy its folder."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from ase.build import bulk
from ase.io import write

from atomloom.api import run_pipeline
from atomloom.config import load_config

CONFIG = {
    "dataset": {
        "name": "copper",
        "source": "data/cells.extxyz",
        "target": "volume",
        "unit": "A^3",
        "chunks": {"mean": 10, "min": 4, "max": 20},
    },
    "split": {"duplicates": "report"},
    "graph": {"cutoff": 4.0, "max_neighbors": 12},
    "model": {"name": "icomformer", "width": 8, "layers": 2},
    "training": {
        "epochs": 2,
        "batch": {"structures": 8},
        "scheduler": "constant",
        "device": "cpu",
        "threads": 1,
    },
}


@dataclass(frozen=True)
class Project:
    """Folder with raw data, a config and what was made of them; paths of the config are relative."""

    folder: Path

    @property
    def run(self) -> Path:
        """Folder of the one run."""
        (run,) = self.folder.glob("results/copper/runs/*")
        return run

    def train(self, **training: object) -> Path:
        """Train a run with other options of training; return its folder."""
        content = {**CONFIG, "training": CONFIG["training"] | training}
        (self.folder / "mine.yaml").write_text(yaml.safe_dump(content))
        before = Path.cwd()
        os.chdir(self.folder)
        try:
            return run_pipeline(load_config("mine.yaml"), lambda _: None).folder.absolute()
        finally:
            os.chdir(before)


@pytest.fixture(scope="session")
def original(tmp_path_factory) -> Project:
    """Project with one finished run; not to be changed."""
    project = Project(tmp_path_factory.mktemp("original"))
    cells = [bulk("Cu", a=3.4 + 0.03 * place, cubic=True) for place in range(24)]
    for cell in cells:
        cell.info["volume"] = cell.get_volume()
    (project.folder / "data").mkdir()
    write(project.folder / "data" / "cells.extxyz", cells)
    project.train()
    return project


@pytest.fixture
def project(original, tmp_path) -> Project:
    """Copy of the project elsewhere, to be changed."""
    return Project(Path(shutil.copytree(original.folder, tmp_path / "project")))
