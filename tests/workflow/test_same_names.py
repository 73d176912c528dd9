"""Files of one name in different folders: each keeps its own label, and none takes another's."""

from __future__ import annotations

import shutil
import tarfile

import pandas as pd
import pytest

from atomloom.readers.naming import tell_apart
from tests.workflow.project import Project, cif_text
from tests.workflow.test_bad_input import stage


@pytest.fixture
def project(tmp_path) -> Project:
    project = Project.create(tmp_path / "project", structures=4)
    for number, folder in enumerate(("a", "b")):
        (project.folder / "data" / "cif" / folder).mkdir()
        path = project.folder / "data" / "cif" / folder / "same.cif"
        path.write_text(cif_text("Na", "Cl", 5.6 + 0.1 * number))
    return project


def planned(project: Project) -> pd.DataFrame:
    done = stage(project, "plan")
    assert done.returncode == 0, done.stderr
    (folder,) = (project.folder / "results/tiny/plan").iterdir()
    members = pd.read_parquet(folder / "members.parquet", columns=["id", "source"])
    return members.join(pd.read_parquet(folder / "labels.parquet")).set_index("id")


def label(project: Project, *lines: str) -> None:
    with open(project.folder / "data" / "labels.csv", "a") as file:
        file.writelines(f"{line}\n" for line in lines)


@pytest.mark.parametrize("ending", ["", ".cif"])
def test_a_label_by_the_path_below_the_folder_reaches_its_own_record(project, ending):
    label(project, f"b/same{ending},2.5,x", f"a/same{ending},1.5,x")
    table = planned(project)
    assert list(table.index) == ["a/same", "b/same", "s000", "s001", "s002", "s003"]
    assert table.loc[["a/same", "b/same"], "energy"].tolist() == [1.5, 2.5]
    assert not table["problem"].any()


@pytest.mark.parametrize("name", ["same", "same.cif"])
def test_a_label_that_could_be_either_s_is_nobody_s(project, name):
    label(project, f"{name},1.5,x")
    table = planned(project)
    assert table.loc[["a/same", "b/same"], "energy"].isna().all()
    assert table.loc["a/same", "problem"] == "no label: `a/same` is not in data/labels.csv"


def test_members_of_an_archive_and_calculations_named_by_their_folder(project):
    data = project.folder / "data" / "cif"
    with tarfile.open(project.folder / "data" / "all.tar", "w") as archive:
        archive.add(data, "cif")
    shutil.rmtree(data)
    config = (project.folder / "my.yaml").read_text().replace("data/cif", "data/all.tar")
    (project.folder / "my.yaml").write_text(config)
    assert {"a/same", "b/same"} <= set(planned(project).index)
    ids, names = tell_apart(
        ["run", "run", "lone", "mp-1", "mp-1"],
        ["POSCAR", "POSCAR", "x.cif", "a.json", "b.json"],
        ["d/a/run/POSCAR", "d/b/run/POSCAR", "d/x.cif", "d/a.json", "d/b.json"],
    )
    assert ids == ["a/run", "b/run", "lone", "mp-1", "mp-1"], "names given in files stay"
    assert names[:2] == ["a/run/POSCAR", "b/run/POSCAR"]


def test_frames_of_files_of_one_name_are_told_apart():
    ids, _ = tell_apart(
        ["x-000000", "x-000001", "x-000000", "y-000000"],
        ["x.xyz", "x.xyz", "x.xyz", "y.xyz"],
        ["d/a/x.xyz", "d/a/x.xyz", "d/b/x.xyz", "d/b/y.xyz"],
    )
    assert ids == ["a/x-000000", "a/x-000001", "b/x-000000", "y-000000"]
