"""`atomloom plan --cost` counts what is left and measures it on the data set's own records."""

from __future__ import annotations

import re

import pytest

from atomloom.commands.cost import estimate_cost
from atomloom.config import load_config
from atomloom.pipeline.paths import Layout
from atomloom.pipeline.plan import Plan
from atomloom.pipeline.resources import DEFAULTS, FILE, read_resources
from tests.workflow.project import CONFIG, Project
from tests.workflow.test_bad_input import stage


@pytest.fixture
def project(tmp_path) -> Project:
    project = Project.create(tmp_path / "project", structures=40)
    (project.folder / "data" / "cif" / "b_empty.cif").write_text("")
    return project


def test_cost_counts_what_is_left_and_what_is_refused(project, monkeypatch):
    """And what a whole run on a sample took is written for the workflow, and left nowhere else."""
    done = stage(project, "plan", "--cost", "--write", "--devices", "2")
    assert done.returncode == 0, done.stderr
    assert re.search(r"records +41, of which 41 are to be converted or built", done.stdout)
    assert re.search(r"measured on +41 records, 2\.4% of them refused", done.stdout)
    assert re.search(r"graphs +\d+\.\d+ ms per record, 96 edges", done.stdout), (
        "8 atoms with shells of 12"
    )
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if " MB, " in line}
    assert [*rows] == ["plan", "convert", "graphs", "index", "split", "train", "evaluate"]
    assert rows["convert"].split()[1:3] == rows["graphs"].split()[1:3]
    assert rows["train"].split()[1:3] == ["1", "1"]
    processes = re.findall(r"^ +(\d+) +(\d+) +\d", done.stdout, re.M)
    assert processes == [("1", "8"), ("2", "4")], "a batch of 8 is shared"
    assert "not measured" in done.stdout
    made = {path.name for path in (project.folder / "results" / "tiny").iterdir()}
    assert made == {"plan", "timings", FILE}
    assert not (project.folder / "store").exists()
    monkeypatch.chdir(project.folder)
    layout, told = Layout(load_config("my.yaml")), []
    asks = read_resources(layout.results / FILE, layout.config, 41, told.append)
    assert not told
    for rule, line in rows.items():
        assert asks[rule] != DEFAULTS[rule]
        assert f"{asks[rule].mem_mb:,} MB, {asks[rule].runtime:,} min" in line
    for name in ("convert", "graphs"):
        assert stage(project, name).returncode == 0
    cost = estimate_cost(layout, Plan.read(layout.plan_folder / "plan.json"))
    assert "of which 0 are" in next(cost.lines(1))


def test_options_of_the_cost_go_with_it(project):
    for option in ("--write", "--devices=2"):
        done = stage(project, "plan", option)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert "--cost" in done.stderr


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
