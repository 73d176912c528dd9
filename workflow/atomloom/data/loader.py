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
from collections.abc import Callable, Generator, Iterator, Mapping
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

FIXED_FLOATS = 7
"""Parts of the floats of a slab that every batch has; those of the extras come behind."""

FLOATS = {torch.float32: np.float32, torch.float64: np.float64}


LEARNT_EXTRAS = ("forces", "stress")
"""Extras of a batch that are targets."""
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
        of_atoms: further values of all atoms of the table, [A, D] each; in `batch.extras` by name.
        of_structures: further values of all structures, [S, D] each; likewise.
        with_edges: which structures' edges are wanted in an epoch, [S] bool; all, where not given.
            `batch.extras` then has `selected` [B] and `computed` [N], bool.

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
        of_atoms: Mapping[str, np.ndarray] | None = None,
        of_structures: Mapping[str, np.ndarray] | None = None,
        with_edges: Callable[[int], np.ndarray] | None = None,
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
        self._slicer = _Slicer(
            table,
            targets,
            dtype,
            multiplicity,
            vectors,
            torch.device(device),
            _Extras.of(table, of_atoms or {}, of_structures or {}, dtype, with_edges is not None),
        )
        self._with_edges = with_edges
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
        if self._with_edges is not None:
            self._slicer.choose(self._with_edges(epoch))
        slabs = self._slabs(plan, start)
        try:
            for slab, padding in slabs:
                batch = self._slicer.cut(slab)
                if padding:
                    _forget_targets(batch)
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


def _forget_targets(batch: GraphBatch) -> None:
    """Make a batch one that teaches nothing: all it is to be compared with becomes unknown."""
    known = [batch.targets, *(batch.extras.get(name) for name in LEARNT_EXTRAS)]
    for tensor in known:
        if tensor is not None:
            tensor.fill_(float("nan"))


