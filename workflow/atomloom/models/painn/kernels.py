"""Compiled passes of PaiNN on a CPU: messages and updates, each with its first two derivatives.

An atom i receives from its neighbour j, in the direction u from i to j, with filters W of their
distance, scalars x and vectors y:

    m0_i += W0 x0_j        m_i += W1 x1_j u + W2 y_j

With an arbitrary g for each m, S = sum g m is linear in each of g, W, x, y and u. So the sum is dS/dg,
the first derivative (`push_back`) is dS by the others, and the second (`push_back_twice`) sums S with
one factor after another replaced. An edge and its reverse share distance and filters and are processed
together, as a pair. Only the filters and their derivatives have size [E, D]. The update block, from
v, w and a, b, c of each atom, is elementwise: one pass for |v| and one for a + c (v . w) and b w. Inner
loops run over features only, so that compilers vectorise them. It knows nothing of torch.

Legend: N atoms, E edges, P pairs, D features; F = 3 filters, or 2 where there are no vectors y.
Arrays of atoms: x [N, 2, D], y [N, 3, D], g and m [N, 4, D].
"""

from __future__ import annotations

import numpy as np

from atomloom.compiled import njit
from atomloom.models.common.kernels import FAST

FLOOR = 1e-8
"""Term that SchNetPack adds to a vector's squared norm, since the derivative at 0 would be infinite."""


@njit(**FAST)
def push(first, last, src, dst, mutual, directions, filters, scalars, vectors, sums):
    """Add the messages of pairs `first` to `last` to `sums`.

    Args:
        first, last: range of pairs.
        src, dst, mutual: [P] int64.
        directions: [P, 3], unit vectors from dst to src's image.
        filters: [P, F, D].
        scalars: [N, 2, D].
        vectors: [N, 3, D]; [0, 3, D] where F is 2.
        sums: [N, 4, D], changed in place.
    """
    features = sums.shape[2]
    with_vectors = len(vectors) > 0
    for p in range(first, last):
        i, j = dst[p], src[p]
        ux, uy, uz = directions[p, 0], directions[p, 1], directions[p, 2]
        for side in range(1 + mutual[p]):
            if side == 1:
                i, j = j, i
                ux, uy, uz = -ux, -uy, -uz
            for d in range(features):
                along = filters[p, 1, d] * scalars[j, 1, d]
                sums[i, 0, d] += filters[p, 0, d] * scalars[j, 0, d]
                sums[i, 1, d] += along * ux
                sums[i, 2, d] += along * uy
                sums[i, 3, d] += along * uz
            if with_vectors:
                for d in range(features):
                    weight = filters[p, 2, d]
                    sums[i, 1, d] += weight * vectors[j, 0, d]
                    sums[i, 2, d] += weight * vectors[j, 1, d]
                    sums[i, 3, d] += weight * vectors[j, 2, d]


@njit(**FAST)
def push_back(
    first,
    last,
    src,
    dst,
    mutual,
    directions,
    filters,
    scalars,
    vectors,
    grad,
    of_directions,
    of_filters,
    of_scalars,
    of_vectors,
):
    """Derivatives of sum(grad * messages) by all arguments of the messages.

    Arguments are those of `push`; grad: [N, 4, D]; derivatives by atoms' values are added in place,
    those by pairs' values written.
    """
    features = grad.shape[2]
    with_vectors = len(vectors) > 0
    for p in range(first, last):
        i, j = dst[p], src[p]
        ux, uy, uz = directions[p, 0], directions[p, 1], directions[p, 2]
        sx = sy = sz = directions.dtype.type(0)
        for kind in range(of_filters.shape[1]):
            for d in range(features):
                of_filters[p, kind, d] = 0
        for side in range(1 + mutual[p]):
            if side == 1:
                i, j = j, i
                ux, uy, uz = -ux, -uy, -uz
                sx, sy, sz = -sx, -sy, -sz
            for d in range(features):
                of_filters[p, 0, d] += grad[i, 0, d] * scalars[j, 0, d]
                of_scalars[j, 0, d] += grad[i, 0, d] * filters[p, 0, d]
            for d in range(features):
                gx, gy, gz = grad[i, 1, d], grad[i, 2, d], grad[i, 3, d]
                along = gx * ux + gy * uy + gz * uz
                value, weight = scalars[j, 1, d], filters[p, 1, d]
                of_filters[p, 1, d] += along * value
                of_scalars[j, 1, d] += along * weight
                value *= weight
                sx += gx * value
                sy += gy * value
                sz += gz * value
            if with_vectors:
                for d in range(features):
                    gx, gy, gz = grad[i, 1, d], grad[i, 2, d], grad[i, 3, d]
                    weight = filters[p, 2, d]
                    of_filters[p, 2, d] += (
                        gx * vectors[j, 0, d] + gy * vectors[j, 1, d] + gz * vectors[j, 2, d]
                    )
                    of_vectors[j, 0, d] += weight * gx
                    of_vectors[j, 1, d] += weight * gy
                    of_vectors[j, 2, d] += weight * gz
        if mutual[p] == 1:
            sx, sy, sz = -sx, -sy, -sz
        of_directions[p, 0], of_directions[p, 1], of_directions[p, 2] = sx, sy, sz


