"""The lattice triad: shortest, right-handed, the same however the crystal is turned."""

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
    water,
)

from atomloom.config.graph import GraphSpec
from atomloom.errors import AtomloomError
from atomloom.graphs.build import build_graph
from atomloom.graphs.search import lattice_triads

SPEC = GraphSpec(lattice=True)


def triad(cell: np.ndarray, tolerance: float = 1e-5) -> np.ndarray:
    return lattice_triads(np.ascontiguousarray(cell, dtype=np.float64)[None], tolerance)[0]


def random_cell(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    while True:
        cell = rng.normal(size=(3, 3))
        cell *= rng.uniform(3, 8, (3, 1)) / np.linalg.norm(cell, axis=1, keepdims=True)
        # Not so skewed that the block searched by hand misses short vectors.
        if abs(np.linalg.det(cell)) > 0.25 * np.prod(np.linalg.norm(cell, axis=1)):
            return cell


def lengths_by_hand(cell: np.ndarray) -> list[float]:
    """Lengths of l1, l2, l3 by sorting a large block of lattice vectors."""
    grid = np.stack(np.meshgrid(*[np.arange(-9, 10)] * 3, indexing="ij"), -1).reshape(-1, 3)
    grid = grid[np.abs(grid).any(axis=1)]
    grid = grid[np.argsort(np.linalg.norm(grid @ cell, axis=1))]
    chosen = [grid[0]]
    for point in grid[1:]:
        if np.linalg.matrix_rank(np.array([*chosen, point])) == len(chosen) + 1:
            chosen.append(point)
        if len(chosen) == 3:
            break
    return np.linalg.norm(np.array(chosen) @ cell, axis=1).tolist()


def unimodular(seed: int) -> np.ndarray:
    """Another basis of the same lattice, of either handedness."""
    rng = np.random.default_rng(seed)
    change = np.eye(3, dtype=int)[rng.permutation(3)] * rng.choice([-1, 1], 3)[:, None]
    for _ in range(4):
        a, b = rng.choice(3, 2, replace=False)
        change[a] += rng.integers(-2, 3) * change[b]
    return change


@given(st.integers(0, 10**6))
@settings(max_examples=100)
def test_successive_minima_right_handed_and_acute(seed):
    cell = random_cell(seed)
    rows = triad(cell)
    lengths = np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(lengths, lengths_by_hand(cell), rtol=1e-9)
    assert (np.diff(lengths) >= -1e-5).all()
    assert np.linalg.det(rows) > 0
    coefficients = rows @ np.linalg.inv(cell)
    np.testing.assert_allclose(coefficients, np.rint(coefficients), atol=1e-6)
    assert rows[0] @ rows[1] >= -1e-6 * lengths[0] * lengths[1]
    assert rows[0] @ rows[2] >= -1e-6 * lengths[0] * lengths[2]


@given(st.integers(0, 10**6), st.integers(0, 10**6))
@settings(max_examples=50)
def test_other_bases_of_a_general_lattice_give_the_same_triad(seed, change):
    cell = random_cell(seed)
    a, b = triad(cell), triad(unimodular(change) @ cell)
    # The pair of triads that only differ by turning two vectors round is excluded by the angles,
    # but a right angle leaves the sign open: compare lengths and sizes of angles.
    np.testing.assert_allclose(np.abs(a @ a.T), np.abs(b @ b.T), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(a, b, atol=1e-6)


SYMMETRIC = {
    f.__name__: f().cell
    for f in (copper, magnesium, nacl_primitive, nacl_cubic, perovskite, rutile)
} | {
    "bcc": 2.87 / 2 * np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]]),
    "left-handed cubic": np.diag([3.0, 3.0, -3.0]),
    "left-handed hexagonal": magnesium().cell[[1, 0, 2]],
    "square prism": np.diag([3.0, 5.0, 3.0]),
    "layered": np.array([[2.46, 0, 0], [-1.23, 2.1304, 0], [0, 0, 60.0]]),
}


@pytest.mark.parametrize("name", SYMMETRIC)
def test_no_rotation_changes_the_triad(name):
    """Symmetric lattices, where lengths tie and angles are right but for rounding."""
    cell = SYMMETRIC[name]
    plain = triad(cell)
    assert np.linalg.det(plain) > 0
    for seed in range(30):
        turn = rotation(seed)
        np.testing.assert_allclose(triad(cell @ turn.T), plain @ turn.T, atol=1e-9)


@pytest.mark.parametrize("name", SYMMETRIC)
def test_shape_of_the_triad_depends_on_the_lattice_alone(name):
    cell = SYMMETRIC[name]
    plain = triad(cell)
    for seed in range(30):
        other = triad(unimodular(seed) @ cell)
        assert np.linalg.det(other) > 0
        np.testing.assert_allclose(other @ other.T, plain @ plain.T, atol=1e-9)


def test_cubic_triad_is_the_cell():
    np.testing.assert_allclose(triad(np.diag([4.0, 4.0, 4.0])), np.diag([4.0, 4.0, 4.0]))


def test_noise_below_the_tolerance_does_not_reorder():
    cell = np.diag([4.0, 4.0 - 3e-6, 4.0 - 6e-6])
    np.testing.assert_allclose(triad(cell), cell)
    np.testing.assert_allclose(triad(cell, tolerance=1e-7)[0], cell[2])


def test_graph_has_the_triad_and_its_edges():
    graph = build_graph(rutile(), GraphSpec(lattice=True, lattice_edges=True, max_neighbors=6))
    np.testing.assert_array_equal(graph.lattice, triad(rutile().cell))
    for row in graph.lattice:
        for sign in (1, -1):
            match = np.linalg.norm(graph.vectors - sign * row, axis=1) < 1e-9
            assert sorted(graph.src[match].tolist()) == list(range(6))
            assert (graph.src[match] == graph.dst[match]).all()


def test_triad_of_a_molecule_is_refused():
    for spec in (SPEC, GraphSpec(lattice_edges=True)):
        with pytest.raises(AtomloomError, match=r"H2O.*needs three periodic directions"):
            build_graph(water(), spec)
