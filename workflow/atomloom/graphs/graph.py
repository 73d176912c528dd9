"""Neighbour graphs: `Graph` for one structure, `GraphTable` for many as concatenated arrays.

An edge (src -> dst, shift) is seen from dst: its vector is
r = positions[src] + shift @ cell - positions[dst], so src's image in cell `shift` is the neighbour of
dst. Every directed edge occurs once, sorted by dst, then distance, then src, then shift. Vectors
are recomputed, never stored. N atoms, E edges, T triplets; S structures in a table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from atomloom.store.forms import Form, beyond, misfit, misled, unbounded, unsorted
from atomloom.structures.structure import MAX_LENGTH
from atomloom.structures.table import FORMS, no_structures

LISTED_BY_DST = 1
"""Bit 0 of `listed`: src is among dst's nearest."""
LISTED_BY_SRC = 2
"""Bit 1 of `listed`: dst is among src's nearest.

An edge of `lattice_edges` that no atom lists as near carries one bit: each atom is considered to list
its images along the triad's vectors, and the images along their negatives are the reverse edges."""


@dataclass(frozen=True, eq=False)
class Graph:
    """Neighbour graph of one structure."""

    numbers: np.ndarray
    """[N] uint8, atomic numbers."""
    positions: np.ndarray
    """[N, 3] float64, A."""
    cell: np.ndarray
    """[3, 3] float64, A, rows are vectors."""
    pbc: np.ndarray
    """[3] bool."""
    src: np.ndarray
    """[E] integer, index of the neighbour."""
    dst: np.ndarray
    """[E] integer, index of the central atom, ascending."""
    shift: np.ndarray
    """[E, 3] integer, cell of src's image as seen from dst."""
    listed: np.ndarray | None = None
    """[E] uint8, k-nearest graphs only: bits LISTED_BY_DST and LISTED_BY_SRC."""
    lattice: np.ndarray | None = None
    """[3, 3] float64, A, the lattice triad (rows)."""
    triplets: np.ndarray | None = None
    """[T, 2] integer, pairs of edges (a, b), a < b, with one dst."""

    @cached_property
    def vectors(self) -> np.ndarray:
        """[E, 3] float64, A, from dst to src's image."""
        return (
            self.positions[self.src]
            + self.shift.astype(np.float64) @ self.cell
            - self.positions[self.dst]
        )

    @cached_property
    def distances(self) -> np.ndarray:
        """[E] float64, A."""
        return np.sqrt(np.einsum("ij,ij->i", self.vectors, self.vectors))

    @property
    def multiplicity(self) -> np.ndarray:
        """[E] multiplicity of each edge in ComFormer's graph: 1, or 2 where both ends list it."""
        if self.listed is None:
            return np.ones(len(self.src), dtype=np.uint8)
        return (self.listed & 1) + (self.listed >> 1)


class Graphs(Protocol):
    """Common interface to many graphs, in a table or on disk.

    S structures, A atoms in all.
    """

    def __len__(self) -> int: ...

    @property
    def hash(self) -> np.ndarray:
        """[S, 32] uint8, structure hashes."""

    @property
    def node_ptr(self) -> np.ndarray:
        """[S+1] int64."""

    @property
    def edge_ptr(self) -> np.ndarray:
        """[S+1] int64."""

    @property
    def triplet_ptr(self) -> np.ndarray | None:
        """[S+1] int64; None where there are no triplets."""

    @property
    def numbers(self) -> np.ndarray:
        """[A] uint8, atomic numbers."""


