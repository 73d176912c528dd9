"""Compiled neighbour search over a whole chunk of structures: k-nearest, radius, triad, triplets.

Numba kernels on concatenated arrays; nothing per edge in Python. They know nothing of specs, shards
or torch: `build.py` turns a spec into their arguments. Numbers are float64, without fused or
reordered operations, so that the same structure gives the same edges on any machine.

Method. The periodic lattice vectors are reduced to short ones and written as a lower
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

from atomloom.compiled import njit

TIE = 1e-8
"""Tolerance in A: edges of one atom whose sorted distances follow each other this closely are ordered by
source and shift, not by rounding noise. Structures are known to this quantum."""

_MANY = 100  # atoms; from here on laying out more images is cheaper than walking the lattice
_ONE_BIN = 600  # images; fewer are scanned from end to end
_NEED_IMAGES, _NEED_LISTS, _NEED_EDGES = -1, -2, -3
_FEW = 64  # numbers; ranks of so few are found fastest by comparing each with all, without branches
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
        nearest: number of neighbours that each atom lists; 0 for all within the cutoff.
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
    out = _room_for_edges(64 + 2 * max(nearest, 12) * positions.shape[0])
    edges, images, lists = _room_for_edges(2048), _room_for_images(1024), _room_for_lists(256)
    frame, atoms = _room_for_frame(), _room_for_atoms(most)
    total, s = 0, 0
    while s < structures:
        begin = node_ptr[s]
        n = node_ptr[s + 1] - begin
        periodic = _frame(cell[s], pbc[s], frame)
        volume = _place(positions, begin, n, periodic, frame, atoms)
        # Usually enough room at the first try: lists and their reverses, lattice edges.
        likely = 2.4 * nearest * n if nearest > 0 else 4.2 * cutoff**3 * n / volume * 1.3 * n
        if edges[0].shape[0] < min(likely, 1e8) + 6 * n:
            edges = _room_for_edges(int(min(likely, 1e8)) + 6 * n)
        count = _list_neighbors(
            n, periodic, volume, nearest, cutoff, limit_cutoff, tolerance,
            frame, atoms, images, lists, edges,
        )  # fmt: skip
        # Arrays are replaced here and nowhere below: otherwise the compiler would count references
        # in the innermost loops. The structure is started again.
        if count == _NEED_IMAGES:
            images = _room_for_images(2 * images[0].shape[0])
            continue
        if count == _NEED_LISTS:
            lists = _room_for_lists(2 * lists[0].shape[0])
            continue
        reverses = count if nearest > 0 else 0
        if count == _NEED_EDGES or count + reverses + 6 * n > edges[0].shape[0]:
            edges = _room_for_edges(2 * edges[0].shape[0] + 6 * n)
            continue
        count = _add_reverse(count, atoms, edges)
        if lattice_edges and periodic == 3:
            count = _add_lattice(n, count, tolerance, frame, atoms, edges)
        _unwrap(count, frame, atoms, edges)
        _sort(n, count, atoms, edges)
        if total + count > out[0].shape[0]:
            # Estimate from the structures so far what all will need.
            room = max((total + count) * 5 // 4, (total + count) * structures // (s + 1))
            out = _with_room(out, total, room)
        _append(total, count, edges, out)
        total += count
        s += 1
        edge_ptr[s] = total
    src, dst, shift, listed, distance = out[0], out[1], out[2], out[3], out[4]
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
    frame = _room_for_frame()
    basis, lower, axes, _, _, _ = frame
    triad = np.zeros((3, 3), np.int64)
    pbc = np.ones(3, np.bool_)
    for s in range(cell.shape[0]):
        _frame(cell[s], pbc, frame)
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
def reduced_frame(cell, pbc):
    """Short lattice vectors of one structure in an orthonormal frame.

    Args:
        cell: [3, 3] float64, A.
        pbc: [3] bool.

    Returns:
        Lattice [3, 3] float64, A, lower triangular, of which the first p rows count (rows of the
        identity follow); axes [3, 3] float64, orthonormal rows; p, the number of periodic directions.
    """
    frame = _room_for_frame()
    p = _frame(cell, pbc, frame)
    lower, axes = frame[1], frame[2]
    for a in range(p, 3):
        lower[a, a] = 1.0
    return lower, axes, p


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


# --- room: arrays of one purpose travel as a tuple -------------------------------------------------


@helper
def _room_for_edges(room):
    """Arrays of edges: src, dst, shift, listed, length (squared until all are found), and four of scratch."""
    return (
        np.empty(room, np.int32),
        np.empty(room, np.int32),
        np.empty((room, 3), np.int32),
        np.empty(room, np.uint8),
        np.empty(room, np.float64),
        np.empty(room, np.int64),
        np.empty(room, np.int64),
        np.empty(room, np.float64),
        np.empty(room, np.float64),
    )


@helper
def _room_for_images(room):
    """Arrays of images: x, y, z, offset, atom, shift, first of each bin; squared distances and hits."""
    return (
        np.empty(room, np.float64),
        np.empty(room, np.float64),
        np.empty(room, np.float64),
        np.empty((room, 3), np.float64),
        np.empty(room, np.int32),
        np.empty((room, 3), np.int32),
        np.empty(room + 16, np.int64),
        np.empty(room, np.float64),
        np.empty(room + 1, np.int64),
    )


@helper
def _room_for_lists(room):
    """Arrays of the neighbours of one atom: squared distance, src, shift; and one of scratch."""
    return (
        np.empty(room, np.float64),
        np.empty(room, np.int32),
        np.empty((room, 3), np.int32),
        np.empty(room, np.float64),
    )


@helper
def _room_for_frame():
    """Arrays of one structure: reduced basis, its matrix, axes, box of the atoms, numbers of bins, grid."""
    return (
        np.zeros((3, 3), np.int64),
        np.zeros((3, 3), np.float64),
        np.zeros((3, 3), np.float64),
        np.zeros((2, 3), np.float64),
        np.ones(3, np.int64),
        np.ones((2, 3), np.float64),
    )


@helper
def _room_for_atoms(room):
    """Arrays of atoms: coordinates, cells subtracted, squared reach of the list; and first edge (scratch)."""
    return (
        np.empty((room, 3), np.float64),
        np.empty((room, 3), np.int64),
        np.empty(room, np.float64),
        np.empty(room + 1, np.int64),
    )


@helper
def _with_room(edges, used, room):
    """Enlarge the arrays of edges, of which the first `used` are kept."""
    longer = _room_for_edges(room)
    src, dst, shift, listed, length, _, _, _, _ = edges
    new_src, new_dst, new_shift, new_listed, new_length, _, _, _, _ = longer
    for e in range(used):
        new_src[e], new_dst[e] = src[e], dst[e]
        for a in range(3):
            new_shift[e, a] = shift[e, a]
        new_listed[e], new_length[e] = listed[e], length[e]
    return longer


# --- edges of one structure -----------------------------------------------------------------------


@helper
def _list_neighbors(
    n, periodic, volume, nearest, cutoff, limit_cutoff, tolerance,
    frame, atoms, images, lists, edges,
):  # fmt: skip
    """Write each atom's own list to the front of `edges`, and the squared reach of each list to `atoms`.

    Returns the number of edges, or which arrays need more room.
    """
    u, _, reach2, _ = atoms
    d2, src, shift, work = lists
    e_src, e_dst, e_shift, _, e_length, _, _, _, _ = edges
    room = e_src.shape[0]
    # Lists end here, if anywhere; a shell at the cutoff is whole too.
    limit = cutoff + tolerance if limit_cutoff else np.inf
    guess, spread, everything = cutoff, cutoff, False
    if nearest > 0:
        guess = min((0.2387 * (nearest + 4.0) * volume / n) ** (1.0 / 3.0), limit)
        # In a molecule of at most k + 1 atoms the list ends with all the others.
        everything = periodic == 0 and n - 1 <= nearest
        spread = 1.15 * guess
    if not everything and not _lay_out(n, periodic, spread, frame, atoms, images):
        return _NEED_IMAGES
    total = 0
    for i in range(n):
        radius = limit if everything else guess
        while True:
            if radius > spread and n >= _MANY and not everything:
                spread = 1.25 * radius
                if not _lay_out(n, periodic, spread, frame, atoms, images):
                    return _NEED_IMAGES
            if everything or radius > spread:
                count = _walk(i, n, u, periodic, frame[1], radius, d2, src, shift)
            else:
                count = _scan(i, u, radius, frame, images, d2, src, shift)
            if count > d2.shape[0]:
                return _NEED_LISTS
            if nearest == 0 or everything:
                reach2[i] = radius * radius
                break
            if count < nearest:
                if radius >= limit:
                    reach2[i] = radius * radius
                    break
                grow = ((nearest + 2.0) / (count + 1.0)) ** (1.0 / 3.0)
                radius *= min(max(grow, 1.15), 2.0)
            else:
                kth2 = _select(d2, work, count, nearest - 1)
                reach = math.sqrt(kth2) + tolerance
                if reach <= radius or radius >= limit:
                    # reach * reach may round below kth2 where the tolerance is 0.
                    reach2[i] = min(max(reach * reach, kth2), radius * radius)
                    # Atoms of one structure are similar: use the radius of this one for the next.
                    guess = min(0.7 * guess + 0.3 * 1.12 * reach, spread, limit)
                    break
                radius = reach * (1.0 + 1e-12)
            radius = min(radius, limit)
        if total + count > room:
            return _NEED_EDGES
        bound = reach2[i]
        for c in range(count):
            if d2[c] <= bound:
                e_length[total] = d2[c]
                e_src[total] = src[c]
                e_dst[total] = i
                e_shift[total, 0] = shift[c, 0]
                e_shift[total, 1] = shift[c, 1]
                e_shift[total, 2] = shift[c, 2]
                total += 1
    return total


@helper
def _add_reverse(count, atoms, edges):
    """Set the bits of listed edges, and add the reverse of edges that the other end does not list."""
    reach2 = atoms[2]
    src, dst, shift, listed, length, _, _, _, _ = edges
    total = count
    for e in range(count):
        if length[e] <= reach2[src[e]]:
            listed[e] = 3
        else:
            listed[e] = 1
            length[total] = length[e]
            src[total], dst[total] = dst[e], src[e]
            shift[total, 0] = -shift[e, 0]
            shift[total, 1] = -shift[e, 1]
            shift[total, 2] = -shift[e, 2]
            listed[total] = 2
            total += 1
    return total


@helper
def _add_lattice(n, count, tolerance, frame, atoms, edges):
    """Add edges to each atom's images along the triad, where the lists do not hold them."""
    basis, lower, axes, _, _, _ = frame
    reach2 = atoms[2]
    src, dst, shift, listed, length, _, _, _, _ = edges
    triad = np.empty((3, 3), np.int64)
    _triad(lower, axes, basis, tolerance, triad)
    total = count
    for a in range(3):
        s0, s1, s2 = triad[a, 0], triad[a, 1], triad[a, 2]
        # Computed as an image's offset, to the last bit.
        x = s2 * lower[2, 0] + s1 * lower[1, 0] + s0 * lower[0, 0]
        y = s2 * lower[2, 1] + s1 * lower[1, 1]
        z = s2 * lower[2, 2]
        d2 = x * x + y * y + z * z
        for i in range(n):
            if d2 <= reach2[i]:
                continue
            for sign in (-1, 1):
                length[total] = d2
                src[total], dst[total] = i, i
                shift[total, 0], shift[total, 1], shift[total, 2] = sign * s0, sign * s1, sign * s2
                # Each atom lists its image along +l; -l is that edge's reverse.
                listed[total] = 1 if sign > 0 else 2
                total += 1
    return total


