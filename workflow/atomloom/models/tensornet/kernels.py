"""Compiled passes of TensorNet on a CPU: sums over edges and products of matrices, each with its first two
derivatives.

Matrices, 3 x 3, are given by their components along an orthonormal basis of irreducible matrices: component 0 is
along the identity (I), 1 to 3 along the skew-symmetric matrices of the axes (A), 4 to 8 along symmetric traceless
matrices (S). The square of the Frobenius norm is the sum of squares of components, and the transpose changes the
sign of components 1 to 3.

Messages are multilinear in all that they are made of. An atom i receives from its neighbour j, with
filters f of their distance and the components X of its matrices, sum f X_j; and first of all, with the
components s of matrices that the direction from i to j makes, sum (p_i + q_j) f s. With a g for each sum,
S = sum g m is linear in every factor: the first derivative (`..._back`) is dS by the factors, and the second
(`..._back_twice`) sums S with one factor after another replaced. An edge and its reverse share distance and filters
and are processed together, as a pair; from its other end, only components of skew-symmetric matrices change
their sign.

Products are {X, Y} = XY + YX. Since <G, {X, Y}> = <{G, Y^T}, X>, with the transpose ^T, every derivative
is made of such products too. Inner loops run over features only, and write one row each, so that compilers
vectorise them. It knows nothing of torch.

Legend: N atoms, P pairs, D features; X [9, N, D], components of matrices (`tensors`); f [P, 3, D], filters of I, A
and S; s [P, 9].
"""

from __future__ import annotations

import numpy as np

from atomloom.compiled import njit
from atomloom.models.common.kernels import FAST

# --- matrices by components ---
# Compiled passes have these numbers in their machine code, which is cached by this file: they stand in it.

COMPONENTS = 9
PARTS = (1, 3, 5)
"""Number of components of I, A and S."""


def _basis() -> np.ndarray:
    found = np.zeros((COMPONENTS, 3, 3))
    found[0] = np.eye(3) / np.sqrt(3)
    for axis in range(3):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        found[1 + axis, second, first] = np.sqrt(0.5)
        found[1 + axis, first, second] = -np.sqrt(0.5)
    for place, (row, column) in enumerate(((0, 1), (0, 2), (1, 2))):
        found[4 + place, row, column] = found[4 + place, column, row] = np.sqrt(0.5)
    found[7] = np.diag([-1.0, -1.0, 2.0]) / np.sqrt(6)
    found[8] = np.diag([1.0, -1.0, 0.0]) / np.sqrt(2)
    return found


BASIS = _basis()
"""[9, 3, 3]."""


def _symmetric_products() -> tuple[np.ndarray, np.ndarray]:
    """Terms of the components of XY + YX: indices [T, 3] of the result and of two components, factors [T].

    With (k, a, b) and factor f comes f (x_a y_b + x_b y_a) in component k.
    """
    products = np.einsum("kij,aim,bmj->kab", BASIS, BASIS, BASIS)
    products += products.transpose(0, 2, 1)
    terms = [
        (k, a, b)
        for k, a, b in np.ndindex(products.shape)
        if a <= b and abs(products[k, a, b]) > 1e-12
    ]
    factors = [products[k, a, b] * (0.5 if a == b else 1.0) for k, a, b in terms]
    return np.array(terms), np.array(factors)


