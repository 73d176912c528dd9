"""GraphLoader: batches of a data set in memory, each sliced out of the concatenated arrays at once.

One compiled pass a batch writes every array of it; there is no object and no Python a structure.
A background thread works ahead (the compiled passes hold no interpreter lock). What comes out is a
function of (seed, epoch, position), so two integers are all the state there is. This module knows
nothing of models and of training.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import numpy as np
import torch
from numba import njit
from torch import Tensor

from atomloom.config.training import Batching
from atomloom.data.batch import GraphBatch
from atomloom.data.batching import BatchPlan, Sizes, check_rows, plan_epoch, share
from atomloom.errors import AtomloomError
from atomloom.graphs.graph import GraphTable

FLOATS = {torch.float32: np.float32, torch.float64: np.float64}


class GraphLoader:
    """Cuts batches out of a table.

    Args:
        table: graphs of the whole data set.
        rows: the rows of it to go through.
        targets: [S, K] float64 for all rows of the table, NaN where unknown; None for none.
        bounds: most structures, atoms, edges and triplets of a batch.
        seed: seed of the orders.
        shuffle: a new order every epoch; otherwise that of `rows`.
        dtype: working precision of the floats.
        multiplicity: weigh edges as ComFormer's graph holds them (once or twice, by `listed`);
            False where every edge counts once. None: True if the table has `listed`.
        vectors: compute edge vectors, in float64 before rounding; False where they must be
            differentiated.
        rank: which part of each batch to deliver, of `ranks`. A rank whose part is empty gets the
            first structure of the batch with unknown targets, so that all ranks take every step.
        ranks: number of processes that share each batch.
        prefetch: batches to prepare ahead in a background thread; 0 for none.
        pin: put batches into page-locked memory.

    Raises:
        AtomloomError: when rows reach beyond the table, repeat, or targets do not fit it.
    """

    def __init__(
        self,
        table: GraphTable,
        rows: np.ndarray,
        targets: np.ndarray | None = None,
        bounds: Batching | None = None,
        *,
        seed: int = 0,
        shuffle: bool = False,
        dtype: torch.dtype = torch.float32,
        multiplicity: bool | None = None,
        vectors: bool = True,
        rank: int = 0,
        ranks: int = 1,
        prefetch: int = 2,
        pin: bool = False,
    ) -> None:
        self.rows = check_rows(rows, len(table), "rows")
        self.bounds = bounds or Batching()
        self.sizes = Sizes.of(table)
        self.seed, self.shuffle = seed, shuffle
        self.rank, self.ranks = rank, ranks
        self.prefetch = prefetch
        if multiplicity is None:
            multiplicity = table.listed is not None
        if multiplicity and table.listed is None:
            raise AtomloomError("only k-nearest graphs have multiplicities", where="graph")
        if targets is not None and (targets.ndim != 2 or len(targets) != len(table)):
            raise AtomloomError(
                f"targets of shape {targets.shape} for {len(table)} structures", where="targets"
            )
        self._slicer = _Slicer(table, targets, dtype, multiplicity, vectors, pin)
        self._known = None if targets is None else np.isfinite(targets).sum(axis=1)
        self._plan: tuple[int, BatchPlan] | None = None

    def plan(self, epoch: int = 0) -> BatchPlan:
        """The batches of an epoch, before they are shared among ranks."""
        key = epoch if self.shuffle else 0
        if self._plan is None or self._plan[0] != key:
            plan = plan_epoch(
                self.rows,
                self.sizes,
                self.bounds,
                shuffle=self.shuffle,
                seed=self.seed,
                epoch=key,
            )
            self._plan = (key, plan)
        return self._plan[1]

    def known(self, epoch: int = 0) -> np.ndarray:
        """[batches] int64, how many target values of each batch are known, over all ranks."""
        if self._known is None:
            raise AtomloomError("the loader has no targets")
        return self.plan(epoch).sums(self._known)

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[GraphBatch]:
        """This rank's part of every batch of an epoch, from batch `start` on."""
        plan = self.plan(epoch)
        made = (self._batch(plan, position) for position in range(start, len(plan)))
        return _work_ahead(made, self.prefetch) if self.prefetch else made

    def __iter__(self) -> Iterator[GraphBatch]:
        return self.batches()

    def __len__(self) -> int:
        return len(self.plan())

    def worst(self) -> np.ndarray:
        """Rows of the heaviest batch that the bounds allow: largest structures first."""
        order = np.argsort(-self.sizes.edges[self.rows], kind="stable")
        plan = plan_epoch(self.rows[order], self.sizes, self.bounds)
        heaviest = np.argmax(plan.sums(self.sizes.edges)) if len(plan) else 0
        return plan[int(heaviest)]

    def slice(self, rows: np.ndarray) -> GraphBatch:
        """One batch of any rows of the table."""
        return self._slicer(np.ascontiguousarray(rows, dtype=np.int64))

    def _batch(self, plan: BatchPlan, position: int) -> GraphBatch:
        rows = plan[position]
        part = share(rows, self.sizes.edges[rows], self.rank, self.ranks)
        if len(part):
            return self._slicer(part)
        batch = self._slicer(rows[:1])
        if batch.targets is not None:
            batch.targets.fill_(float("nan"))
        return batch


