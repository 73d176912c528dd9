"""Shards of graphs on disk, and `GraphStore`, which reads many of them as one sequence.

`write_graphs` and `read_graphs` are the two ends of a shard (docs/formats.md); the arrays of a
GraphTable keep their names. A store opens shards when it needs them and keeps the last few. It
knows nothing of how graphs are built or of training; DGL is imported only by `to_dgl`.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from atomloom.config.graph import GraphSpec
from atomloom.errors import AtomloomError, again
from atomloom.graphs.graph import ARRAYS, OPTIONAL_ARRAYS, Graph, GraphTable, no_graphs
from atomloom.graphs.line_graph import jarvis_graph
from atomloom.store.files import read_json
from atomloom.store.keys import BUILDER, HASH_BYTES
from atomloom.store.parquet import read_table
from atomloom.store.shards import REPAIR, SUFFIX, read_attributes, read_shard, write_shard

if TYPE_CHECKING:
    import dgl

KEPT_SHARDS = 8
"""Number of shards that a store keeps in memory."""


def write_graphs(
    path: str | os.PathLike[str],
    table: GraphTable,
    spec: GraphSpec,
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Write a table of graphs as one shard, completely or not at all.

    Args:
        path: of the shard.
        table: the graphs.
        spec: by which they were built; recorded.
        attributes: further attributes of the shard.
    """
    arrays = {name: getattr(table, name) for name in ARRAYS if getattr(table, name) is not None}
    counts = {"structures": len(table), "atoms": len(table.numbers), "edges": len(table.src)}
    if table.triplet is not None:
        counts["triplets"] = len(table.triplet)
    own = {"kind": "graphs", "spec": spec.key_content(), "builder": BUILDER, "counts": counts}
    write_shard(path, arrays, {**(attributes or {}), **own})


def read_graphs(path: str | os.PathLike[str], *, verify: bool = True) -> GraphTable:
    """Read the graphs of one shard; `attributes` are those of the shard.

    Raises:
        AtomloomError: if the file is absent or damaged, or holds something else or arrays that make
            no sense, whether digests are verified or not.
    """
    arrays, attributes = read_shard(path, verify=verify)
    missing = [name for name in ARRAYS if name not in arrays and name not in OPTIONAL_ARRAYS]
    if missing or attributes.get("kind") != "graphs":
        raise AtomloomError("is a shard, but not of graphs", where=path, todo=REPAIR)
    known = {name: array for name, array in arrays.items() if name in ARRAYS}
    if wrong := no_graphs(known):
        raise AtomloomError(f"makes no sense: {wrong}", where=path, todo=REPAIR)
    return GraphTable(**known, attributes=attributes)


