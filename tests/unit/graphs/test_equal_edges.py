"""Classes of edges of equal geometry: what is equal is in one class, and nothing else is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from atomloom.config import GraphSpec
from atomloom.data.batch import GraphBatch
from atomloom.data.loader import GraphLoader
from atomloom.graphs.build import build_graphs
from atomloom.graphs.equal_edges import Classes, EqualEdges, find_equal_edges
from atomloom.structures.structure import Structure
from atomloom.structures.table import StructureTable
from tests.unit.graphs.samples import nacl_cubic

DTYPES = [torch.float32, torch.float64]


def batch_of(*structures: Structure, dtype: torch.dtype = torch.float64) -> GraphBatch:
    spec = GraphSpec(max_neighbors=12, lattice=True)
    table = build_graphs(StructureTable.from_structures(structures), spec)
    return GraphLoader(table, np.arange(len(table)), dtype=dtype).slice(np.arange(len(table)))


def geometry(batch: GraphBatch) -> tuple[np.ndarray, np.ndarray]:
    """Lengths [E] and cosines [E, 3] with the lattice vectors."""
    vectors, triads = batch.vectors, batch.lattice[batch.node_graph[batch.dst]]
    lengths = vectors.norm(dim=1)
    cosines = torch.einsum("eij,ej->ei", triads / triads.norm(dim=2, keepdim=True), vectors)
    return lengths.numpy(), (cosines / lengths[:, None]).numpy()


def classes_of(batch: GraphBatch, angles: bool = True) -> EqualEdges:
    lengths, cosines = geometry(batch)
    arrays = (batch.numbers, batch.src, batch.dst, batch.node_graph)
    return find_equal_edges(
        *(array.numpy() for array in arrays), lengths, cosines if angles else None
    )


def random_crystal(seed: int = 0) -> Structure:
    rng = np.random.default_rng(seed)
    cell = np.eye(3) * 5.0 + rng.normal(scale=0.4, size=(3, 3))
    positions = rng.uniform(size=(5, 3)) @ cell
    return Structure(
        numbers=np.array([8, 14, 8, 14, 14]), positions=positions, cell=cell, pbc=np.ones(3, bool)
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_rock_salt_has_as_many_lengths_as_shells_and_edges_as_directions(dtype):
    found = classes_of(batch_of(nacl_cubic(), dtype=dtype))
    # Of each atom: 6 nearest of the other kind, 12 next-nearest of its own.
    assert len(found.lengths.first) == 2
    assert len(found.pairs.first) == 4
    assert len(found.edges.first) == 6 + 12
    # Along an axis, those of the first shell have cosines 1, -1 and 0, of the second 1/sqrt(2), -1/sqrt(2), 0.
    assert len(found.angles.first) == 3 * (3 + 3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_edges_of_one_class_are_equal_and_of_one_structure(dtype):
    batch = batch_of(nacl_cubic(), random_crystal(), nacl_cubic(), random_crystal(1), dtype=dtype)
    (lengths, cosines), found = geometry(batch), classes_of(batch)
    tolerance = 64 * np.finfo(lengths.dtype).eps
    graph, numbers = batch.node_graph[batch.dst].numpy(), batch.numbers.numpy()

    def same(values: np.ndarray, classes: Classes, within: float = 0.0) -> bool:
        return bool(np.all(np.abs(values - values[classes.first][classes.of]) <= within))

    for classes in (found.lengths, found.pairs, found.edges):
        assert same(graph, classes)
        assert same(lengths, classes, tolerance)
    assert same(numbers[batch.src], found.pairs)
    assert same(numbers[batch.dst], found.pairs)
    assert same(cosines, found.edges, tolerance)
    assert same(np.tile([0, 1, 2], len(found.edges.first)), found.angles)
    assert same(cosines[found.edges.first].ravel(), found.angles, tolerance)
    assert same(np.repeat(lengths[found.edges.first], 3), found.angles, tolerance)


def test_edges_that_differ_by_more_than_rounding_stay_apart():
    nacl = nacl_cubic()
    moved = nacl.positions.copy()
    moved[0, 0] += 1e-3
    ideal, found = (
        classes_of(batch_of(structure, dtype=torch.float32))
        for structure in (nacl, Structure(nacl.numbers, moved, nacl.cell, nacl.pbc))
    )
    assert len(found.lengths.first) > len(ideal.lengths.first)
    assert len(found.edges.first) > len(ideal.edges.first)


def test_an_edge_that_is_not_a_number_stays_one():
    """A network must see it, and fail, rather than another edge that stands for it."""
    batch = batch_of(nacl_cubic())
    lengths, cosines = geometry(batch)
    lengths[[3, 7]], cosines[5, 1] = np.nan, np.nan
    arrays = (batch.numbers, batch.src, batch.dst, batch.node_graph)
    found = find_equal_edges(*(array.numpy() for array in arrays), lengths, cosines)
    for edge in (3, 7):
        assert np.sum(found.lengths.of == found.lengths.of[edge]) == 1
        assert np.sum(found.pairs.of == found.pairs.of[edge]) == 1
    assert np.sum(found.edges.of == found.edges.of[5]) == 1


def test_without_angles_there_are_classes_by_length_alone():
    batch = batch_of(random_crystal())
    found, full = classes_of(batch, angles=False), classes_of(batch)
    assert found.edges is None
    assert found.angles is None
    np.testing.assert_array_equal(found.lengths.of, full.lengths.of)


def test_a_batch_without_edges_has_no_classes():
    none = np.zeros(0, dtype=np.int64)
    found = find_equal_edges(
        np.array([29]), none, none, np.zeros(1, int), np.zeros(0), np.zeros((0, 3))
    )
    for classes in (found.lengths, found.pairs, found.edges, found.angles):
        assert len(classes.first) == len(classes.of) == 0


def test_classes_by_several_numbers_have_no_collisions():
    rng = np.random.default_rng(0)
    columns = rng.integers(0, 2**40, size=(3, 7))[:, rng.integers(7, size=500)]
    columns[2] = rng.integers(0, 2**40, size=3)[rng.integers(3, size=500)]
    found = Classes.by(*columns)
    distinct, true = np.unique(columns, axis=1, return_inverse=True)
    assert len(found.first) == distinct.shape[1]
    assert len(set(zip(found.of.tolist(), true.ravel().tolist(), strict=True))) == distinct.shape[1]
    np.testing.assert_array_equal(columns[:, found.first][:, found.of], columns)
