"""OnDiskGraphs: a data set that stays on disk, with sizes in memory and graphs read on demand.

Data on all structures at once (sizes, pointers, hashes) have the names of a GraphTable. Graphs of any
rows are returned as a table in the given order, with each shard opened once and copied directly into
place, so that reading takes the memory of the result and of one shard. It knows nothing of batches,
epochs or torch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np

from atomloom.compiled import njit
from atomloom.data.batching import Sizes
from atomloom.errors import AtomloomError, again
from atomloom.graphs.graph import ARRAYS, GraphTable
from atomloom.graphs.store import GraphStore, other_graphs, read_graphs
from atomloom.store.forms import misled
from atomloom.store.parquet import read_table
from atomloom.store.shards import REPAIR, read_shard

POINTERS = {"node_ptr": "atoms", "edge_ptr": "edges", "triplet_ptr": "triplets"}
"""Pointers of a table, and the sizes of which they are the cumulative sums."""
RAGGED = {
    "numbers": "node_ptr",
    "positions": "node_ptr",
    "src": "edge_ptr",
    "dst": "edge_ptr",
    "shift": "edge_ptr",
    "listed": "edge_ptr",
    "triplet": "triplet_ptr",
}
"""Arrays of a table with one row per atom, edge or triplet, and their pointers."""


class OnDiskGraphs:
    """Graphs of a store, read on demand.

    Args:
        store: the graphs. Without an index the sizes are read from all shards.

    Raises:
        AtomloomError: if the index is damaged or there are no graphs.
    """

    def __init__(self, store: GraphStore) -> None:
        if not len(store):
            raise AtomloomError("holds no graphs", where=store.path)
        self._store = store
        self._paths: list[Path] = store.paths
        self._row: np.ndarray = store.row
        self.shard: np.ndarray = np.asarray(store.shard, dtype=np.int64)
        """[S] int64, shard of each structure."""
        self._sound: set[int] = set()  # shards whose digests have been verified
        self.sizes = self._read_sizes()
        """Sizes of all structures."""
        self._first = read_graphs(self._paths[0]).take([])

    def __len__(self) -> int:
        return len(self._row)

    def _read_sizes(self) -> Sizes:
        path = self._store.path
        index = path / "index.parquet" if path.is_dir() else path
        if index.suffix == ".parquet" and index.exists():
            wanted = ["n_atoms", "n_edges", "n_triplets"]
            frame = read_table(index, wanted, todo=again("index"))
            if frame.min(axis=None) < 0:
                raise AtomloomError("is not an index of graphs", where=index, todo=again("index"))
            return Sizes(*(frame[name].to_numpy(np.int64) for name in frame))
        parts = [Sizes.of(read_graphs(path)) for path in self._paths]
        self._sound.update(range(len(self._paths)))
        return Sizes(
            *(np.concatenate([getattr(part, name) for part in parts]) for name in POINTERS.values())
        )

    # --- data on all structures ---

    @cached_property
    def node_ptr(self) -> np.ndarray:
        """[S+1] int64, as for one table of all."""
        return _pointers(self.sizes.atoms)

    @cached_property
    def edge_ptr(self) -> np.ndarray:
        """[S+1] int64, as for one table of all."""
        return _pointers(self.sizes.edges)

    @cached_property
    def triplet_ptr(self) -> np.ndarray | None:
        """[S+1] int64, as for one table of all; None where there are no triplets."""
        return None if self._first.triplet is None else _pointers(self.sizes.triplets)

    @property
    def hash(self) -> np.ndarray:
        """[S, 32] uint8, structure hashes."""
        return self._store.hashes

    @cached_property
    def numbers(self) -> np.ndarray:
        """[A] uint8, atomic numbers; the first access reads all shards."""
        found = np.empty(self.node_ptr[-1], dtype=np.uint8)
        for shard, places in _groups(self.shard):
            path = self._paths[shard]
            arrays, _ = read_shard(path, ["node_ptr", "numbers"])
            pointer, rows, atoms = arrays["node_ptr"], self._row[places], self.sizes.atoms[places]
            whole = misled(pointer, len(arrays["numbers"]), "node_ptr") == ""
            if (
                not whole
                or rows.max() >= len(pointer) - 1
                or (np.diff(pointer)[rows] != atoms).any()
            ):
                raise other_graphs(path)
            _lay(arrays["numbers"], arrays["node_ptr"], self._row[places], found, self.node_ptr, places)  # fmt: skip
        return found

    @property
    def form(self) -> GraphTable:
        """Empty table with the same arrays as these graphs."""
        return self._first

    @cached_property
    def weights(self) -> np.ndarray:
        """[S] int64, max bytes that each structure takes in memory."""
        weights = np.full(len(self), 8 * len(POINTERS), dtype=np.int64)
        for name, array in self._empty(np.zeros(0, dtype=np.int64)).items():
            width = array.dtype.itemsize * int(np.prod(array.shape[1:]))
            if name == "shift":
                width = 2 * 3  # a shard with far images has shifts of 16 bits
            if name in RAGGED:
                weights += width * getattr(self.sizes, POINTERS[RAGGED[name]])
            elif name not in POINTERS:
                weights += width
        return weights

    @cached_property
    def reading(self) -> int:
        """Max bytes needed to read the largest shard, besides the result."""
        decoded = np.bincount(self.shard, self.weights, minlength=len(self._paths))
        stored = np.array([path.stat().st_size if path.exists() else 0 for path in self._paths])
        # The file, one unpacked array, and all decoded arrays.
        return int((decoded + 2 * stored).max())

    # --- graphs ---

    def read(
        self,
        rows: np.ndarray,
        carried: GraphTable | None = None,
        go_on: Callable[[], bool] = lambda: True,
    ) -> GraphTable:
        """Read the graphs of these rows, in this order.

        Args:
            rows: [R] of the data set.
            carried: graphs of the first of these rows, which are not read again.
            go_on: called before each shard; if it returns false, the table has gaps.

        Raises:
            AtomloomError: if a shard is absent, damaged, or not as large as the index says.
        """
        rows = np.ascontiguousarray(rows, dtype=np.int64)
        arrays = self._empty(rows)
        known = 0 if carried is None else len(carried)
        if carried is not None and known:
            self._put(carried, np.arange(known), arrays, np.arange(known), rows)
        for shard, places in _groups(self.shard[rows[known:]]):
            if not go_on():
                break
            path = self._paths[shard]
            table = read_graphs(path, verify=shard not in self._sound)
            self._sound.add(shard)
            self._store.require(table, shard, rows[known + places])
            self._put(table, self._row[rows[known + places]], arrays, known + places, rows, path)
        return GraphTable(**arrays, attributes=self._first.attributes)

    def _empty(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Uninitialised arrays for the graphs of these rows, with pointers filled in."""
        arrays: dict[str, np.ndarray] = {}
        for name, size in POINTERS.items():
            if getattr(self._first, name) is not None:
                arrays[name] = _pointers(getattr(self.sizes, size)[rows])
        wide = np.uint32 if self.sizes.atoms.max(initial=0) > 2**16 else np.uint16
        for name in ARRAYS:
            form = getattr(self._first, name)
            if form is None or name in POINTERS:
                continue
            length = arrays[RAGGED[name]][-1] if name in RAGGED else len(rows)
            dtype = wide if name in ("src", "dst") else form.dtype
            arrays[name] = np.empty((length, *form.shape[1:]), dtype)
        return arrays

    def _put(
        self,
        table: GraphTable,
        rows: np.ndarray,
        arrays: dict[str, np.ndarray],
        places: np.ndarray,
        wanted: np.ndarray,
        path: Path | None = None,
    ) -> None:
        """Copy graphs of a table into `arrays` at `places`."""
        for name, size in POINTERS.items():
            pointer = getattr(table, name)
            if (pointer is None) != (name not in arrays):
                raise AtomloomError("has other arrays than the first shard", where=path)
            if pointer is None:
                continue
            sizes = getattr(self.sizes, size)[wanted[places]]
            if (pointer[rows + 1] - pointer[rows] != sizes).any():
                raise other_graphs(path)
        for name, out in arrays.items():
            values = getattr(table, name)
            if name in POINTERS:
                continue
            if values is None:
                raise AtomloomError(f"has no array `{name}`", where=path, todo=REPAIR)
            if name not in RAGGED:
                out[places] = values[rows]
                continue
            common = np.promote_types(values.dtype, out.dtype)
            if common != out.dtype:
                out = arrays[name] = out.astype(common)
            pointer = RAGGED[name]
            _lay(values.astype(common, copy=False), getattr(table, pointer), rows, out, arrays[pointer], places)  # fmt: skip


