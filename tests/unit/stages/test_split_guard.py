"""What the split says and writes of structures that stand in two splits."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from atomloom.config import parse_config
from atomloom.errors import AtomloomError
from atomloom.pipeline.paths import Layout, RunPaths
from atomloom.pipeline.plan import Plan
from atomloom.stages.convert import convert_chunk
from atomloom.stages.plan import make_plan
from atomloom.stages.split import write_split

COPPER, SILVER = bulk("Cu", a=3.6), bulk("Ag", a=4.1)


def quiet(_):
    """Take no notice."""


def split_of(folder: Path, frames: dict[str, list[Atoms]], **options) -> RunPaths:
    """Places of a data set whose files are the splits; each frame has its place for its energy."""
    for name, atoms in frames.items():
        for place, each in enumerate(atoms):
            each.calc = SinglePointCalculator(each, energy=float(place))
        write(folder / f"{name}.extxyz", atoms)
    layout = Layout(
        parse_config(
            {
                "dataset": {
                    "name": "guarded",
                    "source": [str(folder / f"{name}.extxyz") for name in frames],
                    "target": "energy",
                },
                "split": {
                    "kind": "sources",
                    "test_sources": ["*test.extxyz"],
                    "val_sources": ["*val.extxyz"],
                    **options,
                },
                "paths": {"results": str(folder / "results"), "store": str(folder / "store")},
            }
        )
    )
    make_plan(layout, quiet)
    plan = Plan.read(layout.plan_folder / "plan.json")
    for chunk in plan.chunks:
        convert_chunk(layout, plan, chunk.key, quiet)
    return RunPaths(layout, plan)


def twins(atoms: Atoms, count: int) -> list[Atoms]:
    """The same crystal in larger and larger cells."""
    return [atoms * (1, 1, n + 1) for n in range(count)]


def test_rows_are_counted_in_log_and_files_however_many_partners_each_has(tmp_path):
    train = [*twins(COPPER, 5), *twins(SILVER, 2), bulk("Ni")]
    frames = {"train": train, "val": [SILVER * (2, 2, 1)]}
    places = split_of(tmp_path, frames | {"test": twins(COPPER * (2, 1, 1), 4)})
    said = []
    folder = write_split(places, said.append)
    told = "7 of 9 training and validation rows are duplicates across splits (0 exact, 7 near)"
    assert f"0 in quarantine; {told}, removed" in said[0]
    counts = json.loads((folder / "split.json").read_text())
    assert (counts["duplicates"], counts["removed_as_duplicates"]) == (7, 7)
    assert counts["quarantined"] == 0
    quarantine = pd.read_csv(folder / "quarantine.csv")
    assert len(quarantine) == len(pd.read_csv(folder / "duplicates.csv")) == 7
    assert (
        quarantine["reason"]
        .str.contains("duplicate of a structure of the (?:test|val) split")
        .all()
    )


def test_a_split_from_which_all_were_taken_says_that_they_are_duplicates(tmp_path):
    frames = {"train": twins(COPPER, 3), "val": [SILVER], "test": [COPPER * (2, 2, 1)]}
    places = split_of(tmp_path, frames)
    with pytest.raises(AtomloomError, match="training: all 3 were removed as duplicates"):
        write_split(places, quiet)
    assert len(pd.read_csv(places.split / "duplicates.csv")) == 3


def test_other_labels_do_not_make_other_structures(tmp_path):
    frames = {"train": [SILVER, COPPER * (1, 1, 2)], "val": [bulk("Ni")], "test": [COPPER]}
    places = split_of(tmp_path, frames, duplicates="report")
    folder = write_split(places, quiet)
    assert pd.read_csv(folder / "duplicates.csv")["kind"].tolist() == ["near"]
    energies = pd.read_parquet(folder / "dataset.parquet").set_index("id")["energy"]
    assert sorted(energies) == [0, 0, 0, 1]


def test_the_guard_is_named_in_the_key_only_where_it_looks_for_near_duplicates(tmp_path):
    frames = {"train": [SILVER], "val": [bulk("Ni")], "test": [COPPER]}
    assert "guard" in split_of(tmp_path, frames).dataset_spec["split"]
    assert "guard" not in split_of(tmp_path, frames, duplicate_tolerance=0).dataset_spec["split"]
