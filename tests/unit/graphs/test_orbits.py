"""Orbits: equal atoms and edges of symmetric crystals are found, and others are left apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from atomloom.config import GraphSpec
from atomloom.data.loader import GraphLoader
from atomloom.graphs.build import build_graphs
from atomloom.graphs.orbits import Orbits, find_orbits
from atomloom.structures.structure import Structure
from atomloom.structures.table import StructureTable
from tests.unit.graphs.samples import nacl_cubic


def orbits_of(*structures: Structure, dtype=torch.float64) -> tuple[Orbits, dict[str, np.ndarray]]:
    """Classes of a batch, and its arrays."""
    table = build_graphs(StructureTable.from_structures(structures), GraphSpec(max_neighbors=12))
    batch = GraphLoader(table, np.arange(len(table)), dtype=dtype).slice(np.arange(len(table)))
    names = ("numbers", "src", "dst", "node_ptr", "dst_ptr", "vectors")
    arrays = {name: getattr(batch, name).numpy() for name in names}
    return find_orbits(**arrays), arrays


def crystal(numbers, positions, cell) -> Structure:
    return Structure(
        numbers=np.array(numbers),
        positions=np.array(positions) @ cell,
        cell=np.array(cell, dtype=float),
        pbc=np.ones(3, dtype=bool),
    )


def perovskite(length: float = 4.0) -> Structure:
    sites = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    return crystal([38, 22, 8, 8, 8], sites, np.eye(3) * length)


def random_crystal(seed: int = 0, atoms: int = 6) -> Structure:
    rng = np.random.default_rng(seed)
    cell = np.eye(3) * 5.0 + rng.normal(scale=0.4, size=(3, 3))
    return crystal(rng.choice([8, 14], atoms), rng.uniform(size=(atoms, 3)), cell)


def test_rock_salt_has_two_kinds_of_atoms_and_as_many_of_edges_as_of_shells():
    found, arrays = orbits_of(nacl_cubic())
    assert len(arrays["numbers"]) == 8
    assert sorted(found.atom_counts.tolist()) == [4, 4]
    # Of each atom: 6 nearest (Na-Cl, two directions), 12 next-nearest of its own kind.
    assert sorted(found.edge_counts.tolist()) == [24, 24, 48, 48]


def test_three_oxygen_atoms_of_a_cubic_perovskite_are_one():
    found, arrays = orbits_of(perovskite())
    assert len(set(found.atom_class[2:].tolist())) == 1
    assert len(found.atoms) == 3
    assert len(found.edges) < len(arrays["src"]) / 5


def test_without_symmetry_every_atom_and_edge_is_an_orbit():
    found, arrays = orbits_of(random_crystal())
    assert len(found.atoms) == len(arrays["numbers"])
    # An edge from an atom to its own image equals the one to the opposite image: inversion.
    own = arrays["src"] == arrays["dst"]
    assert len(found.edges) >= len(own) - own.sum() // 2
    assert np.all(np.bincount(found.edge_class)[found.edge_class[~own]] == 1)


def test_atoms_displaced_by_more_than_rounding_are_not_equal():
    structure = perovskite()
    moved = structure.positions.copy()
    moved[2, 2] += 1e-3
    displaced = Structure(
        numbers=structure.numbers, positions=moved, cell=structure.cell, pbc=structure.pbc
    )
    found, _ = orbits_of(displaced, dtype=torch.float32)
    assert found.atom_class[2] not in found.atom_class[3:]
    assert found.atom_class[3] == found.atom_class[4]


def test_angles_tell_apart_what_lengths_do_not():
    """Square and tetrahedral neighbourhoods of equal lengths."""
    square = np.array([[1, 1, 0], [1, -1, 0], [-1, 1, 0], [-1, -1, 0]]) / np.sqrt(2)
    tetrahedron = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / np.sqrt(3)
    numbers = np.array([6, 1, 1, 1, 1] * 2)
    centres = np.array([[5.0, 5, 5], [20.0, 20, 20]])
    positions = np.concatenate(
        [[centres[0]], centres[0] + square, [centres[1]], centres[1] + tetrahedron]
    )
    vectors, src, dst = [], [], []
    for first in (0, 5):
        for i in range(first, first + 5):
            for j in range(first, first + 5):
                if (i == first) != (j == first):  # bonds to the centre alone
                    dst.append(i)
                    src.append(j)
                    vectors.append(positions[j] - positions[i])
    ptr = np.searchsorted(dst, np.arange(11))
    found = find_orbits(
        numbers,
        np.array(src),
        np.array(dst),
        np.array([0, 10]),
        ptr.astype(np.int64),
        np.array(vectors),
    )
    assert found.atom_class[0] != found.atom_class[5]
    assert len(set(found.atom_class.tolist())) == 4


def test_equal_crystals_of_a_batch_stay_apart():
    found, arrays = orbits_of(nacl_cubic(), nacl_cubic())
    owner = np.repeat([0, 1], np.diff(arrays["node_ptr"]))
    assert len(found.atoms) == 4
    for number in range(4):
        assert len(set(owner[found.atom_class == number])) == 1


@pytest.mark.parametrize("structures", [[perovskite()], [nacl_cubic(), perovskite()]])
def test_members_of_a_class_have_equal_surroundings(structures):
    """What a network needs in order to compute a class once."""
    found, arrays = orbits_of(*structures)
    src, dst = found.atom_class[arrays["src"]], found.atom_class[arrays["dst"]]
    lengths = np.linalg.norm(arrays["vectors"], axis=1)
    for number in range(len(found.edges)):
        members = found.edge_class == number
        assert len(set(src[members])) == len(set(dst[members])) == 1
        assert np.ptp(lengths[members]) < 1e-12
    arriving = np.zeros((len(arrays["numbers"]), len(found.edges)), dtype=int)
    leaving = arriving.copy()
    np.add.at(arriving, (arrays["dst"], found.edge_class), 1)
    np.add.at(leaving, (arrays["src"], found.edge_class), 1)
    for table in (arriving, leaving):
        assert np.array_equal(table, table[found.atoms][found.atom_class])
    assert np.isin(arrays["src"][found.edges], found.atoms).all()
    assert np.array_equal(found.edge_class[found.edges], np.arange(len(found.edges)))
    assert np.array_equal(found.atom_class[found.atoms], np.arange(len(found.atoms)))


def test_equal_atoms_without_edges_are_one_orbit():
    none = np.zeros(0, dtype=np.int64)
    found = find_orbits(
        np.array([18, 18, 10]),
        none,
        none,
        np.array([0, 3]),
        np.zeros(4, dtype=np.int64),
        np.zeros((0, 3)),
    )
    assert found.atom_counts.tolist() == [2, 1]
    assert len(found.edges) == 0
