"""Radius graphs: every pair within the cutoff, all images; compared with ASE's neighbour list."""

from __future__ import annotations

from itertools import product

import ase
import numpy as np
import pytest
from ase.neighborlist import primitive_neighbor_list
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import copper, edge_set, random_structure, rutile, structures, water

from atomloom.config.graph import GraphSpec
from atomloom.graphs.build import build_graph


def by_ase(structure, cutoff: float) -> dict[tuple, int]:
    atoms = ase.Atoms(
        structure.numbers, structure.positions, cell=structure.cell, pbc=structure.pbc
    )
    dst, src, shift = primitive_neighbor_list(
        "ijS", atoms.pbc, atoms.cell, atoms.positions, cutoff, self_interaction=False
    )
    keys = zip(dst.tolist(), src.tolist(), map(tuple, shift.tolist()), strict=True)
    return dict.fromkeys(keys, 0)


@pytest.mark.parametrize("atoms", [1, 3, 17, 150])
@pytest.mark.parametrize("pbc", list(product([False, True], repeat=3)))
def test_equals_ase_for_every_periodicity(pbc, atoms):
    structure = random_structure(atoms, atoms, pbc)
    for cutoff in (1.5, 4.0, 7.3):
        graph = build_graph(structure, GraphSpec(neighbors="radius", cutoff=cutoff))
        assert edge_set(graph) == by_ase(structure, cutoff)
        assert graph.listed is None
        assert (graph.distances <= cutoff).all()


@given(structures(most=10), st.floats(0.5, 9.0))
@settings(max_examples=40)
def test_equals_ase_for_random_structures(structure, cutoff):
    graph = build_graph(structure, GraphSpec(neighbors="radius", cutoff=cutoff))
    assert edge_set(graph) == by_ase(structure, cutoff)


def test_cell_much_shorter_than_the_cutoff():
    graph = build_graph(copper(), GraphSpec(neighbors="radius", cutoff=15.0))
    assert edge_set(graph) == by_ase(copper(), 15.0)


def test_molecule_and_one_atom():
    graph = build_graph(water(), GraphSpec(neighbors="radius", cutoff=1.2))
    assert sorted(zip(graph.dst.tolist(), graph.src.tolist(), strict=True)) == [
        (0, 1),
        (0, 2),
        (1, 0),
        (2, 0),
    ]


def test_pair_at_the_cutoff_belongs():
    from atomloom.structures.structure import Structure

    pair = Structure([1, 1], [[0, 0, 0], [0, 0, 2.0]], np.zeros((3, 3)), [False] * 3)
    assert len(build_graph(pair, GraphSpec(neighbors="radius", cutoff=2.0)).src) == 2
    assert len(build_graph(pair, GraphSpec(neighbors="radius", cutoff=1.999999)).src) == 0


def test_lattice_edges_join_a_short_radius_graph():
    spec = GraphSpec(neighbors="radius", cutoff=2.0, lattice_edges=True)
    plain = build_graph(rutile(), GraphSpec(neighbors="radius", cutoff=2.0))
    graph = build_graph(rutile(), spec)
    added = edge_set(graph).keys() - edge_set(plain).keys()
    assert len(added) == 6 * 6
    assert all(dst == src for dst, src, _ in added)
