"""A data set larger than its budget trains and is evaluated from disk, window by window."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from ase.build import bulk

import atomloom
from atomloom.errors import AtomloomError
from atomloom.pipeline.paths import RunPaths
from atomloom.stages.labelled import load_labelled
from atomloom.store.files import read_json, write_sealed

LATTICES = np.linspace(3.4, 4.2, 60)


def crystals():
    made = []
    for place, length in enumerate(LATTICES):
        atoms = bulk("Cu" if place % 2 else "Ag", a=length, cubic=True)
        atoms.rattle(0.05, seed=place)
        made.append(atoms)
    return made


def trained(folder, **loader) -> atomloom.api.Run:
    return atomloom.train(
        crystals(),
        LATTICES**2,
        folder=folder,
        dataset={"chunks": {"mean": 8, "min": 4, "max": 12}},
        split={"duplicates": "report"},
        model={"name": "icomformer", "width": 8, "layers": 2},
        training={"epochs": 2, "batch": {"structures": 4}, "loader": loader, "device": "cpu"},
    )


def test_training_from_disk_sees_every_structure(tmp_path):
    run = trained(tmp_path, mode="disk", memory_gb=0.0001)
    card = json.loads((run.folder / "run.json").read_text())
    assert card["loader"]["window"] < card["loader"]["graphs"], "it did not fit"
    table = pd.read_parquet(run.folder / "predictions.parquet")
    assert len(table) == len(LATTICES)
    again = run.predict(crystals())
    ours = table.set_index("id")[[name for name in table if name.endswith("_predicted")]]
    np.testing.assert_allclose(
        np.sort(again.ravel()), np.sort(ours.to_numpy().ravel()), rtol=1e-4, atol=1e-4
    )


def test_what_fits_is_held_in_memory(tmp_path):
    run = trained(tmp_path)
    card = json.loads((run.folder / "run.json").read_text())
    assert card["loader"]["window"] is None
    assert "budget" in card["loader"]["reason"]


def test_a_run_goes_on_as_it_began(tmp_path):
    run = trained(tmp_path, memory_gb=1.0)
    places: RunPaths = run.places
    path = run.folder / "state" / "loader.json"
    write_sealed(path, {**read_json(path), "window": 10**12})
    with pytest.raises(AtomloomError, match="the run began with windows"):
        load_labelled(places)
