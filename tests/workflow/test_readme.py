"""What the README shows works as it stands."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import yaml

from tests.workflow.project import ROOT, Project, counts

README = (ROOT / "README.md").read_text()


def test_the_example_config_plans_and_converts(tmp_path):
    text = re.search(r"```yaml\n# mine\.yaml\n(.*?)```", README, re.S)[1]
    project = Project.create(tmp_path / "project", structures=8)
    (project.folder / "data" / "cif").rename(project.folder / "data" / "structures")
    labels = project.folder / "data" / "labels.csv"
    labels.write_text(
        labels.read_text().replace("energy", yaml.safe_load(text)["dataset"]["target"])
    )
    project.write_config({}, text)
    assert counts(project.snakemake("-n"))["plan"] == 1
    project.snakemake("prepare")
    assert list((project.folder / "results" / "mine" / "split").glob("*/dataset.parquet"))


@pytest.mark.parametrize("name", re.findall(r"`atomloom (\w+)", README))
def test_every_command_it_names_exists(name):
    done = subprocess.run(
        [sys.executable, "-m", "atomloom", name, "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "usage: atomloom" in done.stdout


def test_every_path_it_names_exists():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