@helper
def _unwrap(count, frame, atoms, edges):
    """Transform from the reduced basis and wrapped atoms to the given cell; take roots of squared lengths."""
    basis, wrap = frame[0], atoms[1]
    src, dst, shift, _, length, _, _, _, _ = edges
    for e in range(count):
        length[e] = math.sqrt(length[e])
        i, j = dst[e], src[e]
        a0 = shift[e, 0] - wrap[j, 0] + wrap[i, 0]
        a1 = shift[e, 1] - wrap[j, 1] + wrap[i, 1]
        a2 = shift[e, 2] - wrap[j, 2] + wrap[i, 2]
        for b in range(3):
            whole = a0 * basis[0, b] + a1 * basis[1, b] + a2 * basis[2, b]
            # Too large to store is too large to use: the caller notices and refuses it.
            shift[e, b] = min(max(whole, -(1 << 30)), 1 << 30)


@helper
def _append(total, count, edges, out):
    """Append a structure's edges, in order, to those of the structures before."""
    src, dst, shift, listed, length, order, _, _, _ = edges
    out_src, out_dst, out_shift, out_listed, out_length, _, _, _, _ = out
    for rank in range(count):
        e = order[rank]
        out_src[total + rank] = src[e]
        out_dst[total + rank] = dst[e]
        out_shift[total + rank, 0] = shift[e, 0]
        out_shift[total + rank, 1] = shift[e, 1]
        out_shift[total + rank, 2] = shift[e, 2]
        out_listed[total + rank] = listed[e]
        out_length[total + rank] = length[e]