GraphSource = GraphTable | OnDiskGraphs
"""Graphs of a data set, in memory or on disk."""


def _pointers(counts: np.ndarray) -> np.ndarray:
    pointers = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=pointers[1:])
    return pointers


def _groups(shard: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Each shard, ascending, with the positions where it occurs."""
    order = np.argsort(shard, kind="stable")
    borders = np.flatnonzero(np.diff(shard[order])) + 1
    parts = np.split(order, borders) if len(order) else []
    return [(int(shard[part[0]]), part) for part in parts]


def _lay(
    values: np.ndarray,
    from_ptr: np.ndarray,
    rows: np.ndarray,
    out: np.ndarray,
    to_ptr: np.ndarray,
    places: np.ndarray,
) -> None:
    """Copy ragged rows of `values` to `places` of `out`, an array of the same type."""
    if not values.size or not out.size:
        return
    width = values.dtype.itemsize * int(np.prod(values.shape[1:]))
    flat, target = (np.ascontiguousarray(a).reshape(-1).view(np.uint8) for a in (values, out))
    _copy(flat, from_ptr, rows, target, to_ptr, places, width)


@njit(nogil=True, cache=True)
def _copy(
    values: np.ndarray,
    from_ptr: np.ndarray,
    rows: np.ndarray,
    out: np.ndarray,
    to_ptr: np.ndarray,
    places: np.ndarray,
    width: int,
) -> None:
    for k in range(len(rows)):
        begin, end = from_ptr[rows[k]] * width, from_ptr[rows[k] + 1] * width
        start = to_ptr[places[k]] * width
        # Separate slices: indices that cannot be negative make this a plain copy.
        source, target = values[begin:end], out[start : start + end - begin]
        for i in range(len(source)):
            target[i] = source[i]
