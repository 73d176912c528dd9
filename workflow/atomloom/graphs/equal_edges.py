"""Edges of a batch that have the same geometry: classes of which one edge stands for all.

In a crystal, edges repeat: shells have equal lengths, atoms see their own images along the same
vectors, and mirror images of an edge have its angle with some axis. What a network computes of
lengths, or of lengths and angles with the lattice vectors, is the same for all of a class, to rounding.
Members of
a class are of one structure. It knows batches of graphs as arrays, and nothing of models.

Legend: B structures, N atoms, E edges.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from atomloom.graphs.orbits import clusters, tolerance_of

AXES = 3


@dataclass(frozen=True, eq=False)
class Classes:
    """Classes of some elements, in the order of their first members."""

    first: np.ndarray
    """[classes] int64, an element of each."""
    of: np.ndarray
    """[elements] int64, the class of each."""

    @classmethod
    def by(cls, *numbers: np.ndarray) -> Classes:
        """Classes of elements for which each of these integers (>= 0) is the same."""
        joint, *others = numbers
        for values in others:
            # Renumbered, so that products of ranges do not overflow.
            joint, values = (_ranks(each) for each in (joint, values))
            joint = joint * (int(values.max(initial=0)) + 1) + values
        _, first, of = np.unique(joint, return_index=True, return_inverse=True)
        order = np.argsort(first, kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        return cls(first[order], rank[of.reshape(-1)])


def _ranks(values: np.ndarray) -> np.ndarray:
    return np.unique(values, return_inverse=True)[1].reshape(-1)


@dataclass(frozen=True, eq=False)
class EqualEdges:
    """Classes of a batch's edges by ever more of their geometry."""

    lengths: Classes
    """Edges of one length."""
    pairs: Classes
    """Edges of one length between equal elements."""
    edges: Classes | None
    """Edges of one length and the same angles with the three lattice vectors."""
    angles: Classes | None
    """Elements of [first of `edges`, axis], flattened, of one axis, length and angle."""


def find_equal_edges(
    numbers: np.ndarray,
    src: np.ndarray,
    dst: np.ndarray,
    node_graph: np.ndarray,
    lengths: np.ndarray,
    cosines: np.ndarray | None,
) -> EqualEdges:
    """Classes of the edges of a batch.

    Cosines, and lengths in A, count as equal within the tolerance of `orbits.find_orbits` for cosines.

    Args:
        numbers: [N] int64.
        src, dst: [E] int64, through the batch.
        node_graph: [N] int64, the structure of each atom.
        lengths: [E], A, float32 or float64.
        cosines: [E, 3] with the lattice vectors; without them there are no classes by angles.
    """
    tolerance = tolerance_of(lengths.dtype)
    length = clusters(lengths.astype(np.float64), tolerance).astype(np.int64)
    by_length = Classes.by(node_graph[dst], length)
    length = by_length.of  # from here on, equal lengths are of one structure
    by_pair = Classes.by(length, numbers[src], numbers[dst])
    if cosines is None:
        return EqualEdges(by_length, by_pair, None, None)
    cosine = clusters(cosines.astype(np.float64).reshape(-1), tolerance).astype(np.int64)
    cosine = cosine.reshape(-1, AXES)
    by_angles = Classes.by(length, *cosine.T)
    first = by_angles.first
    axis = np.tile(np.arange(AXES), len(first))
    by_angle = Classes.by(axis, np.repeat(length[first], AXES), cosine[first].reshape(-1))
    return EqualEdges(by_length, by_pair, by_angles, by_angle)
