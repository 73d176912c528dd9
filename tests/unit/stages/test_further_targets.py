"""Vectors of structures and values of atoms, from a file through all stages to report and prediction."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest

import atomloom
from atomloom.cli import main
from atomloom.errors import AtomloomError
from atomloom.potentials.calculator import AtomloomCalculator
from atomloom.stages.lookup import StructureLookup
from atomloom.stages.report import report_run
from atomloom.structures.adapters import to_ase
from atomloom.structures.structure import Structure
from tests.unit.training.direct import SMALL, crystals, ionic_molecules

WITHOUT = {"dipole": 3, "charges": 7, "energy": 11}
"""Which molecule lacks which value."""
SETTINGS = {"epochs": 3, "threads": 1, "device": "cpu", "batch": {"structures": 8}}


def bare(structure: Structure) -> Structure:
    return Structure(structure.numbers, structure.positions, structure.cell, structure.pbc)


def with_gaps(structures):
    for name, row in WITHOUT.items():
        if name in structures[row].properties:
            del structures[row].properties[name]
    return structures


@pytest.fixture(scope="module")
def molecules():
    return with_gaps(ionic_molecules(30))


@pytest.fixture(scope="module")
def run(tmp_path_factory, molecules):
    return atomloom.train(
        molecules,
        ["energy", "forces", "dipole", "charges"],
        folder=tmp_path_factory.mktemp("further"),
        model=SMALL["painn"],
        dataset={"unit": {"dipole": "e A", "charges": "e"}},
        split={"duplicates": "report", "ratios": [0.6, 0.2, 0.2]},
        training=SETTINGS | {"loss_weights": {"dipole": 2.0}},
        log=lambda line: None,
    )


def by_id(run, molecules):
    """The molecule of each id."""
    ids = pd.read_parquet(run.places.split / "dataset.parquet").sort_values("record")["id"]
    return dict(zip(ids, molecules, strict=True))


def test_tables_hold_the_values_of_their_records(run, molecules):
    known = by_id(run, molecules)
    dipoles = pd.read_parquet(run.folder / "dipole.parquet")
    assert len(dipoles) == 3 * (len(molecules) - 1)
    for row in dipoles.itertuples():
        wanted = known[row.id].properties["dipole"][row.component]
        assert row.dipole == pytest.approx(wanted, abs=1e-12)
    charges = pd.read_parquet(run.folder / "charges.parquet")
    assert "component" not in charges
    assert len(charges) == sum(len(m) for m in molecules) - len(molecules[WITHOUT["charges"]])
    for row in charges.itertuples():
        one = known[row.id]
        assert row.charges == pytest.approx(one.properties["charges"][row.atom], abs=1e-12)
        assert row.elements == to_ase(bare(one)).symbols[row.atom]
    energies = pd.read_parquet(run.folder / "predictions.parquet").set_index("id")["energy"]
    assert energies.isna().sum() == 1


def test_predictions_in_tables_are_those_of_the_model(run, molecules):
    known = by_id(run, molecules)
    for name in ("dipole", "charges"):
        table = pd.read_parquet(run.folder / f"{name}.parquet")
        own = table[table["id"] == table["id"][0]]
        said = run.predict(bare(known[own["id"].iloc[0]]))
        assert set(said) == {"energy", "dipole", "charges"}
        found = np.asarray(said[name][0]).reshape(-1)
        np.testing.assert_allclose(own[f"{name}_predicted"], found, rtol=1e-4, atol=1e-5)


def test_metrics_report_and_run_card_know_every_target(run):
    metrics = json.loads((run.folder / "metrics.json").read_text())
    assert set(metrics) == {"energy_per_atom", "forces", "dipole", "charges"}
    assert all(metrics[name]["test"]["count"] for name in metrics)
    card = json.loads((run.folder / "run.json").read_text())
    assert card["unit"]["dipole"] == "e A"
    assert (run.folder / "parity.png").stat().st_size > 1000
    page = run.report.read_text()
    for name in ("dipole", "charges"):
        assert name in page
    assert "values on atoms of it" in page  # errors of charges by element
    with open(run.folder / "history.csv") as file:
        header = file.readline()
    assert "val_mae_dipole" in header
    assert "val_mae_charges" in header


def test_the_overview_counts_structures_without_a_label(run):
    page = run.report.read_text()
    rows = re.findall(
        r"<tr><th>(\w+).*?</th><td>.*?</td><td class=\"n\">([\d,]+)</td><td class=\"n\">(\d+)</td>",
        page,
    )
    missing: dict[str, int] = {}
    for name, _, count in rows:
        missing[name] = missing.get(name, 0) + int(count)
    assert missing == {"energy_per_atom": 1, "forces": 0, "dipole": 1, "charges": 1}


def test_the_report_draws_the_worst_structures_and_rings_the_atom(run, molecules, tmp_path):
    page = run.report.read_text()
    charges = page[page.index('id="target-4"') :]
    assert 'class="marked"' in charges
    assert "A red ring marks the atom of the error" in charges
    known = by_id(run, molecules)
    some = list(known)[:5]
    found = StructureLookup(run.places)([*some, "nobody"])
    assert list(found) == some
    for name, structure in found.items():
        assert structure.hash == known[name].hash
    shard = run.places.layout.structures(run.places.plan.chunks[0].key)
    shard.rename(tmp_path / "away")
    try:
        assert not StructureLookup(run.places)(some)
        assert "not drawn" not in report_run(run.places, lambda line: None).read_text()
    finally:
        (tmp_path / "away").rename(shard)


def test_the_data_set_and_the_run_have_keys_of_their_kinds(run):
    assert run.places.dataset_spec["kinds"] == {"dipole": "vector", "charges": "per_atom"}


def test_predict_writes_components_and_a_table_of_atoms(run, molecules, tmp_path):
    import ase.io

    source = tmp_path / "new.xyz"
    ase.io.write(source, [to_ase(bare(one)) for one in molecules[:5]], format="extxyz")
    model, output = run.folder / "model.safetensors", tmp_path / "out.parquet"
    call = ["predict", "--model", model, "--source", source, "--output", output, "--chunk", 2]
    assert main([str(word) for word in [*call, "--forces"]]) == 0
    table = pd.read_parquet(output)
    said = run.predict([bare(one) for one in molecules[:5]])
    names = ["dipole_x", "dipole_y", "dipole_z"]
    np.testing.assert_allclose(table[names], said["dipole"], rtol=1e-3, atol=1e-5)
    atoms = pd.read_parquet(tmp_path / "out.charges.parquet")
    np.testing.assert_allclose(atoms["charges"], np.concatenate(said["charges"]), atol=1e-5)
    assert atoms["row"].tolist() == np.repeat(np.arange(5), table["n_atoms"]).tolist()
    assert len(pd.read_parquet(tmp_path / "out.forces.parquet")) == len(atoms)
    several = tmp_path / "several.parquet"
    call = ["predict", "--model", model, model, "--source", source, "--output", several]
    assert main([str(word) for word in call]) == 0
    again = pd.read_parquet(several)
    np.testing.assert_allclose(again[names], table[names], atol=1e-6)
    assert again["dipole_x_std"].abs().max() < 1e-6
    assert "charges_std" in pd.read_parquet(tmp_path / "several.charges.parquet")


def test_the_calculator_gives_them_by_the_names_of_ase(run, molecules):
    atoms = to_ase(bare(molecules[0]))
    atoms.calc = AtomloomCalculator(run.folder / "model.safetensors", dtype="float64")
    said = run.predict(bare(molecules[0]))
    np.testing.assert_allclose(atoms.get_dipole_moment(), said["dipole"][0], atol=1e-4)
    np.testing.assert_allclose(atoms.get_charges(), said["charges"][0], atol=1e-4)
    assert atoms.get_forces().shape == (len(atoms), 3)
    (batch,) = atoms.calc.calculate_batch([atoms])
    np.testing.assert_allclose(batch["dipole"], atoms.get_dipole_moment(), atol=1e-6)
    committee = AtomloomCalculator([run.folder / "model.safetensors"] * 2)
    committee.calculate(atoms)
    assert np.abs(committee.results["dipole_std"]).max() < 1e-6


def test_programs_are_refused_in_one_line(run, tmp_path):
    from atomloom.potentials.export import export_model

    with pytest.raises(AtomloomError, match="no heads for dipole, charges"):
        export_model(run.folder / "model.safetensors", tmp_path / "m.pt2")


def test_moments_of_atoms_are_learnt_alongside_a_gap(tmp_path):
    structures = crystals(24)
    del structures[2].properties["charges"]
    del structures[5].properties["gap"]
    run = atomloom.train(
        structures,
        ["gap", "charges"],
        folder=tmp_path,
        model=SMALL["icomformer"],
        dataset={"target_kinds": {"charges": "per_atom"}, "unit": {"gap": "eV", "charges": "e"}},
        split={"duplicates": "report", "ratios": [0.6, 0.2, 0.2]},
        training=SETTINGS,
        log=lambda line: None,
    )
    assert set(run.metrics) == {"gap", "charges"}
    assert len(run.predictions) == 24
    assert run.predictions["gap"].isna().sum() == 1
    said = run.predict(bare(structures[0]))
    assert said["gap"].shape == (1,)
    assert said["charges"][0].shape == (len(structures[0]),)
    assert "values on atoms of it" in run.report.read_text()


def test_a_model_of_dipoles_alone_predicts_and_has_no_forces(tmp_path, molecules):
    run = atomloom.train(
        molecules,
        ["dipole"],
        folder=tmp_path,
        model=SMALL["painn"],
        split={"duplicates": "report"},
        training=SETTINGS,
        log=lambda line: None,
    )
    assert set(run.metrics) == {"dipole"}
    assert set(run.predict(bare(molecules[0]))) == {"dipole"}
    with pytest.raises(AtomloomError, match="predicts dipole and has no forces"):
        AtomloomCalculator(run.folder / "model.safetensors")
