"""GraphLoader: batches of a data set in memory, each sliced out of the concatenated arrays at once.

One compiled pass a batch writes every array of it; there is no object and no Python a structure.
A background thread works ahead (the compiled passes hold no interpreter lock). What comes out is a
function of (seed, epoch, position), so two integers are all the state there is. This module knows
nothing of models and of training.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

import numpy as np
import torch
from numba import njit
from torch import Tensor

from atomloom.config.training import Batching
from atomloom.data.batch import GraphBatch
from atomloom.data.batching import BatchPlan, Sizes, check_rows, plan_epoch, share
from atomloom.errors import AtomloomError
from atomloom.graphs.graph import GraphTable

T = TypeVar("T")

FLOATS = {torch.float32: np.float32, torch.float64: np.float64}


AHEAD = 2
"""Batches that are prepared ahead where it is worth it."""
WORTH_A_THREAD = 1e-3
"""Seconds to write a batch from which on a thread pays for handing over."""
MEASURED = 3
"""Batches to measure that by."""


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
        prefetch: batches to prepare ahead in a background thread; 0 for none. None: measure, and
            work ahead where writing a batch takes long enough to be worth a thread.
        device: where batches are delivered; transfers to a GPU run beside its work.

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
        prefetch: int | None = None,
        device: torch.device | str = "cpu",
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
        self._slicer = _Slicer(table, targets, dtype, multiplicity, vectors, torch.device(device))
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
        slabs = self._slabs(plan, start)
        try:
            for slab, padding in slabs:
                batch = self._slicer.cut(slab)
                if padding and batch.targets is not None:
                    batch.targets.fill_(float("nan"))
                yield batch
        finally:
            slabs.close()

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
        return self._slicer.cut(self._slicer.write(np.ascontiguousarray(rows, dtype=np.int64)))

    def _slabs(self, plan: BatchPlan, start: int) -> Generator[tuple[_Slab, bool], None, None]:
        """The parts of the batches from `start` on, prepared ahead or not."""
        if self.prefetch is None:
            seconds = []
            while start < len(plan) and len(seconds) < MEASURED:
                begun = time.perf_counter()
                part = self._part(plan, start)
                seconds.append(time.perf_counter() - begun)
                start += 1
                yield part
            if len(seconds) == MEASURED:  # the least: the first has to compile
                self.prefetch = AHEAD if min(seconds) > WORTH_A_THREAD else 0
        parts = (self._part(plan, position) for position in range(start, len(plan)))
        yield from _work_ahead(parts, self.prefetch) if self.prefetch else parts

    def _part(self, plan: BatchPlan, position: int) -> tuple[_Slab, bool]:
        """This rank's part of a batch, and whether it is mere padding."""
        rows = plan[position]
        if self.ranks == 1:
            return self._slicer.write(rows), False
        part = share(rows, self.sizes.edges[rows], self.rank, self.ranks)
        return self._slicer.write(part if len(part) else rows[:1]), not len(part)


@dataclass(frozen=True)
class _Slab:
    """A batch in page-locked or plain memory: all its integers in one array, all its floats in another.

    Two transfers bring it to a device, however many tensors it is cut into there.
    """

    ints: Tensor
    floats: Tensor
    graphs: int
    atoms: int
    edges: int
    triplets: int


