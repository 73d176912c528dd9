"""The quarantine's error says what most records suffer from, with the advice."""

from __future__ import annotations

import pandas as pd
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from atomloom.config import parse_config
from atomloom.errors import AtomloomError
from atomloom.pipeline.paths import Layout, RunPaths
from atomloom.pipeline.quarantine import Quarantine
from atomloom.stages.convert import convert_chunk
from atomloom.stages.plan import make_plan
from atomloom.stages.split import write_split


def quiet(_):
    """Take no notice."""


def test_the_commonest_reason_is_shown_with_its_advice(tmp_path):
    members = pd.DataFrame({"id": list("abcdef"), "source": "x.cif", "number": range(6)})
    quarantine = Quarantine.of(members)
    quarantine.add(0, "atoms 1 and 2 are 0.1 A apart; lower dataset.checks.min_distance")
    for record in (1, 2, 4):
        quarantine.add(record, f"structure {record}: has no cell; set `box: molecule`")
    with pytest.raises(AtomloomError) as error:
        quarantine.close(tmp_path, 0.05)
    assert "4 of 6 records are in quarantine" in str(error.value)
    assert (
        "(3 of them are like the first: b, structure 1: has no cell; set `box: molecule`)"
        in str(error.value)
    )


def test_a_reason_that_no_file_can_hold_is_written_out(tmp_path):
    """Half a character, as JSON may name it: an element, a group."""
    quarantine = Quarantine.of(pd.DataFrame({"id": ["a"], "source": "x.json", "number": [0]}))
    quarantine.add(0, "unknown element `\ud800`")
    quarantine.write(tmp_path / "quarantine.csv")
    assert r"unknown element `\ud800`" in (tmp_path / "quarantine.csv").read_text()
    assert str(AtomloomError("no", where="caf\udce9")) == r"caf\udce9: no"


def project(folder, **dataset) -> Layout:
    config = parse_config(
        {
            "dataset": {"name": "x", "target": "energy", **dataset},
            "paths": {"results": str(folder / "results"), "store": str(folder / "store")},
        }
    )
    return Layout(config)


def test_a_set_of_molecules_is_told_of_boxes_not_of_missing_targets(tmp_path):
    water = Atoms("H2O", [(0, 0, 0), (0, 0, 1), (0, 1, 0)], cell=[60] * 3, pbc=True)
    water.calc = SinglePointCalculator(water, energy=-1.0)
    write(tmp_path / "water.extxyz", [water] * 4)
    layout = project(tmp_path, source=str(tmp_path / "water.extxyz"))
    plan = make_plan(layout, quiet)
    for key in plan.chunk_keys:
        convert_chunk(layout, plan, key, quiet)
    with pytest.raises(AtomloomError, match=r"4 of 4 .*set the option `box: molecule`"):
        write_split(RunPaths(layout, plan), quiet)


def test_where_no_record_can_be_read_the_plan_misses_no_target(tmp_path):
    text = "data_x\n_cell_length_a 0\nloop_\n_atom_site_label\nNa1\n"
    for name in "ab":
        (tmp_path / f"{name}.cif").write_text(text)
    layout = project(tmp_path, source=str(tmp_path))
    plan = make_plan(layout, quiet)
    for key in plan.chunk_keys:
        convert_chunk(layout, plan, key, quiet)
    with pytest.raises(AtomloomError, match=r"2 of 2 .*\(a, no atom sites"):
        write_split(RunPaths(layout, plan), quiet)
