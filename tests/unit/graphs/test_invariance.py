"""A crystal's graph is the crystal's: no motion, numbering or choice of cell changes it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import (
    copper,
    magnesium,
    nacl_cubic,
    nacl_primitive,
    perovskite,
    rotation,
    rutile,
    shape_of,
    structures,
)

from atomloom.config.graph import GraphSpec
from atomloom.graphs.build import build_graph
from atomloom.structures.structure import Structure

CRYSTALS = {
    function.__name__: function()
    for function in (copper, magnesium, nacl_primitive, nacl_cubic, perovskite, rutile)
}
SPECS = [
    GraphSpec(max_neighbors=12),
    GraphSpec(max_neighbors=25, lattice_edges=True, lattice=True),
    GraphSpec(max_neighbors=7, cutoff=3.9, short="keep"),
    GraphSpec(neighbors="radius", cutoff=4.1),
]


def moved(structure: Structure, seed: int) -> tuple[Structure, np.ndarray]:
    """The structure rotated, translated, renumbered and with atoms in other cells."""
    rng = np.random.default_rng(seed)
    turn = rotation(seed)
    order = rng.permutation(len(structure))
    cells = rng.integers(-4, 5, (len(structure), 3)) * structure.pbc
    positions = (structure.positions + cells @ structure.cell)[order] @ turn.T
    positions += rng.normal(size=3) * 7
    other = Structure(structure.numbers[order], positions, structure.cell @ turn.T, structure.pbc)
    return other, order


@pytest.mark.parametrize("spec", SPECS, ids=["k12", "k25-lattice", "keep", "radius"])
@pytest.mark.parametrize("name", CRYSTALS)
def test_rigid_motions_change_no_symmetric_crystal(name, spec):
    """Their shells are what rounding noise would cut: 30 motions, one graph."""
    crystal = CRYSTALS[name]
    expected = shape_of(build_graph(crystal, spec))
    for seed in range(30):
        other, order = moved(crystal, seed)
        assert shape_of(build_graph(other, spec), order) == expected


def test_nacl_has_72_edges_under_30_motions():
    spec = GraphSpec(max_neighbors=12, lattice_edges=True)
    counts = {
        int(build_graph(moved(nacl_primitive(), seed)[0], spec).multiplicity.sum())
        for seed in range(30)
    }
    assert counts == {72}


@given(structures(most=8), st.integers(0, 10**6), st.sampled_from(SPECS[:1] + SPECS[3:]))
@settings(max_examples=60)
def test_rigid_motions_change_no_random_structure(structure, seed, spec):
    other, order = moved(structure, seed)
    expected = shape_of(build_graph(structure, spec), digits=4)
    found = shape_of(build_graph(other, spec), order, digits=4)
    if expected != found:
        # A distance may lie at a border of rounding: then compare the numbers themselves.
        a, b = sorted(expected.elements()), sorted(found.elements())
        np.testing.assert_allclose(np.array(a), np.array(b), atol=2e-4)


@given(structures(most=5, pbc=(True, True, True)), st.integers(0, 10**6))
@settings(max_examples=30)
def test_another_cell_of_the_lattice_gives_the_same_vectors(structure, seed):
    rng = np.random.default_rng(seed)
    change = np.eye(3, dtype=int)
    for _ in range(3):
        a, b = rng.choice(3, 2, replace=False)
        change[a] += rng.integers(-2, 3) * change[b]
    other = Structure(
        structure.numbers, structure.positions, change @ structure.cell, structure.pbc
    )
    spec = GraphSpec(lattice_edges=True)
    a, b = build_graph(structure, spec), build_graph(other, spec)
    # Shifts count other cells, so order edges by their ends and vectors.
    left, right = (
        sorted(zip(g.dst.tolist(), g.src.tolist(), *g.vectors.T.round(5).tolist(), strict=True))
        for g in (a, b)
    )
    np.testing.assert_allclose(np.array(left), np.array(right), atol=2e-5)


@pytest.mark.parametrize("name", CRYSTALS)
def test_supercell_has_the_graph_of_the_crystal(name):
    crystal = CRYSTALS[name]
    repeats = np.array([2, 1, 3])
    offsets = np.stack(np.meshgrid(*map(np.arange, repeats), indexing="ij"), -1).reshape(-1, 3)
    positions = (offsets[:, None] @ crystal.cell + crystal.positions).reshape(-1, 3)
    many = Structure(
        np.tile(crystal.numbers, len(offsets)),
        positions,
        crystal.cell * repeats[:, None],
        [True] * 3,
    )
    for k in (12, 25):
        small = build_graph(crystal, GraphSpec(max_neighbors=k))
        large = build_graph(many, GraphSpec(max_neighbors=k))
        assert len(large.src) == len(offsets) * len(small.src)
        np.testing.assert_allclose(
            np.sort(large.distances), np.sort(np.repeat(small.distances, len(offsets))), atol=1e-9
        )