class _Slicer:
    """Writes a batch from the arrays of a table."""

    def __init__(
        self,
        table: GraphTable,
        targets: np.ndarray | None,
        dtype: torch.dtype,
        multiplicity: bool,
        vectors: bool,
        pin: bool,
    ) -> None:
        if dtype not in FLOATS:
            raise AtomloomError(f"batches are made in 32 or 64 bits, not {dtype}")
        self.dtype, self.vectors, self.pin = dtype, vectors, pin
        self.node_ptr = np.ascontiguousarray(table.node_ptr, dtype=np.int64)
        self.edge_ptr = np.ascontiguousarray(table.edge_ptr, dtype=np.int64)
        self.structure = tuple(
            np.ascontiguousarray(array) for array in (table.numbers, table.positions, table.cell)
        )
        self.edges = tuple(np.ascontiguousarray(a) for a in (table.src, table.dst, table.shift))
        self.listed = np.ascontiguousarray(table.listed) if multiplicity else None
        self.lattice = table.lattice
        self.triplet_ptr = self.triplet = None
        if table.triplet is not None and table.triplet_ptr is not None:
            self.triplet_ptr = np.ascontiguousarray(table.triplet_ptr, dtype=np.int64)
            self.triplet = np.ascontiguousarray(table.triplet)
        # Rounded once for the whole data set: a batch then only picks rows.
        self.targets = None if targets is None else np.ascontiguousarray(targets, FLOATS[dtype])

    def __call__(self, rows: np.ndarray) -> GraphBatch:
        graphs = len(rows)
        atoms = int((self.node_ptr[rows + 1] - self.node_ptr[rows]).sum())
        edges = int((self.edge_ptr[rows + 1] - self.edge_ptr[rows]).sum())
        batch = GraphBatch(
            numbers=self._new(atoms),
            positions=self._new(atoms, 3, dtype=self.dtype),
            cell=self._new(graphs, 3, 3, dtype=self.dtype),
            node_graph=self._new(atoms),
            node_ptr=self._new(graphs + 1),
            src=self._new(edges),
            dst=self._new(edges),
            dst_ptr=self._new(atoms + 1),
            shift=self._new(edges, 3, dtype=self.dtype),
            vectors=self._new(edges if self.vectors else 0, 3, dtype=self.dtype),
            rows=self._new(graphs),
        )
        _fill(
            rows,
            self.node_ptr,
            self.edge_ptr,
            *self.structure,
            *self.edges,
            batch.numbers.numpy(),
            batch.positions.numpy(),
            batch.cell.numpy(),
            batch.node_graph.numpy(),
            batch.node_ptr.numpy(),
            batch.src.numpy(),
            batch.dst.numpy(),
            batch.dst_ptr.numpy(),
            batch.shift.numpy(),
            batch.vectors.numpy(),
            batch.rows.numpy(),
        )
        if not self.vectors:
            batch.vectors = None
        if self.listed is not None:
            batch.multiplicity = self._new(edges, dtype=self.dtype)
            _fill_multiplicity(rows, self.edge_ptr, self.listed, batch.multiplicity.numpy())
        if self.lattice is not None:
            batch.lattice = self._new(graphs, 3, 3, dtype=self.dtype)
            batch.lattice.numpy()[...] = self.lattice[rows]
        if self.triplet is not None:
            count = int((self.triplet_ptr[rows + 1] - self.triplet_ptr[rows]).sum())
            batch.triplets = self._new(count, 2)
            _fill_triplets(
                rows, self.edge_ptr, self.triplet_ptr, self.triplet, batch.triplets.numpy()
            )
        if self.targets is not None:
            batch.targets = self._new(graphs, self.targets.shape[1], dtype=self.dtype)
            np.take(self.targets, rows, axis=0, out=batch.targets.numpy(), mode="clip")
        return batch

    def _new(self, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=self.pin)


