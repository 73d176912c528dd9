"""Sweeps by the workflow: trials are runs of the same DAG, and nothing is done twice."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import yaml

from tests.workflow.project import CONFIG, Project, counts

SNAKEMAKE = [sys.executable, "-m", "snakemake"]
SWEEP = {
    "parameters": {
        "training.learning_rate": [1e-3, 1e-2],
        "graph.max_neighbors": [4, 6],
    }
}


def sweep(project: Project, *arguments: str) -> str:
    """Output of `snakemake sweep`."""
    done = subprocess.run(
        [*SNAKEMAKE, "sweep", "--cores", "2", *arguments, "--configfile", "my.yaml"],
        cwd=project.folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def table(project: Project) -> pd.DataFrame:
    """The table of the newest sweep."""
    files = (project.folder / "results" / "tiny" / "sweeps").glob("*/sweep.csv")
    return pd.read_csv(max(files, key=lambda path: path.stat().st_mtime_ns))


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Project:
    project = Project.create(tmp_path_factory.mktemp("sweep") / "project", structures=24)
    project.write_config(CONFIG | {"sweep": SWEEP})
    sweep(project)
    return project


@pytest.mark.slow
def test_trials_share_what_they_have_in_common(swept):
    results, store = swept.folder / "results" / "tiny", swept.folder / "store"
    assert len(list((results / "runs").glob("*/run.json"))) == 4
    assert len(list((store / "graphs").iterdir())) == 2  # one per graph spec, not per trial
    assert len(list((results / "split").iterdir())) == 1
    found = table(swept)
    assert list(found["status"]) == ["finished"] * 4
    assert found["value"].notna().all()


@pytest.mark.slow
def test_a_finished_sweep_does_nothing_and_a_new_value_runs_only_its_trials(swept, tmp_path):
    project = swept.copy(tmp_path / "more")
    assert "Nothing to be done" in sweep(project, "--dry-run")
    rates = {"training.learning_rate": [1e-3, 1e-2, 3e-3]}
    project.write_config(CONFIG | {"sweep": {"parameters": SWEEP["parameters"] | rates}})
    before = {path: path.stat().st_mtime_ns for path in project.folder.glob("results/*/runs/*/*")}
    output = sweep(project)
    assert "rule convert:" not in output
    assert "rule graphs:" not in output
    runs = {path.parent.name for path in project.folder.glob("results/tiny/runs/*/run.json")}
    assert len(runs) == 6
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    assert len(table(project)) == 6


@pytest.mark.slow
def test_the_best_trial_is_a_run_like_any_other(swept, tmp_path):
    project = swept.copy(tmp_path / "best")
    (best,) = (project.folder / "results" / "tiny" / "sweeps").glob("*/best.yaml")
    jobs = counts(
        subprocess.run(
            [*SNAKEMAKE, "--dry-run", "--configfile", str(best)],
            cwd=project.folder,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )
    assert jobs.get("train", 0) == 0
    assert jobs["evaluate"] == 1
    found = table(project)
    value = yaml.safe_load(best.read_text())["training"]["learning_rate"]
    assert value == found.loc[found["value"].idxmin(), "training.learning_rate"]


@pytest.mark.slow
def test_the_refit_is_one_more_job(swept, tmp_path):
    project = swept.copy(tmp_path / "refit")
    project.write_config(CONFIG | {"sweep": SWEEP | {"refit": "best"}})
    sweep(project)
    (folder,) = (file.parent for file in project.folder.glob("results/tiny/sweeps/*/refit.yaml"))
    assert len(list(project.folder.glob("results/tiny/runs/*/run.json"))) == 5
    (refit,) = json.loads((folder / "sweep.json").read_text())["refit"]
    assert refit["errors"]["energy"]["test"]["mae"] > 0
    assert "Nothing to be done" in sweep(project, "--dry-run")


@pytest.mark.slow
def test_results_that_are_missing_are_made_again_and_nothing_else(swept, tmp_path):
    project = swept.copy(tmp_path / "missing")
    (folder,) = project.folder.glob("results/tiny/sweeps/*")
    tables = {name: (folder / name).read_bytes() for name in ("sweep.csv", "sweep.json")}
    results = {file: file.read_bytes() for file in folder.glob("trials/*.json")}
    for file in results:
        file.unlink()
    jobs = counts(sweep(project))
    assert jobs["trial"] == 4
    assert "suggest" not in jobs
    for file in results:
        file.unlink()
    (folder / "sweep.json").unlink()
    jobs = counts(sweep(project))
    assert (jobs["trial"], jobs["tabulate"]) == (4, 1)
    assert {file: file.read_bytes() for file in results} == results
    assert {name: (folder / name).read_bytes() for name in tables} == tables
    assert "Nothing to be done" in sweep(project, "--dry-run")


@pytest.mark.slow
def test_a_sweep_that_was_copied_goes_on_where_it_lies_with_the_settings_of_now(swept, tmp_path):
    project = swept.copy(tmp_path / "copied")
    for run in project.folder.glob("results/tiny/runs/*"):
        shutil.rmtree(run)
    shutil.rmtree(project.folder / "results" / "tiny" / "configs")
    (folder,) = project.folder.glob("results/tiny/sweeps/*")
    shutil.rmtree(folder / "trials")
    training = CONFIG["training"] | {"loggers": ["tensorboard"]}
    project.write_config(CONFIG | {"training": training, "sweep": SWEEP})
    assert counts(sweep(project))["trial"] == 4
    assert len(list(project.folder.glob("results/tiny/runs/*/tensorboard"))) == 4
    assert not list(swept.folder.glob("results/tiny/runs/*/tensorboard"))
