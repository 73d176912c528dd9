"""Out of core: the same batches as from memory with the same windows, in a bounded part of memory."""

from __future__ import annotations

import gc
import threading
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atomloom.config.training import Batching
from atomloom.data import on_disk as on_disk_module
from atomloom.data.batching import Sizes, Windows, plan_epoch
from atomloom.data.loader import GraphLoader, ShardLoader
from atomloom.data.placement import choose_loader, open_loader
from atomloom.errors import AtomloomError
from tests.unit.data.shards import on_disk
from tests.unit.data.tables import random_table
from tests.unit.data.test_loader import assert_same


@pytest.fixture
def shards_read(monkeypatch):
    """Names of the shards that are read, as they are."""
    read, names = on_disk_module.read_graphs, []

    def noted(path, **options):
        names.append(path.name)
        return read(path, **options)

    monkeypatch.setattr(on_disk_module, "read_graphs", noted)
    return names


def windows_of(graphs, share):
    return Windows(graphs.shard, graphs.weights, int(share * graphs.weights.sum()))


@given(
    cuts=st.lists(st.integers(0, 59), max_size=9),
    most=st.integers(1, 400),
    shuffle=st.booleans(),
    structures=st.integers(1, 25),
    seed=st.integers(0, 9),
)
def test_windows_hold_whole_shards_and_batches_go_on_across_them(
    cuts, most, shuffle, structures, seed
):
    table = random_table(60, seed=1)
    shard = np.searchsorted(np.sort(cuts), np.arange(60), side="right")
    weights = np.diff(table.node_ptr)
    plan = plan_epoch(
        np.arange(60)[::2],
        Sizes.of(table),
        Batching(structures=structures),
        shuffle=shuffle,
        seed=seed,
        windows=Windows(shard, weights, most),
    )
    assert sorted(plan.rows.tolist()) == list(range(0, 60, 2))
    assert set(np.diff(plan.ptr)[:-1].tolist()) <= {structures}, "only the last may be smaller"
    assert plan.ends[-1] == 30
    assert plan.stops[-1] == len(plan)
    parts = np.split(plan.rows, plan.ends[:-1])
    seen = set()
    for part in parts:
        own = set(shard[part].tolist())
        assert not own & seen, "a shard is in one window"
        seen |= own
        assert weights[part].sum() <= most or len(own) == 1
    for end, stop in zip(plan.ends, plan.stops[1:], strict=True):
        assert plan.ptr[stop] <= end
        assert stop == len(plan) or plan.ptr[stop + 1] > end


def test_rows_and_shards_are_mixed_anew_every_epoch():
    table, shard = random_table(400), np.arange(400) // 20
    windows = Windows(shard, np.ones(400, dtype=np.int64), 100)

    def order(epoch):
        options = {"shuffle": True, "epoch": epoch, "windows": windows}
        return plan_epoch(np.arange(400), Sizes.of(table), Batching(), **options).rows

    first, second = shard[order(0)][:100], shard[order(1)][:100]
    assert len(set(first)) == len(set(second)) == 5
    assert set(first) != set(second)
    assert (np.diff(first) != 0).mean() > 0.6, "rows of different shards lie side by side"
    assert order(0).tolist() == order(0).tolist()
    # The order must not change between releases: runs would not be reproducible.
    assert order(0)[:6].tolist() == [66, 64, 280, 128, 244, 165]


@pytest.mark.parametrize("options", [{}, {"triplets": True, "listed": False}])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("share", [0.02, 0.3, 2.0])
@pytest.mark.parametrize("ranks", [1, 3])
def test_batches_are_those_from_memory(tmp_path, options, shuffle, share, ranks):
    table = random_table(80, seed=2, **options)
    graphs = on_disk(tmp_path, table, [9, 17, 30, 31, 55, 70])
    targets = np.random.default_rng(0).normal(size=(80, 2))
    rows = np.sort(np.random.default_rng(1).permutation(80)[:63])
    forces = np.random.default_rng(3).normal(size=(len(table.numbers), 3))
    common = {
        "bounds": Batching(structures=11, edges=300),
        "windows": windows_of(graphs, share),
        "shuffle": shuffle,
        "seed": 5,
        "ranks": ranks,
        "of_atoms": {"forces": forces},
        "of_structures": {"both": targets},
        "with_edges": lambda epoch: np.arange(80) % 3 != epoch,
    }
    for rank in range(ranks):
        ours = ShardLoader(graphs, rows, targets, rank=rank, **common)
        theirs = GraphLoader(table, rows, targets, rank=rank, **common)
        for epoch in (0, 1):
            pairs = zip(ours.batches(epoch), theirs.batches(epoch), strict=True)
            for one, other in pairs:
                compare(one, other)
        assert len(ours) == len(theirs)
        compare(ours.slice(rows[:7]), theirs.slice(rows[:7]))


