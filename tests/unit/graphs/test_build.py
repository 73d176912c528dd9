"""What a spec asks for is what is stored, from a fresh search or a donor, in any process."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping

import numpy as np
import pytest
from samples import (
    copper,
    from_ase,
    magnesium,
    nacl_cubic,
    nacl_primitive,
    perovskite,
    random_structure,
    rutile,
    table_of,
    water,
)

from atomloom.config.graph import GraphSpec
from atomloom.errors import AtomloomError
from atomloom.graphs import build
from atomloom.graphs.build import build_graph, build_graphs
from atomloom.graphs.graph import ARRAYS, GraphTable
from atomloom.graphs.line_graph import line_graph
from atomloom.store.keys import BUILDER, array_digest
from atomloom.structures.structure import Structure
from atomloom.structures.table import StructureTable

FULL = GraphSpec(max_neighbors=8, lattice=True, lattice_edges=True, triplets=4.0)
SPECS = [
    FULL,
    GraphSpec(max_neighbors=5, cutoff=3.0, short="keep"),
    GraphSpec(neighbors="radius", cutoff=4.0, triplets=3.0),
    GraphSpec(primitive=True, lattice=True),
]


def digest(graphs: GraphTable) -> str:
    """One digest of every array of a table."""
    lines = [
        f"{name} {array_digest(getattr(graphs, name))}"
        for name in ARRAYS
        if getattr(graphs, name) is not None
    ]
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=8).hexdigest()


def golden_table() -> StructureTable:
    """Structures written down without any library's random numbers or square roots."""
    steps = np.arange(1, 31)[:, None] * np.array([0.618034, 0.754878, 0.819173])
    fractions = steps - np.floor(steps)
    cell = np.array([[7.0, 0.0, 0.0], [1.25, 6.5, 0.0], [-0.75, 0.5, 8.0]])
    # Sums of products written out: the last bits of a matrix product depend on the machine.
    atoms = fractions[:, :1] * cell[0] + fractions[:, 1:2] * cell[1] + fractions[:, 2:] * cell[2]
    numbers = np.arange(1, 31)
    half = 5.625 / 2
    salt = np.array([[0, half, half], [half, 0, half], [half, half, 0]])
    return table_of(
        Structure(numbers, atoms, cell, [True] * 3),
        Structure([11, 17], [[0, 0, 0], [half, half, half]], salt, [True] * 3),
        Structure([29], [[9.0, -4.0, 1.0]], np.diag([2.5, 2.5, 3.75]), [True] * 3),
    )


# The graphs of `golden_table` under SPECS[:3] when BUILDER was 1. If this test fails because the
# arrays changed for good reason, raise BUILDER in keys.py and write down the new digests.
GOLDEN = {1: ["86405e73340dccf1", "181e4e19f1929563", "a0d8e6bef19a712f"]}


def test_arrays_change_only_with_builder():
    assert [digest(build_graphs(golden_table(), spec)) for spec in SPECS[:3]] == GOLDEN[BUILDER]


@pytest.mark.parametrize("spec", SPECS, ids=["full", "keep", "radius", "primitive"])
def test_stored_arrays_fit_each_other(spec):
    members = [rutile(), copper(), random_structure(3, 12), nacl_cubic()]
    graphs = build_graphs(table_of(*members), spec)
    assert graphs.attributes == {
        "kind": "graphs",
        "spec": spec.key_content(),
        "builder": BUILDER,
    }
    assert len(graphs) == len(members)
    assert graphs.src.dtype == graphs.dst.dtype == np.uint16
    assert graphs.shift.dtype == np.int8
    assert (graphs.listed is not None) == (spec.neighbors == "knn")
    assert (graphs.lattice is not None) == spec.lattice
    assert (graphs.triplet is not None) == (spec.triplets is not None)
    for row, structure in enumerate(members):
        graph = graphs[row]
        assert graphs.hash[row].tobytes() == structure.hash
        assert (np.diff(graph.dst.astype(int)) >= 0).all()
        assert graph.src.max() < len(graph.numbers)
        if not spec.primitive:
            np.testing.assert_array_equal(graph.positions, structure.positions)