@njit(**FAST)
def push_back_twice(
    first,
    last,
    src,
    dst,
    mutual,
    directions,
    filters,
    scalars,
    vectors,
    grad,
    by_directions,
    by_filters,
    by_scalars,
    by_vectors,
    of_directions,
    of_filters,
    of_scalars,
    of_vectors,
    of_grad,
):
    """Derivatives of sum(by_X * result of `push_back` for X), over all X, by its arguments.

    Arguments are those of `push_back`; each `by_` has the shape of what it weights; derivatives by
    atoms' values are added in place, those by pairs' values written.
    """
    features = grad.shape[2]
    with_vectors = len(vectors) > 0
    for p in range(first, last):
        i, j = dst[p], src[p]
        ux, uy, uz = directions[p, 0], directions[p, 1], directions[p, 2]
        bx, by, bz = by_directions[p, 0], by_directions[p, 1], by_directions[p, 2]
        sx = sy = sz = directions.dtype.type(0)
        for kind in range(of_filters.shape[1]):
            for d in range(features):
                of_filters[p, kind, d] = 0
        for side in range(1 + mutual[p]):
            if side == 1:
                i, j = j, i
                ux, uy, uz = -ux, -uy, -uz
                bx, by, bz = -bx, -by, -bz
                sx, sy, sz = -sx, -sy, -sz
            for d in range(features):
                by_filter, by_scalar = by_filters[p, 0, d], by_scalars[j, 0, d]
                of_grad[i, 0, d] += by_filter * scalars[j, 0, d] + filters[p, 0, d] * by_scalar
                of_filters[p, 0, d] += grad[i, 0, d] * by_scalar
                of_scalars[j, 0, d] += grad[i, 0, d] * by_filter
            for d in range(features):
                gx, gy, gz = grad[i, 1, d], grad[i, 2, d], grad[i, 3, d]
                along = gx * ux + gy * uy + gz * uz
                by_along = gx * bx + gy * by + gz * bz
                value, weight = scalars[j, 1, d], filters[p, 1, d]
                by_scalar, by_filter = by_scalars[j, 1, d], by_filters[p, 1, d]
                of_filters[p, 1, d] += along * by_scalar + by_along * value
                of_scalars[j, 1, d] += along * by_filter + by_along * weight
                changed = by_filter * value + weight * by_scalar
                value *= weight
                of_grad[i, 1, d] += changed * ux + value * bx
                of_grad[i, 2, d] += changed * uy + value * by
                of_grad[i, 3, d] += changed * uz + value * bz
                sx += gx * changed
                sy += gy * changed
                sz += gz * changed
            if with_vectors:
                for d in range(features):
                    gx, gy, gz = grad[i, 1, d], grad[i, 2, d], grad[i, 3, d]
                    weight, by_filter = filters[p, 2, d], by_filters[p, 2, d]
                    vx, vy, vz = by_vectors[j, 0, d], by_vectors[j, 1, d], by_vectors[j, 2, d]
                    of_filters[p, 2, d] += gx * vx + gy * vy + gz * vz
                    of_grad[i, 1, d] += by_filter * vectors[j, 0, d] + weight * vx
                    of_grad[i, 2, d] += by_filter * vectors[j, 1, d] + weight * vy
                    of_grad[i, 3, d] += by_filter * vectors[j, 2, d] + weight * vz
                    of_vectors[j, 0, d] += by_filter * gx
                    of_vectors[j, 1, d] += by_filter * gy
                    of_vectors[j, 2, d] += by_filter * gz
        if mutual[p] == 1:
            sx, sy, sz = -sx, -sy, -sz
        of_directions[p, 0], of_directions[p, 1], of_directions[p, 2] = sx, sy, sz


@njit(**FAST)
def norms(mixed, found):
    """|v| [N, D] of mixed = (v, w) [N, 3, 2, D]; at least sqrt(FLOOR)."""
    features, floor = found.shape[1], found.dtype.type(FLOOR)
    for n in range(len(found)):
        for d in range(features):
            x, y, z = mixed[n, 0, 0, d], mixed[n, 1, 0, d], mixed[n, 2, 0, d]
            found[n, d] = np.sqrt(x * x + y * y + z * z + floor)


