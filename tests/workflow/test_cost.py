"""`atomloom plan --cost` counts what is left and measures it on the data set's own records."""

from __future__ import annotations

import re

import pytest

from atomloom.commands.cost import estimate_cost
from atomloom.config import load_config
from atomloom.pipeline.paths import Layout
from atomloom.pipeline.plan import Plan
from tests.workflow.project import CONFIG, Project
from tests.workflow.test_bad_input import stage


@pytest.fixture
def project(tmp_path) -> Project:
    project = Project.create(tmp_path / "project", structures=40)
    (project.folder / "data" / "cif" / "b_empty.cif").write_text("")
    return project


def test_cost_counts_what_is_left_and_what_is_refused(project):
    done = stage(project, "plan", "--cost")
    assert done.returncode == 0, done.stderr
    assert re.search(r"records +41, of which 41 are to be converted or built", done.stdout)
    assert re.search(r"measured on +41 records, 2\.4% of them refused", done.stdout)
    assert re.search(r"graphs +\d+\.\d+ ms per record, 96 edges", done.stdout), (
        "8 atoms with shells of 12"
    )
    for name in ("convert", "graphs"):
        assert stage(project, name).returncode == 0
    assert "of which 0 are" in stage(project, "plan", "--cost").stdout


def test_estimated_size_is_that_of_the_shards(project, monkeypatch):
    dataset = {**CONFIG["dataset"], "chunks": {"mean": 1000}}
    project.write_config({**CONFIG, "dataset": dataset})
    for name in ("plan", "convert", "graphs"):
        assert stage(project, name).returncode == 0
    monkeypatch.chdir(project.folder)
    layout = Layout(load_config("my.yaml"))
    plan = Plan.read(layout.plan_folder / "plan.json")
    (key,) = plan.chunk_keys
    cost = estimate_cost(layout, plan)
    assert cost.missing == cost.jobs == 0
    # One chunk, wholly in the sample: the very same shards (40 structures; the reasons differ by none).
    assert cost.structure_bytes * 40 == pytest.approx(
        layout.structures(key).stat().st_size, rel=0.02
    )
    assert cost.graph_bytes * 40 == pytest.approx(layout.graphs(key).stat().st_size, rel=0.02)
