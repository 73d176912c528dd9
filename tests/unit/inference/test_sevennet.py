"""SevenNet's checkpoints give SevenNet's numbers, by name wherever a model file is asked for; no file runs code."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from ase.build import bulk

from atomloom.cli import main
from atomloom.config import parse_config
from atomloom.config.foundation import POTENTIALS, published_file
from atomloom.errors import AtomloomError
from atomloom.inference.model_file import read_model
from atomloom.inference.predict import load_model
from atomloom.inference.sevennet import read_sevennet
from atomloom.pipeline.paths import Layout
from atomloom.potentials.calculator import AtomloomCalculator
from atomloom.structures.adapters import to_ase
from tests.unit.models.potentials import structure

ORACLE = {"sevennet-0": "sevennet0", "sevennet-l3i5": "l3i5"}
CHECKED = {
    ("sevennet-0-may2024", None): (-40.031174, -46.900036),
    ("sevennet-mf-0", None): (-39.972515, -46.685734),
    ("sevennet-mf-0", "R2SCAN"): (-63.163651, -49.244884),
}
"""Energies of SrTiO3 and ethanol of the oracle in eV, by the calculator of sevenn 0.13.0."""


@pytest.fixture(scope="module", autouse=True)
def installed():
    try:
        return published_file("sevennet-0")
    except AtomloomError as error:
        pytest.skip(f"the package sevenn is not installed: {error}")


@pytest.fixture(scope="module")
def content(oracle):
    return oracle("SevenNet_checkpoints")


def atoms_of(content, place: int):
    found = (content[f"s{place}_{key}"] for key in ("numbers", "positions", "cell", "pbc"))
    return structure(*found)


def evaluated(model, given):
    atoms = to_ase(given)
    atoms.calc = AtomloomCalculator(model)
    return atoms


@pytest.mark.parametrize("name", ORACLE)
def test_oracle_energies_forces_and_stress_of_checkpoints(name, content):
    """In single precision, as the reference."""
    model = load_model(name)
    assert model.dtype == torch.float32
    for place in range(len(content["names"])):
        atoms = evaluated(model, atoms_of(content, place))
        key = f"{ORACLE[name]}_s{place}_"
        assert atoms.get_potential_energy() == pytest.approx(content[key + "energy"], abs=1e-4)
        np.testing.assert_allclose(atoms.get_forces(), content[key + "forces"], rtol=0, atol=1e-4)
        if key + "stress" in content:
            stress = atoms.get_stress(voigt=False)
            np.testing.assert_allclose(stress, content[key + "stress"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "modality"), CHECKED)
def test_the_other_checkpoints_and_levels_of_theory_agree_too(name, modality, content, tmp_path):
    file = tmp_path / "model.safetensors"
    options = ["--modality", modality] if modality else []
    assert main(["import", name, "--output", str(file), *options]) == 0
    model = load_model(file)
    places = [list(content["names"]).index(one) for one in ("SrTiO3_rattled", "ethanol_molecule")]
    for place, energy in zip(places, CHECKED[name, modality], strict=True):
        atoms = evaluated(model, atoms_of(content, place))
        assert atoms.get_potential_energy() == pytest.approx(energy, abs=1e-4)


def test_an_imported_file_is_the_checkpoint(tmp_path, capsys):
    file = tmp_path / "model.safetensors"
    assert main(["import", "sevennet-0", "--output", str(file)]) == 0
    assert "89 elements" in capsys.readouterr().out
    tensors, card = read_model(file)
    others, _ = read_sevennet(published_file("sevennet-0"))
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensors[name], others[name]) for name in tensors)
    assert len(card.elements) == 89
    assert card.is_potential


def test_predict_takes_the_name(tmp_path):
    from ase.io import write

    write(tmp_path / "mgo.extxyz", bulk("MgO", "rocksalt", 4.21))
    table = tmp_path / "out.parquet"
    command = ["predict", "--model", "sevennet-0", "--source", str(tmp_path / "mgo.extxyz")]
    assert main([*command, "--output", str(table)]) == 0
    energy = float(pd.read_parquet(table)["energy"][0])
    atoms = bulk("MgO", "rocksalt", 4.21)
    atoms.calc = AtomloomCalculator(load_model("sevennet-0"))
    assert energy == pytest.approx(atoms.get_potential_energy(), abs=1e-5)


def test_elements_that_a_checkpoint_does_not_know_are_refused():
    with pytest.raises(AtomloomError, match="not trained on Po"):
        evaluated(load_model("sevennet-0"), structure([84], [[0, 0, 0]])).get_potential_energy()


def test_a_teacher_is_known_by_the_content_of_its_checkpoint(tmp_path):
    def key(model: str) -> str:
        dataset = {"name": "a", "source": "x.extxyz", "target": ["energy", "forces"]}
        given = {"calculator": "atomloom", "model": model}
        config = parse_config({"dataset": dataset, "model": {"name": "painn"}, "teacher": given})
        return Layout(config).teacher_key

    copied = tmp_path / "own.pth"
    copied.write_bytes(published_file("sevennet-0").read_bytes())
    assert key("sevennet-0") == key(str(copied)) != key("sevennet-l3i5")


# --- files that are none --------------------------------------------------------------------------


class _Runs:
    def __reduce__(self):
        return (eval, ("1 + 1",))


def _refused(path, match):
    with pytest.raises(AtomloomError, match=match) as error:
        read_sevennet(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_would_run_code_is_refused(tmp_path):
    path = tmp_path / "bad.pth"
    torch.save({"config": _Runs()}, path)
    _refused(path, "cannot be read as data")
    path.write_bytes(pickle.dumps(_Runs()))
    _refused(path, "cannot be read as data")


def test_other_files_and_architectures_are_one_line(tmp_path):
    path = tmp_path / "other.pth"
    for content in (
        b"",
        b"junk\n",
        b"no checkpoint",
        published_file("sevennet-0").read_bytes()[:5000],
    ):
        path.write_bytes(content)
        _refused(path, "cannot be read as data")
    for content in ([1, 2], {"weights": torch.zeros(2)}, {"config": {}, "model_state_dict": {}}):
        torch.save(content, path)
        _refused(path, "not a checkpoint of SevenNet")
    _refused(tmp_path / "none.pth", "cannot be read as data")
    with pytest.raises(AtomloomError, match="no modality PBE"):
        read_sevennet(published_file("sevennet-0"), "PBE")
    with pytest.raises(AtomloomError, match=r"no modality SCAN.*R2SCAN, PBE"):
        read_sevennet(published_file("sevennet-mf-0"), "SCAN")


def test_a_package_that_is_not_there_is_named(monkeypatch):
    from atomloom.config import foundation

    monkeypatch.setattr(foundation, "find_spec", lambda name: None)
    for name in POTENTIALS:
        with pytest.raises(AtomloomError, match=f"{name} lies in the package sevenn"):
            published_file(name)


def test_a_file_of_the_name_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sevennet-0").write_text("")
    assert published_file("sevennet-0").read_text() == ""