@dataclass(frozen=True, eq=False)
class GraphTable:
    """S graphs as concatenated arrays, as a shard stores them (docs/formats.md)."""

    hash: np.ndarray
    """[S, 32] uint8."""
    node_ptr: np.ndarray
    """[S+1] int64."""
    edge_ptr: np.ndarray
    """[S+1] int64."""
    numbers: np.ndarray
    """[A] uint8."""
    positions: np.ndarray
    """[A, 3] float64, A."""
    cell: np.ndarray
    """[S, 3, 3] float64, A."""
    pbc: np.ndarray
    """[S, 3] bool."""
    src: np.ndarray
    """[E] uint16 or uint32, within the structure."""
    dst: np.ndarray
    """[E] uint16 or uint32, within the structure."""
    shift: np.ndarray
    """[E, 3] int8 or int16."""
    listed: np.ndarray | None = None
    """[E] uint8, k-nearest graphs only."""
    lattice: np.ndarray | None = None
    """[S, 3, 3] float64, A."""
    triplet_ptr: np.ndarray | None = None
    """[S+1] int64."""
    triplet: np.ndarray | None = None
    """[T, 2] uint32, pairs of edges within the structure."""
    attributes: Mapping[str, object] = field(default_factory=dict)
    """Spec, builder version and other attributes of the shard."""

    def __len__(self) -> int:
        return len(self.node_ptr) - 1

    def __getitem__(self, index: int) -> Graph:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        atoms = slice(self.node_ptr[index], self.node_ptr[index + 1])
        edges = slice(self.edge_ptr[index], self.edge_ptr[index + 1])
        triplets = None
        if self.triplet is not None and self.triplet_ptr is not None:
            triplets = self.triplet[self.triplet_ptr[index] : self.triplet_ptr[index + 1]]
        return Graph(
            numbers=self.numbers[atoms],
            positions=self.positions[atoms],
            cell=self.cell[index],
            pbc=self.pbc[index],
            src=self.src[edges],
            dst=self.dst[edges],
            shift=self.shift[edges],
            listed=None if self.listed is None else self.listed[edges],
            lattice=None if self.lattice is None else self.lattice[index],
            triplets=triplets,
        )

    def take(self, rows: Sequence[int] | np.ndarray) -> GraphTable:
        """Select the graphs of these rows, in this order; rows may repeat."""
        rows = np.asarray(rows, dtype=np.int64)
        node_ptr, atoms = _ragged(self.node_ptr, rows)
        edge_ptr, edges = _ragged(self.edge_ptr, rows)
        triplet_ptr = triplet = None
        if self.triplet is not None and self.triplet_ptr is not None:
            triplet_ptr, triplets = _ragged(self.triplet_ptr, rows)
            triplet = self.triplet[triplets]
        return GraphTable(
            hash=self.hash[rows],
            node_ptr=node_ptr,
            edge_ptr=edge_ptr,
            numbers=self.numbers[atoms],
            positions=self.positions[atoms],
            cell=self.cell[rows],
            pbc=self.pbc[rows],
            src=self.src[edges],
            dst=self.dst[edges],
            shift=self.shift[edges],
            listed=None if self.listed is None else self.listed[edges],
            lattice=None if self.lattice is None else self.lattice[rows],
            triplet_ptr=triplet_ptr,
            triplet=triplet,
            attributes=self.attributes,
        )

    @classmethod
    def concatenate(cls, tables: Sequence[GraphTable]) -> GraphTable:
        """Concatenate tables of one spec, in order, with the attributes of the first.

        Raises:
            ValueError: without a table, or where only some of them have an optional array.
        """
        if len(tables) == 1:
            return tables[0]
        merged: dict[str, np.ndarray | None] = {}
        for name in ARRAYS:
            parts = [getattr(table, name) for table in tables]
            absent = sum(part is None for part in parts)
            if absent == len(parts):
                merged[name] = None
            elif absent:
                raise ValueError(f"{absent} of {len(parts)} tables have no `{name}`")
            elif name.endswith("_ptr"):
                merged[name] = _join_pointers(parts)
            else:
                merged[name] = np.concatenate(parts)
        return cls(**merged, attributes=tables[0].attributes)  # type: ignore[arg-type] # only arrays that may be absent are None

    @classmethod
    def from_graphs(cls, hashes: Sequence[bytes], graphs: Sequence[Graph]) -> GraphTable:
        """Build a table from single graphs of one spec, at least one."""

        def parts(name: str) -> list[Any] | None:
            return (
                [getattr(g, name) for g in graphs] if getattr(graphs[0], name) is not None else None
            )

        listed, lattice, triplets = parts("listed"), parts("lattice"), parts("triplets")
        return cls(
            hash=np.frombuffer(b"".join(hashes), np.uint8).reshape(len(graphs), -1),
            node_ptr=_pointers([len(g.numbers) for g in graphs]),
            edge_ptr=_pointers([len(g.src) for g in graphs]),
            numbers=np.concatenate([g.numbers for g in graphs]),
            positions=np.concatenate([g.positions for g in graphs]),
            cell=np.stack([g.cell for g in graphs]),
            pbc=np.stack([g.pbc for g in graphs]),
            src=np.concatenate([g.src for g in graphs]),
            dst=np.concatenate([g.dst for g in graphs]),
            shift=np.concatenate([g.shift for g in graphs]),
            listed=None if listed is None else np.concatenate(listed),
            lattice=None if lattice is None else np.stack(lattice),
            triplet_ptr=None if triplets is None else _pointers([len(t) for t in triplets]),
            triplet=None if triplets is None else np.concatenate(triplets),
        )