class _Slicer:
    """Writes slabs from the arrays of a table, and cuts them into batches."""

    def __init__(
        self,
        table: GraphTable,
        targets: np.ndarray | None,
        dtype: torch.dtype,
        multiplicity: bool,
        vectors: bool,
        device: torch.device,
    ) -> None:
        if dtype not in FLOATS:
            raise AtomloomError(f"batches are made in 32 or 64 bits, not {dtype}")
        self.dtype, self.device, self.pin = dtype, device, device.type == "cuda"
        self.vectors, self.multiplicity = vectors, multiplicity
        self.lattice, self.triplets = table.lattice is not None, table.triplet is not None
        self.outputs = 0 if targets is None else targets.shape[1]
        self.pointers = tuple(
            np.ascontiguousarray(np.zeros(len(table) + 1) if ptr is None else ptr, dtype=np.int64)
            for ptr in (table.node_ptr, table.edge_ptr, table.triplet_ptr)
        )
        none = np.zeros(0, dtype=np.uint8)
        # Targets are rounded once for the whole data set: a batch then only picks rows.
        self.arrays = tuple(
            np.ascontiguousarray(array)
            for array in (
                table.numbers,
                table.positions,
                table.cell,
                table.src,
                table.dst,
                table.shift,
                table.listed if multiplicity else none,
                table.lattice if self.lattice else np.zeros((0, 3, 3)),
                table.triplet if self.triplets else np.zeros((0, 2), dtype=np.uint32),
                np.zeros((0, 0), FLOATS[dtype])
                if targets is None
                else targets.astype(FLOATS[dtype]),
            )
        )

    def write(self, rows: np.ndarray) -> _Slab:
        """Collect the arrays of some rows; takes no lock of the interpreter while it does."""
        atoms, edges, triplets = _measure(rows, *self.pointers)
        graphs = len(rows)
        slab = _Slab(
            self._new(_starts(self._ints(graphs, atoms, edges, triplets))[-1], torch.int64),
            self._new(_starts(self._floats(graphs, atoms, edges))[-1], self.dtype),
            graphs,
            atoms,
            edges,
            triplets,
        )
        _fill(
            rows,
            *self.pointers,
            *self.arrays,
            slab.ints.numpy(),
            _starts(self._ints(graphs, atoms, edges, triplets)),
            slab.floats.numpy(),
            _starts(self._floats(graphs, atoms, edges)),
            self.vectors,
        )
        return slab

    def cut(self, slab: _Slab) -> GraphBatch:
        """The batch on its device."""
        graphs, atoms, edges, triplets = slab.graphs, slab.atoms, slab.edges, slab.triplets
        ints, floats = slab.ints, slab.floats
        if self.pin:
            ints = ints.to(self.device, non_blocking=True)
            floats = floats.to(self.device, non_blocking=True)
        i = _starts(self._ints(graphs, atoms, edges, triplets))
        f = _starts(self._floats(graphs, atoms, edges))

        def table(buffer: Tensor, start: int, *shape: int) -> Tensor:
            strides = (9, 3, 1)[-len(shape) :] if shape[-1] == 3 else (shape[-1], 1)
            return buffer.as_strided(shape, strides, start)

        return GraphBatch(
            numbers=ints.narrow(0, i[0], atoms),
            node_graph=ints.narrow(0, i[1], atoms),
            node_ptr=ints.narrow(0, i[2], graphs + 1),
            src=ints.narrow(0, i[3], edges),
            dst=ints.narrow(0, i[4], edges),
            dst_ptr=ints.narrow(0, i[5], atoms + 1),
            rows=ints.narrow(0, i[6], graphs),
            triplets=table(ints, i[7], triplets, 2) if self.triplets else None,
            positions=table(floats, f[0], atoms, 3),
            cell=table(floats, f[1], graphs, 3, 3),
            shift=table(floats, f[2], edges, 3),
            vectors=table(floats, f[3], edges, 3) if self.vectors else None,
            multiplicity=floats.narrow(0, f[4], edges) if self.multiplicity else None,
            lattice=table(floats, f[5], graphs, 3, 3) if self.lattice else None,
            targets=table(floats, f[6], graphs, self.outputs) if self.outputs else None,
        )

    def _ints(self, graphs: int, atoms: int, edges: int, triplets: int) -> tuple[int, ...]:
        """Lengths of the parts of the integers, in the order in which `cut` and `_fill` know them."""
        return atoms, atoms, graphs + 1, edges, edges, atoms + 1, graphs, 2 * triplets

    def _floats(self, graphs: int, atoms: int, edges: int) -> tuple[int, ...]:
        """Lengths of the parts of the floats, likewise."""
        return (
            3 * atoms,
            9 * graphs,
            3 * edges,
            3 * edges * self.vectors,
            edges * self.multiplicity,
            9 * graphs * self.lattice,
            graphs * self.outputs,
        )

    def _new(self, length: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(length, dtype=dtype, pin_memory=self.pin)


def _starts(lengths: tuple[int, ...]) -> tuple[int, ...]:
    """Where parts of these lengths start, each on a boundary of 16 elements; and the whole length."""
    return tuple(accumulate(((length + 15) & ~15 for length in lengths), initial=0))


def _work_ahead(made: Iterator[T], depth: int) -> Generator[T, None, None]:
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
def _measure(rows, node_ptr, edge_ptr, triplet_ptr):
    atoms = edges = triplets = 0
    for row in rows:
        atoms += node_ptr[row + 1] - node_ptr[row]
        edges += edge_ptr[row + 1] - edge_ptr[row]
        triplets += triplet_ptr[row + 1] - triplet_ptr[row]
    return atoms, edges, triplets


@njit(nogil=True, cache=True)
def _fill(
    rows,
    node_ptr,
    edge_ptr,
    triplet_ptr,
    numbers,
    positions,
    cell,
    src,
    dst,
    shift,
    listed,
    lattice,
    triplet,
    targets,
    ints,
    int_starts,
    floats,
    float_starts,
    with_vectors,
):
    out_numbers, out_node_graph, out_node_ptr = (
        ints[int_starts[0] :],
        ints[int_starts[1] :],
        ints[int_starts[2] :],
    )
    out_src, out_dst, out_dst_ptr = (
        ints[int_starts[3] :],
        ints[int_starts[4] :],
        ints[int_starts[5] :],
    )
    out_rows, out_triplets = ints[int_starts[6] :], ints[int_starts[7] :]
    out_positions, out_cell, out_shift = (
        floats[float_starts[0] :],
        floats[float_starts[1] :],
        floats[float_starts[2] :],
    )
    out_vectors, out_multiplicity = floats[float_starts[3] :], floats[float_starts[4] :]
    out_lattice, out_targets = floats[float_starts[5] :], floats[float_starts[6] :]
    first_atom = 0
    edge = 0
    pair = 0
    out_node_ptr[0] = 0
    for graph in range(len(rows)):
        row = rows[graph]
        begin = node_ptr[row]
        count = node_ptr[row + 1] - begin
        out_rows[graph] = row
        for i in range(count):
            atom = first_atom + i
            out_numbers[atom] = numbers[begin + i]
            out_node_graph[atom] = graph
            for axis in range(3):
                out_positions[3 * atom + axis] = positions[begin + i, axis]
        for i in range(3):
            for axis in range(3):
                out_cell[9 * graph + 3 * i + axis] = cell[row, i, axis]
                if len(lattice):
                    out_lattice[9 * graph + 3 * i + axis] = lattice[row, i, axis]
        for k in range(targets.shape[1]):
            out_targets[targets.shape[1] * graph + k] = targets[row, k]

        first_edge = edge
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
            out_shift[3 * edge], out_shift[3 * edge + 1], out_shift[3 * edge + 2] = s0, s1, s2
            if with_vectors:
                a, b = begin + i, begin + j
                x = s0 * c00 + s1 * c10 + s2 * c20
                y = s0 * c01 + s1 * c11 + s2 * c21
                z = s0 * c02 + s1 * c12 + s2 * c22
                out_vectors[3 * edge] = positions[b, 0] + x - positions[a, 0]
                out_vectors[3 * edge + 1] = positions[b, 1] + y - positions[a, 1]
                out_vectors[3 * edge + 2] = positions[b, 2] + z - positions[a, 2]
            if len(listed):
                out_multiplicity[edge] = (listed[e] & 1) + ((listed[e] >> 1) & 1)
            edge += 1
        while center < count:
            out_dst_ptr[first_atom + center] = edge
            center += 1

        for t in range(triplet_ptr[row], triplet_ptr[row + 1]):
            out_triplets[2 * pair] = first_edge + np.int64(triplet[t, 0])
            out_triplets[2 * pair + 1] = first_edge + np.int64(triplet[t, 1])
            pair += 1
        first_atom += count
        out_node_ptr[graph + 1] = first_atom
    out_dst_ptr[first_atom] = edge
