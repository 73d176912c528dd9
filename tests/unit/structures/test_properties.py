"""Which properties have a row per atom is said by name and by reader, never by shape."""

from __future__ import annotations

import json

import numpy as np
import pytest
from ase import Atoms
from pymatgen.core import Lattice
from pymatgen.core import Structure as Crystal

from atomloom.api import _frame
from atomloom.errors import AtomloomError
from atomloom.readers.formats import plain_json
from atomloom.structures import Structure, to_ase, to_structure
from tests.unit.structures.crystals import parse

ATOM = "1\nenergy=-2.5 dipole=3 Properties=species:S:1:pos:R:3:energy:R:1:q:R:1\nO 0 0 0 -1 0.5\n"


def water(**properties) -> Structure:
    """Three atoms."""
    positions = np.array([[0.0, 0, 0], [0, 0, 0.96], [0, 0.93, -0.24]])
    return Structure(
        np.array([8, 1, 1]), positions, np.zeros((3, 3)), np.zeros(3, dtype=bool), properties
    )


def test_a_column_of_atoms_called_energy_is_not_the_energy():
    structure = parse("extxyz", ATOM)
    assert structure.per_atom == {"energies", "q"}
    assert structure.properties["energy"] == -2.5
    np.testing.assert_array_equal(structure.properties["energies"], [-1])
    np.testing.assert_array_equal(structure.properties["q"], [0.5])


def test_sites_of_pymatgen_and_arrays_of_ase_have_a_row_per_atom():
    crystal = Crystal(
        Lattice.cubic(4),
        ["Na", "Cl", "Cl"],
        [[0, 0, 0], [0.5] * 3, [0.5, 0.5, 0]],
        site_properties={"magmom": [1.0, 2.0, 3.0], "energy": [1.0, 2.0, 3.0]},
        properties={"energy": -3.0, "stress": 1.0},
    )
    for structure in (parse("pymatgen", json.dumps(crystal.as_dict())), to_structure(crystal)):
        assert structure.per_atom == {"magmom", "energies"}
        assert structure.properties["energy"] == -3.0
        assert structure.properties["stress_in_file"] == 1.0
    atoms = Atoms("OH2", water().positions)
    atoms.arrays["energy"], atoms.info["energy"] = np.ones(3), -1.0
    structure = to_structure(atoms)
    assert structure.per_atom == {"energies"}
    assert structure.properties["energy"] == -1.0


def test_sites_without_any_number_have_no_property():
    crystal = Crystal(
        Lattice.cubic(4),
        ["Na", "Cl"],
        [[0, 0, 0], [0.5] * 3],
        site_properties={
            "unknown": [None, None],
            "magmom": [1.0, None],
            "label": ["a", "b"],
            "field_gradient": [[[1.0]], [[2.0]]],
        },
    )
    structure = to_structure(crystal)
    assert structure.per_atom == {"magmom"}
    np.testing.assert_array_equal(structure.properties["magmom"], [1.0, np.nan])


def test_three_numbers_of_three_atoms_stay_a_vector_of_the_structure():
    structure = water(dipole=np.array([1.0, 2.0, 3.0]), charges=np.array([-0.8, 0.4, 0.4]))
    assert structure.per_atom == {"charges"}
    atoms = to_ase(structure)
    np.testing.assert_array_equal(atoms.info["dipole"], [1, 2, 3])
    assert "dipole" not in atoms.arrays
    assert "charges" in atoms.arrays
    frame = _frame(structure, ["dipole", "charges"])
    assert 'dipole="1.0 2.0 3.0"' in frame
    assert "charges:R:1" in frame


def test_plain_json_names_what_has_a_row_per_atom():
    value = json.loads(plain_json.dump([8, 1, 1], water().positions, np.zeros((3, 3)), [False] * 3,
                                       {"spin": [1, 2, 3], "dipole": [1, 2, 3], "stress": [0.0] * 6}))  # fmt: skip
    assert parse("structure", json.dumps(value)).per_atom == frozenset()
    structure = parse("structure", json.dumps(value | {"per_atom": ["spin"]}))
    assert structure.per_atom == {"spin"}
    assert structure.properties["stress"].shape == (3, 3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("forces", np.ones((2, 3))),
        ("forces", np.ones(3)),
        ("stress", np.ones(6)),
        ("energy", np.ones(3)),
    ],
)
def test_energy_forces_and_stress_have_the_shape_that_belongs_to_them(name, value):
    with pytest.raises(AtomloomError, match=f"{name} of shape .* for 3 atoms"):
        water(**{name: value})
