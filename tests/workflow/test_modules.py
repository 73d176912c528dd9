"""Two workflows as modules of one share a store: a chunk that both have is made once."""

from __future__ import annotations

import copy
import re

import pytest
import yaml

from atomloom.config import parse_config
from atomloom.pipeline.paths import Layout
from atomloom.stages.plan import make_plan
from tests.workflow.project import CONFIG, Project, cif_text

SNAKEFILE = """
configfile: "two.yaml"

module first:
    snakefile: "workflow/Snakefile"
    config: config["first"]

use rule * from first as first_*

module second:
    snakefile: "workflow/Snakefile"
    config: config["second"]

use rule * from second as second_*

rule both:
    default_target: True
    input:
        rules.first_all.input,
        rules.second_all.input,
"""


def two(project: Project, second: dict) -> None:
    """A Snakefile of two modules: the config of the tests, and the same with changes."""
    configs = {"first": copy.deepcopy(CONFIG), "second": copy.deepcopy(CONFIG)}
    for section, values in second.items():
        configs["second"][section] = configs["second"].get(section, {}) | values
    (project.folder / "two.yaml").write_text(yaml.safe_dump(configs))
    (project.folder / "Snakefile").write_text(SNAKEFILE)
    project.write_config(configs)


@pytest.fixture
def project(tmp_path, monkeypatch) -> Project:
    project = Project.create(tmp_path / "project", structures=40)
    (project.folder / "data" / "more").mkdir()
    with open(project.folder / "data" / "labels.csv", "a") as labels:
        for number in range(6):
            path = project.folder / "data" / "more" / f"m{number}.cif"
            path.write_text(cif_text("Rb", "I", 7.0 + 0.1 * number))
            labels.write(f"m{number},{number},x\n")
    monkeypatch.chdir(project.folder)
    return project


@pytest.mark.parametrize("cutoff", [8, 6])
def test_what_two_modules_share_is_made_once_and_each_makes_its_own(project, cutoff):
    sources = ["data/cif", "data/more"]
    two(project, {"dataset": {"name": "other", "source": sources}, "graph": {"cutoff": cutoff}})
    keys = {}
    for name, content in yaml.safe_load((project.folder / "two.yaml").read_text()).items():
        keys[name] = set(make_plan(Layout(parse_config(content)), print).chunk_keys)
    shared = keys["first"] & keys["second"]
    assert shared
    assert keys["first"] - shared
    assert keys["second"] - shared
    output = project.snakemake("-n")
    jobs = {
        rule: int(count) for rule, count in re.findall(r"^(\w+_\w+) +(\d+)$", output, re.MULTILINE)
    }
    assert jobs["first_convert"] == len(keys["first"])
    assert jobs["second_convert"] == len(keys["second"] - shared)
    graphs = jobs["first_graphs"] + jobs.get("second_graphs", 0)
    both = len(keys["first"]) + len(keys["second"])
    assert graphs == (both - len(shared) if cutoff == CONFIG["graph"]["cutoff"] else both)


def test_two_modules_that_write_one_report_are_told_so(project):
    two(project, {"training": {"epochs": 1}})
    output = project.snakemake("-n", check=False)
    assert "the rules first_report and second_report both write it" in output
    assert "dataset.name or paths.results" in output
    assert "Traceback" not in output
