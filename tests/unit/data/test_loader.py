"""Loaded batches equal those put together graph by graph, in the same order every time."""

from __future__ import annotations

import threading
from dataclasses import fields

import numpy as np
import pytest
import torch

from atomloom.config.training import Batching
from atomloom.data.batch import GraphBatch
from atomloom.data.loader import GraphLoader
from atomloom.errors import AtomloomError
from tests.unit.data.tables import random_table


def naive_batch(table, rows, targets, dtype):
    """The same batch from Graph objects, one at a time, with nothing but concatenation."""
    graphs = [table[int(row)] for row in rows]
    atoms = np.array([len(graph.numbers) for graph in graphs])
    edges = np.array([len(graph.src) for graph in graphs])
    first_atom = np.cumsum(atoms) - atoms
    first_edge = np.cumsum(edges) - edges

    def real(arrays):
        return torch.from_numpy(np.concatenate(arrays).astype(np.float64)).to(dtype)

    def whole(arrays):
        return torch.from_numpy(np.concatenate(arrays).astype(np.int64))

    dst = whole([graph.dst + start for graph, start in zip(graphs, first_atom, strict=True)])
    return GraphBatch(
        numbers=whole([graph.numbers for graph in graphs]),
        positions=real([graph.positions for graph in graphs]),
        cell=real([graph.cell[None] for graph in graphs]),
        node_graph=torch.repeat_interleave(torch.arange(len(graphs)), torch.from_numpy(atoms)),
        node_ptr=torch.from_numpy(np.concatenate([[0], np.cumsum(atoms)])),
        src=whole([graph.src + start for graph, start in zip(graphs, first_atom, strict=True)]),
        dst=dst,
        dst_ptr=torch.searchsorted(dst, torch.arange(int(atoms.sum()) + 1)),
        shift=real([graph.shift for graph in graphs]),
        vectors=real([graph.vectors for graph in graphs]),
        multiplicity=(
            None if table.listed is None else real([graph.multiplicity for graph in graphs])
        ),
        lattice=real([graph.lattice[None] for graph in graphs]),
        triplets=(
            None
            if table.triplet is None
            else whole(
                [
                    graph.triplets.astype(np.int64) + start
                    for graph, start in zip(graphs, first_edge, strict=True)
                ]
            )
        ),
        targets=torch.from_numpy(targets[rows]).to(dtype),
        rows=torch.from_numpy(rows),
    )


def assert_same(ours, theirs, tolerance=0.0):
    for item in fields(GraphBatch):
        one, other = getattr(ours, item.name), getattr(theirs, item.name)
        if isinstance(other, torch.Tensor):
            assert one.dtype == other.dtype, item.name
            torch.testing.assert_close(
                one, other, rtol=tolerance, atol=tolerance, equal_nan=True, msg=item.name
            )
        else:
            assert one == other, item.name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{}, {"triplets": True, "listed": False}])
@pytest.mark.parametrize("prefetch", [None, 0, 3])
def test_loader_equals_naive_collation(dtype, options, prefetch):
    table = random_table(40, seed=1, **options)
    targets = np.random.default_rng(0).normal(size=(40, 2))
    targets[3, 0] = np.nan
    rows = np.random.default_rng(1).permutation(40)[:33]
    loader = GraphLoader(
        table,
        rows,
        targets,
        Batching(structures=6, edges=150),
        dtype=dtype,
        prefetch=prefetch,
    )
    seen = []
    for batch in loader:
        theirs = naive_batch(table, batch.rows.numpy(), targets, dtype)
        # A product of three terms is rounded in another order by the matrix library.
        assert_same(batch, theirs, tolerance=1e-15 if dtype == torch.float64 else 2e-7)
        seen += batch.rows.tolist()
    assert seen == rows.tolist()


def test_edge_vectors_are_computed_in_64_bits_before_they_are_rounded():
    table = random_table(5, seed=2)
    table.positions[:] += 1e4  # differences of large 32-bit numbers would lose three digits
    batch = next(iter(GraphLoader(table, np.arange(5))))
    exact = np.concatenate([table[i].vectors for i in range(5)])
    np.testing.assert_allclose(batch.vectors.numpy(), exact, rtol=2e-7, atol=2e-6)