def test_triplets_are_all_pairs_at_a_centre_within_their_cutoff():
    for structure in (rutile(), random_structure(1, 15), water()):
        graph = build_graph(structure, GraphSpec(max_neighbors=14, triplets=3.1))
        expected = [
            (a, b)
            for a in range(len(graph.src))
            for b in range(a + 1, len(graph.src))
            if graph.dst[a] == graph.dst[b] and max(graph.distances[a], graph.distances[b]) <= 3.1
        ]
        assert list(map(tuple, graph.triplets.tolist())) == expected
        assert graph.triplets.dtype == np.uint32


def test_line_graph_by_hand():
    graph = build_graph(random_structure(8, 5), GraphSpec(max_neighbors=4))
    line = line_graph(graph)
    expected = {}
    for b in range(len(graph.src)):
        for a in range(len(graph.src)):
            if graph.dst[a] == graph.src[b] and a != b:
                # From the common atom: back to where edge a began, on to where edge b ends.
                back, on = graph.vectors[a], -graph.vectors[b]
                cosine = back @ on / np.linalg.norm(back) / np.linalg.norm(on)
                expected[a, b] = cosine
    pairs = list(zip(line.src.tolist(), line.dst.tolist(), strict=True))
    assert pairs == sorted(expected, key=lambda pair: pair[::-1])
    np.testing.assert_allclose(line.cosine, [expected[pair] for pair in pairs], atol=1e-12)


@pytest.mark.parametrize("spec", SPECS, ids=["full", "keep", "radius", "primitive"])
def test_donors_change_no_byte(spec, monkeypatch):
    members = [random_structure(i, 3 + i) for i in range(6)] + [rutile(), nacl_cubic()]
    table = table_of(*members)
    fresh = build_graphs(table, spec)
    donors = {structure.hash: fresh[row] for row, structure in enumerate(members) if row % 2}
    searched = []
    monkeypatch.setattr(
        build,
        "_search",
        lambda part, spec, plain=build._search: searched.append(part) or plain(part, spec),
    )
    with_donors = build_graphs(table, spec, donors)
    assert digest(with_donors) == digest(fresh)
    assert [len(part) for part in searched] == [4]
    assert digest(build_graphs(table, spec, {s.hash: g for s, g in all_of(table, fresh)})) == (
        digest(fresh)
    )


def all_of(table: StructureTable, graphs: GraphTable):
    return [(table[row], graphs[row]) for row in range(len(table))]


def test_donor_that_differs_below_the_hash_is_not_taken():
    """A hash knows 1e-8 A; the stored positions are the record's own."""
    first = rutile()
    second = Structure(first.numbers, first.positions + 1e-10, first.cell, first.pbc)
    assert first.hash == second.hash
    donors = {first.hash: build_graph(first, GraphSpec())}
    graphs = build_graphs(table_of(second), GraphSpec(), donors)
    np.testing.assert_array_equal(graphs.positions, second.positions)


def test_wide_types_where_narrow_ones_overflow():
    tiny = Structure([1], np.zeros((1, 3)), np.diag([0.25, 30.0, 30.0]), [True, False, False])
    graphs = build_graphs(table_of(tiny, rutile()), GraphSpec(neighbors="radius", cutoff=40.0))
    assert graphs.shift.dtype == np.int16
    assert graphs.shift.max() == 160
    assert graphs.shift.min() == -160
    near = build_graphs(table_of(tiny), GraphSpec(neighbors="radius", cutoff=31.9))
    assert near.shift.dtype == np.int8
    assert near.shift.max() == 127


@pytest.mark.slow
def test_more_than_65536_atoms_take_wide_indices():
    side = 41
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), -1).reshape(-1, 3) * 2.0
    crystal = Structure(np.full(len(grid), 6), grid, np.eye(3) * 2.0 * side, [True] * 3)
    graphs = build_graphs(table_of(crystal, copper()), GraphSpec(max_neighbors=4))
    assert graphs.src.dtype == graphs.dst.dtype == np.uint32
    graph = graphs[0]
    assert len(graph.src) == 6 * side**3
    np.testing.assert_allclose(graph.distances, 2.0)
    assert (np.bincount(graph.dst) == 6).all()
    assert graphs[1].src.max() == 0


