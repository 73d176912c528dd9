"""Neighbour graphs: `Graph` for one structure, `GraphTable` for many as concatenated arrays.

An edge (src -> dst, shift) is seen from dst: its vector is
r = positions[src] + shift @ cell - positions[dst], so src's image in cell `shift` is the neighbour of
dst. Every directed edge stands once, sorted by dst, then distance, then src, then shift. Vectors
are recomputed, never stored. N atoms, E edges, T triplets; S structures in a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

LISTED_BY_DST = 1
"""Bit 0 of `listed`: src is among dst's nearest."""
LISTED_BY_SRC = 2
"""Bit 1 of `listed`: dst is among src's nearest."""


@dataclass(frozen=True, eq=False)
class Graph:
    """The neighbour graph of one structure."""

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
        """[E] how often ComFormer's graph holds each edge: 1, or 2 where both ends list it."""
        if self.listed is None:
            return np.ones(len(self.src), dtype=np.uint8)
        return (self.listed & 1) + (self.listed >> 1)


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
    """Spec, builder version and what else the shard says of itself."""

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
