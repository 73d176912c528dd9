"""Graphs of the published programs, edge for edge."""

from __future__ import annotations

import numpy as np
import pytest
from samples import magnesium, nacl_primitive, perovskite, rutile

from atomloom.config.graph import GraphSpec
from atomloom.graphs.build import build_graph
from atomloom.graphs.line_graph import jarvis_graph, line_graph
from atomloom.structures.structure import Structure

ROUNDING = 1e-4
"""A; jarvis-tools rounds lattices."""
COMFORMER = GraphSpec(cutoff=8.0, max_neighbors=12, lattice=True, lattice_edges=True)


def members(reference):
    for i in range(sum(key.endswith("_numbers") for key in reference)):
        yield (
            f"s{i}",
            Structure(
                reference[f"s{i}_numbers"],
                reference[f"s{i}_positions"],
                reference[f"s{i}_cell"],
                [True] * 3,
            ),
        )


def assert_same_edges(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Compare rows (src, dst, x, y, z) as multisets, coordinates to ROUNDING."""
    assert ours.shape == theirs.shape
    left = theirs.tolist()
    for row in ours:
        near = [
            n
            for n, other in enumerate(left)
            if (row[:2] == other[:2]).all() and np.abs(row[2:] - other[2:]).max() < ROUNDING
        ]
        assert near, f"no edge {row} in the reference"
        left.pop(near[0])


def rows(graph, copies=None) -> np.ndarray:
    """(src, dst, vector from source to target), each edge as often as `copies` says."""
    table = np.column_stack([graph.src, graph.dst, -graph.vectors])
    return table if copies is None else np.repeat(table, copies, axis=0)


@pytest.mark.parametrize("name", ["iComformer_width32", "eComformer_width32"])
def test_comformer_oracle_edges(oracle, name):
    reference = oracle(name)
    seen = 0
    for key, structure in members(reference):
        graph = build_graph(structure, COMFORMER)
        ours = rows(graph, graph.multiplicity)
        theirs = np.column_stack(
            [reference[f"{key}_edge_index"].T, reference[f"{key}_edge_vector"]]
        )
        assert len(ours) == len(theirs)
        triad = reference[f"{key}_lattice_triad"]
        if not same_up_to_sign(graph.lattice, triad):
            # Vectors of one length: the reference's choice among them is arbitrary. Then the edges
            # along the triad that are nobody's near neighbours are left out on both sides.
            near = build_graph(structure, GraphSpec(cutoff=8.0, max_neighbors=12))
            ours = rows(near, near.multiplicity)
            theirs = without_single_self_edges(theirs)
        assert_same_edges(ours, theirs)
        seen += 1
    assert seen == 8


def same_up_to_sign(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether two triads have the same lines, in any order."""
    return all(
        min(np.abs(row - sign * other).max() for other in theirs for sign in (1, -1)) < ROUNDING
        for row in ours
    )


def without_single_self_edges(edges: np.ndarray) -> np.ndarray:
    """Drop edges to own images that stand once: near ones stand twice."""
    rounded = np.round(edges, 3) + 0.0
    _, inverse, counts = np.unique(rounded, axis=0, return_inverse=True, return_counts=True)
    return edges[~((edges[:, 0] == edges[:, 1]) & (counts[inverse.ravel()] == 1))]


@pytest.mark.parametrize("name", ["iComformer_width32", "eComformer_width32"])
def test_comformer_oracle_triads(oracle, name):
    """Lengths agree; so do the vectors but for sign and order where lengths tie."""
    reference = oracle(name)
    same = 0
    for key, structure in members(reference):
        ours = build_graph(structure, COMFORMER).lattice
        theirs = reference[f"{key}_lattice_triad"]
        np.testing.assert_allclose(
            np.linalg.norm(ours, axis=1), np.linalg.norm(theirs, axis=1), atol=ROUNDING
        )
        assert np.linalg.det(ours) > 0
        assert np.linalg.det(ours) == pytest.approx(np.linalg.det(theirs), rel=1e-4)
        coefficients = theirs @ np.linalg.inv(ours)
        np.testing.assert_allclose(coefficients, np.rint(coefficients), atol=1e-4)
        lengths = np.linalg.norm(theirs, axis=1)
        if np.diff(lengths).min() > ROUNDING:
            assert same_up_to_sign(ours, theirs)
            same += 1
    assert same >= 1


@pytest.mark.parametrize(
    ("crystal", "k12", "k25"),
    [(nacl_primitive, 72, 104), (rutile, 176, 368), (perovskite, 166, 308), (magnesium, 52, 128)],
    ids=["NaCl", "TiO2", "SrTiO3", "Mg"],
)
def test_comformer_oracle_edge_counts(crystal, k12, k25):
    for k, count in ((12, k12), (25, k25)):
        graph = build_graph(crystal(), GraphSpec(max_neighbors=k, lattice_edges=True))
        assert graph.multiplicity.sum() == count


def test_alignn_oracle_edges_and_line_graph(oracle):
    reference = oracle("ALIGNN_width24")
    seen = 0
    for key, structure in members(reference):
        plain = build_graph(structure, GraphSpec(cutoff=8.0, max_neighbors=12))
        graph = jarvis_graph(plain)
        edges, vectors = reference[f"{key}_edge_index"], reference[f"{key}_edge_vector"]
        assert_same_edges(rows(graph), np.column_stack([edges.T, vectors]))

        line = line_graph(graph)
        first, second = reference[f"{key}_line_edge_index"]
        cosine = reference[f"{key}_line_cosine"]
        assert len(line.src) == len(first)
        # Nodes are numbered differently: compare line edges by what their nodes are.
        ours = line_rows(graph.src, graph.dst, -graph.vectors, line.src, line.dst, line.cosine)
        theirs = line_rows(*edges, vectors, first, second, cosine)
        np.testing.assert_allclose(ours, theirs, atol=2 * ROUNDING)
        seen += 1
    assert seen == 5


def line_rows(src, dst, vectors, first, second, cosine) -> np.ndarray:
    """Sorted rows of both edges' ends and vectors, and the cosine."""
    table = np.column_stack(
        [src[first], dst[first], dst[second], vectors[first], vectors[second], cosine]
    )
    return table[np.lexsort(np.round(table, 2).T[::-1] + 0.0)]