class GraphStore:
    """Sequence of many graphs on disk: `len(store)`, `store[i]`, `store[a:b]`.

    Graph i is in row `row[i]` of the shard `paths[shard[i]]`.

    Args:
        path: an index (its folder, or `index.parquet` in it), a folder of shards, which are read
            in the order of their names, or one shard.

    Raises:
        AtomloomError: if there is no such thing, or shards of the index are missing.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._open: OrderedDict[int, GraphTable] = OrderedDict()
        index = self.path / "index.parquet" if self.path.is_dir() else self.path
        self._hashes: np.ndarray | None = None
        if index.suffix == ".parquet" and index.exists():
            self._read_index(index)
        else:
            self._list_shards()

    def _read_index(self, index: Path) -> None:
        frame = read_table(index, ["hash", "shard", "row"], todo=again("index"))
        self.shard, unique = frame["shard"].factorize(sort=True)
        names = [str(name) for name in unique]
        self.row = frame["row"].to_numpy(np.int64)
        if (
            min(self.row.min(initial=0), self.shard.min(initial=0)) < 0  # -1: no name
            or any(len(value) != HASH_BYTES for value in frame["hash"])
        ):
            raise AtomloomError("is not an index of graphs", where=index, todo=again("index"))
        folder = _folder_of(index, names)
        self.paths = [folder / name for name in names]
        hashes = b"".join(frame["hash"])
        self._hashes = np.frombuffer(hashes, np.uint8).reshape(len(frame), -1)

    def _list_shards(self) -> None:
        if self.path.is_dir():
            self.paths = sorted(self.path.glob(f"*{SUFFIX}"))
        else:
            self.paths = [self.path]
        if not self.paths or not self.paths[0].exists():
            raise AtomloomError(
                "is neither an index, nor a folder of shards, nor a shard",
                where=self.path,
                todo="run `atomloom graphs` first",
            )
        counts = [read_attributes(path).get("counts", {}) for path in self.paths]
        for path, count in zip(self.paths, counts, strict=True):
            if "structures" not in count:
                raise AtomloomError("is a shard, but not of graphs", where=path)
        sizes = [int(count["structures"]) for count in counts]
        self.shard = np.repeat(np.arange(len(sizes)), sizes)
        self.row = np.concatenate([np.arange(size) for size in sizes])

    def __len__(self) -> int:
        return len(self.row)

    @overload
    def __getitem__(self, index: int) -> Graph: ...

    @overload
    def __getitem__(self, index: slice) -> list[Graph]: ...

    def __getitem__(self, index: int | slice) -> Graph | list[Graph]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = int(index)
        if not -len(self) <= place < len(self):
            raise IndexError(f"graph {index} of a store of {len(self)}")
        shard = int(self.shard[place])
        table = self._table(shard)
        self.require(table, shard, np.array([place % len(self)]))
        return table[int(self.row[place])]

    def require(self, table: GraphTable, shard: int, places: np.ndarray) -> None:
        """Raise AtomloomError where a shard does not hold the graphs that the index says are in it.

        Args:
            table: the content of the shard.
            shard: its number.
            places: graphs of this store that it should hold.
        """
        rows = self.row[places]
        other = len(rows) and rows.max() >= len(table)
        if not other and self._hashes is not None:
            other = not np.array_equal(table.hash[rows], self._hashes[places])
        if other:
            raise other_graphs(self.paths[shard])

    @property
    def hashes(self) -> np.ndarray:
        """[S, 32] uint8, structure hashes."""
        if self._hashes is None:
            parts = [read_shard(path, ["hash"])[0]["hash"] for path in self.paths]
            self._hashes = np.concatenate(parts)
        return self._hashes

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes of the first shard: spec, builder, counts of that shard."""
        return read_attributes(self.paths[0])

    def load(self, *, verify: bool = True, threads: int | None = None) -> GraphTable:
        """All graphs as one table, in memory.

        Args:
            verify: recompute the digest of every array; checksums are always checked.
            threads: number of shards to decode at a time; by default the number of processors.

        Raises:
            AtomloomError: if a shard is absent or damaged.
        """
        if not len(self):
            return read_graphs(self.paths[0], verify=verify).take([])
        # Runs of rows from one shard: mostly whole shards, in order, which need no gathering.
        borders = np.flatnonzero(np.diff(self.shard)) + 1
        runs = [np.arange(a, b) for a, b in pairwise([0, *borders, len(self)])]
        shards = self.shard[[0, *borders]]

        def part(shard: int, places: np.ndarray) -> GraphTable:
            table = self._open.get(shard) or read_graphs(self.paths[shard], verify=verify)
            self.require(table, shard, places)
            rows = self.row[places]
            whole = len(rows) == len(table) and np.array_equal(rows, np.arange(len(table)))
            return table if whole else table.take(rows)

        # Decoding and hashing release the interpreter lock.
        with ThreadPoolExecutor(threads or _processors()) as pool:
            tables = list(pool.map(part, shards.tolist(), runs))
        return GraphTable.concatenate(tables)

    def to_dgl(self, index: int, *, copies: bool = False) -> dgl.DGLGraph:
        """Graph `index` as a DGLGraph, as jarvis-tools and ALIGNN make them.

        `ndata["atomic_number"]` [N] int64; `edata["r"]` [E, 3], A, in torch's default type, from
        source to destination's image (the negative of `Graph.vectors`); `edata["listed"]` [E] uint8
        where the graph has it.

        Args:
            index: of the graph.
            copies: whether edges between an atom and its own images occur twice, as in graphs of
                jarvis-tools (`atomloom.graphs.line_graph.jarvis_graph`), not once.

        Raises:
            AtomloomError: if DGL is not installed.
        """
        return to_dgl(jarvis_graph(self[index]) if copies else self[index])

    def _table(self, shard: int) -> GraphTable:
        if shard not in self._open:
            self._open[shard] = read_graphs(self.paths[shard])
            while len(self._open) > KEPT_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end(shard)
        return self._open[shard]


def other_graphs(path: Path | None) -> AtomloomError:
    """Error for a shard that is not the one in the index."""
    return AtomloomError("holds other graphs than the index says", where=path, todo=REPAIR)


def to_dgl(graph: Graph) -> dgl.DGLGraph:
    """Convert one graph to a DGLGraph, see `GraphStore.to_dgl`."""
    try:
        import dgl
    except ImportError as error:
        raise AtomloomError("DGL is not installed", todo="pip install 'atomloom[dgl]'") from error
    import torch

    def ends(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array.astype(np.int64))

    out = dgl.graph((ends(graph.src), ends(graph.dst)), num_nodes=len(graph.numbers))
    out.ndata["atomic_number"] = ends(graph.numbers)
    out.edata["r"] = torch.from_numpy(-graph.vectors).to(torch.get_default_dtype())
    if graph.listed is not None:
        out.edata["listed"] = torch.from_numpy(graph.listed.copy())
    return out


def _folder_of(index: Path, names: list[str]) -> Path:
    """Folder of the shards of an index: that of `index.json` next to it, or its own.

    A relative path counts from the folder the workflow ran in, which is one of those above the
    index; so a project can be moved as a whole.
    """
    told = index.with_name("index.json")
    places = [index.parent]
    if told.exists():
        store = Path(read_json(told, "store", todo=again("index"))["store"])
        places += [store, *(parent / store for parent in index.resolve().parents)]
    for place in places:
        if all((place / name).exists() for name in names[:1]):
            return place
    raise AtomloomError(
        f"names shard {names[0]}, which is in none of the expected folders",
        where=index,
        todo="build the graphs again, or open the index together with its store",
    )


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