# --- geometry -------------------------------------------------------------------------------------


@helper
def _dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@helper
def _frame(cell, pbc, frame):
    """Reduce the periodic vectors and write them as rows of a lower triangular matrix.

    Fills `basis` (reduced vectors as integer rows over the cell; the first p rows count), `axes`
    (orthonormal rows) and `lower` (reduced vectors along the axes). Returns p, the number of
    periodic directions.
    """
    basis, lower, axes, _, _, _ = frame
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
                    # Recomputed from integers: differences of long vectors would accumulate rounding.
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
def _place(positions, begin, n, periodic, frame, atoms):
    """Wrap coordinates along the axes into a box, and estimate the volume.

    Fills `u`, `wrap` (the whole vectors subtracted) and `box` (min and max corner).
    Directions that are not periodic count with the extent of the atoms plus 2 A.
    """
    _, lower, axes, box, _, _ = frame
    u, wrap, _, _ = atoms
    for i in range(n):
        x, y, z = positions[begin + i, 0], positions[begin + i, 1], positions[begin + i, 2]
        for a in range(3):
            u[i, a] = axes[a, 0] * x + axes[a, 1] * y + axes[a, 2] * z
            wrap[i, a] = 0
        # Starting with the last axis, as the matrix is triangular.
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
def _lay_out(n, periodic, radius, frame, atoms, images):
    """Lay out all images of atoms within the radius of the box, in rows of bins.

    Returns whether there is enough room for them.
    """
    _, lower, _, box, bins, grid = frame
    room = images[0].shape[0]
    reach = radius + _SLACK
    expected = float(n)
    for a in range(3):
        grid[0, a] = box[0, a] - reach
        grid[1, a] = box[1, a] - box[0, a] + 2.0 * reach
        bins[a] = 1
        if a < periodic:
            expected *= grid[1, a] / lower[a, a]
    if expected > room:
        return False
    if expected > _ONE_BIN:
        for a in range(3):
            # Rows run along the first axis, where narrow bins cost nothing.
            narrow = 4.0 if a == 0 else 1.0
            bins[a] = max(int(min(narrow * grid[1, a] / reach, 1e6)), 1)
        while bins[0] * bins[1] * bins[2] > room:
            for a in range(3):
                bins[a] = max(bins[a] * 3 // 4, 1)
        for a in range(3):
            grid[1, a] /= bins[a]
    return _enumerate(n, periodic, frame, atoms, images) <= room


@helper
def _enumerate(n, periodic, frame, atoms, images):
    """Fill `images`; returns their number, which may exceed the room."""
    _, lower, _, _, bins, grid = frame
    u = atoms[0]
    x, y, z, offset, atom, shift, bin_ptr, _, _ = images
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
    # With several bins: first count the images in each, then fill.
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
                oz = s2 * lower[2, 2]
                oy2, ox2 = s2 * lower[2, 1], s2 * lower[2, 0]
                iz, iy2 = u[j, 2] + oz, u[j, 1] + oy2
                if periodic > 1:
                    low1 = math.ceil((g1 - iy2) * r1)
                    high1 = math.floor((h1 - iy2) * r1)
                for s1 in range(low1, high1 + 1):
                    oy, ox1 = oy2 + s1 * lower[1, 1], ox2 + s1 * lower[1, 0]
                    iy, ix1 = u[j, 1] + oy, u[j, 0] + ox1
                    if periodic > 0:
                        low0 = math.ceil((g0 - ix1) * r0)
                        high0 = math.floor((h0 - ix1) * r0)
                    for s0 in range(low0, high0 + 1):
                        ox = ox1 + s0 * lower[0, 0]
                        ix = u[j, 0] + ox
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
                            # One position ahead: in the end bin_ptr[b] is where bin b begins.
                            place = bin_ptr[b + 1]
                            bin_ptr[b + 1] = place + 1
                        elif place >= room:
                            continue
                        x[place], y[place], z[place] = ix, iy, iz
                        offset[place, 0], offset[place, 1], offset[place, 2] = ox, oy, oz
                        atom[place] = j
                        shift[place, 0], shift[place, 1], shift[place, 2] = s0, s1, s2
    if all_bins == 1:
        bin_ptr[0], bin_ptr[1] = 0, count
    return count


@helper
def _scan(i, u, radius, frame, images, out_d2, out_src, out_shift):
    """Collect images within the radius of atom i; returns their number, stores as many as fit."""
    _, _, _, _, bins, grid = frame
    x, y, z, offset, atom, shift, bin_ptr, square, hit = images
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
            # Two simple loops that the compiler vectorises without branches.
            for m in range(end - begin):
                dx, dy, dz = row_x[m] - ux, row_y[m] - uy, row_z[m] - uz
                square[m] = dx * dx + dy * dy + dz * dz
            for m in range(end - begin):
                hit[hits] = begin + m
                hits += square[m] <= loose
    count = 0
    for h in range(hits):
        # Recomputed as in `_walk`: with difference and offset separate, the reverse edge has the same bits.
        m = hit[h]
        j = atom[m]
        s0, s1, s2 = shift[m, 0], shift[m, 1], shift[m, 2]
        dx = (u[j, 0] - ux) + offset[m, 0]
        dy = (u[j, 1] - uy) + offset[m, 1]
        dz = (u[j, 2] - uz) + offset[m, 2]
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
    """Collect images as `_scan` does, but along the lattice, for any radius; returns their number."""
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
        dx, dy, dz = u[j, 0] - ux, u[j, 1] - uy, u[j, 2] - uz
        if periodic > 2:
            low2, high2 = math.ceil((-reach - dz) * r22), math.floor((reach - dz) * r22)
        for s2 in range(low2, high2 + 1):
            oy2, ox2 = s2 * l21, s2 * l20
            z = dz + s2 * l22
            left = limit - z * z
            if left < -_SLACK:
                continue
            if periodic > 1:
                side, y = math.sqrt(max(left, 0.0)) + _SLACK, dy + oy2
                low1, high1 = math.ceil((-side - y) * r11), math.floor((side - y) * r11)
            for s1 in range(low1, high1 + 1):
                ox1 = ox2 + s1 * l10
                y = dy + (oy2 + s1 * l11)
                rest = left - y * y
                if rest < -_SLACK:
                    continue
                if periodic > 0:
                    side, x = math.sqrt(max(rest, 0.0)) + _SLACK, dx + ox1
                    low0, high0 = math.ceil((-side - x) * r00), math.floor((side - x) * r00)
                for s0 in range(low0, high0 + 1):
                    x = dx + (ox1 + s0 * l00)
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
    """Value of this rank (0 for the smallest); `work` is overwritten."""
    if count <= _FEW:
        for a in range(count):
            value, below, equal = values[a], 0, 0
            for b in range(count):
                below += values[b] < value
                equal += values[b] == value
            if below <= rank < below + equal:
                return value
    # Quickselect.
    for c in range(count):
        work[c] = values[c]
    low, high = 0, count - 1
    while low < high:
        middle = (low + high) // 2
        # Median of three, so that sorted input is not a bad case.
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
def _sort(n, edges, atoms, arrays):
    """Fill the order of edges by dst, distance (ties within TIE), src, shift."""
    first = atoms[3]
    src, dst, shift, _, length, order, by_dst, mine, sorted_length = arrays
    for i in range(n + 1):
        first[i] = 0
    for e in range(edges):
        first[dst[e] + 1] += 1
    for i in range(n):
        first[i + 1] += first[i]
    for e in range(edges):
        place = first[dst[e]]
        first[dst[e]] = place + 1
        by_dst[place] = e
        mine[place] = length[e]
    begin = 0
    for i in range(n):
        end = first[i]
        if end - begin <= _FEW:
            # As slices that begin at 0: these the compiler vectorises.
            _rank(mine[begin:end], by_dst[begin:end], sorted_length[begin:end], order[begin:end])
        else:
            for a in range(begin, end):
                order[a] = by_dst[a]
            _sort_by_value(order, begin, end, length)
            for a in range(begin, end):
                sorted_length[a] = length[order[a]]
        start = begin
        while start < end:
            stop = start + 1
            while stop < end and sorted_length[stop] - sorted_length[stop - 1] <= TIE:
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
def _rank(values, items, sorted_values, sorted_items):
    """Sort a few items by non-negative values, by counting the smaller ones of each."""
    count = values.shape[0]
    for a in range(count):
        sorted_values[a] = -1.0
    for a in range(count):
        value, rank = values[a], 0
        for b in range(count):
            rank += values[b] < value
        while sorted_values[rank] == value:
            rank += 1
        sorted_values[rank], sorted_items[rank] = value, items[a]


@helper
def _sort_by_value(order, begin, end, value):
    """Sort order[begin:end] by value (shell sort, gaps of Ciura): nothing is allocated."""
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

    # `lower` has a positive diagonal, so the axes give the handedness of the reduced vectors.
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
