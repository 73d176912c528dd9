"""Shards whose digests are right and whose content is nonsense are refused before anything follows it."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest

from atomloom.commands.maintenance import problems_of
from atomloom.config import GraphSpec
from atomloom.data.on_disk import OnDiskGraphs
from atomloom.errors import AtomloomError
from atomloom.graphs.graph import ARRAYS, GraphTable, no_graphs
from atomloom.graphs.store import GraphStore, read_graphs, write_graphs
from atomloom.stages.convert import ReadRecords, read_chunk, read_chunk_records, write_structures
from atomloom.stages.graphs import read_chunk_graphs
from atomloom.stages.label import read_labels
from atomloom.store.shards import read_shard, verify_shard, write_shard
from atomloom.structures import Structure
from atomloom.structures.table import StructureTable
from tests.unit.data.shards import on_disk
from tests.unit.data.tables import random_table

SPEC = GraphSpec()
TABLE = random_table(7, seed=3, atoms=(2, 6), triplets=True, isolated=False)
CHUNK = "0123456789abcdef"


def put(array: np.ndarray, place, value) -> np.ndarray:
    changed = array.copy()
    changed[place] = value
    return changed


def pointers(name: str) -> dict[str, tuple[str, object]]:
    """Ways in which a pointer goes wrong."""
    return {
        f"{name} negative": (name, lambda a: put(a, 2, -5)),
        f"{name} first": (name, lambda a: a + 1),
        f"{name} short": (name, lambda a: a[:-1]),
        f"{name} beyond": (name, lambda a: put(a, -1, a[-1] + 1)),
        f"{name} falls": (name, lambda a: put(a, 3, a[5])),
        f"{name} wraps": (name, lambda a: put(put(a, 1, 2**63 - 1), 2, -2)),
        f"{name} short of its rows": (name, lambda a: put(a, -1, a[-1] - 1)),
        f"{name} type": (name, lambda a: a.astype(np.int32)),
        f"{name} empty": (name, lambda a: a[:0]),
    }


NONSENSE = {
    **pointers("node_ptr"),
    **pointers("edge_ptr"),
    **pointers("triplet_ptr"),
    "no atoms": ("node_ptr", lambda a: put(a, 1, 0)),
    "dst outside": ("dst", lambda a: put(a, len(a) // 2, 60_000)),
    "dst in the next structure": ("dst", lambda a: put(a, -1, 6)),
    "src outside": ("src", lambda a: put(a, 0, 7)),
    "src signed": ("src", lambda a: -a.astype(np.int16)),
    "dst in no order": ("dst", lambda a: a[::-1].copy()),
    "src short": ("src", lambda a: a[:-3]),
    "shift short": ("shift", lambda a: a[:-1]),
    "shift flat": ("shift", lambda a: a.reshape(-1)),
    "listed long": ("listed", lambda a: np.append(a, a)),
    "listed bits": ("listed", lambda a: put(a, 0, 4)),
    "positions short": ("positions", lambda a: a[:-1]),
    "positions in 32 bits": ("positions", lambda a: a.astype(np.float32)),
    "positions not finite": ("positions", lambda a: put(a, (3, 1), np.nan)),
    "positions infinite": ("positions", lambda a: put(a, (0, 0), -np.inf)),
    "cell not finite": ("cell", lambda a: put(a, (3, 1, 1), np.inf)),
    "cell of others": ("cell", lambda a: a[:-1]),
    "lattice not finite": ("lattice", lambda a: put(a, (3, 1, 1), np.nan)),
    "pbc as numbers": ("pbc", lambda a: a.astype(np.uint8)),
    "pbc neither": ("pbc", lambda a: (a.view(np.uint8) + 7).view(bool)),
    "no element": ("numbers", lambda a: put(a, 1, 0)),
    "element 119": ("numbers", lambda a: put(a, -1, 119)),
    "numbers short": ("numbers", lambda a: a[:-1]),
    "hash of another width": ("hash", lambda a: a[:, :16].copy()),
    "hash of fewer": ("hash", lambda a: a[1:]),
    "triplet outside": ("triplet", lambda a: put(a, (0, 1), 10_000)),
    "triplet turned": ("triplet", lambda a: a[:, ::-1].copy()),
    "triplet flat": ("triplet", lambda a: a.reshape(-1)),
    "triplets alone": ("triplet_ptr", lambda a: None),
    "no dst": ("dst", lambda a: None),
}  # fmt: skip


def write_graph_arrays(path, arrays) -> None:
    """A shard with right digests, whatever is in it."""
    write_shard(path, arrays, {"kind": "graphs", "spec": {}, "counts": {"structures": len(TABLE)}})


@pytest.mark.parametrize("case", NONSENSE)
def test_graphs_that_make_no_sense_are_refused_at_opening_and_named_by_verify(tmp_path, case):
    name, change = NONSENSE[case]
    arrays = {n: getattr(TABLE, n) for n in ARRAYS}
    changed = change(arrays[name])
    arrays = {n: a for n, a in (arrays | {name: changed}).items() if a is not None}
    path = tmp_path / "graphs" / "key" / f"{CHUNK}.zarr.zip"
    write_graph_arrays(path, arrays)
    assert verify_shard(path) == [], "its digests are right"
    for verify in (True, False):
        with pytest.raises(AtomloomError, match=r"zarr\.zip: .*run `atomloom repair`") as found:
            read_graphs(path, verify=verify)
        assert len(str(found.value).splitlines()) == 1
    assert problems_of(tmp_path, path) == [found.value.what]
    with pytest.raises(AtomloomError, match=r"zarr\.zip"):
        OnDiskGraphs(GraphStore(path.parent))


@pytest.mark.parametrize("name", ["numbers", "node_ptr"])
def test_atomic_numbers_of_all_structures_are_read_within_their_shards(tmp_path, name):
    graphs = on_disk(tmp_path, TABLE, [3])
    path = tmp_path / "0000.zarr.zip"
    arrays, attributes = read_shard(path)
    write_shard(path, arrays | {name: arrays[name][:-1]}, attributes)
    with pytest.raises(AtomloomError, match="other graphs than the index says"):
        graphs.numbers  # noqa: B018


def test_graphs_that_build_and_graphs_without_edges_are_graphs():
    assert no_graphs({n: getattr(TABLE, n) for n in ARRAYS}) == ""
    lone = random_table(3, edges_per_atom=0)
    empty = lone.take([])
    for table in (lone, empty):
        arrays = {n: a for n in ARRAYS if (a := getattr(table, n)) is not None}
        assert no_graphs(arrays) == ""


@pytest.mark.parametrize(
    "change",
    [
        lambda frame: frame.assign(row=frame["row"] + 1),
        lambda frame: frame.assign(row=frame["row"] - 1),
        lambda frame: frame.assign(hash=list(reversed(frame["hash"]))),
        lambda frame: frame.assign(hash=[b"short"] * len(frame)),
    ],
)
def test_an_index_that_names_other_graphs_is_one_line(tmp_path, change):
    on_disk(tmp_path, TABLE, [3])
    change(pd.read_parquet(tmp_path / "index.parquet")).to_parquet(tmp_path / "index.parquet")
    for use in (GraphStore.load, lambda store: store[len(store) - 1]):
        with pytest.raises(
            AtomloomError, match=r"other graphs than the index|not an index of graphs"
        ):
            use(GraphStore(tmp_path))
    with pytest.raises(AtomloomError, match=r"other graphs than the index|not an index of graphs"):
        OnDiskGraphs(GraphStore(tmp_path)).read(np.arange(len(TABLE)))


# --- structures and labels ------------------------------------------------------------------------


def structures(count: int = 4) -> list[Structure]:
    return [
        Structure([11, 17], [[0, 0, 0], [2.5, 0, 0]], (5 + 0.1 * n) * np.eye(3), [True] * 3, {"energy": -1.0})
        for n in range(count)
    ]  # fmt: skip


@pytest.fixture
def shard(tmp_path):
    """A shard of four structures, the records 0, 1, 3 and 4 of its chunk."""
    path = tmp_path / "structures" / f"{CHUNK}.zarr.zip"
    write_structures(path, ReadRecords(structures(), [0, 1, 3, 4], [(2, "bad")]), {}, CHUNK)
    assert problems_of(tmp_path, path) == []
    return path


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("node_ptr", lambda a: put(a, 1, -1)),
        ("node_ptr", lambda a: put(a, 1, 100)),
        ("numbers", lambda a: a[:-1]),
        ("positions", lambda a: put(a, (0, 0), np.nan)),
        ("record", lambda a: put(a, 0, -1)),
        ("record", lambda a: put(a, 0, 1)),
        ("record", lambda a: put(a, -1, 50)),
        ("record", lambda a: a[:-1]),
        ("record", lambda a: a.astype(np.float64)),
        ("hash", lambda a: a[:2]),
        ("property:energy", lambda a: a[:-1]),
        ("property:energy", lambda a: a.astype(np.int64)),
        ("property:energy", lambda a: np.array(1.0)),
    ],
)
def test_structures_that_make_no_sense_are_refused_and_named(tmp_path, shard, name, change):
    arrays, attributes = read_shard(shard)
    write_shard(shard, arrays | {name: change(arrays[name])}, attributes)
    with pytest.raises(AtomloomError, match=r"makes no sense: .*run `atomloom repair`") as found:
        read_chunk(shard)
    assert problems_of(tmp_path, shard) == [found.value.what]


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "graphs"},
        {"quarantine": [["2", "bad"]]},
        {"quarantine": {"2": "bad"}},
        {"quarantine": []},
        {"quarantine": [[2, "bad"], [5, "bad"], [5, "twice"]]},
        {"per_atom": None},
    ],
)
def test_attributes_that_make_no_sense_are_refused_and_named(tmp_path, shard, change):
    arrays, attributes = read_shard(shard)
    write_shard(shard, arrays, attributes | change)
    for read in (read_chunk, read_chunk_records):
        with pytest.raises(AtomloomError, match="run `atomloom repair`"):
            read(shard)
    assert len(problems_of(tmp_path, shard)) == 1


def test_a_shard_under_the_name_of_another_chunk_is_named(tmp_path, shard):
    other = shard.rename(shard.with_name(f"{CHUNK[::-1]}.zarr.zip"))
    with pytest.raises(AtomloomError, match=f"holds the structures of chunk {CHUNK}"):
        read_chunk(other)
    assert len(problems_of(tmp_path, other)) == 1


def test_a_structure_that_is_not_its_hashs_is_named_by_verify(tmp_path, shard):
    arrays, attributes = read_shard(shard)
    write_shard(shard, arrays | {"positions": put(arrays["positions"], (5, 0), 2.6)}, attributes)
    assert problems_of(tmp_path, shard) == ["structure 2 does not have its recorded hash"]


def test_graphs_of_other_structures_are_named(tmp_path, shard):
    table = random_table(4, atoms=(2, 2))
    path = tmp_path / "graphs" / "key" / shard.name
    own = replace(table, hash=StructureTable.from_structures(structures()).hash)
    write_graphs(path, own, SPEC, {"skipped": []})
    assert problems_of(tmp_path, path) == []
    for graphs, skipped in ((table, []), (own, [[1, "far"]]), (own, [[9, "far"]]), (own, "far")):
        write_graphs(path, graphs, SPEC, {"skipped": skipped})
        with pytest.raises(AtomloomError, match="run `atomloom repair`"):
            read_chunk_graphs(read_chunk_records(shard), path)
        assert len(problems_of(tmp_path, path)) == 1
    shard.write_bytes(b"")
    write_graphs(path, own, SPEC, {"skipped": []})
    assert problems_of(tmp_path, path) == [], "what is damaged is the other one"


def test_triplets_with_two_centres_are_named_by_verify(tmp_path):
    path = tmp_path / "graphs" / "key" / f"{CHUNK}.zarr.zip"
    write_graphs(path, TABLE, SPEC, {"skipped": []})
    assert problems_of(tmp_path, path) == ["makes no sense: a triplet has two centres"]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (None, None),
        ("forces", lambda a: a[:-1]),
        ("energy", lambda a: a[:-1]),
        ("stress", lambda a: a.reshape(-1, 9)),
        ("node_ptr", lambda a: put(a, 1, 5)),
        ("hash", lambda a: a[::-1].copy()),
        ("failures", lambda a: [[4, "no such row"]]),
    ],
)
def test_labels_that_make_no_sense_are_named(tmp_path, shard, name, change):
    table = StructureTable.from_structures(structures())
    arrays = {
        "hash": table.hash,
        "node_ptr": table.node_ptr,
        "energy": np.zeros(4),
        "forces": np.zeros((8, 3)),
        "stress": np.zeros((4, 3, 3)),
        "seconds": np.zeros(4),
    }
    attributes = {"kind": "labels", "failures": []}
    if name in arrays:
        arrays[name] = change(arrays[name])
    elif name:
        attributes[name] = change(attributes[name])
    path = tmp_path / "labels" / "key" / shard.name
    write_shard(path, arrays, attributes)
    if name is None:
        assert problems_of(tmp_path, path) == []
        assert len(read_labels(path, read_chunk_records(shard).hash).energy) == 4
        return
    with pytest.raises(AtomloomError, match="run `atomloom repair`"):
        read_labels(path, read_chunk_records(shard).hash)
    assert len(problems_of(tmp_path, path)) == 1


def test_every_array_of_a_table_has_a_form():
    from atomloom.graphs.graph import GRAPH_FORMS

    assert set(GRAPH_FORMS) == {f.name for f in fields(GraphTable)} - {"attributes"}