def test_vectors_are_left_to_the_model_where_they_must_be_differentiated():
    table = random_table(5, seed=3)
    batch = next(iter(GraphLoader(table, np.arange(5), dtype=torch.float64, vectors=False)))
    assert batch.vectors is None
    exact = np.concatenate([table[i].vectors for i in range(5)])
    np.testing.assert_allclose(batch.edge_vectors().numpy(), exact, atol=1e-13)


def test_symmetric_graphs_have_no_multiplicity():
    table = random_table(5)
    assert next(iter(GraphLoader(table, np.arange(5), multiplicity=False))).multiplicity is None
    with pytest.raises(AtomloomError, match="multiplicities"):
        GraphLoader(random_table(5, listed=False), np.arange(5), multiplicity=True)


def test_a_batch_in_the_middle_of_an_epoch_does_not_depend_on_those_before():
    table = random_table(50)
    options = {"bounds": Batching(structures=7), "shuffle": True, "seed": 4}
    whole = list(GraphLoader(table, np.arange(50), **options).batches(epoch=3))
    rest = list(GraphLoader(table, np.arange(50), **options).batches(epoch=3, start=4))
    for one, other in zip(whole[4:], rest, strict=True):
        assert_same(one, other)


def test_ranks_share_every_batch_and_all_take_every_step():
    table = random_table(41)
    targets = np.zeros((41, 1))
    loaders = [
        GraphLoader(
            table, np.arange(41), targets, Batching(structures=5), shuffle=True, rank=r, ranks=3
        )
        for r in range(3)
    ]
    batches = [list(loader.batches(1)) for loader in loaders]
    assert {len(own) for own in batches} == {9}
    known = [
        row
        for own in batches
        for batch in own
        for row in batch.rows[torch.isfinite(batch.targets[:, 0])].tolist()
    ]
    assert sorted(known) == list(range(41)), "the padding of empty parts counts nothing"


def test_known_targets_are_counted_by_batch():
    table, targets = random_table(10), np.zeros((10, 3))
    targets[2] = targets[7, 1] = np.nan
    loader = GraphLoader(table, np.arange(10), targets, Batching(structures=4))
    assert loader.target_counts().tolist() == [9, 11, 6]


def test_a_loader_left_in_the_middle_leaves_no_thread():
    loader = GraphLoader(
        random_table(100), np.arange(100), bounds=Batching(structures=2), prefetch=2
    )
    before = threading.active_count()
    batches = iter(loader)
    next(batches)
    assert threading.active_count() == before + 1
    batches.close()
    assert threading.active_count() == before


def test_an_error_in_the_background_reaches_the_caller():
    table = random_table(6)
    loader = GraphLoader(table, np.arange(6), bounds=Batching(structures=2), prefetch=2)
    loader._held = None
    with pytest.raises(AttributeError):
        list(loader)


def test_no_rows_give_no_batches():
    loader = GraphLoader(random_table(3), np.zeros(0, dtype=np.int64), np.zeros((3, 1)))
    assert list(loader) == []
    assert loader.target_counts().tolist() == []


def test_the_heaviest_batch_is_no_lighter_than_any_of_an_epoch():
    table = random_table(60, seed=9)
    loader = GraphLoader(table, np.arange(60), bounds=Batching(structures=8), shuffle=True)
    heaviest = loader.sizes.edges[loader.largest_batch()].sum()
    for epoch in range(20):
        assert loader.plan(epoch).sums(loader.sizes.edges).max() <= heaviest


@pytest.mark.parametrize(("worth", "ahead"), [(0.0, 2), (1e9, 0)])
def test_the_loader_measures_whether_to_work_ahead(monkeypatch, worth, ahead):
    monkeypatch.setattr("atomloom.data.loader.WORTH_A_THREAD", worth)
    loader = GraphLoader(random_table(20), np.arange(20), bounds=Batching(structures=2))
    for _ in range(2):
        assert [row for batch in loader for row in batch.rows.tolist()] == list(range(20))
        assert loader.prefetch == ahead