def _work_ahead(made: Iterator[GraphBatch], depth: int) -> Iterator[GraphBatch]:
    """Draw from an iterator in a thread, up to `depth` items ahead; its errors come through."""
    ready: queue.Queue = queue.Queue(maxsize=depth)
    stopped = threading.Event()
    end = object()

    def work() -> None:
        last: object = end
        try:
            for item in made:
                ready.put(item)
                if stopped.is_set():
                    return
        except BaseException as error:
            last = error
        ready.put(last)

    worker = threading.Thread(target=work, name="atomloom-loader", daemon=True)
    worker.start()
    try:
        while (item := ready.get()) is not end:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        while worker.is_alive():
            try:
                ready.get_nowait()  # make room, so that the worker sees the flag
            except queue.Empty:
                worker.join(timeout=0.01)


@njit(nogil=True, cache=True)
def _fill(
    rows,
    node_ptr,
    edge_ptr,
    numbers,
    positions,
    cell,
    src,
    dst,
    shift,
    out_numbers,
    out_positions,
    out_cell,
    out_node_graph,
    out_node_ptr,
    out_src,
    out_dst,
    out_dst_ptr,
    out_shift,
    out_vectors,
    out_rows,
):
    with_vectors = len(out_vectors) == len(out_src)
    first_atom = 0
    edge = 0
    out_node_ptr[0] = 0
    for graph in range(len(rows)):
        row = rows[graph]
        begin = node_ptr[row]
        count = node_ptr[row + 1] - begin
        for i in range(count):
            atom = first_atom + i
            out_numbers[atom] = numbers[begin + i]
            out_node_graph[atom] = graph
            out_dst_ptr[atom] = 0
            for axis in range(3):
                out_positions[atom, axis] = positions[begin + i, axis]
        for i in range(3):
            for axis in range(3):
                out_cell[graph, i, axis] = cell[row, i, axis]
        c00, c01, c02 = cell[row, 0, 0], cell[row, 0, 1], cell[row, 0, 2]
        c10, c11, c12 = cell[row, 1, 0], cell[row, 1, 1], cell[row, 1, 2]
        c20, c21, c22 = cell[row, 2, 0], cell[row, 2, 1], cell[row, 2, 2]
        center = 0
        for e in range(edge_ptr[row], edge_ptr[row + 1]):
            i, j = np.int64(dst[e]), np.int64(src[e])
            while center <= i:  # edges are sorted by dst
                out_dst_ptr[first_atom + center] = edge
                center += 1
            out_src[edge] = first_atom + j
            out_dst[edge] = first_atom + i
            s0, s1, s2 = np.float64(shift[e, 0]), np.float64(shift[e, 1]), np.float64(shift[e, 2])
            out_shift[edge, 0], out_shift[edge, 1], out_shift[edge, 2] = s0, s1, s2
            if with_vectors:
                a, b = begin + i, begin + j
                x = s0 * c00 + s1 * c10 + s2 * c20
                y = s0 * c01 + s1 * c11 + s2 * c21
                z = s0 * c02 + s1 * c12 + s2 * c22
                out_vectors[edge, 0] = positions[b, 0] + x - positions[a, 0]
                out_vectors[edge, 1] = positions[b, 1] + y - positions[a, 1]
                out_vectors[edge, 2] = positions[b, 2] + z - positions[a, 2]
            edge += 1
        while center < count:
            out_dst_ptr[first_atom + center] = edge
            center += 1
        first_atom += count
        out_node_ptr[graph + 1] = first_atom
        out_rows[graph] = row
    out_dst_ptr[first_atom] = edge


@njit(nogil=True, cache=True)
def _fill_multiplicity(rows, edge_ptr, listed, out):
    edge = 0
    for graph in range(len(rows)):
        for e in range(edge_ptr[rows[graph]], edge_ptr[rows[graph] + 1]):
            out[edge] = (listed[e] & 1) + ((listed[e] >> 1) & 1)
            edge += 1


@njit(nogil=True, cache=True)
def _fill_triplets(rows, edge_ptr, triplet_ptr, triplet, out):
    first_edge = 0
    k = 0
    for graph in range(len(rows)):
        row = rows[graph]
        for t in range(triplet_ptr[row], triplet_ptr[row + 1]):
            out[k, 0] = first_edge + np.int64(triplet[t, 0])
            out[k, 1] = first_edge + np.int64(triplet[t, 1])
            k += 1
        first_edge += edge_ptr[row + 1] - edge_ptr[row]
