"""Compiled passes of the Chebyshev descriptor on a CPU: features, and products with their
Jacobian.

An angular sum over pairs of neighbours can be written as one over single neighbours. T_n(cos) is a
combination of Legendre polynomials, and by the addition theorem P_l(r_j . r_k) is a product of
spherical harmonics, so that sum_jk f_j f_k P_l = sum_m |A_lm|^2 with A_lm = sum_j f_j Y_lm(r_j):
the cost is linear in the neighbours. Neighbours of one element are processed together: they share their
weight, and each loop over them is a loop over plain arrays, which compilers vectorise. It knows
nothing of torch.

Legend: N atoms, E edges, S elements, R+1 radial and L+1 angular orders, F features; W = 1 or 2
sets of weights; K = (L+1)(L+2)/2 pairs (l, m) with 0 <= m <= l, grouped by m; P neighbours,
padded.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from atomloom.compiled import Options, njit

LANES = 8
"""Multiple to which groups of neighbours are padded, so that no loop has a remainder."""
PLAIN: Options = {"nogil": True, "cache": True, "error_model": "numpy"}
FAST: Options = {**PLAIN, "fastmath": {"reassoc", "nsz", "contract", "arcp"}}
"""Fast-math flags: sums may be reordered; NaN and infinity keep their meaning."""


@dataclass(frozen=True)
class Basis:
    """Parameters of a descriptor."""

    radial_order: int
    radial_cutoff: float
    angular_order: int
    angular_cutoff: float
    weights: tuple[float, ...]
    """[S], species weights of the second set."""

    @property
    def sets(self) -> int:
        """W, 1 with one element, where the weighted set would be a copy of the first."""
        return 1 if len(self.weights) == 1 else 2

    @property
    def features(self) -> int:
        """F."""
        return self.sets * (self.radial_order + self.angular_order + 2)

    @property
    def cutoff(self) -> float:
        """Larger of both cutoffs, A."""
        return max(self.radial_cutoff, self.angular_cutoff)

    @cached_property
    def set_weights(self) -> np.ndarray:
        """[W, S] weights of the elements in each set."""
        weights = np.array(self.weights)
        return np.stack([np.ones_like(weights), weights][: self.sets])

    @cached_property
    def legendre(self) -> np.ndarray:
        """[L+1, L+1]: T_n = sum_l legendre[n, l] P_l, by a quadrature that is exact for them."""
        order = self.angular_order
        nodes, shares = np.polynomial.legendre.leggauss(order + 1)
        t = np.polynomial.chebyshev.chebvander(nodes, order)
        p = np.polynomial.legendre.legvander(nodes, order)
        return np.einsum("q,qn,ql->nl", shares, t, p) * (np.arange(order + 1) + 0.5)

    @cached_property
    def first(self) -> np.ndarray:
        """[L+2], index of (m, m) among the K."""
        m = np.arange(self.angular_order + 2)
        return m * (self.angular_order + 1) - m * (m - 1) // 2

    @cached_property
    def harmonics(self) -> np.ndarray:
        """[4, K]: Q_mm (in the first position of each m); factors a, b of the recursion
        Q_(l+1)m = a z Q_lm - b Q_(l-1)m; d of dQ_lm/dz = d Q_l(m+1).

        Q_lm(z) (x + iy)^m are real and imaginary parts of spherical harmonics, normalised so that
        P_l(u . v) = sum_m Q_lm(u_z) Q_lm(v_z) Re[(u_x + i u_y)^m (v_x - i v_y)^m].
        """
        order = self.angular_order
        size = order + 2
        norm = np.zeros((size, size))
        for m in range(size):
            for el in range(m, size):
                falling = np.prod(np.arange(el - m + 1, el + m + 1, dtype=float))
                norm[el, m] = np.sqrt((1.0 if m == 0 else 2.0) / falling)
        table = np.zeros((4, self.first[-1]))
        for m in range(order + 1):
            for el in range(m, order + 1):
                k = self.first[m] + el - m
                if el == m:
                    table[0, k] = norm[m, m] * np.prod(np.arange(1.0, 2 * m, 2))
                table[1, k] = (2 * el + 1) / (el - m + 1) * norm[el + 1, m] / norm[el, m]
                if el > m:
                    table[2, k] = (el + m) / (el - m + 1) * norm[el + 1, m] / norm[el - 1, m]
                    table[3, k] = norm[el, m] / norm[el, m + 1]
        return table

    def constants(self, dtype: np.dtype) -> tuple[Any, ...]:
        """Arguments of every pass: cutoffs, orders, set weights, Legendre, indices and recursions."""
        return (
            (float(self.radial_cutoff), float(self.angular_cutoff)),
            (self.radial_order, self.angular_order),
            self.set_weights.astype(dtype),
            self.legendre.astype(dtype),
            self.first,
            self.harmonics.astype(dtype),
        )


# --- neighbours of one atom and one element ---


@njit(**PLAIN)
def _padded(count):
    return (count + LANES - 1) // LANES * LANES


@njit(**PLAIN)
def _capacity(dst_ptr):
    most = 0
    for atom in range(len(dst_ptr) - 1):
        most = max(most, dst_ptr[atom + 1] - dst_ptr[atom])
    return _padded(most) + LANES


@njit(**PLAIN)
def _collect(vectors, element, wanted, start, stop, cutoff, edges, r, u):
    """Collect neighbours of element `wanted` within `cutoff`: edges, distances r and directions u."""
    count = 0
    for edge in range(start, stop):
        if element[edge] != wanted:
            continue
        x, y, z = vectors[edge, 0], vectors[edge, 1], vectors[edge, 2]
        distance = np.sqrt(np.float64(x * x + y * y + z * z))
        if distance <= cutoff:
            edges[count] = edge
            r[count] = distance
            u[0, count], u[1, count], u[2, count] = x / distance, y / distance, z / distance
            count += 1
    for j in range(count, _padded(count)):
        r[j], u[0, j], u[1, j], u[2, j] = cutoff, 0.0, 0.0, 1.0
    return count


@njit(**PLAIN)
def _within(collected, cutoff, edges, r, u, to_edges, to_r, to_u):
    """Select the collected neighbours within a smaller cutoff; possibly in place."""
    count = 0
    for j in range(collected):
        if r[j] <= cutoff:
            to_edges[count] = edges[j]
            to_r[count] = r[j]
            for k in range(3):
                to_u[k, count] = u[k, j]
            count += 1
    for j in range(count, _padded(count)):
        to_r[j], to_u[0, j], to_u[1, j], to_u[2, j] = cutoff, 0.0, 0.0, 1.0
    return count


@njit(**PLAIN)
def _collect_both(vectors, element, wanted, start, stop, cutoffs, edges, r, u, edges_a, r_a, u_a):
    """Collect neighbours of element `wanted` within the radial and within the angular cutoff."""
    reach = max(cutoffs[0], cutoffs[1])
    count = _collect(vectors, element, wanted, start, stop, reach, edges, r, u)
    count_a = _within(count, cutoffs[1], edges, r, u, edges_a, r_a, u_a)
    if cutoffs[0] < reach:
        count = _within(count, cutoffs[0], edges, r, u, edges, r, u)
    return count, count_a


@njit(**FAST)
def _cutoff_function(count, cutoff, r, f, slope):
    """Compute f = (cos(pi r/R) + 1)/2 and its derivative, by series exact to float64 for r <= R."""
    half_turn = np.pi / cutoff
    for j in range(_padded(count)):
        h = 0.5 * half_turn * r[j]
        t = h * h
        # f = cos(h)^2, f' = -(pi/R) cos(h) sin(h); Taylor series, from their last terms, h <= pi/2
        c = 1.0 - t / 462
        c = 1.0 - t / 380 * c
        c = 1.0 - t / 306 * c
        c = 1.0 - t / 240 * c
        c = 1.0 - t / 182 * c
        c = 1.0 - t / 132 * c
        c = 1.0 - t / 90 * c
        c = 1.0 - t / 56 * c
        c = 1.0 - t / 30 * c
        c = 1.0 - t / 12 * c
        c = 1.0 - t / 2 * c
        s = 1.0 - t / 420
        s = 1.0 - t / 342 * s
        s = 1.0 - t / 272 * s
        s = 1.0 - t / 210 * s
        s = 1.0 - t / 156 * s
        s = 1.0 - t / 110 * s
        s = 1.0 - t / 72 * s
        s = 1.0 - t / 42 * s
        s = 1.0 - t / 20 * s
        s = 1.0 - t / 6 * s
        s *= h
        f[j] = c * c
        slope[j] = -half_turn * c * s
    for j in range(count, _padded(count)):
        f[j] = 0.0
        slope[j] = 0.0


@njit(**FAST)
def _argument(count, cutoff, r, x, x2):
    """Compute x = 2r/R - 1 and 2x."""
    for j in range(_padded(count)):
        value = 2.0 * (r[j] / cutoff) - 1.0
        x[j] = value
        x2[j] = 2.0 * value


@njit(**FAST)
def _next_power(count, u, c, s, c_next, s_next):
    """Real and imaginary parts of (x + iy)^(m+1) from those of the m-th power."""
    for j in range(_padded(count)):
        a, b = c[j], s[j]
        c_next[j] = u[0, j] * a - u[1, j] * b
        s_next[j] = u[0, j] * b + u[1, j] * a


@njit(**FAST)
def _table(count, order, first, harmonics, u, q, c, s):
    """Fill Q [K, P] and the powers c, s [L+1, P]."""
    size = _padded(count)
    for j in range(size):
        c[0, j] = 1.0
        s[0, j] = 0.0
    for m in range(order + 1):
        if m:
            _next_power(count, u, c[m - 1], s[m - 1], c[m], s[m])
        k = first[m]
        start = harmonics[0, k]
        for j in range(size):
            q[k, j] = start
        if m < order:
            a = harmonics[1, k]
            for j in range(size):
                q[k + 1, j] = a * u[2, j] * q[k, j]
        for k in range(first[m] + 1, first[m + 1] - 1):
            a, b = harmonics[1, k], harmonics[2, k]
            for j in range(size):
                q[k + 1, j] = a * u[2, j] * q[k, j] - b * q[k - 1, j]


# --- features ---


@njit(**FAST)
def _radial_sums(count, order, x, x2, f, t0, t1, sums):
    """Compute sums[n] = sum_j f_j T_n(x_j); sums has an even length."""
    size = _padded(count)
    for j in range(size):
        t0[j] = f[j]
        t1[j] = x[j] * f[j]
    for n in range(0, order + 1, 2):
        first = t0.dtype.type(0)
        second = t0.dtype.type(0)
        for j in range(size):
            a, b = t0[j], t1[j]
            first += a
            second += b
            a = x2[j] * b - a
            t0[j] = a
            t1[j] = x2[j] * a - b
        sums[n] = first
        sums[n + 1] = second


@njit(**FAST)
def _harmonic_sums(count, order, first, harmonics, u, f, q0, q1, c, s, c_next, s_next, sums):
    """Compute sums[0 or 1, k] = sum_j f_j Q_k Re or Im (x + iy)^m."""
    size = _padded(count)
    for j in range(size):
        c[j] = f[j]
        s[j] = 0.0
    for m in range(order + 1):
        start = harmonics[0, first[m]]
        for j in range(size):
            q0[j] = 0.0
            q1[j] = start
        for k in range(first[m], first[m + 1]):
            a, b = harmonics[1, k], harmonics[2, k]
            real = c.dtype.type(0)
            imaginary = c.dtype.type(0)
            for j in range(size):
                now = q1[j]
                real += now * c[j]
                imaginary += now * s[j]
                q1[j] = a * u[2, j] * now - b * q0[j]
                q0[j] = now
            sums[0, k] = real
            sums[1, k] = imaginary
        if m < order:
            _next_power(count, u, c, s, c_next, s_next)
            c, c_next = c_next, c
            s, s_next = s_next, s


@njit(**FAST)
def features(vectors, element, dst_ptr, basis, out, sums):
    """Fill features `out` [N, F] and moments `sums` [N, W, 2, K], zeros on entry.

    Returns the min distance of neighbours, infinite where there are none.

    Args:
        vectors: [E, 3], A, sorted by central atom.
        element: [E], index of the neighbour's element.
        dst_ptr: [N+1].
        basis: `Basis.constants`.
    """
    cutoffs, (radial, angular), set_weights, legendre, first, harmonics = basis
    width = radial + angular + 2
    sets = len(set_weights)
    capacity = _capacity(dst_ptr)
    edges, edges_a = np.empty(capacity, np.int64), np.empty(capacity, np.int64)
    r, r_a = np.empty(capacity), np.empty(capacity)
    u = np.empty((3, capacity), vectors.dtype)
    u_a = np.empty((3, capacity), vectors.dtype)
    x = np.empty(capacity, vectors.dtype)
    x2 = np.empty(capacity, vectors.dtype)
    f = np.empty(capacity, vectors.dtype)
    slope = np.empty(capacity, vectors.dtype)
    f_a = np.empty(capacity, vectors.dtype)
    t0 = np.empty(capacity, vectors.dtype)
    t1 = np.empty(capacity, vectors.dtype)
    q0 = np.empty(capacity, vectors.dtype)
    q1 = np.empty(capacity, vectors.dtype)
    c = np.empty(capacity, vectors.dtype)
    s = np.empty(capacity, vectors.dtype)
    c_next = np.empty(capacity, vectors.dtype)
    s_next = np.empty(capacity, vectors.dtype)
    radial_sums = np.empty(radial + 2, vectors.dtype)
    harmonic_sums = np.empty((2, first[-1]), vectors.dtype)
    half = out.dtype.type(0.5)
    least = np.inf
    for atom in range(len(dst_ptr) - 1):
        start, stop = dst_ptr[atom], dst_ptr[atom + 1]
        if start == stop:
            continue
        for kind in range(set_weights.shape[1]):
            count, count_a = _collect_both(
                vectors, element, kind, start, stop, cutoffs, edges, r, u, edges_a, r_a, u_a
            )
            if count == count_a == 0:
                continue
            for j in range(count):
                least = min(least, r[j])
            for j in range(count_a):
                least = min(least, r_a[j])
            _cutoff_function(count, cutoffs[0], r, f, slope)
            _argument(count, cutoffs[0], r, x, x2)
            _radial_sums(count, radial, x, x2, f, t0, t1, radial_sums)
            _cutoff_function(count_a, cutoffs[1], r_a, f_a, slope)
            _harmonic_sums(
                count_a,
                angular,
                first,
                harmonics,
                u_a,
                f_a,
                q0,
                q1,
                c,
                s,
                c_next,
                s_next,
                harmonic_sums,
            )
            own = f_a.dtype.type(0)  # the terms j = k in the squares below
            for j in range(_padded(count_a)):
                own += f_a[j] * f_a[j]
            for which in range(sets):
                weight = set_weights[which, kind]
                column = which * width
                for n in range(radial + 1):
                    out[atom, column + n] += weight * radial_sums[n]
                for n in range(radial + 1, width):
                    out[atom, column + n] -= half * weight * weight * own
                for k in range(first[-1]):
                    sums[atom, which, 0, k] += weight * harmonic_sums[0, k]
                    sums[atom, which, 1, k] += weight * harmonic_sums[1, k]
        for which in range(sets):
            for m in range(angular + 1):
                for el in range(m, angular + 1):
                    k = first[m] + el - m
                    a, b = sums[atom, which, 0, k], sums[atom, which, 1, k]
                    square = half * (a * a + b * b)
                    for n in range(el, angular + 1):
                        out[atom, which * width + radial + 1 + n] += legendre[n, el] * square
    return least


# --- products with the Jacobian ---


@njit(**FAST)
def _series(count, x, x2, even, value, slope_value, coefficients, derivative, t0, t1):
    """Compute value = sum_n a_n T_n(x), and slope_value likewise, for an even number of coefficients."""
    size = _padded(count)
    one = t0.dtype.type(1)
    for j in range(size):
        t0[j] = one
        t1[j] = x[j]
        value[j] = 0.0
        slope_value[j] = 0.0
    for n in range(0, even, 2):
        a0, a1 = coefficients[n], coefficients[n + 1]
        d0, d1 = derivative[n], derivative[n + 1]
        for j in range(size):
            a, b = t0[j], t1[j]
            value[j] += a0 * a + a1 * b
            slope_value[j] += d0 * a + d1 * b
            a = x2[j] * b - a
            t0[j] = a
            t1[j] = x2[j] * a - b


@njit(**PLAIN)
def _derivative(coefficients, derivative):
    """Coefficients of the derivative of a Chebyshev series."""
    last = len(coefficients) - 1
    derivative[last] = 0.0
    for n in range(last, 0, -1):
        above = derivative[n + 1] if n < last else derivative.dtype.type(0)
        derivative[n - 1] = above + 2 * n * coefficients[n]
    derivative[0] /= 2


@njit(**FAST)
def _harmonic_gradient(count, order, first, harmonics, b, q, c, s, parts, total):
    """Compute total[0] = sum_k b_k Y_k and its derivatives by x, y, z in total[1:4]."""
    size = _padded(count)
    real, imaginary, real_z, imaginary_z = parts[0], parts[1], parts[2], parts[3]
    for j in range(size):
        total[0, j] = 0.0
        total[1, j] = 0.0
        total[2, j] = 0.0
        total[3, j] = 0.0
    for m in range(order + 1):
        for j in range(size):
            real[j] = 0.0
            imaginary[j] = 0.0
            real_z[j] = 0.0
            imaginary_z[j] = 0.0
        for k in range(first[m], first[m + 1]):
            b0, b1 = b[0, k], b[1, k]
            if k == first[m]:  # Q_mm does not depend on z
                for j in range(size):
                    real[j] += b0 * q[k, j]
                    imaginary[j] += b1 * q[k, j]
                continue
            up = first[m + 1] + k - first[m] - 1
            d = harmonics[3, k]
            d0, d1 = d * b0, d * b1
            for j in range(size):
                real[j] += b0 * q[k, j]
                imaginary[j] += b1 * q[k, j]
                real_z[j] += d0 * q[up, j]
                imaginary_z[j] += d1 * q[up, j]
        below = max(m - 1, 0)
        power = b.dtype.type(m)
        for j in range(size):
            total[0, j] += real[j] * c[m, j] + imaginary[j] * s[m, j]
            total[1, j] += power * (real[j] * c[below, j] + imaginary[j] * s[below, j])
            total[2, j] += power * (imaginary[j] * c[below, j] - real[j] * s[below, j])
            total[3, j] += real_z[j] * c[m, j] + imaginary_z[j] * s[m, j]


@njit(**FAST)
def gradient(vectors, element, dst_ptr, basis, slopes, sums, out):
    """Fill `out` [E, 3] with the gradient of sum(slopes * features) by edge vectors.

    Args:
        slopes: [N, F].
        sums: [N, W, 2, K], the moments found by `features`.
        out: zeros on entry.
        other arguments: as for `features`.
    """
    cutoffs, (radial, angular), set_weights, legendre, first, harmonics = basis
    width = radial + angular + 2
    even = (radial + 2) // 2 * 2
    sets = len(set_weights)
    capacity = _capacity(dst_ptr)
    edges, edges_a = np.empty(capacity, np.int64), np.empty(capacity, np.int64)
    r, r_a = np.empty(capacity), np.empty(capacity)
    dtype = vectors.dtype
    x = np.empty(capacity, dtype)
    x2 = np.empty(capacity, dtype)
    f = np.empty(capacity, dtype)
    slope = np.empty(capacity, dtype)
    value = np.empty(capacity, dtype)
    slope_value = np.empty(capacity, dtype)
    t0 = np.empty(capacity, dtype)
    t1 = np.empty(capacity, dtype)
    f_a = np.empty(capacity, dtype)
    slope_a = np.empty(capacity, dtype)
    u = np.empty((3, capacity), dtype)
    u_a = np.empty((3, capacity), dtype)
    q = np.empty((first[-1], capacity), dtype)
    c = np.empty((angular + 1, capacity), dtype)
    s = np.empty((angular + 1, capacity), dtype)
    parts = np.empty((4, capacity), dtype)
    total = np.empty((4, capacity), dtype)
    moments = np.zeros((sets, 2, first[-1]), dtype)
    b = np.empty((2, first[-1]), dtype)
    coefficients = np.zeros(even, dtype)
    derivative = np.zeros(even, dtype)
    of_order = np.empty(angular + 1, dtype)
    stretch = dtype.type(2.0 / cutoffs[0])
    for atom in range(len(dst_ptr) - 1):
        start, stop = dst_ptr[atom], dst_ptr[atom + 1]
        if start == stop:
            continue
        own = np.zeros(2, dtype)
        for which in range(sets):
            column = which * width + radial + 1
            for el in range(angular + 1):
                of_order[el] = 0.0
                for n in range(el, angular + 1):
                    of_order[el] += slopes[atom, column + n] * legendre[n, el]
                own[which] += slopes[atom, column + el]
            for m in range(angular + 1):
                for el in range(m, angular + 1):
                    k = first[m] + el - m
                    moments[which, 0, k] = of_order[el] * sums[atom, which, 0, k]
                    moments[which, 1, k] = of_order[el] * sums[atom, which, 1, k]
        for kind in range(set_weights.shape[1]):
            count, count_a = _collect_both(
                vectors, element, kind, start, stop, cutoffs, edges, r, u, edges_a, r_a, u_a
            )
            if count == count_a == 0:
                continue
            own_weight = dtype.type(0)
            b[:] = 0.0
            coefficients[:] = 0.0
            for which in range(sets):
                weight = set_weights[which, kind]
                own_weight += weight * weight * own[which]
                for n in range(radial + 1):
                    coefficients[n] += weight * slopes[atom, which * width + n]
                for part in range(2):
                    for k in range(first[-1]):
                        b[part, k] += weight * moments[which, part, k]

            _derivative(coefficients, derivative)
            _cutoff_function(count, cutoffs[0], r, f, slope)
            _argument(count, cutoffs[0], r, x, x2)
            _series(count, x, x2, even, value, slope_value, coefficients, derivative, t0, t1)
            for j in range(count):
                along = slope[j] * value[j] + f[j] * slope_value[j] * stretch
                edge = edges[j]
                out[edge, 0] = along * u[0, j]
                out[edge, 1] = along * u[1, j]
                out[edge, 2] = along * u[2, j]

            _cutoff_function(count_a, cutoffs[1], r_a, f_a, slope_a)
            _table(count_a, angular, first, harmonics, u_a, q, c, s)
            _harmonic_gradient(count_a, angular, first, harmonics, b, q, c, s, parts, total)
            for j in range(count_a):
                gx, gy, gz = total[1, j], total[2, j], total[3, j]
                inward = gx * u_a[0, j] + gy * u_a[1, j] + gz * u_a[2, j]
                across = f_a[j] / dtype.type(r_a[j])
                along = slope_a[j] * (total[0, j] - own_weight * f_a[j]) - across * inward
                edge = edges_a[j]
                out[edge, 0] += along * u_a[0, j] + across * gx
                out[edge, 1] += along * u_a[1, j] + across * gy
                out[edge, 2] += along * u_a[2, j] + across * gz


@njit(**FAST)
def _turn(count, changes, edges, r, u, slope, f_change, u_change):
    """Compute changes of cutoff functions and directions with the edge vectors."""
    for j in range(count):
        edge = edges[j]
        vx, vy, vz = changes[edge, 0], changes[edge, 1], changes[edge, 2]
        along = vx * u[0, j] + vy * u[1, j] + vz * u[2, j]
        f_change[j] = slope[j] * along
        u_change[0, j] = (vx - along * u[0, j]) / r[j]
        u_change[1, j] = (vy - along * u[1, j]) / r[j]
        u_change[2, j] = (vz - along * u[2, j]) / r[j]
    for j in range(count, _padded(count)):
        f_change[j] = 0.0
        u_change[0, j] = 0.0
        u_change[1, j] = 0.0
        u_change[2, j] = 0.0


@njit(**FAST)
def _radial_tangent(count, order, x, x2, p, d, t0, t1, u0, u1, sums):
    """Compute sums[n] = sum_j p_j T_n(x_j) + d_j T'_n(x_j), of even length; T'_n = n U_(n-1)."""
    size = _padded(count)
    for j in range(size):
        t0[j] = p[j]
        t1[j] = x[j] * p[j]
        u0[j] = 0.0
        u1[j] = d[j]
    for n in range(0, order + 1, 2):
        even, odd = t0.dtype.type(n), t0.dtype.type(n + 1)
        first = t0.dtype.type(0)
        second = t0.dtype.type(0)
        for j in range(size):
            a, b, v, w = t0[j], t1[j], u0[j], u1[j]
            first += a + even * v
            second += b + odd * w
            a = x2[j] * b - a
            v = x2[j] * w - v
            t0[j] = a
            t1[j] = x2[j] * a - b
            u0[j] = v
            u1[j] = x2[j] * v - w
        sums[n] = first
        sums[n + 1] = second


@njit(**FAST)
def _harmonic_tangent(count, order, first, harmonics, q, c, s, f, f_change, u_change, parts, sums):
    """Compute sums[0 or 1, k], the change of sum_j f_j Y_k where f and the directions change."""
    size = _padded(count)
    real, imaginary, real_z, imaginary_z = parts[0], parts[1], parts[2], parts[3]
    for m in range(order + 1):
        below = max(m - 1, 0)
        power = f.dtype.type(m)
        for j in range(size):
            dx, dy, dz = u_change[0, j], u_change[1, j], u_change[2, j]
            a, b = c[below, j], s[below, j]
            real[j] = f_change[j] * c[m, j] + f[j] * power * (a * dx - b * dy)
            imaginary[j] = f_change[j] * s[m, j] + f[j] * power * (b * dx + a * dy)
            real_z[j] = f[j] * dz * c[m, j]
            imaginary_z[j] = f[j] * dz * s[m, j]
        for k in range(first[m], first[m + 1]):
            re = f.dtype.type(0)
            im = f.dtype.type(0)
            if k == first[m]:
                for j in range(size):
                    re += q[k, j] * real[j]
                    im += q[k, j] * imaginary[j]
            else:
                up = first[m + 1] + k - first[m] - 1
                d = harmonics[3, k]
                for j in range(size):
                    now, above = q[k, j], d * q[up, j]
                    re += now * real[j] + above * real_z[j]
                    im += now * imaginary[j] + above * imaginary_z[j]
            sums[0, k] = re
            sums[1, k] = im


@njit(**FAST)
def tangent(vectors, element, dst_ptr, basis, changes, sums, out):
    """Fill `out` [N, F] with the change of features where edge vectors change by `changes` [E, 3].

    It is the transpose of `gradient`, with the same arguments; `out` is zeros on entry.
    """
    cutoffs, (radial, angular), set_weights, legendre, first, harmonics = basis
    width = radial + angular + 2
    sets = len(set_weights)
    capacity = _capacity(dst_ptr)
    edges, edges_a = np.empty(capacity, np.int64), np.empty(capacity, np.int64)
    r, r_a = np.empty(capacity), np.empty(capacity)
    dtype = vectors.dtype
    x = np.empty(capacity, dtype)
    x2 = np.empty(capacity, dtype)
    f = np.empty(capacity, dtype)
    slope = np.empty(capacity, dtype)
    p = np.empty(capacity, dtype)
    d = np.empty(capacity, dtype)
    t0 = np.empty(capacity, dtype)
    t1 = np.empty(capacity, dtype)
    u0 = np.empty(capacity, dtype)
    u1 = np.empty(capacity, dtype)
    f_a = np.empty(capacity, dtype)
    slope_a = np.empty(capacity, dtype)
    f_change = np.empty(capacity, dtype)
    u = np.empty((3, capacity), dtype)
    u_a = np.empty((3, capacity), dtype)
    u_change = np.empty((3, capacity), dtype)
    q = np.empty((first[-1], capacity), dtype)
    c = np.empty((angular + 1, capacity), dtype)
    s = np.empty((angular + 1, capacity), dtype)
    parts = np.empty((4, capacity), dtype)
    radial_sums = np.empty(radial + 2, dtype)
    harmonic_sums = np.empty((2, first[-1]), dtype)
    stretch = dtype.type(2.0 / cutoffs[0])
    for atom in range(len(dst_ptr) - 1):
        start, stop = dst_ptr[atom], dst_ptr[atom + 1]
        if start == stop:
            continue
        for kind in range(set_weights.shape[1]):
            count, count_a = _collect_both(
                vectors, element, kind, start, stop, cutoffs, edges, r, u, edges_a, r_a, u_a
            )
            if count == count_a == 0:
                continue

            _cutoff_function(count, cutoffs[0], r, f, slope)
            _argument(count, cutoffs[0], r, x, x2)
            for j in range(count):
                edge = edges[j]
                along = (
                    changes[edge, 0] * u[0, j]
                    + changes[edge, 1] * u[1, j]
                    + changes[edge, 2] * u[2, j]
                )
                p[j] = slope[j] * along
                d[j] = f[j] * along * stretch
            for j in range(count, _padded(count)):
                p[j] = 0.0
                d[j] = 0.0
            _radial_tangent(count, radial, x, x2, p, d, t0, t1, u0, u1, radial_sums)

            _cutoff_function(count_a, cutoffs[1], r_a, f_a, slope_a)
            _table(count_a, angular, first, harmonics, u_a, q, c, s)
            _turn(count_a, changes, edges_a, r_a, u_a, slope_a, f_change, u_change)
            own = dtype.type(0)
            for j in range(count_a):
                own += f_a[j] * f_change[j]
            _harmonic_tangent(
                count_a,
                angular,
                first,
                harmonics,
                q,
                c,
                s,
                f_a,
                f_change,
                u_change,
                parts,
                harmonic_sums,
            )
            for which in range(sets):
                weight = set_weights[which, kind]
                column = which * width
                for n in range(radial + 1):
                    out[atom, column + n] += weight * radial_sums[n]
                for n in range(radial + 1, width):
                    out[atom, column + n] -= weight * weight * own
                for m in range(angular + 1):
                    for el in range(m, angular + 1):
                        k = first[m] + el - m
                        product = weight * (
                            sums[atom, which, 0, k] * harmonic_sums[0, k]
                            + sums[atom, which, 1, k] * harmonic_sums[1, k]
                        )
                        for n in range(el, angular + 1):
                            out[atom, column + radial + 1 + n] += legendre[n, el] * product


# --- second derivatives ---


@njit(**FAST)
def _harmonic_curvature(
    count, order, first, harmonics, b, b_change, q, c, s, u_change, parts, total, changed
):
    """Compute what `_harmonic_gradient` does, and in `changed` its change with b and directions."""
    size = _padded(count)
    for k in range(4):
        for j in range(size):
            total[k, j] = 0.0
            changed[k, j] = 0.0
    for m in range(order + 1):
        for k in range(10):
            for j in range(size):
                parts[k, j] = 0.0
        for k in range(first[m], first[m + 1]):
            b0, b1, e0, e1 = b[0, k], b[1, k], b_change[0, k], b_change[1, k]
            for j in range(size):
                parts[0, j] += b0 * q[k, j]
                parts[1, j] += b1 * q[k, j]
                parts[2, j] += e0 * q[k, j]
                parts[3, j] += e1 * q[k, j]
            if k == first[m]:
                continue
            up = first[m + 1] + k - first[m] - 1
            d = harmonics[3, k]
            for j in range(size):
                slope = d * q[up, j]
                parts[4, j] += b0 * slope
                parts[5, j] += b1 * slope
                parts[6, j] += e0 * slope
                parts[7, j] += e1 * slope
            if k == first[m] + 1:
                continue
            above = first[m + 2] + up - first[m + 1] - 1
            d *= harmonics[3, up]
            for j in range(size):
                bend = d * q[above, j]
                parts[8, j] += b0 * bend
                parts[9, j] += b1 * bend
        one, two = max(m - 1, 0), max(m - 2, 0)
        power = b.dtype.type(m)
        less = b.dtype.type(one)
        for j in range(size):
            dx, dy, dz = u_change[0, j], u_change[1, j], u_change[2, j]
            re, im, re_z, im_z = parts[0, j], parts[1, j], parts[4, j], parts[5, j]
            re_d, im_d = parts[2, j] + re_z * dz, parts[3, j] + im_z * dz
            re_zd, im_zd = parts[6, j] + parts[8, j] * dz, parts[7, j] + parts[9, j] * dz
            c0, s0, c1, s1 = c[m, j], s[m, j], power * c[one, j], power * s[one, j]
            c0_d, s0_d = c1 * dx - s1 * dy, s1 * dx + c1 * dy
            c1_d = power * less * (c[two, j] * dx - s[two, j] * dy)
            s1_d = power * less * (s[two, j] * dx + c[two, j] * dy)
            total[0, j] += re * c0 + im * s0
            total[1, j] += re * c1 + im * s1
            total[2, j] += im * c1 - re * s1
            total[3, j] += re_z * c0 + im_z * s0
            changed[0, j] += re_d * c0 + im_d * s0 + re * c0_d + im * s0_d
            changed[1, j] += re_d * c1 + im_d * s1 + re * c1_d + im * s1_d
            changed[2, j] += im_d * c1 - re_d * s1 + im * c1_d - re * s1_d
            changed[3, j] += re_zd * c0 + im_zd * s0 + re_z * c0_d + im_z * s0_d


@njit(**FAST)
def curvature(vectors, element, dst_ptr, basis, slopes, changes, sums, out):
    """Fill `out` [E, 3] with the change of `gradient` where edge vectors change by `changes`.

    Arguments are those of `gradient` and of `tangent`; `out` is zeros on entry.
    """
    cutoffs, (radial, angular), set_weights, legendre, first, harmonics = basis
    width = radial + angular + 2
    even = (radial + 2) // 2 * 2
    sets = len(set_weights)
    capacity = _capacity(dst_ptr)
    edges, edges_a = np.empty(capacity, np.int64), np.empty(capacity, np.int64)
    r, r_a = np.empty(capacity), np.empty(capacity)
    dtype = vectors.dtype
    lanes = np.empty((10, capacity), dtype)
    x, x2, f, slope, t0, t1 = lanes[0], lanes[1], lanes[2], lanes[3], lanes[4], lanes[5]
    value, slope_value, bend_value = lanes[6], lanes[7], lanes[8]
    f_change = lanes[9]
    u, u_a = np.empty((3, capacity), dtype), np.empty((3, capacity), dtype)
    u_change = np.empty((3, capacity), dtype)
    q = np.empty((first[-1], capacity), dtype)
    c, s = np.empty((angular + 1, capacity), dtype), np.empty((angular + 1, capacity), dtype)
    parts = np.empty((10, capacity), dtype)
    total, changed = np.empty((4, capacity), dtype), np.empty((4, capacity), dtype)
    harmonic_sums = np.empty((2, first[-1]), dtype)
    sums_change = np.empty((sets, 2, first[-1]), dtype)
    b, b_change = np.empty((2, first[-1]), dtype), np.empty((2, first[-1]), dtype)
    series = np.zeros((3, even), dtype)
    of_order = np.empty((sets, angular + 1), dtype)
    own = np.empty(sets, dtype)
    stretch = 2.0 / cutoffs[0]
    for atom in range(len(dst_ptr) - 1):
        start, stop = dst_ptr[atom], dst_ptr[atom + 1]
        if start == stop:
            continue
        own[:] = 0.0
        of_order[:] = 0.0
        sums_change[:] = 0.0
        for which in range(sets):
            column = which * width + radial + 1
            for n in range(angular + 1):
                own[which] += slopes[atom, column + n]
                for el in range(n + 1):
                    of_order[which, el] += slopes[atom, column + n] * legendre[n, el]
        for kind in range(set_weights.shape[1]):
            count = _collect(vectors, element, kind, start, stop, cutoffs[1], edges_a, r_a, u_a)
            if count == 0:
                continue
            _cutoff_function(count, cutoffs[1], r_a, f, slope)
            _turn(count, changes, edges_a, r_a, u_a, slope, f_change, u_change)
            _table(count, angular, first, harmonics, u_a, q, c, s)
            _harmonic_tangent(
                count,
                angular,
                first,
                harmonics,
                q,
                c,
                s,
                f,
                f_change,
                u_change,
                parts,
                harmonic_sums,
            )
            for which in range(sets):
                for part in range(2):
                    for k in range(first[-1]):
                        sums_change[which, part, k] += (
                            set_weights[which, kind] * harmonic_sums[part, k]
                        )
        for kind in range(set_weights.shape[1]):
            count, count_a = _collect_both(
                vectors, element, kind, start, stop, cutoffs, edges, r, u, edges_a, r_a, u_a
            )
            if count == count_a == 0:
                continue
            own_weight = dtype.type(0)
            b[:] = 0.0
            b_change[:] = 0.0
            series[:] = 0.0
            for which in range(sets):
                weight = set_weights[which, kind]
                own_weight += weight * weight * own[which]
                for n in range(radial + 1):
                    series[0, n] += weight * slopes[atom, which * width + n]
                for m in range(angular + 1):
                    for k in range(first[m], first[m + 1]):
                        factor = weight * of_order[which, m + k - first[m]]
                        for part in range(2):
                            b[part, k] += factor * sums[atom, which, part, k]
                            b_change[part, k] += factor * sums_change[which, part, k]

            _derivative(series[0], series[1])
            _derivative(series[1], series[2])
            _cutoff_function(count, cutoffs[0], r, f, slope)
            _argument(count, cutoffs[0], r, x, x2)
            _series(count, x, x2, even, value, slope_value, series[0], series[1], t0, t1)
            _series(count, x, x2, even, slope_value, bend_value, series[1], series[2], t0, t1)
            for j in range(count):
                edge = edges[j]
                vx, vy, vz = changes[edge, 0], changes[edge, 1], changes[edge, 2]
                along = vx * u[0, j] + vy * u[1, j] + vz * u[2, j]
                bend = -((np.pi / cutoffs[0]) ** 2) * (f[j] - 0.5)
                first_order = slope[j] * value[j] + f[j] * slope_value[j] * stretch
                second_order = (
                    bend * value[j]
                    + 2.0 * slope[j] * slope_value[j] * stretch
                    + f[j] * bend_value[j] * stretch * stretch
                )
                across = first_order / r[j]
                outward = (second_order - across) * along
                out[edge, 0] = outward * u[0, j] + across * vx
                out[edge, 1] = outward * u[1, j] + across * vy
                out[edge, 2] = outward * u[2, j] + across * vz

            _cutoff_function(count_a, cutoffs[1], r_a, f, slope)
            _turn(count_a, changes, edges_a, r_a, u_a, slope, f_change, u_change)
            _table(count_a, angular, first, harmonics, u_a, q, c, s)
            _harmonic_curvature(
                count_a,
                angular,
                first,
                harmonics,
                b,
                b_change,
                q,
                c,
                s,
                u_change,
                parts,
                total,
                changed,
            )
            for j in range(count_a):
                edge = edges_a[j]
                ux, uy, uz = u_a[0, j], u_a[1, j], u_a[2, j]
                dx, dy, dz = u_change[0, j], u_change[1, j], u_change[2, j]
                along = changes[edge, 0] * ux + changes[edge, 1] * uy + changes[edge, 2] * uz
                gx, gy, gz = total[1, j], total[2, j], total[3, j]
                hx, hy, hz = changed[1, j], changed[2, j], changed[3, j]
                inward = gx * ux + gy * uy + gz * uz
                inward_change = gx * dx + gy * dy + gz * dz + hx * ux + hy * uy + hz * uz
                bend = -((np.pi / cutoffs[1]) ** 2) * (f[j] - 0.5)
                # gradient = radially * u + across * g
                across = f[j] / r_a[j]
                across_change = (slope[j] - across) / r_a[j] * along
                radially = slope[j] * (total[0, j] - own_weight * f[j]) - across * inward
                radially_change = (
                    bend * along * (total[0, j] - own_weight * f[j])
                    + slope[j] * (changed[0, j] - own_weight * slope[j] * along)
                    - across_change * inward
                    - across * inward_change
                )
                out[edge, 0] += radially_change * ux + radially * dx
                out[edge, 1] += radially_change * uy + radially * dy
                out[edge, 2] += radially_change * uz + radially * dz
                out[edge, 0] += across_change * gx + across * hx
                out[edge, 1] += across_change * gy + across * hy
                out[edge, 2] += across_change * gz + across * hz
