"""Graphs read from shards are those of the table, in the order asked for, whatever shard they are in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from atomloom.data.batching import Sizes
from atomloom.data.on_disk import OnDiskGraphs
from atomloom.errors import AtomloomError
from atomloom.graphs.graph import ARRAYS
from atomloom.graphs.store import GraphStore
from tests.unit.data.shards import on_disk
from tests.unit.data.tables import random_table


def assert_same_graphs(ours, theirs):
    for name in ARRAYS:
        one, other = getattr(ours, name), getattr(theirs, name)
        assert (one is None) == (other is None), name
        if other is not None:
            np.testing.assert_array_equal(one, other, err_msg=name)


@pytest.mark.parametrize("options", [{}, {"triplets": True, "listed": False}])
def test_rows_come_in_the_order_asked_for(tmp_path, options):
    table = random_table(60, seed=1, **options)
    graphs = on_disk(tmp_path, table, [13, 14, 40])
    rows = np.random.default_rng(2).permutation(60)[:37]
    rows = np.append(rows, rows[:3])  # the same graph may be wanted twice
    assert_same_graphs(graphs.read(rows), table.take(rows))
    assert_same_graphs(graphs.read(rows, table.take(rows[:5])), table.take(rows))
    assert_same_graphs(graphs.read(rows[:0]), table.take([]))


def test_what_is_known_of_all_structures_is_that_of_the_table(tmp_path):
    table = random_table(30, seed=3, triplets=True)
    graphs = on_disk(tmp_path, table, [7, 20])
    assert len(graphs) == 30
    for name in ("node_ptr", "edge_ptr", "triplet_ptr", "hash", "numbers"):
        np.testing.assert_array_equal(getattr(graphs, name), getattr(table, name), err_msg=name)
    held = graphs.read(np.arange(30))
    taken = sum(value.nbytes for value in vars(held).values() if isinstance(value, np.ndarray))
    assert taken <= graphs.weights.sum() + 24


def test_a_folder_of_shards_needs_no_index(tmp_path):
    table = random_table(30, seed=3)
    by_name = on_disk(tmp_path, table, [7, 20], index=False)
    store = GraphStore(tmp_path)
    assert_same_graphs(by_name.read(np.arange(30)), store.load())
    for one, other in zip(
        vars(by_name.sizes).values(), vars(Sizes.of(store.load())).values(), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("far", [slice(0, 5), slice(25, 30)])
def test_shards_whose_integers_have_other_widths_are_read_together(tmp_path, far):
    table = random_table(30, seed=4)
    shift = table.shift.astype(np.int16)
    shift[table.edge_ptr[far.start] : table.edge_ptr[far.stop]] *= 200
    table = replace(table, shift=shift)
    graphs = on_disk(tmp_path, table, [10, 20])
    assert_same_graphs(graphs.read(np.arange(30)[::-1]), table.take(np.arange(30)[::-1]))


def test_a_shard_that_is_not_what_the_index_says_is_named(tmp_path):
    graphs = on_disk(tmp_path, random_table(30, seed=5), [10, 20])
    again = on_disk(tmp_path / "other", random_table(30, seed=6), [10, 20])
    for path in (tmp_path / "other").glob("*.zip"):
        path.replace(tmp_path / path.name)
    assert len(again) == 30
    with pytest.raises(AtomloomError, match=r"zarr\.zip: holds other graphs than the index says"):
        graphs.read(np.arange(30))


def test_a_damaged_shard_is_noticed_when_it_is_first_read(tmp_path):
    on_disk(tmp_path, random_table(30, seed=5), [10, 20])
    path = tmp_path / "0001.zarr.zip"
    content = bytearray(path.read_bytes())
    place = content.index(b"positions/c/0") + 200
    content[place] ^= 0xFF
    path.write_bytes(content)
    graphs = OnDiskGraphs(GraphStore(tmp_path))
    with pytest.raises(AtomloomError, match="positions"):
        graphs.read(np.arange(30))