def test_further_values_of_atoms_and_structures_come_in_the_order_of_the_batch():
    table = random_table(30, seed=4)
    rng = np.random.default_rng(0)
    forces = rng.normal(size=(len(table.numbers), 3))
    stress, pressure = rng.normal(size=(30, 9)), rng.normal(size=(30, 1))
    loader = GraphLoader(
        table,
        np.arange(30),
        bounds=Batching(structures=7),
        shuffle=True,
        dtype=torch.float64,
        of_atoms={"forces": forces},
        of_structures={"stress": stress, "pressure": pressure},
    )
    for batch in loader:
        rows = batch.rows.numpy()
        atoms = np.concatenate([np.arange(*table.node_ptr[row : row + 2]) for row in rows])
        assert np.array_equal(batch.extras["forces"].numpy(), forces[atoms])
        assert np.array_equal(batch.extras["stress"].numpy(), stress[rows])
        assert np.array_equal(batch.extras["pressure"].numpy(), pressure[rows])


def test_structures_that_were_not_chosen_come_without_edges():
    table = random_table(30, seed=4, triplets=True)
    chosen = {0: np.arange(30) % 3 == 0, 1: np.arange(30) % 3 == 1}
    loader = GraphLoader(
        table, np.arange(30), bounds=Batching(structures=7), with_edges=lambda epoch: chosen[epoch]
    )
    for epoch in (0, 1):
        for batch in loader.batches(epoch):
            rows = batch.rows.numpy()
            atoms = np.diff(batch.node_ptr.numpy())
            per_structure = np.bincount(batch.node_graph[batch.dst].numpy(), minlength=batch.size)
            assert np.array_equal(
                per_structure, np.diff(table.edge_ptr)[rows] * chosen[epoch][rows]
            )
            assert np.array_equal(batch.extras["selected"].numpy(), chosen[epoch][rows])
            assert np.array_equal(
                batch.extras["computed"].numpy(), np.repeat(chosen[epoch][rows], atoms)
            )
            assert int(batch.dst_ptr[-1]) == len(batch.dst) == len(batch.vectors)
            pairs = np.diff(table.triplet_ptr)[rows] * chosen[epoch][rows]
            assert len(batch.triplets) == pairs.sum()


def test_further_values_must_fit_the_table():
    table = random_table(5, seed=4)
    with pytest.raises(AtomloomError, match="forces of shape"):
        GraphLoader(table, np.arange(5), of_atoms={"forces": np.zeros((3, 3))})


@pytest.mark.parametrize("prefetch", [0, 2])
def test_passes_compute_further_tensors_of_each_batch_where_it_is_prepared(prefetch):
    table = random_table(30, seed=4)
    threads = set()

    def degrees(batch):
        threads.add(threading.current_thread())
        return {"degree": batch.dst_ptr.diff()}

    def edges_of_neighbours(batch):
        return {"second": batch.extras["degree"][batch.src]}  # passes see what those before made

    loader = GraphLoader(
        table,
        np.arange(30),
        bounds=Batching(structures=7),
        prefetch=prefetch,
        passes=[degrees, edges_of_neighbours],
    )
    for batch in loader:
        degree = np.bincount(batch.dst.numpy(), minlength=len(batch.numbers))
        assert batch.extras["degree"].tolist() == degree.tolist()
        assert batch.extras["second"].tolist() == degree[batch.src.numpy()].tolist()
    assert (threading.main_thread() in threads) == (prefetch == 0)
    assert loader.slice(np.arange(3)).extras.keys() == {"degree", "second"}


def test_structures_that_alone_exceed_a_bound_are_told_and_run_alone():
    table = random_table(40, seed=5, atoms=(1, 9), isolated=False)
    loader = GraphLoader(table, np.arange(40), bounds=Batching(structures=6, edges=40))
    large = np.flatnonzero(np.diff(table.edge_ptr) > 40)
    assert 0 < len(large) < 40
    assert loader.oversize.tolist() == large.tolist()
    alone = {batch.rows[0].item() for batch in loader if batch.size == 1}
    assert set(large.tolist()) <= alone
    assert len(GraphLoader(table, np.arange(40)).oversize) == 0


def test_the_loader_says_how_it_prepares_batches():
    loader = GraphLoader(random_table(20), np.arange(20), bounds=Batching(structures=2))
    assert loader.preparation is None
    list(loader)
    assert loader.preparation.seconds > 0
    assert loader.preparation.text.startswith("no thread (")
    told = GraphLoader(random_table(20), np.arange(20), prefetch=3).preparation
    assert told.text == "3 batches ahead in a thread (as set), pageable memory"
