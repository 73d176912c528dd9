"""Descriptors of atomic environments, invariant under rotation, translation, permutation and choice of cell.

An atom is described by its distances to its nearest neighbours of each element, a structure by their
means over the atoms of each element. The numbers change no faster than the positions do. It knows
nothing of files or splits.

S structures, A atoms in total.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from atomloom.config import GraphSpec
from atomloom.graphs.build import build_graphs
from atomloom.graphs.graph import LISTED_BY_DST
from atomloom.structures.table import StructureTable

NEIGHBORS = 24
OF_AN_ELEMENT = 12
"""Number of neighbours per element in the description, of the `NEIGHBORS` in total."""
_ELEMENTS = 256


@dataclass(frozen=True, eq=False)
class Environments:
    """Distances (A) from each atom of S structures to its neighbours.

    The row of an atom has `OF_AN_ELEMENT` entries per element of its structure: elements by atomic
    number, neighbours by distance. Where fewer are listed, the distance of the last one of all stands
    for those farther away, so that no number jumps when a neighbour enters the list.
    """

    values: np.ndarray
    """Rows of all atoms, concatenated, float64."""
    width: np.ndarray
    """[A] int64, length of each row."""
    kind: np.ndarray
    """[A] int64, index of the atom's element, counted through the elements of all structures."""
    elements: np.ndarray
    """[S] int64, number of elements."""

    @classmethod
    def of(cls, structures: StructureTable) -> Environments:
        """Compute the environments of all atoms of a table."""
        spec = GraphSpec(neighbors="knn", max_neighbors=NEIGHBORS, shell_tolerance=0.0)
        table = build_graphs(structures, spec)
        assert table.listed is not None  # as in all k-nearest graphs
        own = (table.listed & LISTED_BY_DST) > 0
        structure = np.repeat(np.arange(len(table)), np.diff(table.edge_ptr))[own]
        start = table.node_ptr[structure]
        dst, src = table.dst[own].astype(np.int64) + start, table.src[own].astype(np.int64) + start
        offset = np.einsum("ei,eij->ej", table.shift[own].astype(np.float64), table.cell[structure])
        vectors = table.positions[src] + offset - table.positions[dst]
        distance = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
        last = np.zeros(len(table.numbers))
        np.maximum.at(last, dst, distance)
        # In a molecule so small that all of its atoms are listed, none is farther away.
        last[np.bincount(dst, minlength=len(last)) < NEIGHBORS] = 0.0

        of_atom = np.repeat(np.arange(len(table)), np.diff(table.node_ptr))
        kinds, kind = np.unique(of_atom * _ELEMENTS + table.numbers, return_inverse=True)
        elements = np.bincount(kinds // _ELEMENTS, minlength=len(table))
        width = elements[of_atom] * OF_AN_ELEMENT
        values = np.repeat(last, width)
        order = np.lexsort((distance, kind[src], dst))
        first_kind = np.cumsum(elements) - elements
        column = (kind[src] - first_kind[structure]) * OF_AN_ELEMENT
        place = (_starts(width)[dst] + column)[order]
        first = np.flatnonzero(np.diff(place, prepend=-1))
        rank = np.arange(len(place)) - np.repeat(first, np.diff(first, append=len(place)))
        kept = rank < OF_AN_ELEMENT
        values[place[kept] + rank[kept]] = distance[order][kept]
        return cls(values, width, kind, elements)

    def means(self) -> tuple[np.ndarray, np.ndarray]:
        """Means over the atoms of each element of a structure.

        Returns:
            The means of all structures, concatenated, and their number for each, [S] int64.
        """
        atoms = np.bincount(self.kind)
        width = np.repeat(self.elements, self.elements) * OF_AN_ELEMENT
        shift = _starts(width)[self.kind] - _starts(self.width)
        target = np.repeat(shift, self.width) + np.arange(len(self.values))
        sums = np.bincount(target, weights=self.values, minlength=width.sum())
        return sums / np.repeat(atoms, width), self.elements**2 * OF_AN_ELEMENT


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.cumsum(lengths) - lengths
