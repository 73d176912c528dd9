"""Atoms and edges of a crystal that no network on lengths and angles can tell apart.

In a symmetric crystal most atoms and edges have equals, and an invariant network computes the same
numbers for each of them. Colour refinement (as Weisfeiler and Leman do it) finds them without a
space group: edges are coloured by length, atoms by element; then every edge by the colours of its
ends and of the edges that arrive where it starts, with their angles, every atom by those of its
edges, until no class splits any more. Edges of one class are then indistinguishable to message
passing of any depth on the graph and its line graph. It knows batches of graphs as arrays, and
nothing of models.

Legend: B structures, N atoms, E edges, sorted by dst; C classes of atoms, F classes of edges.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from atomloom.compiled import njit


@dataclass(frozen=True, eq=False)
class Orbits:
    """Classes of atoms and edges; equal ones are of one structure."""

    atoms: np.ndarray
    """[C] int64, an atom of each class, ascending."""
    edges: np.ndarray
    """[F] int64, an edge of each class; it leaves one of `atoms`."""
    atom_class: np.ndarray
    """[N] int64."""
    edge_class: np.ndarray
    """[E] int64."""

    @property
    def atom_counts(self) -> np.ndarray:
        """[C] int64, how many atoms are in each class."""
        return np.bincount(self.atom_class, minlength=len(self.atoms))

    @property
    def edge_counts(self) -> np.ndarray:
        """[F] int64, how many edges are in each class."""
        return np.bincount(self.edge_class, minlength=len(self.edges))


def trivial_orbits(atoms: int, edges: int) -> Orbits:
    """Classes of one atom or edge each."""
    return Orbits(np.arange(atoms), np.arange(edges), np.arange(atoms), np.arange(edges))


def find_orbits(
    numbers: np.ndarray,
    src: np.ndarray,
    dst: np.ndarray,
    node_ptr: np.ndarray,
    dst_ptr: np.ndarray,
    vectors: np.ndarray,
) -> Orbits:
    """Classes of the atoms and edges of a batch; releases the interpreter lock.

    Cosines count as equal if they differ by no more than 16 times the rounding of `vectors` (2e-6 in
    float32, 4e-15 in float64), lengths by no more than 8 A times that: results for a class are those
    for its members, to rounding.

    Args:
        numbers: [N] int64.
        src, dst: [E] int64, through the batch.
        node_ptr: [B+1] int64.
        dst_ptr: [N+1] int64.
        vectors: [E, 3], A, float32 or float64.
    """
    tolerance = tolerance_of(vectors.dtype)
    atoms, edges, atom_class, edge_class = _refine(
        numbers, src, dst, node_ptr, dst_ptr, vectors.astype(np.float64), tolerance
    )
    if edge_class.size and edge_class.min() < 0:  # two hashes collided, which is vanishingly rare
        return trivial_orbits(len(numbers), len(src))
    return Orbits(atoms, edges, atom_class, edge_class)


LENGTH_SCALE = 8.0
"""Tolerance of lengths in A, as a multiple of that of cosines."""
CHAIN = 4.0
"""Max span of one cluster in tolerances, so that many close values do not form a chain."""


def tolerance_of(dtype: np.dtype) -> float:
    """Tolerance within which cosines from vectors of a type count as equal."""
    return 16.0 * float(np.finfo(dtype).eps)


@njit(cache=True, nogil=True)
def _mix(x):
    # The finaliser of splitmix64: a bijection in which every input bit affects every output bit.
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit(cache=True, nogil=True)
def clusters(values, tolerance):
    """Number of the cluster of each value: neighbours on the line within the tolerance, in ascending order.

    A value that is not a number is a cluster of its own, so that none stands for it.
    """
    order = np.argsort(values)
    out = np.empty(len(values), dtype=np.uint64)
    number = np.uint64(0)
    begin = last = 0.0
    for position in range(len(order)):
        value = values[order[position]]
        near = value - last <= tolerance and value - begin <= CHAIN * tolerance
        if position and not near:
            number += np.uint64(1)
            begin = value
        elif not position:
            begin = value
        last = value
        out[order[position]] = number
    return out


@njit(cache=True, nogil=True)
def _classes(colors):
    """Number of colours, and for each element the first one of its colour."""
    order = np.argsort(colors)
    first = np.empty(len(colors), dtype=np.int64)
    number = begin = 0
    while begin < len(order):
        end = begin
        least = order[begin]
        while end < len(order) and colors[order[end]] == colors[order[begin]]:
            least = min(least, order[end])
            end += 1
        for position in range(begin, end):
            first[order[position]] = least
        number += 1
        begin = end
    return number, first


@njit(cache=True, nogil=True)
def _refine(numbers, src, dst, node_ptr, dst_ptr, vectors, tolerance):
    one, three, five, seven = np.uint64(1), np.uint64(3), np.uint64(5), np.uint64(7)
    atom_class = np.empty(len(numbers), dtype=np.int64)
    edge_class = np.empty(len(src), dtype=np.int64)
    atoms = np.empty(len(numbers), dtype=np.int64)
    edges = np.empty(len(src), dtype=np.int64)
    many_atoms = many_edges = 0
    for graph in range(len(node_ptr) - 1):
        atom0, atom1 = node_ptr[graph], node_ptr[graph + 1]
        edge0, edge1 = dst_ptr[atom0], dst_ptr[atom1]
        n, m = atom1 - atom0, edge1 - edge0
        begin, end = src[edge0:edge1] - atom0, dst[edge0:edge1] - atom0
        arriving = dst_ptr[atom0 : atom1 + 1] - edge0

        unit = np.empty((m, 3))
        lengths = np.empty(m)
        pairs = 0
        for e in range(m):
            x, y, z = vectors[edge0 + e, 0], vectors[edge0 + e, 1], vectors[edge0 + e, 2]
            lengths[e] = np.sqrt(x * x + y * y + z * z)
            scale = 1.0 / max(lengths[e], 1e-6)
            unit[e, 0], unit[e, 1], unit[e, 2] = x * scale, y * scale, z * scale
            pairs += arriving[begin[e] + 1] - arriving[begin[e]]
        # Pairs (a, b): b starts where a arrives; by b, then a.
        cosines = np.empty(pairs)
        p = 0
        for b in range(m):
            for a in range(arriving[begin[b]], arriving[begin[b] + 1]):
                cosines[p] = (
                    unit[a, 0] * unit[b, 0] + unit[a, 1] * unit[b, 1] + unit[a, 2] * unit[b, 2]
                )
                p += 1
        angle = clusters(cosines, tolerance)
        for p in range(pairs):
            angle[p] = three * _mix(angle[p] + seven)

        edge_color = clusters(lengths, LENGTH_SCALE * tolerance)
        for e in range(m):
            own_image = one if begin[e] == end[e] else np.uint64(0)
            edge_color[e] = _mix(edge_color[e] * np.uint64(2) + own_image)
        atom_color = np.empty(n, dtype=np.uint64)
        for i in range(n):
            atom_color[i] = _mix(np.uint64(numbers[atom0 + i]) + np.uint64(1000))

        known = 0
        while True:
            new_edge = np.empty(m, dtype=np.uint64)
            p = 0
            for b in range(m):
                met = np.uint64(0)  # a sum of hashes does not depend on the order of edges
                for a in range(arriving[begin[b]], arriving[begin[b] + 1]):
                    if a != b:
                        met += _mix(edge_color[a] + angle[p])
                    p += 1
                new_edge[b] = _mix(
                    edge_color[b]
                    + three * _mix(atom_color[begin[b]])
                    + five * _mix(atom_color[end[b]])
                    + seven * _mix(met)
                )
            edge_color = new_edge
            arrived = np.zeros(n, dtype=np.uint64)
            left = np.zeros(n, dtype=np.uint64)
            for e in range(m):
                arrived[end[e]] += _mix(edge_color[e])
                left[begin[e]] += _mix(edge_color[e] + one)
            for i in range(n):
                atom_color[i] = _mix(
                    atom_color[i] + three * _mix(arrived[i]) + five * _mix(left[i])
                )
            atom_number, atom_first = _classes(atom_color)
            edge_number, edge_first = _classes(edge_color)
            if atom_number + edge_number == known or (atom_number == n and edge_number == m):
                break
            known = atom_number + edge_number

        of_atom = np.empty(n, dtype=np.int64)
        for i in range(n):
            if atom_first[i] == i:
                of_atom[i] = many_atoms
                atoms[many_atoms] = atom0 + i
                many_atoms += 1
            atom_class[atom0 + i] = of_atom[atom_first[i]]
        # An edge represents its class if it leaves an atom that represents its own.
        of_edge = np.full(m, -1, dtype=np.int64)
        for e in range(m):
            if atom_first[begin[e]] == begin[e] and of_edge[edge_first[e]] < 0:
                of_edge[edge_first[e]] = many_edges
                edges[many_edges] = edge0 + e
                many_edges += 1
        for e in range(m):
            edge_class[edge0 + e] = of_edge[edge_first[e]]
    return atoms[:many_atoms].copy(), edges[:many_edges].copy(), atom_class, edge_class