def compare(one, other):
    assert one.extras.keys() == other.extras.keys()
    for name, tensor in other.extras.items():
        torch.testing.assert_close(one.extras[name], tensor, rtol=0, atol=0, equal_nan=True)
    one.extras = other.extras = {}
    assert_same(one, other)


@pytest.mark.parametrize("share", [0.02, 0.3])
@pytest.mark.parametrize("prefetch", [None, 0, 2])
def test_an_epoch_gone_on_with_is_the_same_and_reads_nothing_of_what_came_before(
    tmp_path, shards_read, share, prefetch
):
    graphs = on_disk(tmp_path, random_table(80, seed=2), list(range(8, 80, 8)))
    options = {
        "bounds": Batching(structures=7),
        "windows": windows_of(graphs, share),
        "shuffle": True,
        "prefetch": prefetch,
    }
    whole = list(ShardLoader(graphs, np.arange(80), **options).batches(epoch=2))
    for start in range(len(whole) + 1):
        loader = ShardLoader(graphs, np.arange(80), **options)
        shards_read.clear()
        rest = list(loader.batches(epoch=2, start=start))
        assert len(rest) == len(whole) - start
        for one, other in zip(rest, whole[start:], strict=True):
            assert_same(one, other)
        plan = loader.plan(2)
        needed = set(graphs.shard[plan.rows[plan.ptr[start] :]]) if rest else set()
        assert len(set(shards_read)) == len(needed)


def test_an_epoch_reads_every_shard_once(tmp_path, shards_read):
    graphs = on_disk(tmp_path, random_table(80, seed=2), list(range(8, 80, 8)))
    for shuffle in (True, False):
        loader = ShardLoader(
            graphs, np.arange(80), windows=windows_of(graphs, 0.25), shuffle=shuffle
        )
        for epoch in (0, 1):
            shards_read.clear()
            assert sum(batch.size for batch in loader.batches(epoch)) == 80
            assert sorted(shards_read) == [f"{i:04d}.zarr.zip" for i in range(10)]


@pytest.mark.parametrize("shuffle", [True, False])
def test_memory_stays_within_the_budget(tmp_path, shuffle):
    table = random_table(3000, seed=2, atoms=(10, 14), edges_per_atom=12)
    graphs = on_disk(tmp_path, table, list(range(100, 3000, 100)))
    whole = int(graphs.weights.sum())
    del table
    budget, bounds = whole // 4, Batching(structures=16)
    choice = choose_loader(graphs, bounds, budget=budget)
    assert choice.window is not None
    loader = open_loader(
        graphs, np.arange(3000), bounds=bounds, choice=choice, shuffle=shuffle, prefetch=2
    )
    assert len(loader.plan(0).ends) > 4
    loader.slice(np.arange(2))  # compiles
    gc.collect()
    tracemalloc.start()  # numpy tells it of every array
    try:
        for batch in loader.batches(0):
            del batch
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 0.4 * budget < peak < budget, "and the measurement sees the windows"


def test_a_loader_left_in_the_middle_leaves_no_thread(tmp_path):
    graphs = on_disk(tmp_path, random_table(80, seed=2), list(range(8, 80, 8)))
    before = threading.active_count()
    for prefetch in (0, 2):
        loader = ShardLoader(
            graphs,
            np.arange(80),
            bounds=Batching(structures=3),
            windows=windows_of(graphs, 0.2),
            prefetch=prefetch,
        )
        batches = iter(loader)
        next(batches)
        assert threading.active_count() > before
        batches.close()
        assert threading.active_count() == before


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_shard_that_is_lost_meanwhile_is_named(tmp_path, prefetch):
    graphs = on_disk(tmp_path, random_table(80, seed=2), list(range(8, 80, 8)))
    (tmp_path / "0004.zarr.zip").unlink()
    before = set(threading.enumerate())
    loader = ShardLoader(
        graphs, np.arange(80), windows=windows_of(graphs, 0.2), shuffle=True, prefetch=prefetch
    )
    with pytest.raises(AtomloomError, match=r"0004.zarr.zip: no such shard"):
        list(loader)
    assert set(threading.enumerate()) <= before
