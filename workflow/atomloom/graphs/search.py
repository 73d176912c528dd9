"""Compiled neighbour search over a whole chunk of structures: k-nearest, radius, triad, triplets.

Numba kernels on concatenated arrays; nothing per edge in Python. They know nothing of specs, shards
and torch: `build.py` turns a spec into their arguments. Numbers are float64, without fused or
reordered operations, so that the same structure gives the same edges on any machine.

How it works. The periodic lattice vectors are reduced to short ones and written as a lower
triangular matrix in an orthonormal frame, in which the atoms are wrapped into a box. All images
within a radius of the box, guessed from the density, are laid out in bins whose rows are scanned as
plain arrays; an atom that needs a larger radius walks the lattice itself, one coordinate after the
other (Fincke and Pohst, Math. Comput. 44, 463 (1985)), or, in large structures, gets more images.
The distances of an edge and of its reverse are equal to the last bit, so an edge is listed by an
end exactly if its distance does not exceed that end's k-th; no list has to be searched for the
reverse edge.

S structures, A atoms in all, N atoms and E edges of one structure, T triplets.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

TIE = 1e-8
"""A; edges of one atom whose sorted distances follow each other this closely are put in the order
of their source and shift, not of rounding noise. Structures are known to this quantum."""

_MANY = 100  # atoms; from here on laying out more images is cheaper than walking the lattice
_ONE_BIN = 600  # images; fewer are scanned from end to end
kernel = njit(cache=True, nogil=True, error_model="numpy")
helper = njit(nogil=True, error_model="numpy")  # compiled into the kernels, cached with them

_SLACK = 1e-6  # A; ranges of images are widened by this, then every image is tested


@kernel
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
    wrap = np.empty((most, 3), np.int64)
    box = np.zeros((2, 3), np.float64)
    reach2 = np.empty(most, np.float64)
    triad = np.zeros((3, 3), np.int64)

    # Candidates of one atom, and edges of one structure before they are sorted. `e_length` holds
    # squares until all edges are there.
    c_d2 = np.empty(256, np.float64)
    c_src = np.empty(256, np.int32)
    c_shift = np.empty((256, 3), np.int32)
    pick = np.empty(256, np.float64)
    images = _room_for_images(1024)
    bins = np.ones(3, np.int64)
    grid = np.ones((2, 3), np.float64)
    e_length = np.empty(1024, np.float64)
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
        volume = _place(positions, begin, n, periodic, lower, axes, u, wrap, box)
        if nearest > 0:
            guess = (0.2387 * (nearest + 4.0) * volume / n) ** (1.0 / 3.0)
            if limit_cutoff:
                guess = min(guess, cutoff + tolerance)
            # A molecule of no more than k + 1 atoms ends with all the others.
            everything = periodic == 0 and n - 1 <= nearest
            spread = 1.15 * guess
        else:
            guess, everything = cutoff, False
            spread = cutoff
        if not everything:
            images = _lay_out(u, n, periodic, lower, box, spread, images, bins, grid)

        edges = 0
        for i in range(n):
            radius = guess
            if everything:
                radius = cutoff + tolerance if limit_cutoff else np.inf
            while True:
                if radius > spread and n >= _MANY and not everything:
                    spread = 1.25 * radius
                    images = _lay_out(u, n, periodic, lower, box, spread, images, bins, grid)
                while True:
                    if everything or radius > spread:
                        count = _walk(i, n, u, periodic, lower, radius, c_d2, c_src, c_shift)
                    else:
                        count = _scan(i, u, lower, radius, images, bins, grid, c_d2, c_src, c_shift)
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
                    # Atoms of one structure are much alike: learn from this one.
                    guess = min(0.7 * guess + 0.3 * 1.12 * reach, spread)
                    break
                radius = reach * (1.0 + 1e-12)
                if limit_cutoff:
                    radius = min(radius, cutoff + tolerance)
            if edges + count > e_length.shape[0]:
                e_src, e_dst, e_shift, e_listed, e_length = _longer(
                    e_src, e_dst, e_shift, e_listed, e_length, edges, 2 * (edges + count)
                )
            bound = reach2[i]
            for c in range(count):
                if c_d2[c] <= bound:
                    e_length[edges] = c_d2[c]
                    e_src[edges] = c_src[c]
                    e_dst[edges] = i
                    e_shift[edges, 0] = c_shift[c, 0]
                    e_shift[edges, 1] = c_shift[c, 1]
                    e_shift[edges, 2] = c_shift[c, 2]
                    edges += 1

        # The other end lists the edge too, or else its reverse joins with that bit alone.
        room = 2 * edges + 6 * n
        if room > e_length.shape[0]:
            e_src, e_dst, e_shift, e_listed, e_length = _longer(
                e_src, e_dst, e_shift, e_listed, e_length, edges, room
            )
        own = edges
        for e in range(own):
            if e_length[e] <= reach2[e_src[e]]:
                e_listed[e] = 3
            else:
                e_listed[e] = 1
                e_length[edges] = e_length[e]
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
                            e_length[edges] = d2
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
            e_length[e] = math.sqrt(e_length[e])
            a0 = e_shift[e, 0] - wrap[e_src[e], 0] + wrap[e_dst[e], 0]
            a1 = e_shift[e, 1] - wrap[e_src[e], 1] + wrap[e_dst[e], 1]
            a2 = e_shift[e, 2] - wrap[e_src[e], 2] + wrap[e_dst[e], 2]
            for b in range(3):
                whole = a0 * basis[0, b] + a1 * basis[1, b] + a2 * basis[2, b]
                # Too large to store is too large to use: the caller sees it and refuses.
                e_shift[e, b] = min(max(whole, -(1 << 30)), 1 << 30)

        if total + edges > src.shape[0]:
            # Guess from the structures so far what all will need.
            capacity = max((total + edges) * 5 // 4, (total + edges) * structures // (s + 1))
            src, dst, shift, listed, distance = _longer(
                src, dst, shift, listed, distance, total, capacity
            )
        if edges > order.shape[0]:
            order = np.empty(2 * edges, np.int64)
        _sort(n, edges, e_length, e_src, e_dst, e_shift, first, order)
        for rank in range(edges):
            e = order[rank]
            src[total] = e_src[e]
            dst[total] = e_dst[e]
            shift[total, 0] = e_shift[e, 0]
            shift[total, 1] = e_shift[e, 1]
            shift[total, 2] = e_shift[e, 2]
            listed[total] = e_listed[e]
            distance[total] = e_length[e]
            total += 1
        edge_ptr[s + 1] = total
    return edge_ptr, src[:total], dst[:total], shift[:total], listed[:total], distance[:total]


@kernel
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


@kernel
def triplet_pairs(edge_ptr, dst, distance, cutoff):
    """Pairs of edges (a, b), a < b, that end at one atom and are no longer than the cutoff.

    Args:
        edge_ptr: [S+1] int64.
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