@njit(**FAST)
def norms_back(mixed, found, grad, of_mixed):
    """Derivative of sum(grad * norms) by `mixed`; of v alone, so w's half of `of_mixed` is zero."""
    features = found.shape[1]
    for n in range(len(found)):
        for k in range(3):
            for d in range(features):
                of_mixed[n, k, 0, d] = grad[n, d] * mixed[n, k, 0, d] / found[n, d]
            for d in range(features):
                of_mixed[n, k, 1, d] = 0


@njit(**FAST)
def norms_back_twice(mixed, found, grad, by_mixed, of_mixed, of_grad):
    """Derivatives of sum(by_mixed * result of `norms_back`) by `mixed` and `grad`."""
    features, one = found.shape[1], found.dtype.type(1)
    for n in range(len(found)):
        for d in range(features):
            x, y, z = mixed[n, 0, 0, d], mixed[n, 1, 0, d], mixed[n, 2, 0, d]
            inverse = one / found[n, d]
            along = inverse * (
                by_mixed[n, 0, 0, d] * x + by_mixed[n, 1, 0, d] * y + by_mixed[n, 2, 0, d] * z
            )
            of_grad[n, d] = along
            factor, along = grad[n, d] * inverse, along * inverse
            of_mixed[n, 0, 0, d] = factor * (by_mixed[n, 0, 0, d] - along * x)
            of_mixed[n, 1, 0, d] = factor * (by_mixed[n, 1, 0, d] - along * y)
            of_mixed[n, 2, 0, d] = factor * (by_mixed[n, 2, 0, d] - along * z)
        for k in range(3):
            for d in range(features):
                of_mixed[n, k, 1, d] = 0


@njit(**FAST)
def update(context, mixed, changes):
    """Changes by the update block: a + c (v . w) and b w, [N, 4, D].

    Args:
        context: a, b, c, [N, 3, D].
        mixed: v, w, [N, 3, 2, D].
        changes: [N, 4, D], written.
    """
    features = changes.shape[2]
    for n in range(len(changes)):
        for d in range(features):
            changes[n, 0, d] = context[n, 0, d]
        for k in range(3):
            for d in range(features):
                w = mixed[n, k, 1, d]
                changes[n, 0, d] += context[n, 2, d] * mixed[n, k, 0, d] * w
                changes[n, 1 + k, d] = context[n, 1, d] * w


@njit(**FAST)
def update_back(context, mixed, grad, of_context, of_mixed):
    """Derivatives of sum(grad * changes) by `context` and `mixed`; grad: [N, 4, D]."""
    features = grad.shape[2]
    for n in range(len(grad)):
        for d in range(features):
            of_context[n, 0, d] = grad[n, 0, d]
            of_context[n, 1, d] = 0
            of_context[n, 2, d] = 0
        for k in range(3):
            for d in range(features):
                v, w = mixed[n, k, 0, d], mixed[n, k, 1, d]
                g, g_k = grad[n, 0, d], grad[n, 1 + k, d]
                factor = g * context[n, 2, d]
                of_context[n, 1, d] += g_k * w
                of_context[n, 2, d] += g * v * w
                of_mixed[n, k, 0, d] = factor * w
                of_mixed[n, k, 1, d] = factor * v + g_k * context[n, 1, d]


@njit(**FAST)
def update_back_twice(context, mixed, grad, by_context, by_mixed, of_context, of_mixed, of_grad):
    """Derivatives of sum(by_X * result of `update_back` for X) by `context`, `mixed`, `grad`."""
    features = grad.shape[2]
    for n in range(len(grad)):
        for d in range(features):
            of_context[n, 0, d] = 0
            of_context[n, 1, d] = 0
            of_context[n, 2, d] = 0
            of_grad[n, 0, d] = by_context[n, 0, d]
        for k in range(3):
            for d in range(features):
                v, w = mixed[n, k, 0, d], mixed[n, k, 1, d]
                by_v, by_w = by_mixed[n, k, 0, d], by_mixed[n, k, 1, d]
                g, g_k = grad[n, 0, d], grad[n, 1 + k, d]
                b, c = context[n, 1, d], context[n, 2, d]
                by_b, by_c = by_context[n, 1, d], by_context[n, 2, d]
                crossed = by_v * w + by_w * v
                of_context[n, 1, d] += by_w * g_k
                of_context[n, 2, d] += g * crossed
                of_grad[n, 0, d] += by_c * v * w + c * crossed
                of_grad[n, 1 + k, d] = by_b * w + b * by_w
                of_mixed[n, k, 0, d] = g * (by_c * w + c * by_w)
                of_mixed[n, k, 1, d] = by_b * g_k + g * (by_c * v + c * by_v)
