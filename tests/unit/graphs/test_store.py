"""Graphs come back from disk as they were built, one by one or all at once."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from samples import magnesium, perovskite, random_structure, rutile, table_of

from atomloom.config.graph import GraphSpec
from atomloom.errors import AtomloomError
from atomloom.graphs import store
from atomloom.graphs.build import build_graphs
from atomloom.graphs.graph import ARRAYS, Graph, GraphTable
from atomloom.graphs.store import GraphStore, read_graphs, write_graphs
from atomloom.store.keys import BUILDER
from atomloom.store.shards import write_shard

SPEC = GraphSpec(max_neighbors=6, lattice=True, lattice_edges=True, triplets=3.5)


def assert_same_tables(a: GraphTable, b: GraphTable) -> None:
    for name in ARRAYS:
        left, right = getattr(a, name), getattr(b, name)
        if left is None or right is None:
            assert left is right, name
        else:
            assert left.dtype == right.dtype, name
            np.testing.assert_array_equal(left, right, err_msg=name)


def assert_same_graphs(a: Graph, b: Graph) -> None:
    for name in ("numbers", "positions", "cell", "src", "dst", "shift", "listed", "triplets"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


@pytest.fixture
def tables() -> list[GraphTable]:
    members = [[random_structure(10 * s + i, 2 + i) for i in range(3)] for s in range(3)]
    return [build_graphs(table_of(*group), SPEC) for group in members]


@pytest.fixture
def folder(tmp_path, tables):
    for number, table in enumerate(tables):
        write_graphs(tmp_path / "store" / f"{number}.zarr.zip", table, SPEC, {"note": number})
    return tmp_path / "store"


def test_round_trip_with_attributes(folder, tables):
    for number, table in enumerate(tables):
        found = read_graphs(folder / f"{number}.zarr.zip")
        assert_same_tables(found, table)
        assert found.attributes["spec"] == SPEC.key_content()
        assert found.attributes["builder"] == BUILDER
        assert found.attributes["note"] == number
        assert found.attributes["counts"] == {
            "structures": 3,
            "atoms": len(table.numbers),
            "edges": len(table.src),
            "triplets": len(table.triplet),
        }


def test_optional_arrays_stay_away(tmp_path):
    spec = GraphSpec(neighbors="radius", cutoff=3.0)
    table = build_graphs(table_of(rutile()), spec)
    write_graphs(tmp_path / "a.zarr.zip", table, spec)
    found = read_graphs(tmp_path / "a.zarr.zip")
    assert found.listed is found.lattice is found.triplet is None
    assert_same_tables(found, table)


def test_other_shards_are_refused(tmp_path):
    write_shard(tmp_path / "a.zarr.zip", {"x": np.arange(3)}, {"kind": "structures"})
    with pytest.raises(AtomloomError, match="not of graphs"):
        read_graphs(tmp_path / "a.zarr.zip")
    with pytest.raises(AtomloomError, match="not of graphs"):
        GraphStore(tmp_path)
    with pytest.raises(AtomloomError, match="neither an index"):
        GraphStore(tmp_path / "nowhere")


def test_folder_of_shards_is_one_sequence(folder, tables):
    graphs = GraphStore(folder)
    whole = GraphTable.concatenate(tables)
    assert len(graphs) == 9
    for index in (0, 4, 8, -1):
        assert_same_graphs(graphs[index], whole[index % 9])
    some = graphs[1:9:3]
    assert len(some) == 3
    assert_same_graphs(some[1], whole[4])
    np.testing.assert_array_equal(graphs.hashes, whole.hash)
    assert_same_tables(graphs.load(), whole)
    assert_same_tables(graphs.load(verify=False, threads=1), whole)
    assert len(list(graphs)) == 9
    for index in (9, -10):
        with pytest.raises(IndexError):
            graphs[index]
    assert len(GraphStore(folder / "1.zarr.zip")) == 3


@pytest.fixture
def index(tmp_path, folder, tables):
    """An index of some graphs, not in the order of the shards, with one of them twice."""
    places = [(2, 0), (2, 1), (2, 2), (0, 2), (0, 0), (1, 1), (2, 0)]
    frame = pd.DataFrame(
        {
            "id": [f"{shard}-{row}" for shard, row in places],
            "hash": [tables[shard].hash[row].tobytes() for shard, row in places],
            "shard": [f"{shard}.zarr.zip" for shard, _ in places],
            "row": np.array([row for _, row in places], dtype=np.int32),
        }
    )
    target = tmp_path / "results" / "demo" / "index" / "key"
    target.mkdir(parents=True)
    frame.to_parquet(target / "index.parquet", index=False)
    (target / "index.json").write_text(json.dumps({"store": "store"}))
    return target, places


def test_index_gives_its_graphs_in_its_order(index, tables):
    target, places = index
    for path in (target, target / "index.parquet"):
        graphs = GraphStore(path)
        assert len(graphs) == len(places)
        for position, (shard, row) in enumerate(places):
            assert_same_graphs(graphs[position], tables[shard][row])
            assert graphs.hashes[position].tobytes() == tables[shard].hash[row].tobytes()
        loaded = graphs.load()
        for position in range(len(places)):
            assert_same_graphs(loaded[position], graphs[position])


def test_index_with_a_graph_in_no_shard_is_refused(index):
    target, _ = index
    frame = pd.read_parquet(target / "index.parquet")
    frame.loc[3, "shard"] = None
    frame.to_parquet(target / "index.parquet", index=False)
    with pytest.raises(AtomloomError, match="is not an index of graphs"):
        GraphStore(target)


def test_index_of_a_moved_project_is_found_from_elsewhere(index, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    moved = tmp_path.parent / f"{tmp_path.name}-moved"
    tmp_path.rename(moved)
    assert len(GraphStore(moved / "results" / "demo" / "index" / "key")) == 7
    (moved / "store" / "2.zarr.zip").unlink()
    (moved / "store" / "0.zarr.zip").unlink()
    with pytest.raises(AtomloomError, match=r"names shard 0\.zarr\.zip"):
        GraphStore(moved / "results" / "demo" / "index" / "key")


def test_store_reads_nothing_it_was_not_asked_for(folder, monkeypatch):
    opened = []
    plain = store.read_graphs
    monkeypatch.setattr(
        store,
        "read_graphs",
        lambda path, **options: opened.append(path.name) or plain(path, **options),
    )
    monkeypatch.setattr(store, "KEPT_SHARDS", 2)
    graphs = GraphStore(folder)
    assert opened == []
    graphs[0], graphs[1], graphs[3], graphs[2]
    assert opened == ["0.zarr.zip", "1.zarr.zip"]
    graphs[6]
    graphs[4]  # shard 1 had to go: shard 0 was used after it
    assert opened[2:] == ["2.zarr.zip", "1.zarr.zip"]


def test_damaged_shard_is_an_error_not_a_graph(folder):
    path = folder / "1.zarr.zip"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    graphs = GraphStore(folder)
    assert len(graphs[0:3]) == 3
    for read in (lambda: graphs[4], graphs.load):
        with pytest.raises(AtomloomError, match=r"1\.zarr\.zip.*run `atomloom repair`"):
            read()


def test_empty_shard(tmp_path):
    empty = build_graphs(table_of(rutile()), SPEC).take([])
    write_graphs(tmp_path / "a.zarr.zip", empty, SPEC)
    graphs = GraphStore(tmp_path)
    assert len(graphs) == 0
    assert len(graphs.load()) == 0


def test_dgl_graph_points_from_source_to_image(tmp_path):
    dgl = pytest.importorskip("dgl")
    import torch

    members = [perovskite(), magnesium()]
    spec = GraphSpec(max_neighbors=12)
    write_graphs(tmp_path / "a.zarr.zip", build_graphs(table_of(*members), spec), spec)
    graphs = GraphStore(tmp_path)
    for position, structure in enumerate(members):
        graph, out = graphs[position], graphs.to_dgl(position)
        assert isinstance(out, dgl.DGLGraph)
        assert out.ndata["atomic_number"].tolist() == structure.numbers.tolist()
        src, dst = (ends.numpy() for ends in out.edges())
        r = out.edata["r"].double().numpy()
        assert out.edata["r"].dtype == torch.get_default_dtype()
        # r leads from the source to some image of the destination.
        fractions = (structure.positions[src] + r - structure.positions[dst]) @ np.linalg.inv(
            structure.cell
        )
        np.testing.assert_allclose(fractions, np.rint(fractions), atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(r, axis=1), graph.distances, atol=1e-5)
    copies = graphs.to_dgl(1, copies=True)
    own = int((graphs[1].src == graphs[1].dst).sum())
    assert own > 0
    assert copies.num_edges() == len(graphs[1].src) + own