@helper
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


@helper
def _dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@helper
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


@helper
def _place(positions, begin, n, periodic, lower, axes, u, wrap, box):
    """Coordinates along the axes, wrapped into a box, and the volume to guess by.

    Fills `u`, `wrap` (the whole vectors taken away) and `box` (least and greatest corner).
    Directions that are not periodic count with the extent of the atoms and 2 A.
    """
    for i in range(n):
        x, y, z = positions[begin + i, 0], positions[begin + i, 1], positions[begin + i, 2]
        for a in range(3):
            u[i, a] = axes[a, 0] * x + axes[a, 1] * y + axes[a, 2] * z
            wrap[i, a] = 0
        # From the last axis down, as the matrix is triangular.
        for a in range(periodic - 1, -1, -1):
            whole = math.floor(u[i, a] / lower[a, a])
            wrap[i, a] = whole
            for b in range(a + 1):
                u[i, b] -= whole * lower[a, b]
    volume = 1.0
    for a in range(3):
        box[0, a], box[1, a] = u[0, a], u[0, a]
        for i in range(1, n):
            box[0, a], box[1, a] = min(box[0, a], u[i, a]), max(box[1, a], u[i, a])
        volume *= lower[a, a] if a < periodic else box[1, a] - box[0, a] + 2.0
    return volume


@helper
def _room_for_images(room):
    """Coordinates x, y, z, atoms, shifts, first image of each bin, squared distances and hits."""
    return (
        np.empty(room, np.float64),
        np.empty(room, np.float64),
        np.empty(room, np.float64),
        np.empty(room, np.int32),
        np.empty((room, 3), np.int32),
        np.empty(room + 16, np.int64),
        np.empty(room, np.float64),
        np.empty(room + 1, np.int64),
    )


