"""What the README and the pages under docs/ show works as it stands."""

from __future__ import annotations

import itertools
import re
import shlex
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
    (project.folder / "mine.yaml").write_text(text)
    commands = re.search(r"```bash\n(snakemake .*?)```", README, re.S)[1].splitlines()
    dry, _, prepare = (line.split("#")[0] for line in commands)
    assert counts(_run(dry, project))["plan"] == 1
    _run(prepare, project)
    assert list((project.folder / "results" / "mine" / "split").glob("*/dataset.parquet"))


def _run(command: str, project: Project) -> str:
    """What a command of the README prints, run as it stands."""
    done = subprocess.run(
        [sys.executable, "-m", *shlex.split(command)],
        cwd=project.folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "config").rglob("*.[my]*")]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_no_target_stands_behind_the_configfile_of_a_command(page):
    """`--configfile` takes every word after it, up to the next option, for a file."""
    for command in re.findall(r"snakemake[^`#\n]*--configfile[^`#\n]*", page.read_text()):
        files = itertools.takewhile(
            lambda word: not word.startswith("-"),
            shlex.split(command.split("--configfile")[1]),
        )
        assert all(file.endswith(".yaml") for file in files), command


NAMED = re.findall(
    r"(?:`|    )atomloom (\w+)", README + (ROOT / "docs" / "everyday.md").read_text()
)


@pytest.mark.parametrize("name", sorted(set(NAMED)))
def test_every_command_it_names_exists(name):
    done = subprocess.run(
        [sys.executable, "-m", "atomloom", name, "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "usage: atomloom" in done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_path_it_names_exists(page):
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert "://" in link or (page.parent / link).exists(), link