@dataclass(frozen=True, eq=False)
class _Extras:
    """Values beyond the graph that batches carry, rounded once for the whole data set."""

    of_atoms: Mapping[str, np.ndarray]
    """[A, D] each."""
    of_structures: Mapping[str, np.ndarray]
    """[S, D] each."""
    choice: bool
    """Whether only some structures come with their edges."""

    @classmethod
    def of(
        cls,
        table: GraphTable,
        of_atoms: Mapping[str, np.ndarray],
        of_structures: Mapping[str, np.ndarray],
        dtype: torch.dtype,
        choice: bool,
    ) -> _Extras:
        lengths = {"atoms": len(table.numbers), "structures": len(table)}
        rounded = []
        for kind, values in zip(lengths, (of_atoms, of_structures), strict=True):
            for name, array in values.items():
                if array.ndim != 2 or len(array) != lengths[kind]:
                    raise AtomloomError(
                        f"{name} of shape {array.shape} for {lengths[kind]} {kind}", where="loader"
                    )
            rounded.append({n: np.ascontiguousarray(a, FLOATS[dtype]) for n, a in values.items()})
        return cls(*rounded, choice)

    def lengths(self, graphs: int, atoms: int) -> tuple[int, ...]:
        """Of the parts of the floats, those of atoms before those of structures."""
        return (
            *(atoms * array.shape[1] for array in self.of_atoms.values()),
            *(graphs * array.shape[1] for array in self.of_structures.values()),
        )


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
        extras: _Extras,
    ) -> None:
        if dtype not in FLOATS:
            raise AtomloomError(f"batches are made in 32 or 64 bits, not {dtype}")
        self.dtype, self.device, self.pin = dtype, device, device.type == "cuda"
        self.vectors, self.multiplicity, self.extras = vectors, multiplicity, extras
        self.chosen = np.ones(len(table) if extras.choice else 0, dtype=bool)
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

    def choose(self, chosen: np.ndarray) -> None:
        """Say which structures come with their edges from now on; [S] bool."""
        self.chosen = np.ascontiguousarray(chosen, dtype=bool)

    def write(self, rows: np.ndarray) -> _Slab:
        """Collect the arrays of some rows; takes no lock of the interpreter while it does."""
        atoms, edges, triplets = _measure(rows, *self.pointers, self.chosen)
        graphs = len(rows)
        slab = _Slab(
            self._new(_starts(self._ints(graphs, atoms, edges, triplets))[-1], torch.int64),
            self._new(_starts(self._floats(graphs, atoms, edges))[-1], self.dtype),
            graphs,
            atoms,
            edges,
            triplets,
        )
        float_starts = _starts(self._floats(graphs, atoms, edges))
        floats = slab.floats.numpy()
        _fill(
            rows,
            *self.pointers,
            *self.arrays,
            self.chosen,
            slab.ints.numpy(),
            _starts(self._ints(graphs, atoms, edges, triplets)),
            floats,
            float_starts[:FIXED_FLOATS],
            self.vectors,
        )
        extra_starts = iter(float_starts[FIXED_FLOATS:])
        for array in self.extras.of_atoms.values():
            _pick_atoms(rows, self.pointers[0], array, floats[next(extra_starts) :])
        for array in self.extras.of_structures.values():
            start = next(extra_starts)
            floats[start : start + graphs * array.shape[1]] = array[rows].reshape(-1)
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
            strides = (9, 3, 1)[-len(shape) :] if len(shape) == 3 else (shape[-1], 1)
            return buffer.as_strided(shape, strides, start)

        node_graph = ints.narrow(0, i[1], atoms)
        extras, extra_starts = {}, iter(f[FIXED_FLOATS:])
        for name, array in self.extras.of_atoms.items():
            extras[name] = table(floats, next(extra_starts), atoms, array.shape[1])
        for name, array in self.extras.of_structures.items():
            extras[name] = table(floats, next(extra_starts), graphs, array.shape[1])
        if self.extras.choice:
            extras["selected"] = ints.narrow(0, i[8], graphs) > 0
            extras["computed"] = extras["selected"].index_select(0, node_graph)
        return GraphBatch(
            numbers=ints.narrow(0, i[0], atoms),
            node_graph=node_graph,
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
            extras=extras,
        )

    def _ints(self, graphs: int, atoms: int, edges: int, triplets: int) -> tuple[int, ...]:
        """Lengths of the parts of the integers, in the order in which `cut` and `_fill` know them."""
        chosen = graphs if self.extras.choice else 0
        return atoms, atoms, graphs + 1, edges, edges, atoms + 1, graphs, 2 * triplets, chosen

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
            *self.extras.lengths(graphs, atoms),
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
def _measure(rows, node_ptr, edge_ptr, triplet_ptr, chosen):
    atoms = edges = triplets = 0
    for row in rows:
        atoms += node_ptr[row + 1] - node_ptr[row]
        if len(chosen) and not chosen[row]:
            continue
        edges += edge_ptr[row + 1] - edge_ptr[row]
        triplets += triplet_ptr[row + 1] - triplet_ptr[row]
    return atoms, edges, triplets


@njit(nogil=True, cache=True)
def _pick_atoms(rows, node_ptr, values, out):
    width = values.shape[1]
    place = 0
    for row in rows:
        for atom in range(node_ptr[row], node_ptr[row + 1]):
            for k in range(width):
                out[place] = values[atom, k]
                place += 1


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
    chosen,
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
    out_chosen = ints[int_starts[8] :]
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
        wanted = len(chosen) == 0 or chosen[row]
        if len(chosen):
            out_chosen[graph] = 1 if wanted else 0
        for e in range(edge_ptr[row], edge_ptr[row + 1] if wanted else edge_ptr[row]):
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

        for t in range(triplet_ptr[row], triplet_ptr[row + 1] if wanted else triplet_ptr[row]):
            out_triplets[2 * pair] = first_edge + np.int64(triplet[t, 0])
            out_triplets[2 * pair + 1] = first_edge + np.int64(triplet[t, 1])
            pair += 1
        first_atom += count
        out_node_ptr[graph + 1] = first_atom
    out_dst_ptr[first_atom] = edge
