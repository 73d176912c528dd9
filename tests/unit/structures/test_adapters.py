"""Structures from and to pymatgen, ASE and JARVIS; what importing the package costs."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from pymatgen.core import DummySpecies, IStructure, Lattice, Molecule
from pymatgen.core import Structure as Crystal

from atomloom.errors import AtomloomError
from atomloom.structures import Structure, to_ase, to_pymatgen, to_structure
from atomloom.structures.elements import atomic_numbers
from tests.unit.structures.crystals import (
    assert_same_arrays,
    atoms_with_results,
    symmetric_crystals,
)


def test_pymatgen_structures_come_and_go():
    crystal = symmetric_crystals()["monoclinic"]
    ours = to_structure(crystal)
    np.testing.assert_array_equal(ours.positions, crystal.cart_coords)
    assert ours.hash == to_structure(IStructure.from_sites(crystal)).hash
    back = to_pymatgen(ours)
    np.testing.assert_allclose(back.cart_coords, crystal.cart_coords, atol=1e-12)
    assert back.composition == crystal.composition
    molecule = Molecule(["O", "H"], [[0, 0, 0], [0, 0, 1]])
    assert not to_structure(molecule).pbc.any()
    assert isinstance(to_pymatgen(to_structure(molecule)), Molecule)


def test_partial_periodicity_survives_pymatgen():
    slab = Crystal(Lattice(np.diag([3, 4, 20.0]), pbc=(True, True, False)), ["O"], [[0, 0, 0.7]])
    assert to_structure(slab).pbc.tolist() == [True, True, False]
    assert to_pymatgen(to_structure(slab)).lattice.pbc == (True, True, False)


def test_charges_are_dropped_and_disorder_is_refused():
    crystal = symmetric_crystals()["rock salt"].copy()
    crystal.add_oxidation_state_by_element({"Na": 1, "Cl": -1})
    assert set(to_structure(crystal).numbers) == {11, 17}
    crystal.replace_species({"Na+": {"Na+": 0.5, "K+": 0.5}})
    with pytest.raises(AtomloomError, match="disordered site 0"):
        to_structure(crystal)
    with pytest.raises(AtomloomError, match="unknown element"):
        to_structure(Crystal(Lattice.cubic(3), [DummySpecies("X")], [[0, 0, 0]]))


@pytest.mark.parametrize("periodic", [True, False])
def test_ase_atoms_come_and_go_with_their_results(periodic):
    atoms = atoms_with_results(4, periodic)
    atoms.arrays["charge"] = np.arange(7.0)
    atoms.info["weight"] = 2
    ours = to_structure(atoms)
    assert_same_arrays(ours, atoms, 0)
    assert ours.properties["energy"] == atoms.get_potential_energy()
    assert isinstance(ours.properties["energy"], float)
    assert ours.properties["weight"] == 2.0
    back = to_ase(ours)
    assert back.get_potential_energy() == atoms.get_potential_energy()
    np.testing.assert_array_equal(back.get_forces(), atoms.get_forces())
    np.testing.assert_array_equal(back.arrays["charge"], np.arange(7.0))
    if periodic:
        np.testing.assert_allclose(back.get_stress(), atoms.get_stress())
        np.testing.assert_allclose(ours.properties["stress"], atoms.get_stress(voigt=False))
    assert to_structure(back).hash == ours.hash


def test_stale_results_and_calculators_not_yet_run_give_no_energy():
    from ase.calculators.emt import EMT

    atoms = atoms_with_results(4)
    atoms.positions[0] += 0.1
    assert "energy" not in to_structure(atoms).properties
    atoms.calc = EMT()
    assert "energy" not in to_structure(atoms).properties


def test_a_structure_does_not_change_when_the_atoms_it_came_from_do():
    atoms = atoms_with_results(4)
    ours = to_structure(atoms)
    before = ours.hash
    atoms.positions += 1
    atoms.cell[0, 0] = 99
    atoms.numbers[0] = 92
    assert ours.hash == before


@pytest.mark.parametrize("cartesian", [True, False])
def test_jarvis_atoms_keep_the_digits_of_their_lattice(cartesian):
    from jarvis.core.atoms import Atoms

    lattice = [[3.123456789, 0, 0], [0, 4.0, 0.1], [0, 0, 5.0]]
    atoms = Atoms(
        lattice_mat=lattice,
        coords=[[0.1, 0.2, 0.3], [0.5, 0.6, 0.7]],
        elements=["Ti", "O"],
        cartesian=cartesian,
    )
    ours = to_structure(atoms)
    # jarvis-tools itself rounds the lattice to five decimals on the way to Cartesian coordinates
    np.testing.assert_allclose(ours.positions, np.array(atoms.cart_coords), atol=1e-5)
    exact = np.array([[0.1, 0.2, 0.3], [0.5, 0.6, 0.7]])
    np.testing.assert_array_equal(ours.positions, exact if cartesian else exact @ np.array(lattice))
    np.testing.assert_array_equal(ours.cell, lattice)
    assert ours.numbers.tolist() == [22, 8]


@pytest.mark.parametrize("symbol", ["0", "119", "-1", "1.5", "X", "", "Xx"])
def test_what_is_no_element_is_refused(symbol):
    with pytest.raises(AtomloomError, match=f"unknown element `{symbol}`"):
        atomic_numbers(["H", symbol])


def test_symbols_in_any_case_isotopes_and_numbers_as_text_are_elements():
    assert atomic_numbers(["FE", "cl", " o ", "D", "T", "1", "118"]).tolist() == [
        *(26, 17, 8, 1, 1, 1, 118)
    ]


def test_anything_else_is_an_error():
    with pytest.raises(
        AtomloomError, match=r"a builtins\.dict is not a structure; give a pymatgen"
    ):
        to_structure({})
    ours = Structure(np.array([1]), np.zeros((1, 3)), np.zeros((3, 3)), np.zeros(3, dtype=bool))
    assert to_structure(ours) is ours


def test_importing_structures_imports_no_chemistry_library():
    code = (
        "import sys, atomloom.structures; "
        "heavy = {'ase', 'pymatgen', 'gemmi', 'jarvis', 'torch', 'numba', 'pandas', 'spglib', 'scipy'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
