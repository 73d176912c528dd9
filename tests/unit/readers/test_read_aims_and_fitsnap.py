"""geometry.in of FHI-aims, under any name, and FitSNAP's JSON."""

from __future__ import annotations

import io
import json
import tarfile
import warnings

import ase.io
import numpy as np
import pytest

from atomloom.errors import AtomloomError
from atomloom.readers import read
from tests.unit.structures.crystals import assert_same_arrays, atoms_with_results, parse

CRYSTAL = """#=======================================================
# Created by somebody
#=======================================================
lattice_vector 5.0 0.0 0.0
  lattice_vector 0.0 6.0 0.25   # along y

lattice_vector 0.5 0.0 7.0
trust_radius 0.2
atom 0.1 0.2 0.3 Al
    constrain_relaxation .true.
    initial_moment 1.5
atom_frac 0.5 0.5 0.5 Ga_up
    constrain_relaxation x
    velocity 1.0 2.0 3.0
empty 1.0 1.0 1.0 Al
atom 4.0 -1.0d0 2.0 O
symmetry_params a b
"""
MOLECULE = "atom 0 0 0 O\natom 0 0 0.96 H\natom 0 0.93 -0.24 D # heavy\n"


def test_atoms_in_lengths_and_fractions_of_a_crystal():
    structure = parse("aims", CRYSTAL)
    assert structure.numbers.tolist() == [13, 31, 8]
    assert structure.pbc.all()
    np.testing.assert_array_equal(structure.cell, [[5, 0, 0], [0, 6, 0.25], [0.5, 0, 7]])
    np.testing.assert_allclose(structure.positions, [[0.1, 0.2, 0.3], [2.75, 3, 3.625], [4, -1, 2]])


def test_keywords_are_read_in_any_case():
    loud = CRYSTAL.replace("lattice_vector", "LATTICE_VECTOR").replace("atom ", "Atom ")
    assert parse("aims", loud).hash == parse("aims", CRYSTAL).hash


def test_without_lattice_vectors_it_is_a_molecule():
    structure = parse("aims", MOLECULE)
    assert structure.numbers.tolist() == [8, 1, 1]
    assert not structure.pbc.any()
    assert not structure.cell.any()


