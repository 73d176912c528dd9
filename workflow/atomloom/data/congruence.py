"""Congruence of two structures: an isometry that lays the atoms of one over the other.

Any rotation, mirror image, translation, order of atoms and choice of cell (supercells too) is
allowed; a change of the length scale is not. The atom of one structure whose environment is the rarest
in the other is looked for there, with two of its neighbours; each match gives an isometry, which is
tried on all atoms and on the lattice, then fitted to them by least squares and tested. Such a search
is complete up to the tolerance, as pymatgen's StructureMatcher is, but for thousandths of an A it has
few matches to try. It knows nothing of files or splits.

N atoms, p periodic directions. Structures are written in their own frames
(`graphs.search.reduced_frame`): the lattice is lower triangular, the first p rows count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from atomloom.data.environments import Environments
from atomloom.graphs.search import helper, kernel, reduced_frame
from atomloom.structures.table import StructureTable

FARTHEST_ATOM = 3.0
"""Max displacement of a single atom in units of the tolerance, which is a root mean square."""
_LOOSE = 0.2  # A; atoms this close are paired before the isometry is fitted to all of them
_MOST_FITS = 256
"""Max number of isometries that pair all atoms loosely but not to the tolerance, before the search is
given up. The most likely come first; this many occur only where both structures are one symmetric
crystal, a few thousandths of an A apart."""
_LAID_OVER, _TOO_FAR_OFF, _UNPAIRED = 0, 1, 2
_ANGLE = 0.2  # sine; two neighbours span a frame if the angle between them is not smaller


@dataclass(frozen=True, eq=False)
class Motif:
    """Atoms of one cell, sorted by their fraction of the last axis."""

    numbers: np.ndarray
    """[N] uint8."""
    positions: np.ndarray
    """[N, 3] float64, A, along the axes."""
    lattice: np.ndarray
    """[3, 3] float64, A, lower triangular; rows of the identity where not periodic."""
    periodic: int
    environments: np.ndarray
    """[N, D] float64, A, distances to neighbours (`Environments`)."""
    name: bytes
    """Structure hash."""

    @classmethod
    def of(cls, table: StructureTable, row: int) -> Motif:
        """Take the motif of a structure of a table."""
        atoms = slice(table.node_ptr[row], table.node_ptr[row + 1])
        lattice, axes, periodic = reduced_frame(
            np.ascontiguousarray(table.cell[row]), np.ascontiguousarray(table.pbc[row])
        )
        positions = table.positions[atoms] @ axes.T
        for axis in range(periodic - 1, -1, -1):  # from the last down, as the lattice is triangular
            whole = np.floor(positions[:, axis] / lattice[axis, axis])
            positions -= whole[:, None] * lattice[axis]
        order = np.argsort(positions[:, 2], kind="stable")
        return cls(
            numbers=np.ascontiguousarray(table.numbers[atoms][order]),
            positions=np.ascontiguousarray(positions[order]),
            lattice=lattice,
            periodic=periodic,
            environments=Environments.of(table.take(np.array([row]))).values.reshape(
                len(order), -1
            )[order],
            name=table.hash[row].tobytes(),
        )


def congruent(one: Motif, other: Motif, tolerance: float) -> bool:
    """Whether an isometry lays each atom of one structure over an atom of its element of the other.

    Args:
        one, other: structures of one reduced formula.
        tolerance: A, max root mean square of the distances between atoms, and of the mean shift of
            each lattice vector; for a single atom `FARTHEST_ATOM` times as much.
    """
    if one.periodic != other.periodic:
        return False
    a, b = sorted((one, other), key=lambda motif: (len(motif.numbers), motif.name))
    # Densities must agree within the tolerance of lattice vectors. (Lattice vectors are 1 A where not
    # periodic.)
    heights = np.diag(a.lattice)[: a.periodic]
    density = np.prod(np.diag(a.lattice)) / np.prod(np.diag(b.lattice)) * len(b.numbers)
    if abs(density / len(a.numbers) - 1) > 2 * tolerance * float(np.sum(1 / heights)) + 1e-6:
        return False
    apart = 2 * FARTHEST_ATOM * tolerance  # both ends of a distance may be displaced by this
    partners = _partners(a.numbers, a.environments, b.numbers, b.environments, apart)
    if not partners.min():
        return False
    anchor = int(np.argmin(partners))
    # Atoms far from the anchor are tried last: most mismatches are found early.
    order = np.argsort(((a.positions - a.positions[anchor]) ** 2).sum(axis=1), kind="stable")
    gap = np.abs(b.environments - a.environments[anchor])
    alike = (b.numbers == a.numbers[anchor]) & (gap.max(axis=1) <= apart)
    likely = np.argsort(np.where(alike, (gap**2).sum(axis=1), np.inf), kind="stable")
    return _find_isometry(
        anchor,
        likely[: partners[anchor]],
        order,
        a.numbers,
        a.positions,
        a.lattice,
        b.numbers,
        b.positions,
        b.lattice,
        a.periodic,
        float(tolerance),
    )


# Plain loops below: array functions would be no faster, and take several times as long to compile.


@kernel
def _partners(numbers_a, environments_a, numbers_b, environments_b, apart):
    """Number of atoms of b with the environment of each atom of a."""
    counts = np.zeros(numbers_a.shape[0], np.int64)
    for i in range(numbers_a.shape[0]):
        for j in range(numbers_b.shape[0]):
            if numbers_a[i] != numbers_b[j]:
                continue
            alike = True
            for k in range(environments_a.shape[1]):
                if abs(environments_a[i, k] - environments_b[j, k]) > apart:
                    alike = False
                    break
            if alike:
                counts[i] += 1
        if counts[i] == 0:
            break  # no isometry has an image for this atom
    return counts


@kernel
def _find_isometry(
    anchor,
    anchors,
    order,
    numbers_a,
    u_a,
    lattice_a,
    numbers_b,
    u_b,
    lattice_b,
    periodic,
    tolerance,
):
    """Try the matches in b of the anchor of a and two of its neighbours."""
    fitted = 0
    limit = FARTHEST_ATOM * tolerance
    slack = 4.0 * limit
    around_a, first, second = _frame_around(anchor, numbers_a, u_a, lattice_a, periodic)
    if first < 0:  # one atom and nothing else
        return u_b.shape[0] == 1
    farthest = around_a[second if second >= 0 else first, 3]
    around_b = np.empty((64, 5), np.float64)
    own, theirs = np.zeros((3, 3), np.float64), np.zeros((3, 3), np.float64)
    rotation = np.zeros((3, 3), np.float64)
    residual = np.zeros((u_a.shape[0] + 3, 3), np.float64)
    arms = np.zeros((u_a.shape[0] + 3, 3), np.float64)
    for b in anchors:
        around_b, count = _neighbors(
            b, farthest + slack, numbers_b, u_b, lattice_b, periodic, around_b
        )
        for e in range(count):
            if not _alike(around_a, first, around_b, e, slack):
                continue
            for f in range(count):
                if second < 0 and f > 0:
                    break  # all atoms are on one line: there is no second neighbour to choose
                if second >= 0 and (
                    f == e
                    or not _alike(around_a, second, around_b, f, slack)
                    or abs(_gap(around_b, e, f) - _gap(around_a, first, second)) > slack
                ):
                    continue
                for hand in (1.0, -1.0):
                    _triad(around_a, first, second, 1.0, own)
                    _triad(around_b, e, f if second >= 0 else -1, hand, theirs)
                    for x in range(3):
                        for y in range(3):
                            rotation[x, y] = (
                                theirs[0, x] * own[0, y]
                                + theirs[1, x] * own[1, y]
                                + theirs[2, x] * own[2, y]
                            )
                    verdict = _fits(
                        rotation, anchor, b, order, arms, residual, numbers_a, u_a, lattice_a,
                        numbers_b, u_b, lattice_b, periodic, tolerance,
                    )  # fmt: skip
                    if verdict == _LAID_OVER:
                        return True
                    if verdict == _TOO_FAR_OFF:
                        fitted += 1
                        if fitted == _MOST_FITS:
                            return False
    return False


# --- matches to try: neighbours are rows (vector, distance, element) --------------------------------


@helper
def _frame_around(anchor, numbers, u, lattice, periodic):
    """Neighbours of the anchor, and among them the nearest and the nearest not collinear with it.

    Returns -1 for missing neighbours: of an isolated atom, or with all atoms on one line.
    """
    # Beyond this there are only images along one line of what is nearer.
    reach = 0.0
    for x in range(3):
        low, high = u[0, x], u[0, x]
        for i in range(u.shape[0]):
            low, high = min(low, u[i, x]), max(high, u[i, x])
        reach += high - low
    for a in range(periodic):
        reach += abs(lattice[a, 0]) + abs(lattice[a, 1]) + abs(lattice[a, 2])
    around = np.empty((64, 5), np.float64)
    radius = 3.0
    while True:
        around, count = _neighbors(anchor, radius, numbers, u, lattice, periodic, around)
        first, second = -1, -1
        for e in range(count):
            # An atom on top of another one defines no direction.
            if around[e, 3] > _LOOSE and (first < 0 or around[e, 3] < around[first, 3]):
                first = e
        for e in range(count):
            if (
                around[e, 3] > _LOOSE
                and (second < 0 or around[e, 3] < around[second, 3])
                and _sine(around, first, e) > _ANGLE
            ):
                second = e
        if second >= 0 or radius > 2.0 * reach:
            return around, first, second
        radius *= 1.5


@helper
def _neighbors(center, radius, numbers, u, lattice, periodic, room):
    """Rows (vector, distance, element) of all atoms within the radius, in `room` or a larger one."""
    count = 0
    for j in range(u.shape[0]):
        dx, dy, dz = u[j, 0] - u[center, 0], u[j, 1] - u[center, 1], u[j, 2] - u[center, 2]
        low2 = high2 = 0
        if periodic > 2:
            low2 = math.ceil((-radius - dz) / lattice[2, 2])
            high2 = math.floor((radius - dz) / lattice[2, 2])
        for s2 in range(low2, high2 + 1):
            z = dz + s2 * lattice[2, 2]
            left2 = radius * radius - z * z
            if left2 < 0.0:
                continue
            y2 = dy + s2 * lattice[2, 1] if periodic > 2 else dy
            x2 = dx + s2 * lattice[2, 0] if periodic > 2 else dx
            low1 = high1 = 0
            if periodic > 1:
                span = math.sqrt(left2)
                low1 = math.ceil((-span - y2) / lattice[1, 1])
                high1 = math.floor((span - y2) / lattice[1, 1])
            for s1 in range(low1, high1 + 1):
                y = y2 + s1 * lattice[1, 1]
                left1 = left2 - y * y
                if left1 < 0.0:
                    continue
                x1 = x2 + s1 * lattice[1, 0] if periodic > 1 else x2
                low0 = high0 = 0
                if periodic > 0:
                    span = math.sqrt(left1)
                    low0 = math.ceil((-span - x1) / lattice[0, 0])
                    high0 = math.floor((span - x1) / lattice[0, 0])
                for s0 in range(low0, high0 + 1):
                    x = x1 + s0 * lattice[0, 0]
                    if x * x > left1 or (j == center and s0 == 0 and s1 == 0 and s2 == 0):
                        continue
                    if count == room.shape[0]:
                        room = _twice(room)
                    room[count, 0], room[count, 1], room[count, 2] = x, y, z
                    room[count, 3] = math.sqrt(x * x + y * y + z * z)
                    room[count, 4] = numbers[j]
                    count += 1
    return room, count


@helper
def _twice(room):
    """Array of twice the size, with the same content."""
    longer = np.empty((2 * room.shape[0], room.shape[1]), np.float64)
    for e in range(room.shape[0]):
        for x in range(room.shape[1]):
            longer[e, x] = room[e, x]
    return longer


@helper
def _sine(around, e, f):
    """Sine of the angle between two neighbours."""
    x = around[e, 1] * around[f, 2] - around[e, 2] * around[f, 1]
    y = around[e, 2] * around[f, 0] - around[e, 0] * around[f, 2]
    z = around[e, 0] * around[f, 1] - around[e, 1] * around[f, 0]
    return math.sqrt(x * x + y * y + z * z) / (around[e, 3] * around[f, 3])


@helper
def _alike(around, e, others, f, slack):
    """Whether two neighbours are of the same element and at about the same distance."""
    return around[e, 4] == others[f, 4] and abs(around[e, 3] - others[f, 3]) <= slack


@helper
def _gap(around, e, f):
    x = around[e, 0] - around[f, 0]
    y = around[e, 1] - around[f, 1]
    z = around[e, 2] - around[f, 2]
    return math.sqrt(x * x + y * y + z * z)


@helper
def _triad(around, e, f, hand, out):
    """Fill orthonormal rows: along e, in the plane of e and f (any plane if f is -1), and normal to it."""
    least = 0
    for x in range(3):
        out[0, x] = around[e, x] / around[e, 3]
        if abs(out[0, x]) < abs(out[0, least]):
            least = x
    along, norm = 0.0, 0.0
    for x in range(3):
        out[1, x] = around[f, x] if f >= 0 else 0.0
    if f < 0:
        out[1, least] = 1.0
    for x in range(3):
        along += out[1, x] * out[0, x]
    for x in range(3):
        out[1, x] -= along * out[0, x]
        norm += out[1, x] * out[1, x]
    norm = math.sqrt(norm)
    for x in range(3):
        out[1, x] /= norm
    out[2, 0] = hand * (out[0, 1] * out[1, 2] - out[0, 2] * out[1, 1])
    out[2, 1] = hand * (out[0, 2] * out[1, 0] - out[0, 0] * out[1, 2])
    out[2, 2] = hand * (out[0, 0] * out[1, 1] - out[0, 1] * out[1, 0])


# --- one isometry ---------------------------------------------------------------------------------


@helper
def _fits(
    rotation, anchor, b, order, arms, residual, numbers_a, u_a, lattice_a,
    numbers_b, u_b, lattice_b, periodic, tolerance,
):  # fmt: skip
    """Whether the isometry, fitted to all atoms, lays a over b.

    Changes `rotation`, and fills `arms` (from the anchor to each atom of a, then the lattice
    vectors, rotated) and `residual` (the displacements of the atoms and lattice of b from their ends).
    """
    limit = FARTHEST_ATOM * tolerance
    loose = max(_LOOSE, 2.0 * limit)
    n, m = u_a.shape[0], u_b.shape[0]
    o0, o1, o2 = u_b[b, 0], u_b[b, 1], u_b[b, 2]
    worst, strain = 0.0, 0.0
    # As given by two neighbours, then fitted to the atoms and to the lattice by one atom; if that is
    # about right, to the lattice by all atoms.
    for fit in range(4):
        square, worst, strain = 0.0, 0.0, 0.0
        for i in order:
            a0, a1, a2 = _turned(
                rotation,
                u_a[i, 0] - u_a[anchor, 0],
                u_a[i, 1] - u_a[anchor, 1],
                u_a[i, 2] - u_a[anchor, 2],
            )
            r0, r1, r2, length = _nearest(
                o0 + a0, o1 + a1, o2 + a2, numbers_a[i], loose, numbers_b, u_b, lattice_b, periodic
            )
            if length > loose:
                return _UNPAIRED
            arms[i, 0], arms[i, 1], arms[i, 2] = a0, a1, a2
            residual[i, 0], residual[i, 1], residual[i, 2] = r0, r1, r2
            square += length * length
            worst = max(worst, length)
            if fit > 0 and square > 2.0 * tolerance * tolerance * n:
                return _TOO_FAR_OFF
        asked = 1 if fit < 2 else m
        for k in range(periodic):
            a0, a1, a2 = _turned(rotation, lattice_a[k, 0], lattice_a[k, 1], lattice_a[k, 2])
            s0, s1, s2 = 0.0, 0.0, 0.0
            for j in range(asked):
                atom = (b + j) % m
                r0, r1, r2, length = _nearest(
                    u_b[atom, 0] + a0, u_b[atom, 1] + a1, u_b[atom, 2] + a2,
                    numbers_b[atom], loose, numbers_b, u_b, lattice_b, periodic,
                )  # fmt: skip
                if length > loose:
                    return _UNPAIRED
                s0, s1, s2 = s0 + r0 / asked, s1 + r1 / asked, s2 + r2 / asked
                worst = max(worst, 0.5 * length)  # both ends are atoms with an error
            arms[n + k, 0], arms[n + k, 1], arms[n + k, 2] = a0, a1, a2
            residual[n + k, 0], residual[n + k, 1], residual[n + k, 2] = s0, s1, s2
            strain = max(strain, math.sqrt(s0 * s0 + s1 * s1 + s2 * s2))
        if fit == 3:
            break
        d0, d1, d2 = _improve(rotation, arms, residual, n, periodic)
        o0, o1, o2 = o0 + d0, o1 + d1, o2 + d2
    if square <= tolerance * tolerance * n and strain <= tolerance and worst <= limit:
        return _LAID_OVER
    return _TOO_FAR_OFF


@helper
def _turned(rotation, x, y, z):
    return (
        rotation[0, 0] * x + rotation[0, 1] * y + rotation[0, 2] * z,
        rotation[1, 0] * x + rotation[1, 1] * y + rotation[1, 2] * z,
        rotation[2, 0] * x + rotation[2, 1] * y + rotation[2, 2] * z,
    )


@helper
def _nearest(x, y, z, element, loose, numbers, u, lattice, periodic):
    """Vector to the nearest image of an atom of the element, and its length; infinite if too far."""
    b0, b1, b2, best = 0.0, 0.0, 0.0, math.inf
    height = lattice[2, 2]
    inside, turns = z, 0
    if periodic > 2:
        inside, turns = z - math.floor(z / height) * height, 1
    for turn in range(-turns, turns + 1):
        # Atoms are sorted by their last coordinate: only a slice of them can be near.
        level = inside + turn * height
        j, end = 0, u.shape[0]
        while j < end:
            middle = (j + end) // 2
            if u[middle, 2] < level - loose:
                j = middle + 1
            else:
                end = middle
        while j < u.shape[0] and u[j, 2] <= level + loose:
            if numbers[j] == element:
                d0, d1, d2 = u[j, 0] - x, u[j, 1] - y, u[j, 2] - z
                if periodic > 2:
                    whole = math.floor(d2 / height + 0.5)
                    d2 -= whole * height
                    d1 -= whole * lattice[2, 1]
                    d0 -= whole * lattice[2, 0]
                if periodic > 1:
                    whole = math.floor(d1 / lattice[1, 1] + 0.5)
                    d1 -= whole * lattice[1, 1]
                    d0 -= whole * lattice[1, 0]
                if periodic > 0:
                    d0 -= math.floor(d0 / lattice[0, 0] + 0.5) * lattice[0, 0]
                length = math.sqrt(d0 * d0 + d1 * d1 + d2 * d2)
                if length < best:
                    b0, b1, b2, best = d0, d1, d2, length
            j += 1
    return b0, b1, b2, best


@helper
def _improve(rotation, arms, residual, n, periodic):
    """Rotate the isometry by least squares over n atoms and the lattice; returns its translation.

    The rotation is small and given by a vector w: w x arm should equal the residual of each arm. Each
    lattice vector is weighted by the number of atoms.
    """
    m0, m1, m2, c0, c1, c2 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(n):
        m0, m1, m2 = m0 + arms[i, 0] / n, m1 + arms[i, 1] / n, m2 + arms[i, 2] / n
        c0, c1, c2 = c0 + residual[i, 0] / n, c1 + residual[i, 1] / n, c2 + residual[i, 2] / n
    xx, yy, zz, xy, xz, yz, t0, t1, t2 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(n + periodic):
        p0, p1, p2 = arms[i, 0], arms[i, 1], arms[i, 2]
        r0, r1, r2 = residual[i, 0], residual[i, 1], residual[i, 2]
        weight = float(n)
        if i < n:
            weight = 1.0
            p0, p1, p2, r0, r1, r2 = p0 - m0, p1 - m1, p2 - m2, r0 - c0, r1 - c1, r2 - c2
        xx += weight * (p1 * p1 + p2 * p2)
        yy += weight * (p0 * p0 + p2 * p2)
        zz += weight * (p0 * p0 + p1 * p1)
        xy -= weight * p0 * p1
        xz -= weight * p0 * p2
        yz -= weight * p1 * p2
        t0 += weight * (p1 * r2 - p2 * r1)
        t1 += weight * (p2 * r0 - p0 * r2)
        t2 += weight * (p0 * r1 - p1 * r0)
    little = 1e-9 * (xx + yy + zz)  # any rotation about the axis of a linear molecule will do
    xx, yy, zz = xx + little, yy + little, zz + little
    minor0, minor1, minor2 = yy * zz - yz * yz, xz * yz - xy * zz, xy * yz - xz * yy
    determinant = xx * minor0 + xy * minor1 + xz * minor2
    if determinant <= 0.0:
        return c0, c1, c2
    w0 = (minor0 * t0 + minor1 * t1 + minor2 * t2) / determinant
    w1 = (minor1 * t0 + (xx * zz - xz * xz) * t1 + (xy * xz - xx * yz) * t2) / determinant
    w2 = (minor2 * t0 + (xy * xz - xx * yz) * t1 + (xx * yy - xy * xy) * t2) / determinant
    angle = math.sqrt(w0 * w0 + w1 * w1 + w2 * w2)
    # Rodrigues' formula, so that it stays a rotation.
    sine = math.sin(angle) / angle if angle > 0.0 else 1.0
    cosine = (1.0 - math.cos(angle)) / (angle * angle) if angle > 0.0 else 0.5
    for column in range(3):
        v0, v1, v2 = rotation[0, column], rotation[1, column], rotation[2, column]
        a0, a1, a2 = w1 * v2 - w2 * v1, w2 * v0 - w0 * v2, w0 * v1 - w1 * v0
        rotation[0, column] = v0 + sine * a0 + cosine * (w1 * a2 - w2 * a1)
        rotation[1, column] = v1 + sine * a1 + cosine * (w2 * a0 - w0 * a2)
        rotation[2, column] = v2 + sine * a2 + cosine * (w0 * a1 - w1 * a0)
    return c0 - (w1 * m2 - w2 * m1), c1 - (w2 * m0 - w0 * m2), c2 - (w0 * m1 - w1 * m0)