@helper
def _lay_out(u, n, periodic, lower, box, radius, images, bins, grid):
    """Lay out all images of atoms within the radius of the box, in rows of bins.

    Fills `bins` (numbers of bins) and `grid` (their corner and width); returns `images`, renewed
    if there was not room enough.
    """
    reach = radius + _SLACK
    expected = float(n)
    for a in range(3):
        grid[0, a] = box[0, a] - reach
        grid[1, a] = box[1, a] - box[0, a] + 2.0 * reach
        bins[a] = 1
        if a < periodic:
            expected *= grid[1, a] / lower[a, a]
    if images[0].shape[0] < 1.2 * expected:
        images = _room_for_images(int(1.5 * expected))
    if expected > _ONE_BIN:
        for a in range(3):
            bins[a] = max(int(min(grid[1, a] / reach, 1e6)), 1)
        while bins[0] * bins[1] * bins[2] > images[0].shape[0]:
            for a in range(3):
                bins[a] = max(bins[a] * 3 // 4, 1)
        for a in range(3):
            grid[1, a] /= bins[a]
    while True:
        count = _enumerate(u, n, periodic, lower, images, bins, grid)
        if count <= images[0].shape[0]:
            return images
        images = _room_for_images(2 * count)


@helper
def _enumerate(u, n, periodic, lower, images, bins, grid):
    """Fill `images`; returns their number, which may be more than there is room for."""
    x, y, z, atom, shift, bin_ptr, _, _ = images
    room = x.shape[0]
    g0, g1, g2 = grid[0, 0], grid[0, 1], grid[0, 2]
    h0, h1, h2 = g0 + bins[0] * grid[1, 0], g1 + bins[1] * grid[1, 1], g2 + bins[2] * grid[1, 2]
    i0, i1, i2 = 1.0 / grid[1, 0], 1.0 / grid[1, 1], 1.0 / grid[1, 2]
    r0 = 1.0 / lower[0, 0] if periodic > 0 else 0.0
    r1 = 1.0 / lower[1, 1] if periodic > 1 else 0.0
    r2 = 1.0 / lower[2, 2] if periodic > 2 else 0.0
    all_bins = bins[0] * bins[1] * bins[2]
    count = 0
    low0 = low1 = low2 = high0 = high1 = high2 = 0
    # With several bins: first count what falls into each, then fill.
    for fill in range(1 if all_bins == 1 else 0, 2):
        if all_bins > 1 and fill == 0:
            for b in range(all_bins + 2):
                bin_ptr[b] = 0
        elif all_bins > 1:
            for b in range(2, all_bins + 2):
                bin_ptr[b] += bin_ptr[b - 1]
            if count > room:
                return count
        count = 0
        for j in range(n):
            if periodic > 2:
                low2 = math.ceil((g2 - u[j, 2]) * r2)
                high2 = math.floor((h2 - u[j, 2]) * r2)
            for s2 in range(low2, high2 + 1):
                iz = u[j, 2] + s2 * lower[2, 2]
                iy2 = u[j, 1] + s2 * lower[2, 1]
                ix2 = u[j, 0] + s2 * lower[2, 0]
                if periodic > 1:
                    low1 = math.ceil((g1 - iy2) * r1)
                    high1 = math.floor((h1 - iy2) * r1)
                for s1 in range(low1, high1 + 1):
                    iy = iy2 + s1 * lower[1, 1]
                    ix1 = ix2 + s1 * lower[1, 0]
                    if periodic > 0:
                        low0 = math.ceil((g0 - ix1) * r0)
                        high0 = math.floor((h0 - ix1) * r0)
                    for s0 in range(low0, high0 + 1):
                        ix = ix1 + s0 * lower[0, 0]
                        place = count
                        count += 1
                        if all_bins > 1:
                            b0 = min(max(int((ix - g0) * i0), 0), bins[0] - 1)
                            b1 = min(max(int((iy - g1) * i1), 0), bins[1] - 1)
                            b2 = min(max(int((iz - g2) * i2), 0), bins[2] - 1)
                            b = (b2 * bins[1] + b1) * bins[0] + b0
                            if fill == 0:
                                bin_ptr[b + 2] += 1
                                continue
                            # One place ahead: in the end bin_ptr[b] is where bin b begins.
                            place = bin_ptr[b + 1]
                            bin_ptr[b + 1] = place + 1
                        elif place >= room:
                            continue
                        x[place], y[place], z[place] = ix, iy, iz
                        atom[place] = j
                        shift[place, 0], shift[place, 1], shift[place, 2] = s0, s1, s2
    if all_bins == 1:
        bin_ptr[0], bin_ptr[1] = 0, count
    return count


@helper
def _scan(i, u, lower, radius, images, bins, grid, out_d2, out_src, out_shift):
    """Images within the radius of atom i; returns their number, stores as many as fit."""
    x, y, z, atom, shift, bin_ptr, square, hit = images
    limit = radius * radius
    reach = radius + _SLACK
    loose = reach * reach
    room = out_d2.shape[0]
    ux, uy, uz = u[i, 0], u[i, 1], u[i, 2]
    low0 = low1 = low2 = high0 = high1 = high2 = 0
    if bins[0] * bins[1] * bins[2] > 1:
        low0 = max(int((ux - reach - grid[0, 0]) / grid[1, 0]), 0)
        low1 = max(int((uy - reach - grid[0, 1]) / grid[1, 1]), 0)
        low2 = max(int((uz - reach - grid[0, 2]) / grid[1, 2]), 0)
        high0 = min(int((ux + reach - grid[0, 0]) / grid[1, 0]), bins[0] - 1)
        high1 = min(int((uy + reach - grid[0, 1]) / grid[1, 1]), bins[1] - 1)
        high2 = min(int((uz + reach - grid[0, 2]) / grid[1, 2]), bins[2] - 1)
    hits = 0
    for b2 in range(low2, high2 + 1):
        for b1 in range(low1, high1 + 1):
            row = (b2 * bins[1] + b1) * bins[0]
            begin, end = bin_ptr[row + low0], bin_ptr[row + high0 + 1]
            row_x, row_y, row_z = x[begin:end], y[begin:end], z[begin:end]
            # Two simple loops, of which the compiler makes vector code without branches.
            for m in range(end - begin):
                dx, dy, dz = row_x[m] - ux, row_y[m] - uy, row_z[m] - uz
                square[m] = dx * dx + dy * dy + dz * dz
            for m in range(end - begin):
                hit[hits] = begin + m
                hits += square[m] <= loose
    count = 0
    for h in range(hits):
        # Anew in the order of `_walk`: the reverse edge must have the same last bit.
        m = hit[h]
        j = atom[m]
        s0, s1, s2 = shift[m, 0], shift[m, 1], shift[m, 2]
        dz = u[j, 2] - uz + s2 * lower[2, 2]
        dy = u[j, 1] - uy + s2 * lower[2, 1] + s1 * lower[1, 1]
        dx = u[j, 0] - ux + s2 * lower[2, 0] + s1 * lower[1, 0] + s0 * lower[0, 0]
        d2 = dx * dx + dy * dy + dz * dz
        if d2 <= limit and not (i == j and s0 == 0 and s1 == 0 and s2 == 0):
            if count < room:
                out_d2[count] = d2
                out_src[count] = j
                out_shift[count, 0] = s0
                out_shift[count, 1] = s1
                out_shift[count, 2] = s2
            count += 1
    return count


@helper
def _walk(i, n, u, periodic, lower, radius, out_d2, out_src, out_shift):
    """As `_scan`, along the lattice, for any radius; returns their number, stores as many as fit."""
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


@helper
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


@helper
def _sort(n, edges, length, src, dst, shift, first, order):
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
        _sort_by_value(order, begin, end, length)
        start = begin
        while start < end:
            stop = start + 1
            last = length[order[start]]
            while stop < end:
                here = length[order[stop]]
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


@helper
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


@helper
def _after(e, f, src, shift):
    """Whether edge e comes after edge f by source and shift."""
    if src[e] != src[f]:
        return src[e] > src[f]
    for a in range(3):
        if shift[e, a] != shift[f, a]:
            return shift[e, a] > shift[f, a]
    return False


@helper
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
        count = _walk(0, 1, origin, 3, lower, radius, d2, index, shift)
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


@helper
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


@helper
def _collinear(a, b):
    return a[0] * b[1] == a[1] * b[0] and a[1] * b[2] == a[2] * b[1] and a[0] * b[2] == a[2] * b[0]


@helper
def _volume(a, b, c):
    return (
        a[0] * (b[1] * c[2] - b[2] * c[1])
        - a[1] * (b[0] * c[2] - b[2] * c[0])
        + a[2] * (b[0] * c[1] - b[1] * c[0])
    )


@helper
def _handed(a, b, c):
    return (
        a[0] * (b[1] * c[2] - b[2] * c[1])
        - a[1] * (b[0] * c[2] - b[2] * c[0])
        + a[2] * (b[0] * c[1] - b[1] * c[0])
    )
