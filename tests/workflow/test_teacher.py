"""A teacher labels each structure once: what changes afterwards labels what is new, or nothing."""

from __future__ import annotations

import json

import pytest
from ase.io import write

from tests.unit.potentials.models import rattled_copper
from tests.workflow.project import Project

CONFIG = {
    "dataset": {
        "name": "tiny",
        "source": "data/copper.extxyz",
        "target": ["energy", "forces"],
        "chunks": {"mean": 8, "min": 4, "max": 16},
    },
    "teacher": {"calculator": "emt", "dynamics_steps": 10},
    "split": {"duplicates": "report"},
    "model": {
        "name": "chebyshev",
        "species": ["Cu"],
        "hidden": [4],
        "radial_order": 4,
        "radial_cutoff": 4,
        "angular_order": 2,
        "angular_cutoff": 3,
    },
    "training": {"epochs": 2, "batch": {"structures": 8}, "learning_rate": 0.01},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Project:
    project = Project.create(tmp_path_factory.mktemp("taught") / "project", structures=0)
    write(project.folder / "data" / "copper.extxyz", rattled_copper(30))
    project.write_config(CONFIG)
    project.snakemake()
    return project


def test_a_student_is_compared_with_its_teacher(finished):
    (path,) = finished.folder.glob("results/tiny/runs/*/student.json")
    content = json.loads(path.read_text())
    assert content["teacher"] == "emt"
    assert content["teacher_seconds"] > 0
    assert content["steps"] == 10
    assert finished.jobs() == {}


def test_another_learning_rate_labels_nothing(finished, tmp_path):
    project = finished.copy(tmp_path / "project")
    training = {**CONFIG["training"], "learning_rate": 0.02}
    project.write_config({**CONFIG, "training": training})
    assert project.jobs() == {"train": 1, "evaluate": 1, "report": 1}


def test_another_teacher_labels_everything_and_builds_no_graph(finished, tmp_path):
    project = finished.copy(tmp_path / "project")
    chunks = len(list((project.folder / "store" / "structures").glob("*.zarr.zip")))
    teacher = {**CONFIG["teacher"], "options": {"asap_cutoff": True}}
    project.write_config({**CONFIG, "teacher": teacher})
    after = {"split": 1, "train": 1, "evaluate": 1, "report": 1}
    assert project.jobs() == {"label": chunks, **after}


def test_one_more_structure_labels_its_chunk(finished, tmp_path):
    project = finished.copy(tmp_path / "project")
    write(project.folder / "data" / "copper.extxyz", rattled_copper(31))
    counted = project.jobs()
    assert 1 <= counted["label"] == counted["convert"] == counted["graphs"] <= 2