def test_atoms_beyond_all_measure_are_refused():
    cell = np.diag([1.0, 40.0, 40.0])
    far = Structure([1, 1], [[0, 0, 0], [5e4, 1, 0]], cell, [True] * 3)
    with pytest.raises(AtomloomError, match=r"structure H2? .*cells away"):
        build_graphs(table_of(copper(), far), GraphSpec())
    lost = Structure([1, 1], [[0, 0, 0], [5e7, 1, 0]], cell, [True] * 3)
    with pytest.raises(AtomloomError, match="atom 1 is more than 1e\\+06 A from the origin"):
        build_graph(lost, GraphSpec())


def test_error_names_the_structure_without_three_periodic_directions():
    slab = random_structure(1, 4, (True, True, False))
    with pytest.raises(AtomloomError, match=slab.hash.hex()[:12]):
        build_graphs(table_of(rutile(), slab), FULL)


def test_empty_chunk():
    graphs = build_graphs(StructureTable.from_structures([]), FULL)
    assert len(graphs) == 0
    assert graphs.src.shape == (0,)


def test_primitive_reduces_supercells_and_keeps_their_hash():
    structure = nacl_cubic()
    graphs = build_graphs(table_of(structure, water()), GraphSpec(primitive=True))
    assert graphs.hash[0].tobytes() == structure.hash
    reduced = graphs[0]
    assert sorted(reduced.numbers.tolist()) == [11, 17]
    assert abs(np.linalg.det(reduced.cell)) == pytest.approx(structure.volume / 4)
    plain = build_graph(nacl_primitive(), GraphSpec())
    assert len(reduced.src) == len(plain.src)
    np.testing.assert_allclose(np.sort(reduced.distances), np.sort(plain.distances), atol=1e-6)
    assert len(graphs[1].numbers) == 3  # a molecule has no cell to reduce


def test_primitive_keeps_orientation_and_geometry():
    structure = magnesium()
    graph = build_graph(structure, GraphSpec(primitive=True))
    assert len(graph.numbers) == 2
    coefficients = graph.cell @ np.linalg.inv(structure.cell)
    np.testing.assert_allclose(coefficients, np.rint(coefficients), atol=1e-6)


def test_atoms_on_top_of_each_other_have_no_primitive_cell():
    double = Structure([6, 6], np.zeros((2, 3)), np.eye(3) * 3, [True] * 3)
    with pytest.raises(AtomloomError, match="no primitive cell"):
        build_graph(double, GraphSpec(primitive=True))


def test_structures_of_other_libraries_are_taken():
    from ase.build import bulk

    atoms = bulk("NaCl", "rocksalt", a=5.64)
    graph = build_graph(atoms, GraphSpec())
    np.testing.assert_array_equal(graph.src, build_graph(from_ase(atoms), GraphSpec()).src)
    with pytest.raises(AtomloomError):
        build_graph("NaCl", GraphSpec())


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from test_build import SPECS, digest
from samples import *
from atomloom.graphs.build import build_graphs
members = [rutile(), perovskite()] + [random_structure(i, 4 + i) for i in range(5)]
print(*[digest(build_graphs(table_of(*members), spec)) for spec in SPECS])
"""


@pytest.mark.slow
def test_fresh_processes_give_the_same_bytes():
    members = [rutile(), perovskite()] + [random_structure(i, 4 + i) for i in range(5)]
    here = [digest(build_graphs(table_of(*members), spec)) for spec in SPECS]
    for seed in ("1", "77"):
        environment: Mapping[str, str] = {**os.environ, "PYTHONHASHSEED": seed}
        output = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", SCRIPT, os.path.dirname(__file__)],
            check=True,
            capture_output=True,
            text=True,
            env=environment,
        ).stdout
        assert output.split() == here


def test_take_and_concatenate_undo_each_other():
    graphs = build_graphs(table_of(rutile(), copper(), perovskite(), random_structure(1, 9)), FULL)
    parts = [graphs.take([row]) for row in (3, 1, 0, 2)]
    assert digest(GraphTable.concatenate(parts).take([2, 1, 3, 0])) == digest(graphs)
    radius = build_graphs(table_of(copper()), GraphSpec(neighbors="radius", cutoff=3))
    with pytest.raises(ValueError, match="have no `listed`"):
        GraphTable.concatenate([graphs, radius])