@pytest.mark.parametrize("scaled", [True, False])
def test_what_ase_writes_is_read_as_it_was(tmp_path, scaled):
    atoms = atoms_with_results(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ase.io.write(tmp_path / "geometry.in", atoms, format="aims", scaled=scaled)
    assert_same_arrays(read(tmp_path)[0], atoms, 1e-9)


@pytest.mark.parametrize(
    "name", ["geometry.in", "geometry.xyz", "relaxed.in", "start.txt", "1.dat"]
)
@pytest.mark.parametrize("text", [CRYSTAL, MOLECULE, CRYSTAL.partition("lattice")[0] + MOLECULE])
def test_a_geometry_is_known_by_its_content_in_files_of_any_name(tmp_path, name, text):
    for folder in "12":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(text)
    found = read(tmp_path)
    assert [len(structure) for structure in found] == [3, 3]
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        archive.add(tmp_path / "1", "train/1")
    assert read(tmp_path / "all.tar")[0].hash == found[0].hash


def test_geometries_are_named_after_their_folders(tmp_path):
    for folder, name in (("1", "geometry.xyz"), ("2", "geometry.in")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(CRYSTAL)
    assert [structure.id for structure in read(tmp_path)] == ["1", "2"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("lattice_vector 0.5 0.0 7.0\n", "", "2 lattice vectors, not 3"),
        ("lattice_vector 0.5 0.0 7.0", "lattice_vector 0.5 0.0", "line 7: lattice_vector without three numbers"),
        ("lattice_vector 0.5 0.0 7.0", "lattice_vectr 0.5 0.0 7.0", "line 7: `lattice_vectr` is not a known keyword"),
        ("atom 4.0", "atmo 4.0", "line 16: `atmo` is not a known keyword"),
        ("empty", "multipole", "line 15: `multipole` is not a known keyword"),
        ("-1.0d0", "x", "atoms: not a number: `x`"),
        ("2.0 O", "2.0", "line 16: atom without three numbers and a species"),
        ("2.0 O", "2.0 Emptium", "line 16: unknown element `Emptium`"),
        ("2.0 O", "2.0 Oxygen", "line 16: unknown element `Oxygen`"),
        ("2.0 O", "nan O", "coordinate of atom 2 is not a finite number"),
        ("lattice_vector", "#", "atom_frac, but no lattice vectors"),
        ("atom", "# atom", "no atoms"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_geometry_is_said(old, new, message):
    assert old in CRYSTAL
    with pytest.raises(AtomloomError, match=message):
        parse("aims", CRYSTAL.replace(old, new))


def fitsnap(**changes) -> dict:
    """A data set of one cell of InP, as FitSNAP's converter of VASP's outputs writes it."""
    entry = {
        "AtomTypes": ["In", "P"],
        "Energy": -8.5,
        "Forces": [[0.1, 0.2, 0.3], [-0.1, -0.2, -0.3]],
        "Lattice": [[4.0, 0.0, 0.0], [0.5, 4.5, 0.0], [0.0, 0.25, 5.0]],
        "NumAtoms": 2,
        "Positions": [[0.0, 0.0, 0.0], [1.0, 1.5, 2.0]],
        "Stress": [[10.0, 4.0, 5.0], [4.0, 20.0, 6.0], [5.0, 6.0, 30.0]],
    }
    dataset = {
        "AtomTypeStyle": "chemicalsymbol", "Data": [entry], "EnergyStyle": "electronvolt",
        "ForcesStyle": "electronvoltperangstrom", "Label": "cells", "LatticeStyle": "angstrom",
        "PositionsStyle": "angstrom", "StressStyle": "kB",
    }  # fmt: skip
    for name, value in changes.items():
        (entry if name in entry else dataset)[name] = value
    return {"Dataset": {key: v for key, v in dataset.items() if v is not None}}


def structures_of(folder, document, comment="# a comment line\n", name="cells.json"):
    (folder / name).write_text(comment + json.dumps(document))
    return read(folder / name)


@pytest.mark.parametrize("comment", ["# a comment line\n", "# Header\n\n", "# one\n# two\n", ""])
def test_a_comment_line_and_json_behind_it(tmp_path, comment):
    (structure,) = structures_of(tmp_path, fitsnap(), comment)
    assert structure.id == "cells"
    assert structure.numbers.tolist() == [49, 15]
    assert structure.pbc.all()
    np.testing.assert_array_equal(structure.cell[1], [0.5, 4.5, 0])
    np.testing.assert_array_equal(structure.positions[1], [1, 1.5, 2])
    assert structure.properties["energy"] == -8.5
    np.testing.assert_array_equal(structure.properties["forces"][0], [0.1, 0.2, 0.3])
    content = comment.encode() + json.dumps(fitsnap()).encode()
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        info = tarfile.TarInfo("JSON/cells.json")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    assert read(tmp_path / "all.tar")[0].hash == structure.hash


@pytest.mark.parametrize(
    ("unit", "pascals"), [("bar", 1e5), ("kB", 1e8), ("kbar", 1e8), ("GPa", 1e9), ("pascal", 1.0)]
)
def test_stress_is_a_pressure_in_the_unit_it_names(tmp_path, unit, pascals):
    import ase.units

    (structure,) = structures_of(tmp_path, fitsnap(StressStyle=unit))
    pressure = np.array(fitsnap()["Dataset"]["Data"][0]["Stress"]) * pascals * ase.units.Pascal
    np.testing.assert_allclose(structure.properties["stress"], -pressure, rtol=1e-6)


def test_every_entry_of_a_data_set_is_a_record_and_a_bad_one_spoils_no_other(tmp_path):
    document = fitsnap()
    first = document["Dataset"]["Data"][0]
    document["Dataset"]["Data"] = [first, {**first, "Energy": -9.0}]
    found = structures_of(tmp_path, document)
    assert [s.properties["energy"] for s in found] == [-8.5, -9.0]
    assert found[1].id == "cells-000001"


def test_atomic_units_are_converted_and_a_cell_is_no_must(tmp_path):
    from ase.units import Bohr, Hartree

    units = {"LatticeStyle": "bohr", "PositionsStyle": "Bohr", "EnergyStyle": "hartree",
             "ForcesStyle": "hartreeperbohr"}  # fmt: skip
    (structure,) = structures_of(tmp_path, fitsnap(**units, Lattice=None, Stress=None))
    assert not structure.pbc.any()
    np.testing.assert_allclose(structure.positions[1], np.array([1, 1.5, 2]) * Bohr, rtol=1e-8)
    assert structure.properties["energy"] == pytest.approx(-8.5 * Hartree, rel=1e-8)
    np.testing.assert_allclose(
        structure.properties["forces"][1], np.array([-0.1, -0.2, -0.3]) * Hartree / Bohr, rtol=1e-8
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"StressStyle": "lbf"}, "StressStyle is lbf; known are: bar, kb"),
        ({"StressStyle": None}, "StressStyle is None; known are"),
        ({"EnergyStyle": "foe"}, "EnergyStyle is foe"),
        ({"AtomTypes": [1, 2]}, "unknown element `1`"),
        ({"AtomTypes": ["1", "2"]}, "unknown element `1`"),
        ({"AtomTypeStyle": "type"}, "AtomTypeStyle is type, not chemicalsymbol"),
        ({"NumAtoms": 3}, "2 AtomTypes, but NumAtoms is 3"),
        ({"Forces": [[0, 0, 0]]}, r"Forces of shape \(1, 3\), not \(2, 3\)"),
        ({"Stress": [1, 2, 3, 4, 5, 6]}, r"Stress of shape \(6,\), not \(3, 3\)"),
        ({"Positions": [["a", 0, 0], [0, 0, 0]]}, "Positions is not a table of numbers"),
        ({"Forces": [[0, 0], [0, 0, 0]]}, "Forces is not a table of numbers"),
        ({"Data": "none"}, "no `Dataset` with a list `Data`"),
    ],
)
def test_what_is_wrong_with_a_data_set_is_said(tmp_path, changes, message):
    with pytest.raises(AtomloomError, match=message):
        structures_of(tmp_path, fitsnap(**changes))
