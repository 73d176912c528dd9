"""Crystals that the reader tests share, made with pymatgen and ASE, which are also what the readers
are compared with."""

from __future__ import annotations

import itertools

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from pymatgen.core import Lattice
from pymatgen.core import Structure as Crystal

from atomloom.readers import parse_record
from atomloom.structures import Structure, to_structure
from atomloom.structures.elements import SYMBOLS


def symmetric_crystals() -> dict[str, Crystal]:
    """Crystals with atoms on special positions of cubic, tetragonal, hexagonal, trigonal and
    monoclinic groups, some of them with thirds for coordinates."""
    cubic = Lattice.cubic
    return {
        "rock salt": Crystal.from_spacegroup(
            "Fm-3m", cubic(5.6402), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
        ),
        "perovskite": Crystal.from_spacegroup(
            "Pm-3m", cubic(3.905), ["Sr", "Ti", "O"], [[0, 0, 0], [0.5] * 3, [0.5, 0.5, 0]]
        ),
        "rutile": Crystal.from_spacegroup(
            "P4_2/mnm",
            Lattice.tetragonal(4.5937, 2.9587),
            ["Ti", "O"],
            [[0, 0, 0], [0.30478, 0.30478, 0]],
        ),
        "magnesium": Crystal.from_spacegroup(
            "P6_3/mmc", Lattice.hexagonal(3.2094, 5.2108), ["Mg"], [[1 / 3, 2 / 3, 0.25]]
        ),
        "quartz": Crystal.from_spacegroup(
            "P3_221",
            Lattice.hexagonal(4.9134, 5.4052),
            ["Si", "O"],
            [[0.4697, 0, 2 / 3], [0.4133, 0.2672, 0.7855]],
        ),
        "diamond": Crystal.from_spacegroup("Fd-3m", cubic(3.567), ["C"], [[0.125] * 3]),
        "corundum": Crystal.from_spacegroup(
            "R-3c",
            Lattice.hexagonal(4.7602, 12.9933),
            ["Al", "O"],
            [[0, 0, 0.35216], [0.30624, 0, 0.25]],
        ),
        "monoclinic": Crystal.from_spacegroup(
            "P2_1/c",
            Lattice.monoclinic(5.1505, 5.2116, 5.3173, 99.23),
            ["Zr", "O", "O"],
            [[0.2754, 0.0395, 0.2083], [0.07, 0.3317, 0.3447], [0.4496, 0.7569, 0.4792]],
        ),
        "triclinic": Crystal(
            Lattice.from_parameters(4.1, 5.2, 6.3, 77.7, 81.3, 68.9),
            ["Cu", "O", "S"],
            [[0.013, 0.21, 0.33], [0.51, 0.49, 0.87], [0.71, 0.11, 0.63]],
        ),
    }


def atoms_with_results(seed: int = 0, periodic: bool = True, count: int = 7) -> Atoms:
    """Random atoms in a skewed cell, with energy, forces and a stress whose six parts all differ."""
    rng = np.random.default_rng(seed)
    cell = np.diag([6.0, 7.0, 8.0]) + rng.normal(0, 0.5, (3, 3))
    atoms = Atoms(
        numbers=rng.choice([1, 6, 8, 14, 26, 79], count),
        scaled_positions=rng.random((count, 3)),
        cell=cell,
        pbc=periodic,
    )
    results = {"energy": float(rng.normal()), "forces": rng.normal(size=(count, 3))}
    if periodic:
        results["stress"] = rng.normal(0, 0.1, 6)
    else:
        atoms.cell = None
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def assert_same_crystal(ours: Structure, other: Structure, tolerance: float = 1e-6) -> None:
    """Same cell up to a rotation, and the same atoms in any order, modulo the lattice, after the
    best common origin; as pairs of distances: each atom's sorted distances to all images nearby."""
    assert sorted(ours.numbers.tolist()) == sorted(other.numbers.tolist())
    np.testing.assert_allclose(
        ours.cell @ ours.cell.T, other.cell @ other.cell.T, atol=10 * tolerance
    )
    np.testing.assert_allclose(
        neighbourhoods(ours), neighbourhoods(other), atol=tolerance, err_msg="distances differ"
    )


def neighbourhoods(structure: Structure) -> np.ndarray:
    """[N, 2 + 40] sorted rows: atomic number, then the shortest 40 distances with their sum of
    atomic numbers mixed in, so that species are told apart."""
    shifts = np.array(list(itertools.product((-2, -1, 0, 1, 2), repeat=3))) @ structure.cell
    rows = []
    for number, position in zip(structure.numbers, structure.positions, strict=True):
        fractional = (structure.positions - position) @ np.linalg.inv(structure.cell)
        apart = (fractional - np.rint(fractional)) @ structure.cell
        distances = np.linalg.norm(apart[:, None] + shifts[None], axis=-1)
        weighted = np.sort((distances + 1e-3 * structure.numbers[:, None]).ravel())[:40]
        rows.append([float(number), *weighted])
    table = np.array(rows)
    return table[np.lexsort(np.round(table.T[::-1], 4))]


def parse(format: str, text: str | bytes, **options: object) -> Structure:
    """One record."""
    payload = text.encode() if isinstance(text, str) else text
    return parse_record(format, payload, "record", options)


def assert_same_arrays(ours: Structure, other: object, tolerance: float = 1e-12) -> None:
    """Same atoms in the same order at the same places in the same cell."""
    reference = to_structure(other)
    assert [SYMBOLS[z] for z in ours.numbers] == [SYMBOLS[z] for z in reference.numbers]
    np.testing.assert_array_equal(ours.pbc, reference.pbc)
    np.testing.assert_allclose(ours.cell, reference.cell, atol=tolerance)
    np.testing.assert_allclose(ours.positions, reference.positions, atol=tolerance)
