"""A run of a few epochs on lattices of copper, made once; tests that change files copy its folder."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import yaml
from ase.build import bulk
from ase.io import write
from safetensors import safe_open
from safetensors.torch import save_file

from atomloom.api import run_pipeline
from atomloom.config import load_config
from atomloom.store.parquet import write_table

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


def change_weights(path: Path) -> str:
    """Add half of the largest number of the first tensor to one of a model file; return the tensor's name."""
    with safe_open(path, framework="pt") as file:
        tensors, metadata = {n: file.get_tensor(n) for n in file.keys()}, file.metadata()  # noqa: SIM118
    name = next(n for n, tensor in tensors.items() if tensor.is_floating_point() and tensor.any())
    tensors[name].view(-1)[0] += 0.5 * tensors[name].abs().max()
    save_file(tensors, path, metadata)
    return name


def change_table(path: Path) -> None:
    """Make the first prediction of a table, whole and readable as before, half as large."""
    frame = pd.read_parquet(path)
    frame.loc[0, "volume_predicted"] *= 0.5
    write_table(path, frame)