ARRAYS = tuple(item.name for item in fields(GraphTable) if item.name != "attributes")
"""Names of a table's arrays, which are also their names in a shard."""
OPTIONAL_ARRAYS = ("listed", "lattice", "triplet_ptr", "triplet")
GRAPH_FORMS = FORMS | {
    "edge_ptr": Form(("S+1",), ("int64",)),
    "src": Form(("E",), ("uint16", "uint32")),
    "dst": Form(("E",), ("uint16", "uint32")),
    "shift": Form(("E", 3), ("int8", "int16")),
    "listed": Form(("E",), ("uint8",), optional=True),
    "lattice": Form(("S", 3, 3), ("float64",), optional=True),
    "triplet_ptr": Form(("S+1",), ("int64",), optional=True),
    "triplet": Form(("T", 2), ("uint32",), optional=True),
}
"""Expected arrays of a shard of graphs."""


def no_graphs(arrays: Mapping[str, np.ndarray]) -> str:
    """Reason why arrays of these names are not graphs, in one clause; empty where they are."""
    if wrong := no_structures(arrays) or misfit(arrays, GRAPH_FORMS):
        return wrong
    src, dst, edge_ptr = arrays["src"], arrays["dst"], arrays["edge_ptr"]
    atoms = np.diff(arrays["node_ptr"])
    wrong = (
        misled(edge_ptr, len(src), "edge_ptr")
        or beyond(src, edge_ptr, atoms, "src")
        or beyond(dst, edge_ptr, atoms, "dst")
        or unsorted(dst, edge_ptr, "dst")
    )
    if wrong:
        return wrong
    listed, lattice = arrays.get("listed"), arrays.get("lattice")
    if listed is not None and listed.size and not 1 <= listed.min() <= listed.max() <= 3:
        return "`listed` has bits other than its two"
    if lattice is not None and (wrong := unbounded(lattice, MAX_LENGTH, "lattice")):
        return wrong
    if ("triplet" in arrays) != ("triplet_ptr" in arrays):
        return "`triplet` and `triplet_ptr` go together"
    return _no_triplets(arrays) if "triplet" in arrays else ""


def _no_triplets(arrays: Mapping[str, np.ndarray]) -> str:
    pointer, triplet, edge_ptr = (arrays[n] for n in ("triplet_ptr", "triplet", "edge_ptr"))
    first, second = triplet[:, 0], triplet[:, 1]
    wrong = misled(pointer, len(triplet), "triplet_ptr") or beyond(
        second, pointer, np.diff(edge_ptr), "triplet"
    )
    if wrong:
        return wrong
    return "" if (first < second).all() else "`triplet` holds a pair that is not in order"


def _pointers(counts: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _ragged(pointer: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pointers for these rows, and the positions of their elements."""
    counts = pointer[rows + 1] - pointer[rows]
    new = _pointers(counts)
    return new, np.repeat(pointer[rows] - new[:-1], counts) + np.arange(new[-1])


def _join_pointers(parts: Sequence[np.ndarray]) -> np.ndarray:
    starts = np.cumsum([0, *(part[-1] for part in parts[:-1])])
    moved = [part[1:] + start for part, start in zip(parts, starts, strict=True)]
    return np.concatenate([parts[0][:1], *moved])
