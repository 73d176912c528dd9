"""What `split.duplicates` says is done with structures that stand in two splits."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from tests.workflow.project import CONFIG, Project
from tests.workflow.test_bad_input import stage


@pytest.mark.parametrize("mode", ["remove", "stop", "report"])
def test_duplicates_are_removed_from_training_stop_the_run_or_are_reported(tmp_path, mode):
    project = Project.create(tmp_path / "project", structures=30)
    cifs = project.cifs
    cifs[7].write_text(cifs[0].read_text())
    names = [path.stem for path in cifs]
    sets = {name: "train" for name in names} | {names[0]: "test", names[1]: "val"}
    labels = pd.read_csv(project.folder / "data" / "labels.csv")
    labels.assign(set=labels["id"].map(sets)).to_csv(
        project.folder / "data" / "labels.csv", index=False
    )
    project.write_config(
        {**CONFIG, "split": {"kind": "column", "column": "set", "duplicates": mode}}
    )
    for name in ("plan", "convert"):
        assert stage(project, name).returncode == 0
    done = stage(project, "split")
    (folder,) = (project.folder / "results" / "tiny" / "split").iterdir()
    pairs = pd.read_csv(folder / "duplicates.csv")
    assert pairs[["id", "other_id", "kind"]].to_numpy().tolist() == [[names[7], names[0], "exact"]]
    if mode == "stop":
        assert done.returncode == 1
        assert (
            "1 of 29 training and validation rows are duplicates across splits (1 exact, 0 near)"
            in done.stderr
        )
        assert not (folder / "dataset.parquet").exists()
        return
    assert done.returncode == 0, done.stderr
    used = pd.read_parquet(folder / "dataset.parquet").set_index("id")["split"]
    assert used[names[0]] == "test"
    assert (names[7] in used) == (mode == "report")
    counts = json.loads((folder / "split.json").read_text())
    assert counts["removed_as_duplicates"] == (1 if mode == "remove" else 0)
