"""Compiled neighbour search over a whole chunk of structures: k-nearest, radius, triad, triplets.

Numba kernels on concatenated arrays; nothing per edge in Python. They know nothing of specs, shards
and torch: `build.py` turns a spec into their arguments. Numbers are float64, without fused or
reordered operations, so that the same structure gives the same edges on any machine.

How it works. The periodic lattice vectors are reduced to short ones and written as a lower
triangular matrix in an orthonormal frame; then, for a pair of atoms, the images within a radius
follow one coordinate after the other (Fincke and Pohst, Math. Comput. 44, 463 (1985)), and nothing
outside the sphere is visited but the ends of rows. The distance of an edge and of its reverse are
equal to the last bit, so an edge is listed by an end exactly if its distance does not exceed that
end's k-th; no list has to be searched for the reverse edge.

S structures, A atoms in all, N atoms and E edges of one structure, T triplets.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

TIE = 1e-8
"""A; edges of one atom whose sorted distances follow each other this closely are put in the order
of their source and shift, not of rounding noise. Structures are known to this quantum."""

BINNED_FROM = 250
"""Structures of at least this many atoms are searched through bins."""

_SLACK = 1e-6  # A; ranges of images are widened by this, then every image is tested


@njit(cache=True, nogil=True)
def search_chunk(
    node_ptr,
    positions,
    cell,
    pbc,
    nearest,
    cutoff,
    limit_cutoff,
    tolerance,
    lattice_edges,
    binned_from,
):
    """Edges of all structures of a chunk, sorted by dst, distance, src, shift.

    Args:
        node_ptr: [S+1] int64.
        positions: [A, 3] float64, A; atoms may lie outside the cell.
        cell: [S, 3, 3] float64, A.
        pbc: [S, 3] bool.
        nearest: how many neighbours each atom lists; 0 for all within the cutoff.
        cutoff: float64, A.
        limit_cutoff: whether `cutoff` limits k-nearest lists too.
        tolerance: float64, A, thickness of a shell.
        lattice_edges: whether to add each atom's edges to its images along the lattice triad.
        binned_from: least number of atoms for the binned search.

    Returns:
        edge_ptr [S+1] int64, src [E] int32, dst [E] int32, shift [E, 3] int32, listed [E] uint8,
        distance [E] float64 of all structures.
    """
    structures = node_ptr.shape[0] - 1
    most = 1
    for s in range(structures):
        most = max(most, node_ptr[s + 1] - node_ptr[s])
    edge_ptr = np.zeros(structures + 1, np.int64)
    capacity = 64 + 2 * max(nearest, 12) * positions.shape[0]
    src = np.empty(capacity, np.int32)
    dst = np.empty(capacity, np.int32)
    shift = np.empty((capacity, 3), np.int32)
    listed = np.empty(capacity, np.uint8)
    distance = np.empty(capacity, np.float64)

    basis = np.zeros((3, 3), np.int64)
    lower = np.zeros((3, 3), np.float64)
    axes = np.zeros((3, 3), np.float64)
    u = np.empty((most, 3), np.float64)
    wrap = np.empty((most, 3), np.int32)
    reach2 = np.empty(most, np.float64)
    triad = np.zeros((3, 3), np.int64)

    # Candidates of one atom, and edges of one structure before they are sorted.
    c_d2 = np.empty(256, np.float64)
    c_src = np.empty(256, np.int32)
    c_shift = np.empty((256, 3), np.int32)
    pick = np.empty(256, np.float64)
    e_d2 = np.empty(1024, np.float64)
    e_src = np.empty(1024, np.int32)
    e_dst = np.empty(1024, np.int32)
    e_shift = np.empty((1024, 3), np.int32)
    e_listed = np.empty(1024, np.uint8)
    order = np.empty(1024, np.int64)
    first = np.empty(most + 1, np.int64)

    total = 0
    for s in range(structures):
        begin = node_ptr[s]
        n = node_ptr[s + 1] - begin
        periodic = _frame(cell[s], pbc[s], basis, lower, axes)
        volume = _place(positions, begin, n, periodic, lower, axes, u, wrap)
        binned = n >= binned_from
        if nearest > 0:
            guess = (0.2387 * (nearest + 4.0) * volume / n) ** (1.0 / 3.0)
            if limit_cutoff:
                guess = min(guess, cutoff + tolerance)
        else:
            guess = cutoff
        if binned:
            bins, bin_ptr, bin_atom, scaled = _fill_bins(u, n, periodic, lower, guess)
        else:
            bins, bin_ptr, bin_atom = first[:3], first[:1], first[:1]
            scaled = u[:1]

        edges = 0
        for i in range(n):
            radius = guess
            # All other atoms of a molecule, if it has no more than k.
            everything = periodic == 0 and nearest > 0 and n - 1 <= nearest
            if everything:
                radius = cutoff + tolerance if limit_cutoff else np.inf
            while True:
                while True:
                    if binned and not everything:
                        count = _gather_bins(
                            i, u, periodic, lower, radius, c_d2, c_src, c_shift,
                            bins, bin_ptr, bin_atom, scaled,
                        )  # fmt: skip
                    else:
                        count = _gather(i, n, u, periodic, lower, radius, c_d2, c_src, c_shift)
                    if count <= c_d2.shape[0]:
                        break
                    room = 2 * count
                    c_d2 = np.empty(room, np.float64)
                    c_src = np.empty(room, np.int32)
                    c_shift = np.empty((room, 3), np.int32)
                    pick = np.empty(room, np.float64)
                if nearest == 0 or everything:
                    reach2[i] = radius * radius
                    break
                final = limit_cutoff and radius >= cutoff + tolerance
                if count < nearest:
                    if final:
                        reach2[i] = radius * radius
                        break
                    grow = ((nearest + 2.0) / (count + 1.0)) ** (1.0 / 3.0)
                    radius *= min(max(grow, 1.15), 2.0)
                    if limit_cutoff:
                        radius = min(radius, cutoff + tolerance)
                    continue
                kth2 = _select(c_d2, pick, count, nearest - 1)
                reach = math.sqrt(kth2) + tolerance
                # reach * reach may round below kth2 where the tolerance is 0.
                if reach <= radius or final:
                    reach2[i] = min(max(reach * reach, kth2), radius * radius)
                    break
                radius = reach * (1.0 + 1e-12)
                if limit_cutoff:
                    radius = min(radius, cutoff + tolerance)
            if edges + count > e_d2.shape[0]:
                e_src, e_dst, e_shift, e_listed, e_d2 = _longer(
                    e_src, e_dst, e_shift, e_listed, e_d2, edges, 2 * (edges + count)
                )
            bound = reach2[i]
            for c in range(count):
                if c_d2[c] <= bound:
                    e_d2[edges] = c_d2[c]
                    e_src[edges] = c_src[c]
                    e_dst[edges] = i
                    e_shift[edges, 0] = c_shift[c, 0]
                    e_shift[edges, 1] = c_shift[c, 1]
                    e_shift[edges, 2] = c_shift[c, 2]
                    edges += 1

        # The other end lists the edge too, or else its reverse joins with that bit alone.
        room = 2 * edges + 6 * n
        if room > e_d2.shape[0]:
            e_src, e_dst, e_shift, e_listed, e_d2 = _longer(
                e_src, e_dst, e_shift, e_listed, e_d2, edges, room
            )
        own = edges
        for e in range(own):
            if e_d2[e] <= reach2[e_src[e]]:
                e_listed[e] = 3
            else:
                e_listed[e] = 1
                e_d2[edges] = e_d2[e]
                e_src[edges] = e_dst[e]
                e_dst[edges] = e_src[e]
                e_shift[edges, 0] = -e_shift[e, 0]
                e_shift[edges, 1] = -e_shift[e, 1]
                e_shift[edges, 2] = -e_shift[e, 2]
                e_listed[edges] = 2
                edges += 1

        if lattice_edges and periodic == 3:
            _triad(lower, axes, basis, tolerance, triad)
            for a in range(3):
                x = (
                    triad[a, 2] * lower[2, 0]
                    + triad[a, 1] * lower[1, 0]
                    + triad[a, 0] * lower[0, 0]
                )
                y = triad[a, 2] * lower[2, 1] + triad[a, 1] * lower[1, 1]
                z = triad[a, 2] * lower[2, 2]
                d2 = x * x + y * y + z * z
                for i in range(n):
                    if d2 > reach2[i]:
                        for sign in (-1, 1):
                            e_d2[edges] = d2
                            e_src[edges] = i
                            e_dst[edges] = i
                            e_shift[edges, 0] = sign * triad[a, 0]
                            e_shift[edges, 1] = sign * triad[a, 1]
                            e_shift[edges, 2] = sign * triad[a, 2]
                            # Each atom lists its image along +l; -l is that edge's reverse.
                            e_listed[edges] = 1 if sign > 0 else 2
                            edges += 1

        # From the reduced basis and wrapped atoms back to the given cell and positions.
        for e in range(edges):
            a0 = e_shift[e, 0] - wrap[e_src[e], 0] + wrap[e_dst[e], 0]
            a1 = e_shift[e, 1] - wrap[e_src[e], 1] + wrap[e_dst[e], 1]
            a2 = e_shift[e, 2] - wrap[e_src[e], 2] + wrap[e_dst[e], 2]
            for b in range(3):
                e_shift[e, b] = a0 * basis[0, b] + a1 * basis[1, b] + a2 * basis[2, b]

        if total + edges > src.shape[0]:
            # Guess from the structures so far what all will need.
            capacity = max((total + edges) * 5 // 4, (total + edges) * structures // (s + 1))
            src, dst, shift, listed, distance = _longer(
                src, dst, shift, listed, distance, total, capacity
            )
        if edges > order.shape[0]:
            order = np.empty(2 * edges, np.int64)
        _sort(n, edges, e_d2, e_src, e_dst, e_shift, first, order)
        for rank in range(edges):
            e = order[rank]
            src[total] = e_src[e]
            dst[total] = e_dst[e]
            shift[total, 0] = e_shift[e, 0]
            shift[total, 1] = e_shift[e, 1]
            shift[total, 2] = e_shift[e, 2]
            listed[total] = e_listed[e]
            distance[total] = math.sqrt(e_d2[e])
            total += 1
        edge_ptr[s + 1] = total
    return edge_ptr, src[:total], dst[:total], shift[:total], listed[:total], distance[:total]


@njit(cache=True, nogil=True)
def lattice_triads(cell, tolerance):
    """The three shortest independent lattice vectors of each crystal, right-handed.

    l1 is the shortest vector, l2 the next not collinear, l3 the next not coplanar; neither l2 nor
    l3 makes more than 90 degrees with l1; if l1 x l2 . l3 < 0 all three are negated. Where lengths
    agree within the tolerance, the choice of the smallest angles wins (l1 with l2, l1 with l3, l2
    with l3), which depends on the lattice alone; among choices of equal angles, the one with the
    simplest coefficients in the given cell (small, then positive, then of the earlier vectors), in
    the order l1, l2, l3. No rotation changes either.

    Args:
        cell: [S, 3, 3] float64, A, three periodic vectors.
        tolerance: float64, A.

    Returns:
        [S, 3, 3] float64, A, rows l1, l2, l3.
    """
    triads = np.empty_like(cell)
    basis = np.zeros((3, 3), np.int64)
    lower = np.zeros((3, 3), np.float64)
    axes = np.zeros((3, 3), np.float64)
    triad = np.zeros((3, 3), np.int64)
    pbc = np.ones(3, np.bool_)
    for s in range(cell.shape[0]):
        _frame(cell[s], pbc, basis, lower, axes)
        _triad(lower, axes, basis, tolerance, triad)
        for row in range(3):
            for x in range(3):
                value = 0.0
                for b in range(3):
                    whole = 0
                    for a in range(3):
                        whole += triad[row, a] * basis[a, b]
                    value += whole * cell[s, b, x]
                triads[s, row, x] = value
    return triads


@njit(cache=True, nogil=True)
def triplet_pairs(node_ptr, edge_ptr, dst, distance, cutoff):
    """Pairs of edges (a, b), a < b, that end at one atom and are no longer than the cutoff.

    Args:
        node_ptr, edge_ptr: [S+1] int64.
        dst: [E] int32, within the structure, sorted.
        distance: [E] float64, A.
        cutoff: float64, A.

    Returns:
        triplet_ptr [S+1] int64 and triplet [T, 2] uint32, edges counted within the structure.
    """
    structures = edge_ptr.shape[0] - 1
    triplet_ptr = np.zeros(structures + 1, np.int64)
    for fill in range(2):
        if fill == 0:
            triplet = np.empty((0, 2), np.uint32)
        else:
            triplet = np.empty((triplet_ptr[structures], 2), np.uint32)
        total = 0
        for s in range(structures):
            begin, end = edge_ptr[s], edge_ptr[s + 1]
            a = begin
            while a < end:
                stop = a
                while stop < end and dst[stop] == dst[a]:
                    stop += 1
                for left in range(a, stop):
                    if distance[left] > cutoff:
                        continue
                    for right in range(left + 1, stop):
                        if distance[right] <= cutoff:
                            if fill == 1:
                                triplet[total, 0] = left - begin
                                triplet[total, 1] = right - begin
                            total += 1
                a = stop
            triplet_ptr[s + 1] = total
    return triplet_ptr, triplet


@njit(cache=True, nogil=True)
def _longer(src, dst, shift, listed, length, used, size):
    """Copies of five arrays of edges with room for `size`; the first `used` rows are kept."""
    longer_src = np.empty(size, np.int32)
    longer_dst = np.empty(size, np.int32)
    longer_shift = np.empty((size, 3), np.int32)
    longer_listed = np.empty(size, np.uint8)
    longer_length = np.empty(size, np.float64)
    for e in range(used):
        longer_src[e] = src[e]
        longer_dst[e] = dst[e]
        for a in range(3):
            longer_shift[e, a] = shift[e, a]
        longer_listed[e] = listed[e]
        longer_length[e] = length[e]
    return longer_src, longer_dst, longer_shift, longer_listed, longer_length


@njit(cache=True, nogil=True)
def _dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@njit(cache=True, nogil=True)
def _frame(cell, pbc, basis, lower, axes):
    """Reduce the periodic vectors and write them as rows of a lower triangular matrix.

    Fills `basis` (reduced vectors as integer rows over the cell; the first p rows count), `axes`
    (orthonormal rows) and `lower` (reduced vectors along the axes). Returns p, the number of
    periodic directions.
    """
    vectors = np.zeros((3, 3), np.float64)
    p = 0
    for a in range(3):
        for x in range(3):
            basis[a, x] = 0
            lower[a, x] = 0.0
    for a in range(3):
        if pbc[a]:
            basis[p, a] = 1
            for x in range(3):
                vectors[p, x] = cell[a, x]
            p += 1
    for _ in range(100):
        changed = False
        for a in range(p):
            for b in range(p):
                if a == b:
                    continue
                ratio = _dot(vectors[a], vectors[b]) / _dot(vectors[b], vectors[b])
                if abs(ratio) > 0.5 + 1e-6:
                    whole = round(ratio)
                    for x in range(3):
                        basis[a, x] -= whole * basis[b, x]
                    # Anew from integers: differences of long vectors would pile up rounding.
                    for x in range(3):
                        vectors[a, x] = (
                            basis[a, 0] * cell[0, x]
                            + basis[a, 1] * cell[1, x]
                            + basis[a, 2] * cell[2, x]
                        )
                    changed = True
        if not changed:
            break

    for a in range(3):
        for x in range(3):
            axes[a, x] = vectors[a, x] if a < p else 0.0
        if a < p:
            pass
        elif a == 2 and p > 0:
            axes[2, 0] = axes[0, 1] * axes[1, 2] - axes[0, 2] * axes[1, 1]
            axes[2, 1] = axes[0, 2] * axes[1, 0] - axes[0, 0] * axes[1, 2]
            axes[2, 2] = axes[0, 0] * axes[1, 1] - axes[0, 1] * axes[1, 0]
        elif p == 0:
            axes[a, a] = 1.0
        else:
            # Any direction far from the one periodic vector.
            least = 0
            for x in range(3):
                if abs(axes[0, x]) < abs(axes[0, least]):
                    least = x
            axes[a, least] = 1.0
        for _ in range(2):  # twice, for orthogonality to the last bit in skewed cells
            for b in range(a):
                along = _dot(axes[a], axes[b])
                for x in range(3):
                    axes[a, x] -= along * axes[b, x]
            norm = math.sqrt(_dot(axes[a], axes[a]))
            for x in range(3):
                axes[a, x] /= norm
    for a in range(p):
        for b in range(a + 1):
            lower[a, b] = _dot(vectors[a], axes[b])
    return p


@njit(cache=True, nogil=True)
def _place(positions, begin, n, periodic, lower, axes, u, wrap):
    """Coordinates along the axes, wrapped into the reduced cell, and the volume to guess by.

    Fills `u` and `wrap`, the whole vectors taken away. Directions that are not periodic count with
    the extent of the atoms and 2 A.
    """
    for i in range(n):
        x, y, z = positions[begin + i, 0], positions[begin + i, 1], positions[begin + i, 2]
        for a in range(3):
            u[i, a] = axes[a, 0] * x + axes[a, 1] * y + axes[a, 2] * z
            wrap[i, a] = 0
        # Fractions from the last axis down, as the matrix is triangular.
        f2 = u[i, 2] / lower[2, 2] if periodic > 2 else 0.0
        f1 = (u[i, 1] - f2 * lower[2, 1]) / lower[1, 1] if periodic > 1 else 0.0
        if periodic > 0:
            f0 = (u[i, 0] - f2 * lower[2, 0] - f1 * lower[1, 0]) / lower[0, 0]
            w0, w1, w2 = math.floor(f0), math.floor(f1), math.floor(f2)
            wrap[i, 0], wrap[i, 1], wrap[i, 2] = w0, w1, w2
            u[i, 0] -= w2 * lower[2, 0] + w1 * lower[1, 0] + w0 * lower[0, 0]
            u[i, 1] -= w2 * lower[2, 1] + w1 * lower[1, 1]
            u[i, 2] -= w2 * lower[2, 2]
    volume = 1.0
    for a in range(3):
        if a < periodic:
            volume *= lower[a, a]
        else:
            least, most = u[0, a], u[0, a]
            for i in range(1, n):
                least, most = min(least, u[i, a]), max(most, u[i, a])
            volume *= most - least + 2.0
    return volume


@njit(cache=True, nogil=True)
def _gather(i, n, u, periodic, lower, radius, out_d2, out_src, out_shift):
    """All images within the radius of atom i; returns their number, stores as many as fit."""
    limit = radius * radius
    reach = radius + _SLACK
    room = out_d2.shape[0]
    l00, l10, l11 = lower[0, 0], lower[1, 0], lower[1, 1]
    l20, l21, l22 = lower[2, 0], lower[2, 1], lower[2, 2]
    r00 = 1.0 / l00 if periodic > 0 else 0.0
    r11 = 1.0 / l11 if periodic > 1 else 0.0
    r22 = 1.0 / l22 if periodic > 2 else 0.0
    ux, uy, uz = u[i, 0], u[i, 1], u[i, 2]
    count = 0
    low0 = low1 = low2 = high0 = high1 = high2 = 0
    for j in range(n):
        x3, y3, z3 = u[j, 0] - ux, u[j, 1] - uy, u[j, 2] - uz
        if periodic > 2:
            low2, high2 = math.ceil((-reach - z3) * r22), math.floor((reach - z3) * r22)
        for s2 in range(low2, high2 + 1):
            z = z3 + s2 * l22
            left = limit - z * z
            if left < -_SLACK:
                continue
            y2 = y3 + s2 * l21
            x2 = x3 + s2 * l20
            if periodic > 1:
                side = math.sqrt(max(left, 0.0)) + _SLACK
                low1, high1 = math.ceil((-side - y2) * r11), math.floor((side - y2) * r11)
            for s1 in range(low1, high1 + 1):
                y = y2 + s1 * l11
                rest = left - y * y
                if rest < -_SLACK:
                    continue
                x1 = x2 + s1 * l10
                if periodic > 0:
                    side = math.sqrt(max(rest, 0.0)) + _SLACK
                    low0, high0 = math.ceil((-side - x1) * r00), math.floor((side - x1) * r00)
                for s0 in range(low0, high0 + 1):
                    x = x1 + s0 * l00
                    d2 = x * x + y * y + z * z
                    if d2 <= limit and not (i == j and s0 == 0 and s1 == 0 and s2 == 0):
                        if count < room:
                            out_d2[count] = d2
                            out_src[count] = j
                            out_shift[count, 0] = s0
                            out_shift[count, 1] = s1
                            out_shift[count, 2] = s2
                        count += 1
    return count


@njit(cache=True, nogil=True)
def _box(u, n, periodic, lower):
    """The triangular cell, with the extent of the atoms where it is not periodic, and its corner."""
    box = np.empty((3, 3), np.float64)
    for a in range(3):
        for b in range(3):
            box[a, b] = lower[a, b]
    corner = np.zeros(3, np.float64)
    for a in range(periodic, 3):
        least, most = u[0, a], u[0, a]
        for i in range(1, n):
            least, most = min(least, u[i, a]), max(most, u[i, a])
        corner[a] = least
        box[a, a] = most - least + 1e-3
    return box, corner


@njit(cache=True, nogil=True)
def _fill_bins(u, n, periodic, lower, radius):
    """Sort atoms into bins some half a radius wide.

    Returns the numbers of bins [3], the first place of each bin, the atoms by bin, and rows of
    fractions [N, 3] followed by the spacings of lattice planes [1, 3].
    """
    box, corner = _box(u, n, periodic, lower)
    # Distance of lattice planes: the inverse lengths of the columns of the inverse matrix.
    i00, i11, i22 = 1.0 / box[0, 0], 1.0 / box[1, 1], 1.0 / box[2, 2]
    i10 = -box[1, 0] * i00 * i11
    i21 = -box[2, 1] * i11 * i22
    i20 = (box[1, 0] * box[2, 1] * i11 - box[2, 0]) * i00 * i22
    scaled = np.empty((n + 1, 3), np.float64)
    scaled[n, 0] = 1.0 / math.sqrt(i00 * i00 + i10 * i10 + i20 * i20)
    scaled[n, 1] = 1.0 / math.sqrt(i11 * i11 + i21 * i21)
    scaled[n, 2] = box[2, 2]
    bins = np.empty(3, np.int64)
    for a in range(3):
        bins[a] = min(max(int(2.0 * scaled[n, a] / radius), 1), 1 + n // 2)
    while bins[0] * bins[1] * bins[2] > 4 * n + 8:
        for a in range(3):
            bins[a] = max(bins[a] * 3 // 4, 1)
    where = np.empty(n, np.int64)
    bin_ptr = np.zeros(bins[0] * bins[1] * bins[2] + 1, np.int64)
    for i in range(n):
        f2 = (u[i, 2] - corner[2]) * i22
        f1 = (u[i, 1] - corner[1] - f2 * box[2, 1]) * i11
        f0 = (u[i, 0] - corner[0] - f2 * box[2, 0] - f1 * box[1, 0]) * i00
        scaled[i, 0], scaled[i, 1], scaled[i, 2] = f0, f1, f2
        b0 = min(max(int(f0 * bins[0]), 0), bins[0] - 1)
        b1 = min(max(int(f1 * bins[1]), 0), bins[1] - 1)
        b2 = min(max(int(f2 * bins[2]), 0), bins[2] - 1)
        where[i] = (b2 * bins[1] + b1) * bins[0] + b0
        bin_ptr[where[i] + 1] += 1
    for b in range(bin_ptr.shape[0] - 1):
        bin_ptr[b + 1] += bin_ptr[b]
    bin_atom = np.empty(n, np.int64)
    for i in range(n - 1, -1, -1):
        bin_atom[bin_ptr[where[i] + 1] - 1] = i
        bin_ptr[where[i] + 1] -= 1
    # Each bin's end has walked down to its begin: move the begins to where they belong.
    for b in range(bin_ptr.shape[0] - 1):
        bin_ptr[b] = bin_ptr[b + 1]
    bin_ptr[bin_ptr.shape[0] - 1] = n
    return bins, bin_ptr, bin_atom, scaled


@njit(cache=True, nogil=True)
def _gather_bins(
    i, u, periodic, lower, radius, out_d2, out_src, out_shift, bins, bin_ptr, bin_atom, scaled
):
    """As `_gather`, through bins; the same arithmetic for each distance."""
    limit = radius * radius
    room = out_d2.shape[0]
    spacing = scaled[scaled.shape[0] - 1]
    low = np.empty(3, np.int64)
    high = np.empty(3, np.int64)
    for a in range(3):
        width = (radius + _SLACK) / spacing[a] + 1e-9
        least, most = (scaled[i, a] - width) * bins[a], (scaled[i, a] + width) * bins[a]
        if a < periodic:
            low[a], high[a] = math.floor(least), math.floor(most)
        else:
            low[a] = max(math.floor(max(least, -1.0)), 0)
            high[a] = min(math.floor(min(most, bins[a] + 1.0)), bins[a] - 1)
    ux, uy, uz = u[i, 0], u[i, 1], u[i, 2]
    count = 0
    for g2 in range(low[2], high[2] + 1):
        s2 = g2 // bins[2]
        b2 = g2 - s2 * bins[2]
        for g1 in range(low[1], high[1] + 1):
            s1 = g1 // bins[1]
            b1 = g1 - s1 * bins[1]
            for g0 in range(low[0], high[0] + 1):
                s0 = g0 // bins[0]
                b0 = g0 - s0 * bins[0]
                b = (b2 * bins[1] + b1) * bins[0] + b0
                for place in range(bin_ptr[b], bin_ptr[b + 1]):
                    j = bin_atom[place]
                    z = u[j, 2] - uz + s2 * lower[2, 2]
                    y = u[j, 1] - uy + s2 * lower[2, 1] + s1 * lower[1, 1]
                    x = u[j, 0] - ux + s2 * lower[2, 0] + s1 * lower[1, 0] + s0 * lower[0, 0]
                    d2 = x * x + y * y + z * z
                    if d2 <= limit and not (i == j and s0 == 0 and s1 == 0 and s2 == 0):
                        if count < room:
                            out_d2[count] = d2
                            out_src[count] = j
                            out_shift[count, 0] = s0
                            out_shift[count, 1] = s1
                            out_shift[count, 2] = s2
                        count += 1
    return count


@njit(cache=True, nogil=True)
def _select(values, work, count, rank):
    """The value of this rank (0 is the least) by quickselect; `work` is overwritten."""
    for c in range(count):
        work[c] = values[c]
    low, high = 0, count - 1
    while low < high:
        middle = (low + high) // 2
        # Median of three, so that sorted input is no bad case.
        a, b, c = work[low], work[middle], work[high]
        pivot = max(min(a, b), min(max(a, b), c))
        left, right = low, high
        while left <= right:
            while work[left] < pivot:
                left += 1
            while work[right] > pivot:
                right -= 1
            if left <= right:
                work[left], work[right] = work[right], work[left]
                left += 1
                right -= 1
        if rank <= right:
            high = right
        elif rank >= left:
            low = left
        else:
            break
    return work[rank]


@njit(cache=True, nogil=True)
def _sort(n, edges, d2, src, dst, shift, first, order):
    """Fill `order` with the edges by dst, distance (ties within TIE), src, shift."""
    for i in range(n + 1):
        first[i] = 0
    for e in range(edges):
        first[dst[e] + 1] += 1
    for i in range(n):
        first[i + 1] += first[i]
    for e in range(edges):
        order[first[dst[e]]] = e
        first[dst[e]] += 1
    begin = 0
    for i in range(n):
        end = first[i]
        _sort_by_value(order, begin, end, d2)
        start = begin
        while start < end:
            stop = start + 1
            last = math.sqrt(d2[order[start]])
            while stop < end:
                here = math.sqrt(d2[order[stop]])
                if here - last > TIE:
                    break
                last = here
                stop += 1
            for a in range(start + 1, stop):
                e = order[a]
                b = a - 1
                while b >= start and _after(order[b], e, src, shift):
                    order[b + 1] = order[b]
                    b -= 1
                order[b + 1] = e
            start = stop
        begin = end


@njit(cache=True, nogil=True)
def _sort_by_value(order, begin, end, value):
    """Sort order[begin:end] by value (shell sort, gaps of Ciura): short lists, nothing allocated."""
    for gap in (1750, 701, 301, 132, 57, 23, 10, 4, 1):
        for a in range(begin + gap, end):
            e = order[a]
            key = value[e]
            b = a - gap
            while b >= begin and value[order[b]] > key:
                order[b + gap] = order[b]
                b -= gap
            order[b + gap] = e


@njit(cache=True, nogil=True)
def _after(e, f, src, shift):
    """Whether edge e comes after edge f by source and shift."""
    if src[e] != src[f]:
        return src[e] > src[f]
    for a in range(3):
        if shift[e, a] != shift[f, a]:
            return shift[e, a] > shift[f, a]
    return False


@njit(cache=True, nogil=True)
def _triad(lower, axes, basis, tolerance, triad):
    """Fill `triad` with l1, l2, l3 as integer rows over the reduced vectors."""
    longest = 0.0
    for a in range(3):
        longest = max(longest, _dot(lower[a], lower[a]))
    radius = math.sqrt(longest) + tolerance + _SLACK
    origin = np.zeros((1, 3), np.float64)
    room = 64
    while True:
        d2 = np.empty(room, np.float64)
        index = np.empty(room, np.int32)
        shift = np.empty((room, 3), np.int32)
        count = _gather(0, 1, origin, 3, lower, radius, d2, index, shift)
        if count <= room:
            break
        room = count
    by_length = np.arange(count)
    _sort_by_value(by_length, 0, count, d2)
    length = np.empty(count, np.float64)
    points = np.empty((count, 3), np.int64)
    vectors = np.zeros((count, 3), np.float64)
    given = np.zeros((count, 3), np.int64)
    for c in range(count):
        length[c] = math.sqrt(d2[by_length[c]])
        for a in range(3):
            points[c, a] = shift[by_length[c], a]
            for x in range(3):
                vectors[c, x] += points[c, a] * lower[a, x]
                given[c, x] += points[c, a] * basis[a, x]

    # Lengths of the successive minima: any greedy choice finds the same.
    second = 1
    while _collinear(points[0], points[second]):
        second += 1
    third = second + 1
    while _volume(points[0], points[second], points[third]) == 0:
        third += 1
    lengths = length[0], length[second], length[third]

    # `lower` has a positive diagonal, so the axes tell how the reduced vectors turn.
    turn = 1 if _handed(axes[0], axes[1], axes[2]) > 0.0 else -1
    best = np.empty(3, np.int64)
    best[0] = -1
    best_sign = 1
    score = np.zeros(3, np.float64)
    trial = np.zeros(3, np.float64)
    for a in range(count):
        if length[a] > lengths[0] + tolerance:
            break
        for b in range(count):
            if length[b] > lengths[1] + tolerance:
                break
            if length[b] < lengths[1] - tolerance or _collinear(points[a], points[b]):
                continue
            trial[0] = _dot(vectors[a], vectors[b]) / (length[a] * length[b])
            if trial[0] < -1e-6 or (best[0] >= 0 and trial[0] < score[0] - 1e-6):
                continue
            for c in range(count):
                if length[c] > lengths[2] + tolerance:
                    break
                if length[c] < lengths[2] - tolerance:
                    continue
                trial[1] = _dot(vectors[a], vectors[c]) / (length[a] * length[c])
                volume = _volume(points[a], points[b], points[c])
                if trial[1] < -1e-6 or volume == 0:
                    continue
                trial[2] = _dot(vectors[b], vectors[c]) / (length[b] * length[c])
                sign = turn if volume > 0 else -turn
                if best[0] < 0 or _better(trial, score, given, a, b, c, sign, best, best_sign):
                    best[0], best[1], best[2] = a, b, c
                    best_sign = sign
                    for x in range(3):
                        score[x] = trial[x]
    for row in range(3):
        for a in range(3):
            triad[row, a] = best_sign * points[best[row], a]


@njit(cache=True, nogil=True)
def _better(trial, score, given, a, b, c, sign, best, best_sign):
    """Whether triple (a, b, c) beats the best so far: smaller angles, then simpler coefficients."""
    for n in range(3):
        if abs(trial[n] - score[n]) > 1e-6:
            return trial[n] > score[n]
    for row, candidate in enumerate((a, b, c)):
        new, old = given[candidate], given[best[row]]
        size = abs(new[0]) + abs(new[1]) + abs(new[2]) - abs(old[0]) - abs(old[1]) - abs(old[2])
        if size != 0:
            return size < 0
        for x in range(3):
            if sign * new[x] != best_sign * old[x]:
                return sign * new[x] > best_sign * old[x]
    return False


@njit(cache=True, nogil=True)
def _collinear(a, b):
    return a[0] * b[1] == a[1] * b[0] and a[1] * b[2] == a[2] * b[1] and a[0] * b[2] == a[2] * b[0]


@njit(cache=True, nogil=True)
def _volume(a, b, c):
    return (
        a[0] * (b[1] * c[2] - b[2] * c[1])
        - a[1] * (b[0] * c[2] - b[2] * c[0])
        + a[2] * (b[0] * c[1] - b[1] * c[0])
    )


@njit(cache=True, nogil=True)
def _handed(a, b, c):
    return (
        a[0] * (b[1] * c[2] - b[2] * c[1])
        - a[1] * (b[0] * c[2] - b[2] * c[0])
        + a[2] * (b[0] * c[1] - b[1] * c[0])
    )