TERMS, FACTORS = _symmetric_products()
SIGNS = np.array([1.0, -1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
"""[9], of the transpose."""
PART = np.repeat(np.arange(3), PARTS)
"""[9], place of each component's part."""

# --- sums over edges ---


@njit(**FAST)
def push(first, last, src, dst, mutual, filters, tensors, sums):
    """Add the messages f X of pairs `first` to `last` to `sums`.

    Args:
        first, last: range of pairs.
        src, dst, mutual: [P] int64.
        filters: [P, 3, D].
        tensors: [9, N, D].
        sums: [9, N, D], changed in place.
    """
    features = sums.shape[2]
    for p in range(first, last):
        i, j = dst[p], src[p]
        for _ in range(1 + mutual[p]):
            for c in range(COMPONENTS):
                part = PART[c]
                for d in range(features):
                    sums[c, i, d] += filters[p, part, d] * tensors[c, j, d]
            i, j = j, i


@njit(**FAST)
def push_back(first, last, src, dst, mutual, filters, tensors, grad, of_filters, of_tensors):
    """Derivatives of sum(grad * messages) by filters and tensors.

    Arguments are those of `push`; grad: [9, N, D]; derivatives by tensors are added in place, those by
    filters written.
    """
    features = grad.shape[2]
    for p in range(first, last):
        i, j = dst[p], src[p]
        for part in range(3):
            for d in range(features):
                of_filters[p, part, d] = 0
        for _ in range(1 + mutual[p]):
            for c in range(COMPONENTS):
                part = PART[c]
                for d in range(features):
                    of_filters[p, part, d] += grad[c, i, d] * tensors[c, j, d]
                for d in range(features):
                    of_tensors[c, j, d] += grad[c, i, d] * filters[p, part, d]
            i, j = j, i


@njit(**FAST)
def push_back_twice(
    first,
    last,
    src,
    dst,
    mutual,
    filters,
    tensors,
    grad,
    by_filters,
    by_tensors,
    of_filters,
    of_tensors,
    of_grad,
):
    """Derivatives of sum(by_X * result of `push_back` for X), over all X, by its arguments.

    Arguments are those of `push_back`; each `by_` has the shape of what it weights; derivatives by
    atoms' values are added in place, those by filters written.
    """
    features = grad.shape[2]
    for p in range(first, last):
        i, j = dst[p], src[p]
        for part in range(3):
            for d in range(features):
                of_filters[p, part, d] = 0
        for _ in range(1 + mutual[p]):
            for c in range(COMPONENTS):
                part = PART[c]
                for d in range(features):
                    of_filters[p, part, d] += grad[c, i, d] * by_tensors[c, j, d]
                for d in range(features):
                    of_tensors[c, j, d] += grad[c, i, d] * by_filters[p, part, d]
                for d in range(features):
                    of_grad[c, i, d] += (
                        by_filters[p, part, d] * tensors[c, j, d]
                        + filters[p, part, d] * by_tensors[c, j, d]
                    )
            i, j = j, i


@njit(**FAST)
def embed(first, last, src, dst, mutual, shapes, filters, own, other, sums):
    """Add the first messages (p + q) f s of pairs `first` to `last` to `sums`.

    Args:
        first, last: range of pairs.
        src, dst, mutual: [P] int64.
        shapes: s, [P, 9], seen from dst.
        filters: f, [P, 3, D].
        own: p, [N, D], of the atom that receives.
        other: q, [N, D], of its neighbour.
        sums: [9, N, D], changed in place.
    """
    features = sums.shape[2]
    weighted = np.empty((3, features), dtype=sums.dtype)
    for p in range(first, last):
        i, j = dst[p], src[p]
        for side in range(1 + mutual[p]):
            for part in range(3):
                for d in range(features):
                    weighted[part, d] = (own[i, d] + other[j, d]) * filters[p, part, d]
            for c in range(COMPONENTS):
                part, shape = PART[c], shapes[p, c]
                if side == 1 and part == 1:
                    shape = -shape
                for d in range(features):
                    sums[c, i, d] += weighted[part, d] * shape
            i, j = j, i


@njit(**FAST)
def embed_back(
    first,
    last,
    src,
    dst,
    mutual,
    shapes,
    filters,
    own,
    other,
    grad,
    of_shapes,
    of_filters,
    of_own,
    of_other,
):
    """Derivatives of sum(grad * first messages) by all arguments of the messages.

    Arguments are those of `embed`; grad: [9, N, D]; derivatives by atoms' values are added in place,
    those by pairs' values written.
    """
    features = grad.shape[2]
    weighted = np.empty((3, features), dtype=grad.dtype)
    turned = np.empty((3, features), dtype=grad.dtype)
    for p in range(first, last):
        i, j = dst[p], src[p]
        for c in range(COMPONENTS):
            of_shapes[p, c] = 0
        for part in range(3):
            for d in range(features):
                of_filters[p, part, d] = 0
        for side in range(1 + mutual[p]):
            for part in range(3):
                for d in range(features):
                    weighted[part, d] = (own[i, d] + other[j, d]) * filters[p, part, d]
                    turned[part, d] = 0
            for c in range(COMPONENTS):
                part, shape = PART[c], shapes[p, c]
                mirrored = side == 1 and part == 1
                if mirrored:
                    shape = -shape
                along = grad.dtype.type(0)
                for d in range(features):
                    along += grad[c, i, d] * weighted[part, d]
                of_shapes[p, c] += -along if mirrored else along
                for d in range(features):
                    turned[part, d] += grad[c, i, d] * shape
            for part in range(3):
                for d in range(features):
                    of_filters[p, part, d] += (own[i, d] + other[j, d]) * turned[part, d]
                for d in range(features):
                    turned[part, d] *= filters[p, part, d]
            for d in range(features):
                turned[0, d] += turned[1, d] + turned[2, d]
            for d in range(features):
                of_own[i, d] += turned[0, d]
            for d in range(features):
                of_other[j, d] += turned[0, d]
            i, j = j, i


@njit(**FAST)
def embed_back_twice(
    first,
    last,
    src,
    dst,
    mutual,
    shapes,
    filters,
    own,
    other,
    grad,
    by_shapes,
    by_filters,
    by_own,
    by_other,
    of_shapes,
    of_filters,
    of_own,
    of_other,
    of_grad,
):
    """Derivatives of sum(by_X * result of `embed_back` for X), over all X, by its arguments.

    Arguments are those of `embed_back`; each `by_` has the shape of what it weights; derivatives by
    atoms' values are added in place, those by pairs' values written.
    """
    features = grad.shape[2]
    weighted = np.empty((3, features), dtype=grad.dtype)
    changed = np.empty((3, features), dtype=grad.dtype)
    turned = np.empty((3, features), dtype=grad.dtype)
    by_turned = np.empty((3, features), dtype=grad.dtype)
    for p in range(first, last):
        i, j = dst[p], src[p]
        for c in range(COMPONENTS):
            of_shapes[p, c] = 0
        for part in range(3):
            for d in range(features):
                of_filters[p, part, d] = 0
        for side in range(1 + mutual[p]):
            for part in range(3):
                for d in range(features):
                    weighted[part, d] = (own[i, d] + other[j, d]) * filters[p, part, d]
                for d in range(features):
                    changed[part, d] = (own[i, d] + other[j, d]) * by_filters[p, part, d] + (
                        by_own[i, d] + by_other[j, d]
                    ) * filters[p, part, d]
                for d in range(features):
                    turned[part, d] = 0
                    by_turned[part, d] = 0
            for c in range(COMPONENTS):
                part, shape, by_shape = PART[c], shapes[p, c], by_shapes[p, c]
                mirrored = side == 1 and part == 1
                if mirrored:
                    shape, by_shape = -shape, -by_shape
                along = grad.dtype.type(0)
                for d in range(features):
                    along += grad[c, i, d] * changed[part, d]
                of_shapes[p, c] += -along if mirrored else along
                for d in range(features):
                    of_grad[c, i, d] += changed[part, d] * shape + weighted[part, d] * by_shape
                for d in range(features):
                    turned[part, d] += grad[c, i, d] * shape
                for d in range(features):
                    by_turned[part, d] += grad[c, i, d] * by_shape
            for part in range(3):
                for d in range(features):
                    of_filters[p, part, d] += (by_own[i, d] + by_other[j, d]) * turned[part, d] + (
                        own[i, d] + other[j, d]
                    ) * by_turned[part, d]
                for d in range(features):
                    turned[part, d] = (
                        turned[part, d] * by_filters[p, part, d]
                        + by_turned[part, d] * filters[p, part, d]
                    )
            for d in range(features):
                turned[0, d] += turned[1, d] + turned[2, d]
            for d in range(features):
                of_own[i, d] += turned[0, d]
            for d in range(features):
                of_other[j, d] += turned[0, d]
            i, j = j, i


# --- matrices of one atom ---


@njit(**FAST)
def _load(tensors, n, found):
    """Copy the components of an atom from [9, N, D] to [9, D]."""
    for c in range(COMPONENTS):
        for d in range(found.shape[1]):
            found[c, d] = tensors[c, n, d]


@njit(**FAST)
def _store(found, n, tensors):
    """Copy the components of an atom from [9, D] to [9, N, D]."""
    for c in range(COMPONENTS):
        for d in range(found.shape[1]):
            tensors[c, n, d] = found[c, d]


@njit(**FAST)
def _clear(found):
    """Set components [9, D] to zero."""
    for c in range(COMPONENTS):
        for d in range(found.shape[1]):
            found[c, d] = 0


@njit(**FAST)
def _dot(left, right, found):
    """Products <X, Y>, [D], of components [9, D]."""
    for d in range(len(found)):
        found[d] = 0
    for c in range(COMPONENTS):
        for d in range(len(found)):
            found[d] += left[c, d] * right[c, d]


@njit(**FAST)
def _multiply(left, right, transposed, found):
    """Add {X, Y} to `found`, or {X, Y^T} where `transposed`; all are components [9, D]."""
    dtype = found.dtype.type
    for t in range(len(TERMS)):
        k, a, b = TERMS[t, 0], TERMS[t, 1], TERMS[t, 2]
        first = second = dtype(FACTORS[t])
        if transposed:
            first, second = first * dtype(SIGNS[b]), second * dtype(SIGNS[a])
        for d in range(found.shape[1]):
            found[k, d] += first * left[a, d] * right[b, d] + second * left[b, d] * right[a, d]


@njit(**FAST)
def _shrink(given, found):
    """X / (1 + |X|^2), of components [9, D]; `found` may be `given`."""
    one = found.dtype.type(1)
    squares = np.empty(found.shape[1], dtype=found.dtype)
    _dot(given, given, squares)
    for c in range(COMPONENTS):
        for d in range(found.shape[1]):
            found[c, d] = given[c, d] / (one + squares[d])


@njit(**FAST)
def _shrink_back(given, grad, found):
    """Derivative of <G, shrunk X> by X; `found` may be `grad`."""
    one, two = found.dtype.type(1), found.dtype.type(2)
    features = found.shape[1]
    factor = np.empty(features, dtype=found.dtype)
    along = np.empty(features, dtype=found.dtype)
    _dot(given, given, factor)
    _dot(given, grad, along)
    for d in range(features):
        factor[d] = one / (one + factor[d])
    for d in range(features):
        along[d] *= two * factor[d] * factor[d]
    for c in range(COMPONENTS):
        for d in range(features):
            found[c, d] = factor[d] * grad[c, d] - along[d] * given[c, d]


@njit(**FAST)
def _shrink_back_twice(given, grad, by, of_given):
    """Derivative of <B, result of `_shrink_back`> by X; that by G is `_shrink_back` of B."""
    one, two, four = given.dtype.type(1), given.dtype.type(2), given.dtype.type(4)
    features = given.shape[1]
    factor = np.empty(features, dtype=given.dtype)
    along = np.empty(features, dtype=given.dtype)
    by_along = np.empty(features, dtype=given.dtype)
    both = np.empty(features, dtype=given.dtype)
    _dot(given, given, factor)
    _dot(given, grad, along)
    _dot(given, by, by_along)
    _dot(grad, by, both)
    for d in range(features):
        factor[d] = one / (one + factor[d])
    for d in range(features):
        both[d] = (
            two * factor[d] * factor[d] * (four * factor[d] * along[d] * by_along[d] - both[d])
        )
    for d in range(features):
        along[d] *= two * factor[d] * factor[d]
    for d in range(features):
        by_along[d] *= two * factor[d] * factor[d]
    for c in range(COMPONENTS):
        for d in range(features):
            of_given[c, d] = both[d] * given[c, d] - by_along[d] * grad[c, d] - along[d] * by[c, d]


@njit(**FAST)
def normalise(tensors, found):
    """X / (1 + |X|^2), [9, N, D]."""
    own = np.empty((COMPONENTS, tensors.shape[2]), dtype=tensors.dtype)
    for n in range(tensors.shape[1]):
        _load(tensors, n, own)
        _shrink(own, own)
        _store(own, n, found)


@njit(**FAST)
def normalise_back(tensors, grad, of_tensors):
    """Derivative of sum(grad * result of `normalise`) by `tensors`."""
    own = np.empty((COMPONENTS, tensors.shape[2]), dtype=tensors.dtype)
    turned = np.empty_like(own)
    for n in range(tensors.shape[1]):
        _load(tensors, n, own)
        _load(grad, n, turned)
        _shrink_back(own, turned, turned)
        _store(turned, n, of_tensors)


@njit(**FAST)
def normalise_back_twice(tensors, grad, by, of_tensors, of_grad):
    """Derivatives of sum(by * result of `normalise_back`) by `tensors` and `grad`."""
    own = np.empty((COMPONENTS, tensors.shape[2]), dtype=tensors.dtype)
    turned, weights, found = np.empty_like(own), np.empty_like(own), np.empty_like(own)
    for n in range(tensors.shape[1]):
        _load(tensors, n, own)
        _load(grad, n, turned)
        _load(by, n, weights)
        _shrink_back_twice(own, turned, weights, found)
        _store(found, n, of_tensors)
        _shrink_back(own, weights, found)
        _store(found, n, of_grad)


@njit(**FAST)
def combine(first, second, found):
    """C / (1 + |C|^2) of C = {X, Y}, [9, N, D]."""
    left = np.empty((COMPONENTS, first.shape[2]), dtype=first.dtype)
    right, made = np.empty_like(left), np.empty_like(left)
    for n in range(first.shape[1]):
        _load(first, n, left)
        _load(second, n, right)
        _clear(made)
        _multiply(left, right, False, made)
        _shrink(made, made)
        _store(made, n, found)


@njit(**FAST)
def combine_back(first, second, grad, of_first, of_second):
    """Derivatives of sum(grad * result of `combine`) by both factors."""
    left = np.empty((COMPONENTS, first.shape[2]), dtype=first.dtype)
    right, made, turned = np.empty_like(left), np.empty_like(left), np.empty_like(left)
    for n in range(first.shape[1]):
        _load(first, n, left)
        _load(second, n, right)
        _load(grad, n, turned)
        _clear(made)
        _multiply(left, right, False, made)
        _shrink_back(made, turned, turned)
        _clear(made)
        _multiply(turned, right, True, made)
        _store(made, n, of_first)
        _clear(made)
        _multiply(turned, left, True, made)
        _store(made, n, of_second)


@njit(**FAST)
def combine_back_twice(first, second, grad, by_first, by_second, of_first, of_second, of_grad):
    """Derivatives of sum(by_X * result of `combine_back` for X) by both factors and `grad`."""
    left = np.empty((COMPONENTS, first.shape[2]), dtype=first.dtype)
    right, by_left, by_right = np.empty_like(left), np.empty_like(left), np.empty_like(left)
    made, by_made, turned = np.empty_like(left), np.empty_like(left), np.empty_like(left)
    of_made, found = np.empty_like(left), np.empty_like(left)
    for n in range(first.shape[1]):
        _load(first, n, left)
        _load(second, n, right)
        _load(by_first, n, by_left)
        _load(by_second, n, by_right)
        _load(grad, n, turned)
        _clear(made)
        _multiply(left, right, False, made)
        _clear(by_made)
        _multiply(by_left, right, False, by_made)
        _multiply(left, by_right, False, by_made)
        _shrink_back_twice(made, turned, by_made, of_made)
        _shrink_back(made, turned, turned)
        _shrink_back(made, by_made, by_made)
        _store(by_made, n, of_grad)
        _clear(found)
        _multiply(turned, by_right, True, found)
        _multiply(of_made, right, True, found)
        _store(found, n, of_first)
        _clear(found)
        _multiply(turned, by_left, True, found)
        _multiply(of_made, left, True, found)
        _store(found, n, of_second)


@njit(**FAST)
def grow(tensors, change, found):
    """X + Y + YY, [9, N, D]."""
    own = np.empty((COMPONENTS, tensors.shape[2]), dtype=tensors.dtype)
    made, half = np.empty_like(own), own.dtype.type(0.5)
    for n in range(tensors.shape[1]):
        _load(change, n, own)
        _clear(made)
        _multiply(own, own, False, made)
        for c in range(COMPONENTS):
            for d in range(own.shape[1]):
                found[c, n, d] = tensors[c, n, d] + (own[c, d] + half * made[c, d])


@njit(**FAST)
def grow_back(change, grad, of_change):
    """Derivative of sum(grad * result of `grow`) by Y; that by X is `grad`."""
    own = np.empty((COMPONENTS, change.shape[2]), dtype=change.dtype)
    turned, made = np.empty_like(own), np.empty_like(own)
    for n in range(change.shape[1]):
        _load(change, n, own)
        _load(grad, n, turned)
        _load(grad, n, made)
        _multiply(turned, own, True, made)
        _store(made, n, of_change)


@njit(**FAST)
def grow_back_twice(change, grad, by, of_change, of_grad):
    """Derivatives of sum(by * result of `grow_back`) by Y and `grad`."""
    own = np.empty((COMPONENTS, change.shape[2]), dtype=change.dtype)
    turned, weights, made = np.empty_like(own), np.empty_like(own), np.empty_like(own)
    for n in range(change.shape[1]):
        _load(change, n, own)
        _load(grad, n, turned)
        _load(by, n, weights)
        _clear(made)
        _multiply(turned, weights, True, made)
        _store(made, n, of_change)
        _load(by, n, made)
        _multiply(weights, own, False, made)
        _store(made, n, of_grad)
