"""An atomloom installed from its source distribution has all it needs, outside of any checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.workflow.project import PROJECT_FILES, ROOT, Project, counts

BUILD = (
    "import sys; from setuptools.build_meta import build_{0} as build; print(build(sys.argv[1]))"
)


def tracked(*folders: str) -> list[str]:
    """Files of the checkout, as git has them; the test is skipped where there is no git."""
    command = ["git", "ls-files", *folders]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    names = [name for name in done.stdout.splitlines() if (ROOT / name).is_file()]
    return names or pytest.skip("not a git checkout")


def run(*command: str | Path, cwd: Path, check: bool = True, **environment: str) -> str:
    """Output of a command, errors included."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0 or not check, output
    return output


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """The source distribution of this checkout, unpacked."""
    folder = tmp_path_factory.mktemp("sources")
    for name in tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    run(sys.executable, "-c", BUILD.format("sdist"), folder, cwd=folder)
    (archive,) = folder.glob("atomloom-*.tar.gz")
    shutil.unpack_archive(archive, folder, filter="data")
    (unpacked,) = (path for path in folder.glob("atomloom-*") if path.is_dir())
    return unpacked


@pytest.fixture(scope="module")
def site(sources) -> Path:
    """Folder with the package installed from a wheel that was built from the source distribution."""
    run(sys.executable, "-c", BUILD.format("wheel"), sources.parent, cwd=sources)
    (wheel,) = sources.parent.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(sources.parent / "site")
    return sources.parent / "site"


def outside(site: Path, *command: str | Path, cwd: Path, check: bool = True) -> str:
    """Output of a Python module run in a folder, with the installed package."""
    return run(sys.executable, "-m", *command, cwd=cwd, check=check, PYTHONPATH=str(site))


def test_the_source_distribution_is_the_checkout(sources):
    apart = {".ci", ".gitignore", ".pre-commit-config.yaml"}
    for name in tracked():
        if Path(name).parts[0] not in apart:
            assert (sources / name).read_bytes() == (ROOT / name).read_bytes(), name


def test_the_wheel_holds_every_file_of_the_package_and_of_the_workflow(site):
    for name in tracked("workflow/atomloom"):
        assert (site / Path(name).relative_to("workflow")).is_file(), name
    for name in tracked(*PROJECT_FILES):
        copy = site / "atomloom" / "project" / name
        assert copy.read_bytes() == (ROOT / name).read_bytes(), name


def test_nothing_in_the_wheel_is_left_over_from_the_machine_that_built_it(site):
    names = [path.name for path in site.rglob("*")]
    assert not [name for name in names if name == "__pycache__" or name.endswith((".part", ".pyc"))]


def test_an_installed_package_runs_the_demo_outside_a_checkout(site, tmp_path):
    project = tmp_path / "my project"
    said = outside(site, "atomloom", "init", "--demo", project, cwd=tmp_path)
    assert "snakemake" in said
    where = "import atomloom; print(atomloom.__file__)"
    found = run(sys.executable, "-c", where, cwd=project, PYTHONPATH=str(site))
    assert Path(found.strip()).is_relative_to(site)
    assert counts(outside(site, "snakemake", "-n", cwd=project)) == {"plan": 1, "report": 1}
    outside(site, "snakemake", "--until", "plan", cwd=project)
    jobs = counts(outside(site, "snakemake", "-n", cwd=project))
    assert {"convert", "graphs", "index", "split", "train", "evaluate", "report"} == set(jobs)


@pytest.mark.slow
def test_an_installed_package_makes_a_report_without_snakemake(site, tmp_path):
    (tmp_path / "cif").mkdir()
    for path in sorted((ROOT / "resources" / "demo_crystals" / "cif").glob("*.cif"))[:24]:
        shutil.copy(path, tmp_path / "cif")
    table = (ROOT / "resources" / "demo_crystals" / "id_prop.csv").read_text()
    (tmp_path / "labels.csv").write_text(table)
    (tmp_path / "few.yaml").write_text(
        "dataset: {name: few, source: cif, labels: {file: labels.csv, id_column: id},"
        " target: cohesive_energy_per_atom, checks: {max_fraction: 1.0}}\n"
        "model: {name: icomformer, width: 8, layers: 2}\ntraining: {epochs: 1}\n"
    )
    outside(site, "atomloom", "run", "--config", "few.yaml", "--cores", "1", cwd=tmp_path)
    assert "<svg" in (tmp_path / "results" / "few" / "report.html").read_text()


def test_init_overwrites_nothing_and_may_be_repeated(site, tmp_path):
    outside(site, "atomloom", "init", cwd=tmp_path)
    config = tmp_path / "config" / "config.yaml"
    assert config.read_bytes() == (ROOT / "config" / "config.yaml").read_bytes()
    assert not (tmp_path / "resources").exists()
    (tmp_path / "profiles" / "slurm" / "config.yaml").unlink()
    assert outside(site, "atomloom", "init", cwd=tmp_path).startswith("1 files written")
    config.write_text("dataset: {name: mine}\n")
    (tmp_path / "Snakefile").unlink()
    said = outside(site, "atomloom", "init", cwd=tmp_path, check=False)
    assert said == (
        "atomloom init: config/config.yaml: is there already, with other content; name another folder\n"
    )
    assert not (tmp_path / "Snakefile").exists()


def test_the_workflow_needs_no_config_of_its_own_to_be_given_another(site, tmp_path):
    """A config given replaces that of the folder, as in a checkout, and is not merged with it."""
    outside(site, "atomloom", "init", cwd=tmp_path)
    (tmp_path / "mine.yaml").write_text(
        "dataset: {name: mine, source: nowhere, target: gap}\nmodel: {name: icomformer}\n"
    )
    said = outside(site, "snakemake", "-n", "--configfile", "mine.yaml", cwd=tmp_path, check=False)
    assert "nowhere: " in said.replace("atomloom: ", "")
    assert "id_prop" not in said


DEPLOYED = """
configfile: "config/config.yaml"

module atomloom:
    snakefile:
        gitfile({repository!r}, path="workflow/Snakefile", commit={commit!r})
    config:
        config

use rule * from atomloom
"""


def test_a_workflow_that_snakedeploy_has_written_runs_the_rules_of_a_repository(sources, tmp_path):
    """The Snakefile is as snakedeploy writes it, with a repository on this machine in place of one on GitHub."""
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.example"]
    run(*git, "init", "-q", cwd=sources)
    run(*git, "add", ".", cwd=sources)
    run(*git, "commit", "-q", "-m", "all", cwd=sources)
    commit = run("git", "rev-parse", "HEAD", cwd=sources).strip()
    project = Project.create(tmp_path / "project", structures=24)
    for name in ("workflow", "envs"):
        shutil.rmtree(project.folder / name)
    (project.folder / "Snakefile").unlink()
    (project.folder / "workflow").mkdir()
    (project.folder / "workflow" / "Snakefile").write_text(
        DEPLOYED.format(repository=str(sources), commit=commit)
    )
    (project.folder / "config").mkdir()
    (project.folder / "my.yaml").rename(project.folder / "config" / "config.yaml")
    command = [sys.executable, "-m", "snakemake", "--cores", "1"]
    run(*command, "--until", "plan", cwd=project.folder)
    found = counts(run(*command, "-n", cwd=project.folder))
    stages = {"convert", "graphs", "index", "split", "train", "evaluate", "report"}
    assert set(found) == stages
