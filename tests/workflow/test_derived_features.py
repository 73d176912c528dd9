"""Derived features are made by jobs of their own, one per chunk and feature, and each number once."""

from __future__ import annotations

import json

import pytest
from ase.build import bulk
from ase.io import write

from tests.workflow.project import Project

PHONONS = {"source": "gamma_frequencies", "calculator": "emt"}
CONFIG = {
    "dataset": {
        "name": "tiny",
        "source": "data/metals.extxyz",
        "target": "gap",
        "chunks": {"mean": 16, "min": 8, "max": 20},
    },
    "features": {"composition": {}},
    "split": {"duplicates": "report"},
    "model": {"name": "icomformer", "width": 8, "layers": 2},
    "training": {"epochs": 1, "batch": {"structures": 8}},
}


def metals(count: int) -> list:
    made = []
    for number in range(count):
        atoms = bulk("Cu" if number % 2 else "Ag", a=3.5 + 0.02 * number)
        atoms.info["gap"] = number % 7
        made.append(atoms)
    return made


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Project:
    project = Project.create(tmp_path_factory.mktemp("featured") / "project", structures=0)
    write(project.folder / "data" / "metals.extxyz", metals(30))
    project.write_config(CONFIG)
    project.snakemake()
    return project


def test_what_changes_later_computes_only_what_is_new(finished):
    """One dry run after the other, each of another config."""
    chunks = len(list((finished.folder / "store" / "structures").glob("*.zarr.zip")))
    after = {"train": 1, "evaluate": 1, "report": 1}
    assert finished.jobs() == {}
    finished.write_config({**CONFIG, "training": {**CONFIG["training"], "learning_rate": 0.1}})
    assert finished.jobs() == after
    finished.write_config({**CONFIG, "features": {"composition": {}, "phonons": PHONONS}})
    assert finished.jobs() == {"features": chunks, "split": 1, **after}
    finished.write_config({**CONFIG, "features": {}})
    assert finished.jobs() == {"split": 1, **after}


def test_a_run_says_which_features_its_data_have(finished):
    (card,) = finished.folder.glob("results/tiny/runs/*/run.json")
    (folder,) = finished.folder.glob("store/features/*")
    assert json.loads(card.read_text())["data"]["features"] == {"composition": folder.name}
    assert not list(folder.glob(".*")), "what was made ahead was fetched"
