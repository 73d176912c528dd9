"""Collation of batches, packed with all integers in one array and all floats in another.

One compiled pass over a table's arrays writes a batch, without objects or Python code per structure.
Unpacking makes the tensors of a GraphBatch, views of the two arrays once they are on the device.
This module knows nothing of epochs, orders or threads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from atomloom.compiled import njit
from atomloom.data.batch import GraphBatch
from atomloom.errors import AtomloomError
from atomloom.graphs.graph import GraphTable

FIXED_FLOATS = 7
"""Parts of the floats of a packed batch that every one has; those of the extras follow."""
FLOATS = {torch.float32: np.float32, torch.float64: np.float64}

Pass = Callable[[GraphBatch], Mapping[str, Tensor]]
"""Function that computes further tensors of a batch on the CPU, for `batch.extras` by name. It may be
called from another thread, and should release the interpreter lock where it can."""


@dataclass(frozen=True, eq=False)
class Extras:
    """Values of a batch besides the graph, rounded once for the whole data set."""

    of_atoms: Mapping[str, np.ndarray]
    """Values of atoms, [A, D] each."""
    of_structures: Mapping[str, np.ndarray]
    """Values of structures, [S, D] each."""
    choice: bool
    """Whether only some structures come with their edges."""

    @classmethod
    def of(
        cls,
        atoms: int,
        structures: int,
        of_atoms: Mapping[str, np.ndarray],
        of_structures: Mapping[str, np.ndarray],
        dtype: torch.dtype,
        choice: bool,
    ) -> Extras:
        """Check that the values match the numbers of atoms and structures, and round them."""
        lengths = {"atoms": atoms, "structures": structures}
        rounded = []
        for kind, values in zip(lengths, (of_atoms, of_structures), strict=True):
            for name, array in values.items():
                if array.ndim != 2 or len(array) != lengths[kind]:
                    raise AtomloomError(
                        f"{name} of shape {array.shape} for {lengths[kind]} {kind}", where="loader"
                    )
            rounded.append({n: np.ascontiguousarray(a, FLOATS[dtype]) for n, a in values.items()})
        return cls(rounded[0], rounded[1], choice)

    def lengths(self, graphs: int, atoms: int) -> tuple[int, ...]:
        """Lengths of the parts of the floats, those of atoms before those of structures."""
        return (
            *(atoms * array.shape[1] for array in self.of_atoms.values()),
            *(graphs * array.shape[1] for array in self.of_structures.values()),
        )


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """Batch in page-locked or plain memory.

    Two transfers move it to a device, however many tensors it becomes there.
    """

    ints: Tensor
    floats: Tensor
    graphs: int
    atoms: int
    edges: int
    triplets: int
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    """Results of the passes."""


@dataclass(frozen=True, eq=False)
class Held:
    """Arrays of a table in the form that the compiled passes take."""

    node_ptr: np.ndarray
    edge_ptr: np.ndarray
    triplet_ptr: np.ndarray
    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    src: np.ndarray
    dst: np.ndarray
    shift: np.ndarray
    listed: np.ndarray
    lattice: np.ndarray
    triplet: np.ndarray


class Collator:
    """Collator that packs batches from the arrays of tables and unpacks them on a device.

    Values besides the graphs (targets, extras) are those of the whole data set, and rows are its
    rows; a table may hold only some of its graphs, in any order.

    Args:
        form: a table with the optional arrays that all tables have; may be empty.
        node_ptr: [S+1], first atom of each structure in the whole data set.
        targets: [S, K]; None for none.
        dtype: working precision.
        multiplicity: see `Loader`.
        vectors: see `Loader`.
        device: of the batches.
        extras: further values.
        passes: functions applied to each batch, in order.
    """

    def __init__(
        self,
        form: GraphTable,
        node_ptr: np.ndarray,
        targets: np.ndarray | None,
        dtype: torch.dtype,
        multiplicity: bool,
        vectors: bool,
        device: torch.device,
        extras: Extras,
        passes: Sequence[Pass] = (),
    ) -> None:
        self.dtype, self.device, self.pin = dtype, device, device.type == "cuda"
        self.vectors, self.multiplicity, self.extras = vectors, multiplicity, extras
        self.passes = tuple(passes)
        self.chosen = np.ones(len(node_ptr) - 1 if extras.choice else 0, dtype=bool)
        self.lattice, self.triplets = form.lattice is not None, form.triplet is not None
        self.node_ptr = np.ascontiguousarray(node_ptr, dtype=np.int64)
        self.outputs = 0 if targets is None else targets.shape[1]
        # Targets are rounded once for the whole data set: a batch then only selects rows.
        self.targets = (
            np.zeros((0, 0), FLOATS[dtype]) if targets is None else targets.astype(FLOATS[dtype])
        )

    def hold(self, table: GraphTable) -> Held:
        """Prepare the arrays of a table."""
        of = np.ascontiguousarray
        triplet_ptr = np.zeros(len(table) + 1) if table.triplet_ptr is None else table.triplet_ptr
        return Held(
            node_ptr=of(table.node_ptr, dtype=np.int64),
            edge_ptr=of(table.edge_ptr, dtype=np.int64),
            triplet_ptr=of(triplet_ptr, dtype=np.int64),
            numbers=of(table.numbers),
            positions=of(table.positions),
            cell=of(table.cell),
            src=of(table.src),
            dst=of(table.dst),
            shift=of(table.shift),
            listed=of(table.listed if self.multiplicity else np.zeros(0, dtype=np.uint8)),
            lattice=of(table.lattice if self.lattice else np.zeros((0, 3, 3))),
            triplet=of(table.triplet if self.triplets else np.zeros((0, 2), dtype=np.uint32)),
        )

    def choose(self, chosen: np.ndarray) -> None:
        """Set which structures come with their edges from now on; [S] bool."""
        self.chosen = np.ascontiguousarray(chosen, dtype=bool)

    def pack(self, held: Held, places: np.ndarray, rows: np.ndarray) -> PackedBatch:
        """Collect the arrays of some structures; releases the interpreter lock meanwhile.

        Args:
            held: arrays of a table with their graphs.
            places: [B] int64, their positions in that table.
            rows: [B] int64, their rows in the data set.
        """
        pointers = held.node_ptr, held.edge_ptr, held.triplet_ptr
        atoms, edges, triplets = _measure(places, rows, *pointers, self.chosen)
        graphs = len(rows)
        int_starts = _starts(self._ints(graphs, atoms, edges, triplets))
        float_starts = _starts(self._floats(graphs, atoms, edges))
        packed = PackedBatch(
            self._new(int_starts[-1], torch.int64),
            self._new(float_starts[-1], self.dtype),
            graphs,
            atoms,
            edges,
            triplets,
        )
        floats = packed.floats.numpy()
        _fill(
            places,
            rows,
            *pointers,
            held.numbers,
            held.positions,
            held.cell,
            held.src,
            held.dst,
            held.shift,
            held.listed,
            held.lattice,
            held.triplet,
            self.targets,
            self.chosen,
            packed.ints.numpy(),
            int_starts,
            floats,
            float_starts[:FIXED_FLOATS],
            self.vectors,
        )
        extra_starts = iter(float_starts[FIXED_FLOATS:])
        for array in self.extras.of_atoms.values():
            _pick_atoms(rows, self.node_ptr, array, floats[next(extra_starts) :])
        for array in self.extras.of_structures.values():
            start = next(extra_starts)
            floats[start : start + graphs * array.shape[1]] = array[rows].reshape(-1)
        for work in self.passes:
            made = work(self._views(packed, packed.ints, packed.floats, packed.extras))
            if self.pin:
                made = {name: tensor.pin_memory() for name, tensor in made.items()}
            packed = replace(packed, extras={**packed.extras, **made})
        return packed

    def unpack(self, packed: PackedBatch) -> GraphBatch:
        """Unpack a batch on its device."""
        ints, floats, extras = packed.ints, packed.floats, packed.extras
        if self.pin:
            ints = ints.to(self.device, non_blocking=True)
            floats = floats.to(self.device, non_blocking=True)
            extras = {n: t.to(self.device, non_blocking=True) for n, t in extras.items()}
        return self._views(packed, ints, floats, extras)

    def _views(
        self, packed: PackedBatch, ints: Tensor, floats: Tensor, made: Mapping[str, Tensor]
    ) -> GraphBatch:
        """Batch whose tensors are views of these arrays."""
        graphs, atoms, edges, triplets = packed.graphs, packed.atoms, packed.edges, packed.triplets
        i = _starts(self._ints(graphs, atoms, edges, triplets))
        f = _starts(self._floats(graphs, atoms, edges))

        def table(buffer: Tensor, start: int, *shape: int) -> Tensor:
            strides = (9, 3, 1)[-len(shape) :] if len(shape) == 3 else (shape[-1], 1)
            return buffer.as_strided(shape, strides, start)

        node_graph = ints.narrow(0, i[1], atoms)
        extras, extra_starts = dict(made), iter(f[FIXED_FLOATS:])
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
        """Lengths of the parts of the integers, in the order of `unpack` and `_fill`."""
        chosen = graphs if self.extras.choice else 0
        return atoms, atoms, graphs + 1, edges, edges, atoms + 1, graphs, 2 * triplets, chosen

    def _floats(self, graphs: int, atoms: int, edges: int) -> tuple[int, ...]:
        """Lengths of the parts of the floats, in the order of `unpack` and `_fill`."""
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
    """Starts of parts of these lengths, each on a boundary of 16 elements, and the total length."""
    return tuple(accumulate(((length + 15) & ~15 for length in lengths), initial=0))


@njit(nogil=True, cache=True)
def _measure(
    places: np.ndarray,
    rows: np.ndarray,
    node_ptr: np.ndarray,
    edge_ptr: np.ndarray,
    triplet_ptr: np.ndarray,
    chosen: np.ndarray,
) -> tuple[int, int, int]:
    atoms = edges = triplets = 0
    for graph in range(len(places)):
        place = places[graph]
        atoms += node_ptr[place + 1] - node_ptr[place]
        if len(chosen) and not chosen[rows[graph]]:
            continue
        edges += edge_ptr[place + 1] - edge_ptr[place]
        triplets += triplet_ptr[place + 1] - triplet_ptr[place]
    return atoms, edges, triplets


@njit(nogil=True, cache=True)
def _pick_atoms(
    rows: np.ndarray, node_ptr: np.ndarray, values: np.ndarray, out: np.ndarray
) -> None:
    width = values.shape[1]
    place = 0
    for row in rows:
        for atom in range(node_ptr[row], node_ptr[row + 1]):
            for k in range(width):
                out[place] = values[atom, k]
                place += 1


@njit(nogil=True, cache=True)
def _fill(
    places: np.ndarray,
    rows: np.ndarray,
    node_ptr: np.ndarray,
    edge_ptr: np.ndarray,
    triplet_ptr: np.ndarray,
    numbers: np.ndarray,
    positions: np.ndarray,
    cell: np.ndarray,
    src: np.ndarray,
    dst: np.ndarray,
    shift: np.ndarray,
    listed: np.ndarray,
    lattice: np.ndarray,
    triplet: np.ndarray,
    targets: np.ndarray,
    chosen: np.ndarray,
    ints: np.ndarray,
    int_starts: tuple[int, ...],
    floats: np.ndarray,
    float_starts: tuple[int, ...],
    with_vectors: bool,
) -> None:
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
        place, row = places[graph], rows[graph]
        begin = node_ptr[place]
        count = node_ptr[place + 1] - begin
        out_rows[graph] = row
        for k in range(count):
            atom = first_atom + k
            out_numbers[atom] = numbers[begin + k]
            out_node_graph[atom] = graph
            for axis in range(3):
                out_positions[3 * atom + axis] = positions[begin + k, axis]
        for k in range(3):
            for axis in range(3):
                out_cell[9 * graph + 3 * k + axis] = cell[place, k, axis]
                if len(lattice):
                    out_lattice[9 * graph + 3 * k + axis] = lattice[place, k, axis]
        for k in range(targets.shape[1]):
            out_targets[targets.shape[1] * graph + k] = targets[row, k]

        first_edge = edge
        c00, c01, c02 = cell[place, 0, 0], cell[place, 0, 1], cell[place, 0, 2]
        c10, c11, c12 = cell[place, 1, 0], cell[place, 1, 1], cell[place, 1, 2]
        c20, c21, c22 = cell[place, 2, 0], cell[place, 2, 1], cell[place, 2, 2]
        center = 0
        wanted = len(chosen) == 0 or chosen[row]
        if len(chosen):
            out_chosen[graph] = 1 if wanted else 0
        for e in range(edge_ptr[place], edge_ptr[place + 1] if wanted else edge_ptr[place]):
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

        for t in range(
            triplet_ptr[place], triplet_ptr[place + 1] if wanted else triplet_ptr[place]
        ):
            out_triplets[2 * pair] = first_edge + np.int64(triplet[t, 0])
            out_triplets[2 * pair + 1] = first_edge + np.int64(triplet[t, 1])
            pair += 1
        first_atom += count
        out_node_ptr[graph + 1] = first_atom
    out_dst_ptr[first_atom] = edge
