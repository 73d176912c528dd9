"""The line graph of a neighbour graph, as ALIGNN uses it: edges become nodes, angles its edges.

It knows graphs as arrays and nothing of models. E edges of the graph, L edges of the line graph.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from atomloom.compiled import njit
from atomloom.graphs.graph import Graph


@dataclass(frozen=True, eq=False)
class LineGraph:
    """A graph whose nodes are the E directed edges of a neighbour graph."""

    src: np.ndarray
    """[L] int64, the edge that arrives at the common atom."""
    dst: np.ndarray
    """[L] int64, the edge that leaves it, ascending."""
    cosine: np.ndarray
    """[L] float64, cosine of the angle at the common atom between the two far ends."""


def jarvis_graph(graph: Graph) -> Graph:
    """Graph as jarvis-tools emits it: edges between an atom and its own images occur twice.

    jarvis-tools stores undirected edges and emits each in both directions; an edge from an atom to
    its image and the one to the opposite image are two entries, so each of them is emitted twice.
    Published ALIGNN models sum over these copies. Vectors and order are kept.
    """
    copies = np.where(graph.src == graph.dst, 2, 1)
    if len(graph.src) == copies.sum():
        return graph
    picked = np.repeat(np.arange(len(copies)), copies)
    listed = None if graph.listed is None else graph.listed[picked]
    src, dst, shift = graph.src[picked], graph.dst[picked], graph.shift[picked]
    return replace(graph, src=src, dst=dst, shift=shift, listed=listed, triplets=None)


def line_graph(graph: Graph) -> LineGraph:
    """Line graph in ALIGNN's convention; apply it to a `jarvis_graph` for that of published models.

    Edge (i -> j) is followed by every edge (j -> k), including its own reverse (cosine 1) but never
    itself; the cosine is that of the angle between the vectors from j to i and from j to k
    (Choudhary and DeCost, npj Comput. Mater. 7, 185 (2021)).
    """
    first, second = line_edges(graph.src, graph.dst, len(graph.numbers))
    vectors = graph.vectors
    # `vectors` point from dst to src's image: the first edge's from j to i, the second's from k to j.
    dot = -np.einsum("ij,ij->i", vectors[first], vectors[second])
    lengths = graph.distances[first] * graph.distances[second]
    return LineGraph(first, second, np.clip(dot / lengths, -1.0, 1.0))


def line_edges(src: np.ndarray, dst: np.ndarray, atoms: int) -> tuple[np.ndarray, np.ndarray]:
    """All pairs (a, b) of different edges with dst[a] == src[b], by b, then a; dst must ascend.

    Args:
        src, dst: [E] integers.
        atoms: number of atoms they count.

    Returns:
        a and b, [L] int64 each.
    """
    arriving = np.bincount(dst, minlength=atoms)
    first_arriving = np.cumsum(arriving) - arriving
    counts = arriving[src]
    second = np.repeat(np.arange(len(src)), counts)
    start = np.cumsum(counts) - counts
    first = np.arange(len(second)) - np.repeat(start - first_arriving[src], counts)
    different = (
        first != second
    )  # without this, an edge from an atom to its own image follows itself
    return first[different], second[different]


@njit(nogil=True, cache=True)
def line_pairs(src: np.ndarray, dst_ptr: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs (a, b) of edges with dst[a] == src[b], by b, then a, including edges that follow themselves.

    For batches: models that weight copies of edges start from it. Releases the interpreter lock.

    Args:
        src: [E] int64, through the batch.
        dst_ptr: [N+1] int64, first edge that arrives at each atom.

    Returns:
        a and b, [L] int64 each.
    """
    pairs = 0
    for j in src:
        pairs += dst_ptr[j + 1] - dst_ptr[j]
    first, second = np.empty(pairs, dtype=np.int64), np.empty(pairs, dtype=np.int64)
    pair = 0
    for b in range(len(src)):
        for a in range(dst_ptr[src[b]], dst_ptr[src[b] + 1]):
            first[pair], second[pair] = a, b
            pair += 1
    return first, second
