"""Frequencies by symmetry-reduced displacements are those of ASE and of formulas."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.data import atomic_masses
from ase.vibrations import Vibrations

from atomloom.config.features import Feature
from atomloom.errors import AtomloomError
from atomloom.features.gamma_frequencies import (
    STATISTICS,
    GammaFrequencies,
    _Symmetry,
    frequencies,
    frequencies_of,
    repeated,
)
from atomloom.potentials.teachers import open_teacher
from atomloom.structures.adapters import to_ase, to_structure
from atomloom.structures.table import StructureTable
from tests.unit.potentials.models import write_potential

BY_EMT = Feature(source="gamma_frequencies", calculator="emt", displacement=0.01)
CM = np.sqrt(units._e / units._amu) * 1e10 / (2 * np.pi * units._c * 100)
"""Frequency in cm^-1 of 1 eV/A^2 and 1 u."""


def of_ase(atoms: Atoms, folder) -> np.ndarray:
    """Frequencies by displacing each atom along each axis."""
    atoms = atoms.copy()
    atoms.calc = EMT()
    vibrations = Vibrations(atoms, name=str(folder / "vibrations"), delta=0.01)
    vibrations.run()
    found = np.array([f.real - f.imag for f in vibrations.get_frequencies()])
    return np.sort(np.delete(found, np.argsort(np.abs(found))[:3]))


def sheared_alloy() -> Atoms:
    atoms = bulk("Cu", cubic=True) * (2, 1, 1)
    atoms.rattle(0.05, seed=1)
    atoms.numbers[0] = 47
    atoms.set_cell(atoms.cell.array @ [[1, 0.02, 0], [0, 1, 0.03], [0, 0, 1]], scale_atoms=True)
    return atoms


def bent_molecule() -> Atoms:
    return Atoms("HOH", [[0.9, 0.1, 0], [0, 0, 0], [-0.3, 0.85, 0.2]])


@pytest.mark.parametrize(
    ("make", "images", "bound"),
    [
        # One atom, one direction: a cube's atom sees the same along all axes.
        (lambda: bulk("Cu"), 1, 1e-6),
        (lambda: bulk("CuAu", "cesiumchloride", a=3.1), 2, 1e-6),
        # In other directions than along the axes, terms of third order differ.
        (lambda: bulk("Cu", cubic=True) * (2, 1, 1), None, 0.1),
        (sheared_alloy, 48, 1e-6),
        (bent_molecule, 18, 1e-6),
    ],
    ids=["copper", "ordered alloy", "long cell", "no symmetry", "molecule"],
)
def test_frequencies_are_those_of_all_displacements_of_ase(make, images, bound, tmp_path):
    structure = to_structure(make())
    small = len(structure) <= BY_EMT.supercell_max_atoms
    cell = repeated(structure, BY_EMT.supercell) if small else structure
    asked: list[int] = []
    teach = open_teacher(BY_EMT.teacher)

    def counting(table):
        asked.append(len(table))
        return teach(table)

    found = frequencies(counting, structure, BY_EMT)
    assert found == pytest.approx(of_ase(to_ase(cell), tmp_path), abs=bound)
    assert images in (None, sum(asked))


def test_a_diatomic_chain_has_the_modes_of_the_formula():
    """Springs k along z between all neighbours: at Gamma one optical mode, omega^2 = 2 k (1/m + 1/M)."""
    k, m, heavy = 5.0, *atomic_masses[[11, 17]]
    hessian = np.zeros((2, 3, 2, 3))
    hessian[:, 2, :, 2] = 2 * k * np.array([[1, -1], [-1, 1]])
    found = frequencies_of(hessian, np.array([11, 17]))
    assert found == pytest.approx([0, 0, CM * np.sqrt(2 * k * (1 / m + 1 / heavy))], abs=1e-4)


def test_an_unstable_crystal_has_negative_frequencies():
    hessian = np.zeros((2, 3, 2, 3))
    hessian[:, 2, :, 2] = -np.array([[1, -1], [-1, 1]])
    found = frequencies_of(hessian, np.array([1, 1]))
    assert found.min() == pytest.approx(-CM * np.sqrt(2 / atomic_masses[1]))


def test_forces_of_the_cell_as_given_are_not_curvature():
    """A strained crystal's atoms are at rest by symmetry; a rattled one's are pushed, and this cancels."""
    hessian = np.random.default_rng(0).normal(size=(24, 24))
    hessian = hessian + hessian.T
    structure = to_structure(sheared_alloy())
    symmetry = _Symmetry.of(structure)
    displaced = [(a, 0.02 * d) for a in symmetry.representatives for d in symmetry.directions(a)]
    push = np.arange(24.0).reshape(8, 3)
    forces = [
        push - np.einsum("a,abc->bc", v, hessian.reshape(8, 3, 8, 3)[i]) for i, v in displaced
    ]
    found = symmetry.hessian(displaced, forces)
    assert found.reshape(24, 24) == pytest.approx(hessian, abs=1e-9)


def test_numbers_of_a_spectrum_are_in_order_and_images_of_many_crystals_are_asked_at_once(tmp_path):
    """One that the potential does not know fails alone, and one atom in vacuum has no vibrations."""
    model = str(write_potential(tmp_path / "cu.safetensors"))
    feature = Feature(
        source="gamma_frequencies", model=model, options={"dtype": "float64", "device": "cpu"}
    )
    source = GammaFrequencies(feature)
    crystals = [bulk("Cu", cubic=True), bulk("Fe"), Atoms("Cu"), bulk("Cu", a=3.7)]
    table = StructureTable.from_structures([to_structure(atoms) for atoms in crystals])
    one, unknown, atom, other = source.describe(table)
    assert "Fe" in unknown.failure
    assert "no vibrations" in atom.failure
    assert unknown.values is atom.values is None
    for found, crystal in ((one, crystals[0]), (other, crystals[3])):
        spectrum = frequencies(open_teacher(feature.teacher), to_structure(crystal), feature)
        told = dict(zip(source.columns, found.values, strict=True))
        assert tuple(told) == tuple(STATISTICS)
        wanted = [spectrum.max(), spectrum.min(), np.median(spectrum), np.quantile(spectrum, 0.9)]
        assert [told[n] for n in ("max", "min", "q50", "q90")] == pytest.approx(wanted, abs=1e-4)
        assert found.seconds > 0


def test_operations_that_are_no_group_are_not_used(monkeypatch):
    """One without the identity, and one that maps atoms to places where none is."""
    import spglib

    structure = to_structure(bulk("Cu", cubic=True))
    assert len(_Symmetry.of(structure).rotations) == 192
    shift = {"rotations": np.eye(3, dtype=int)[None], "translations": np.array([[0.0, 0.5, 0.5]])}
    monkeypatch.setattr(spglib, "get_symmetry", lambda *_, **__: shift)
    assert len(_Symmetry.of(structure).rotations) == 1
    assert _Symmetry.of(structure).images.tolist() == [[0, 1, 2, 3]]
    shift["translations"] = np.array([[0.0, 0.3, 0.5]])
    assert _Symmetry.of(structure).images.tolist() == [[0, 1, 2, 3]]


def test_a_failing_calculator_says_why():
    structure = to_structure(bulk("Fe"))
    with pytest.raises(AtomloomError, match="Fe"):
        frequencies(open_teacher(BY_EMT.teacher), structure, BY_EMT)
