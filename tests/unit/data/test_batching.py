"""Batch plans drop nothing, keep their bounds and are a function of seed and epoch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atomloom.config.training import Batching
from atomloom.data.batching import Sizes, check_rows, draw_rows, oversize, plan_epoch, share
from atomloom.errors import AtomloomError
from tests.unit.data.tables import random_table


def sizes_of(atoms, edges, triplets):
    return Sizes(*(np.array(values, dtype=np.int64) for values in (atoms, edges, triplets)))


bounds = st.builds(
    Batching,
    structures=st.integers(1, 9),
    atoms=st.none() | st.integers(1, 60),
    edges=st.none() | st.integers(1, 300),
    triplets=st.none() | st.integers(1, 900),
)
weights = st.lists(
    st.tuples(st.integers(1, 30), st.integers(0, 200), st.integers(0, 800)), max_size=40
)


@given(bounds=bounds, weights=weights, seed=st.integers(0, 9), epoch=st.integers(0, 9))
def test_every_row_is_in_one_batch_within_the_bounds(bounds, weights, seed, epoch):
    sizes = sizes_of(*zip(*weights, strict=True)) if weights else sizes_of([], [], [])
    rows = np.arange(len(weights))
    plan = plan_epoch(rows, sizes, bounds, shuffle=True, seed=seed, epoch=epoch)
    assert sorted(plan.rows.tolist()) == rows.tolist()
    assert plan.ptr[0] == 0
    assert plan.ptr[-1] == len(rows)
    for batch in range(len(plan)):
        own = plan[batch]
        assert len(own) > 0
        fits = (
            len(own) <= bounds.structures
            and sizes.atoms[own].sum() <= (bounds.atoms or np.inf)
            and sizes.edges[own].sum() <= (bounds.edges or np.inf)
            and sizes.triplets[own].sum() <= (bounds.triplets or np.inf)
        )
        assert fits or len(own) == 1, "only a structure that is too large alone may exceed a bound"


def test_batches_are_full_when_only_structures_are_bounded():
    sizes = Sizes.of(random_table(50))
    plan = plan_epoch(np.arange(50), sizes, Batching(structures=16))
    assert np.diff(plan.ptr).tolist() == [16, 16, 16, 2]


def test_order_is_a_function_of_seed_and_epoch():
    sizes = Sizes.of(random_table(30))

    def order(seed, epoch):
        plan = plan_epoch(np.arange(30), sizes, Batching(), shuffle=True, seed=seed, epoch=epoch)
        return plan.rows.tolist()

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 1) != order(1, 0)
    # The order must not change between releases: runs would not be reproducible.
    assert order(3, 5)[:6] == [3, 13, 16, 9, 7, 19]


def test_parts_of_the_ranks_weigh_about_the_same():
    weights = np.random.default_rng(0).integers(10, 100, size=64)
    loads = [weights[share(weights, rank, 4)].sum() for rank in range(4)]
    assert sum(loads) == weights.sum()
    assert max(loads) - min(loads) <= weights.min(), "the lightest was dealt to the lightest last"


@given(
    weights=st.lists(st.integers(0, 50), min_size=1, max_size=20),
    ranks=st.integers(1, 6),
)
def test_parts_of_any_batch_are_the_batch(weights, ranks):
    parts = [share(np.array(weights), rank, ranks) for rank in range(ranks)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(weights)))
    assert all((np.diff(part) > 0).all() for part in parts)
    assert sum(len(part) == 0 for part in parts) == max(0, ranks - len(weights))


@pytest.mark.parametrize("rows", [[0, 5], [-1], [1, 1]])
def test_rows_beyond_the_data_or_twice_are_refused(rows):
    with pytest.raises(AtomloomError):
        check_rows(np.array(rows), 5, "rows")


def test_rows_are_drawn_in_proportion_to_their_chances():
    rows = np.arange(3, 103)
    chances = np.zeros(200)
    chances[3:103] = np.where(np.arange(100) < 10, 5.0, 0.5)
    drawn = np.concatenate([draw_rows(rows, chances, 0, epoch) for epoch in range(50)])
    counts = np.bincount(drawn, minlength=200)
    assert counts.sum() == 50 * 100
    expected = 50 * 100 * chances / chances.sum()
    assert np.abs(counts - expected).max() < 0.25 * 50
    assert (counts[expected == 0] == 0).all()
    again = draw_rows(rows, chances, 0, 7)
    assert np.array_equal(again, draw_rows(rows, chances, 0, 7))
    assert not np.array_equal(again, draw_rows(rows, chances, 0, 8))


def test_batches_hold_at_most_so_many_pairs_of_atoms_and_a_large_structure_runs_alone():
    atoms = np.array([10, 10, 10, 40, 5, 30, 9])
    sizes = Sizes(atoms, 12 * atoms, np.zeros_like(atoms))
    plan = plan_epoch(np.arange(7), sizes, Batching(structures=64, atom_pairs=1000))
    assert [plan[batch].tolist() for batch in range(len(plan))] == [[0, 1, 2], [3], [4, 5], [6]]
    assert oversize(np.arange(7), sizes, Batching(atom_pairs=1000)).tolist() == [3]
    assert len(plan_epoch(np.arange(7), sizes, Batching())) == 1
