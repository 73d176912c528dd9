"""k-nearest graphs: the shortest k of each atom with their whole shell, both ends' lists united."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import (
    copper,
    edge_set,
    from_ase,
    images_within,
    magnesium,
    nacl_primitive,
    perovskite,
    random_structure,
    rutile,
    structures,
    table_of,
    water,
)

from atomloom.config.graph import GraphSpec
from atomloom.graphs import search
from atomloom.graphs.build import build_graph, build_graphs
from atomloom.structures.structure import Structure


def knn_by_hand(structure: Structure, k: int, radius: float, tolerance=1e-5, limit=None):
    """Edges and bits by sorting everything within a radius that surely holds k neighbours."""
    found = images_within(structure, radius if limit is None else limit + tolerance)
    listed: dict[tuple, int] = {}
    for dst in range(len(structure)):
        mine = sorted((entry for entry in found if entry[0] == dst), key=lambda entry: entry[3])
        if len(mine) > k:
            mine = [entry for entry in mine if entry[3] <= mine[k - 1][3] + tolerance]
        for _, src, shift, _ in mine:
            edge, reverse = (dst, src, shift), (src, dst, tuple(-s for s in shift))
            listed[edge] = listed.get(edge, 0) | 1
            listed[reverse] = listed.get(reverse, 0) | 2
    return listed


@given(structures(most=6), st.integers(1, 14))
@settings(max_examples=60)
def test_equals_sorting_all_images(structure, k):
    if not structure.pbc.any():
        radius = 1e3
    else:
        radius = 1.0 + build_graph(structure, GraphSpec(max_neighbors=k)).distances.max()
    expected = knn_by_hand(structure, k, radius)
    assert edge_set(build_graph(structure, GraphSpec(max_neighbors=k))) == expected


@given(structures(most=6), st.integers(1, 14), st.floats(1.0, 5.0))
@settings(max_examples=100)
def test_keep_stays_within_the_cutoff(structure, k, cutoff):
    spec = GraphSpec(max_neighbors=k, cutoff=cutoff, short="keep")
    assert edge_set(build_graph(structure, spec)) == knn_by_hand(structure, k, 0, limit=cutoff)


@pytest.mark.parametrize("pbc", list(product([False, True], repeat=3)))
def test_large_structures_equal_the_plain_search(pbc):
    """Many atoms take the path through bins, of which some need more images than laid out."""
    rng = np.random.default_rng(3)
    crowd = random_structure(1, 140, pbc, spread=0.3)
    # A few atoms far from the rest, so that the radius guessed from the density is much too small.
    lonely = crowd.positions.copy()
    lonely[:5] += rng.normal(size=(5, 3)) * 30
    structure = Structure(crowd.numbers, lonely, crowd.cell, pbc)
    graph = build_graph(structure, GraphSpec(max_neighbors=6))
    assert edge_set(graph) == knn_by_hand(structure, 6, graph.distances.max() + 0.1)


def test_radius_learnt_from_earlier_atoms_does_not_pass_the_cutoff():
    """The last atom has 11 neighbours within 4 A and the twelfth at 4.0019 A."""
    positions = [
        [1.36933284, 6.35328109, -0.07393292],
        [0.99952303, -2.85169452, 0.46597155],
        [-3.92824494, 0.13435541, 3.83644724],
        [-3.0514669, 3.65864017, 5.96967648],
    ]
    cell = [
        [5.15042733, -0.54707991, -0.22292014],
        [0.95276021, 4.69792506, 0.14418834],
        [-1.3735713, 0.73706222, 3.02160399],
    ]
    structure = Structure([67, 86, 9, 65], positions, cell, [True] * 3)
    graph = build_graph(structure, GraphSpec(max_neighbors=12, cutoff=4.0, short="keep"))
    assert edge_set(graph) == knn_by_hand(structure, 12, 0, limit=4.0)
    assert graph.distances.max() < 4.0


def test_enlarged_lists_do_not_depend_on_the_cutoff():
    structure = random_structure(5, 4)
    graphs = [build_graph(structure, GraphSpec(cutoff=c)) for c in (0.5, 3.0, 8.0, 50.0)]
    assert all(edge_set(graph) == edge_set(graphs[0]) for graph in graphs)


def test_molecule_ends_with_all_other_atoms():
    graph = build_graph(water(), GraphSpec(max_neighbors=12))
    assert len(graph.src) == 6
    assert (graph.listed == 3).all()
    assert not graph.shift.any()


def test_lone_atom_has_no_edges():
    atom = Structure([8], [[1.0, 2.0, 3.0]], np.zeros((3, 3)), [False] * 3)
    graph = build_graph(atom, GraphSpec())
    assert graph.src.shape == (0,)
    assert graph.shift.shape == (0, 3)
    assert graph.vectors.shape == (0, 3)


def test_isolated_atom_in_a_huge_cell_reaches_its_images():
    atom = Structure([8], [[1.0, 2.0, 3.0]], np.diag([40.0, 41.0, 42.0]), [True] * 3)
    graph = build_graph(atom, GraphSpec(max_neighbors=4, cutoff=8.0))
    np.testing.assert_allclose(np.sort(graph.distances), [40, 40, 41, 41])
    kept = build_graph(atom, GraphSpec(max_neighbors=4, cutoff=8.0, short="keep"))
    assert len(kept.src) == 0


def test_wire_and_slab_have_images_along_their_periodic_directions_only():
    wire = Structure([6], np.zeros((1, 3)), np.diag([30.0, 30.0, 2.0]), [False, False, True])
    graph = build_graph(wire, GraphSpec(max_neighbors=4))
    assert sorted(graph.shift[:, 2].tolist()) == [-2, -1, 1, 2]
    assert not graph.shift[:, :2].any()
    # Without a box along the free directions as well.
    bare = Structure([6], np.zeros((1, 3)), np.diag([0.0, 0.0, 2.0]), [False, False, True])
    assert edge_set(build_graph(bare, GraphSpec(max_neighbors=4))) == edge_set(graph)


def test_skewed_cell_gives_the_edges_of_the_plain_one():
    plain = from_ase_copper_cubic()
    skewed_cell = np.array([[1, 0, 0], [7, 1, 0], [-5, 3, 1]]) @ plain.cell
    skewed = Structure(plain.numbers, plain.positions, skewed_cell, plain.pbc)
    spec = GraphSpec(max_neighbors=25)
    a, b = build_graph(plain, spec), build_graph(skewed, spec)
    assert len(a.src) == len(b.src)
    np.testing.assert_allclose(
        sorted(np.round(a.vectors, 6).tolist()), sorted(np.round(b.vectors, 6).tolist()), atol=2e-6
    )


def from_ase_copper_cubic() -> Structure:
    from ase.build import bulk

    return from_ase(bulk("Cu", "fcc", a=3.61, cubic=True))


@pytest.mark.parametrize("seed", range(6))
def test_atoms_outside_the_cell_have_true_vectors(seed):
    """Wrapped offsets on unwrapped positions would be wrong by whole cells."""
    structure = random_structure(seed, 9, spread=3.0)
    graph = build_graph(structure, GraphSpec())
    by_hand = {
        (dst, src, shift): distance
        for dst, src, shift, distance in images_within(structure, graph.distances.max() + 0.1)
    }
    keys = zip(
        graph.dst.tolist(), graph.src.tolist(), map(tuple, graph.shift.tolist()), strict=True
    )
    for key, distance in zip(keys, graph.distances, strict=True):
        assert by_hand[key] == pytest.approx(distance, abs=1e-9)


@pytest.mark.parametrize("tolerance", [0.0, 1e-6, 1e-5, 1e-2])
def test_every_edge_has_its_reverse_with_the_bits_swapped(tolerance):
    for structure in (nacl_primitive(), rutile(), magnesium(), random_structure(1, 20), copper()):
        graph = build_graph(structure, GraphSpec(shell_tolerance=tolerance))
        edges = edge_set(graph)
        for (dst, src, shift), bits in edges.items():
            reverse = edges[src, dst, tuple(-s for s in shift)]
            assert reverse == (bits >> 1) | ((bits & 1) << 1)


def test_bit_of_the_centre_counts_k_or_its_whole_shell():
    for structure, k, expected in [
        (copper(), 12, 12),
        (copper(), 13, 18),
        (nacl_primitive(), 6, 6),
        (nacl_primitive(), 7, 18),
        (magnesium(), 12, 12),
    ]:
        graph = build_graph(structure, GraphSpec(max_neighbors=k))
        counts = np.bincount(graph.dst, weights=graph.listed & 1)
        assert (counts == expected).all()


def test_tolerance_decides_what_is_one_shell():
    """One neighbour at 2 A, one 3e-4 A farther, one at 3 A; k = 1."""
    positions = [[0, 0, 0], [2.0, 0, 0], [0, 2.0003, 0], [0, 0, 3.0]]
    structure = Structure([1, 6, 7, 8], positions, np.zeros((3, 3)), [False] * 3)

    def listed_by_first(tolerance: float) -> list[int]:
        spec = GraphSpec(max_neighbors=1, shell_tolerance=tolerance)
        graph = build_graph(structure, spec)
        return graph.src[(graph.dst == 0) & (graph.listed & 1 > 0)].tolist()

    assert listed_by_first(1e-5) == [1]
    assert listed_by_first(1e-3) == [1, 2]


def test_edges_are_in_canonical_order():
    for structure in (rutile(), perovskite(), random_structure(2, 30), random_structure(3, 260)):
        graph = build_graph(structure, GraphSpec(max_neighbors=25, lattice_edges=True))
        quantum = np.round(graph.distances, 6)
        # Columns from the least to the most significant.
        order = np.lexsort((*graph.shift.T[::-1], graph.src, quantum, graph.dst))
        np.testing.assert_array_equal(order, np.arange(len(order)))


def test_rounding_noise_does_not_order_edges_of_one_shell():
    cubic = from_ase_copper_cubic()
    graphs = []
    for seed in range(5):
        noise = np.random.default_rng(seed).uniform(-1e-11, 1e-11, cubic.positions.shape)
        noisy = Structure(cubic.numbers, cubic.positions + noise, cubic.cell, cubic.pbc)
        graphs.append(build_graph(noisy, GraphSpec(max_neighbors=25)))
    for name in ("src", "dst", "shift", "listed"):
        for graph in graphs[1:]:
            np.testing.assert_array_equal(getattr(graph, name), getattr(graphs[0], name))


def test_chunk_does_not_matter():
    members = [random_structure(i, 1 + 5 * i, (True, i % 2 == 0, i % 3 == 0)) for i in range(8)]
    spec = GraphSpec(triplets=3.0)
    together = build_graphs(table_of(*members), spec)
    reverse = build_graphs(table_of(*members[::-1]), spec)
    for row, structure in enumerate(members):
        for graph in (together[row], reverse[len(members) - 1 - row]):
            alone = build_graph(structure, spec)
            for name in ("src", "dst", "shift", "listed", "triplets", "positions"):
                a, b = getattr(alone, name), getattr(graph, name)
                np.testing.assert_array_equal(a, b, err_msg=name)


def test_kernel_is_compiled_once_for_all_specs():
    build_graph(copper(), GraphSpec())
    compiled = len(search.search_chunk.signatures)
    build_graph(water(), GraphSpec(neighbors="radius", cutoff=5))
    build_graph(rutile(), GraphSpec(short="keep", cutoff=3, lattice_edges=True, shell_tolerance=0))
    build_graphs(table_of(copper(), rutile()).take(np.array([1])), GraphSpec())
    assert len(search.search_chunk.signatures) == compiled == 1
