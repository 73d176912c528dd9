"""Nothing is silently dropped: each kind of bad record gets its row, and the rest is used."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from tests.workflow.project import CONFIG, Project, cif_text

GOOD = cif_text("Na", "Cl", 5.64)
BAD_FILES = {
    "b_broken": (GOOD.replace("loop_", "lop_ ("), ""),
    "b_cut": (GOOD[:60], ""),
    "b_element": (GOOD.replace("Na0 Na", "Xx0 Xx"), "Xx"),
    "b_empty": ("", "empty"),
    "b_nan": (GOOD.replace("0.50000000", "nan", 1), ""),
    "b_overlap": (
        GOOD.replace("Cl4 Cl 0.50000000 0.00000000", "Cl4 Cl 0.01000000 0.00000000"),
        "0.0564 A apart",
    ),
}


@pytest.fixture
def project(tmp_path) -> Project:
    project = Project.create(tmp_path / "project", structures=30)
    with open(project.folder / "data" / "labels.csv", "a") as labels:
        for name, (text, _) in BAD_FILES.items():
            (project.folder / "data" / "cif" / f"{name}.cif").write_text(text)
            labels.write(f"{name},1.0,x\n")
        (project.folder / "data" / "cif" / "b_unlabelled.cif").write_text(cif_text("Li", "F", 4.03))
        (project.folder / "data" / "cif" / "b_wordlabel.cif").write_text(cif_text("K", "F", 5.3))
        labels.write("b_wordlabel,unknown,x\nb_nowhere,1.0,x\n")
    return project


def stage(project: Project, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "atomloom", *arguments, "--config", "my.yaml"],
        cwd=project.folder,
        capture_output=True,
        text=True,
    )


def through_split(project: Project, max_fraction: float) -> subprocess.CompletedProcess:
    dataset = {**CONFIG["dataset"], "checks": {"max_fraction": max_fraction}}
    project.write_config({**CONFIG, "dataset": dataset})
    for name in ("plan", "convert"):
        done = stage(project, name)
        assert done.returncode == 0, done.stderr
    return stage(project, "split")


def quarantine(project: Project) -> pd.DataFrame:
    (path,) = (project.folder / "results" / "tiny" / "split").glob("*/quarantine.csv")
    return pd.read_csv(path).set_index("id")


def test_every_bad_record_has_its_row_and_every_good_one_is_used(project):
    done = through_split(project, max_fraction=0.5)
    assert done.returncode == 0, done.stderr
    table = quarantine(project)
    assert set(table.index) == {*BAD_FILES, "b_unlabelled", "b_wordlabel"}
    for name, (_, says) in BAD_FILES.items():
        row = table.loc[name]
        assert Path(row["source"]).name == f"{name}.cif"
        assert says in row["reason"]
        assert row["reason"].strip()
        assert "\n" not in row["reason"]
    assert "is not in data/labels.csv" in table.loc["b_unlabelled", "reason"]
    assert "'unknown', not a finite number" in table.loc["b_wordlabel", "reason"]
    (dataset,) = (project.folder / "results" / "tiny" / "split").glob("*/dataset.parquet")
    assert len(pd.read_parquet(dataset)) == 30


def test_too_much_quarantine_stops_with_one_line(project):
    done = through_split(project, max_fraction=0.05)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("atomloom split:")]
    assert "8 of 38 records are in quarantine" in line
    assert "dataset.checks.max_fraction" in line
    assert "Traceback" not in done.stderr
    assert len(quarantine(project)) == 8, "the table is written before the run stops"


def test_a_label_row_without_record_is_counted(project):
    through_split(project, max_fraction=0.5)
    (plan,) = (project.folder / "results" / "tiny" / "plan").glob("*/plan.json")
    assert '"labels_without_record": 1' in plan.read_text()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"dataset": {"source": "data/nowhere"}}, "data/nowhere"),
        ({"dataset": {"labels": {"file": "data/nolabels.csv"}}}, "data/nolabels.csv: no such file"),
        (
            {"dataset": {"labels": {"file": "data/labels.csv", "id_column": "name"}}},
            "no column `name`",
        ),
        ({"dataset": {"target": "enrgy"}}, "no column `enrgy`; columns are: id, energy, note"),
        ({"graph": {"cutof": 8}}, "graph.cutof: unknown key, did you mean `cutoff`?"),
        ({"model": {"name": "icomfromer"}}, "icomformer"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_a_wrong_config_gets_one_line_from_snakemake_and_from_the_command(tmp_path, change, says):
    project = Project.create(tmp_path / "project", structures=8)
    config = {name: {**values, **change.get(name, {})} for name, values in CONFIG.items()}
    (project.folder / "my.yaml").write_text(yaml.safe_dump(config))
    done = stage(project, "plan")
    assert done.returncode == 1
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    output = project.snakemake("--quiet", "all", check=False)
    assert says in output
    assert "Traceback" not in output


def test_an_empty_folder_says_so(tmp_path):
    project = Project.create(tmp_path / "project", structures=2)
    shutil.rmtree(project.folder / "data" / "cif")
    (project.folder / "data" / "cif").mkdir()
    done = stage(project, "plan")
    assert done.returncode == 1
    assert "data/cif: no structure files found" in done.stderr
