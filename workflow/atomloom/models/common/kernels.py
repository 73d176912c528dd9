"""Compiled passes on a CPU that models share: pairs of edges, and derivatives of SiLU in one loop.

An edge and its reverse are a pair: they share what depends on the distance alone. It knows nothing of torch or
of particular models.

Legend: N atoms, E edges, P pairs (edges without reverses), R rows, D features.
"""

from __future__ import annotations

import numpy as np

from atomloom.compiled import Options, njit

PLAIN: Options = {"nogil": True, "cache": True, "error_model": "numpy"}
FAST: Options = {**PLAIN, "fastmath": {"reassoc", "nsz", "contract", "arcp"}}
"""Fast-math flags: sums may be reordered; NaN and infinity keep their meaning."""


@njit(**PLAIN)
def find_pairs(src, dst, dst_ptr, shift):
    """Edges without those that are the reverse of an earlier one.

    Args:
        src: [E] int64.
        dst: [E] int64, ascending.
        dst_ptr: [N+1] int64.
        shift: [E, 3], integers.

    Returns:
        edges [P] int64, ascending, and mutual [P] int64: 1 where the reverse is an edge too.
    """
    edges = np.empty(len(src), dtype=np.int64)
    mutual = np.empty(len(src), dtype=np.int64)
    pairs = 0
    for edge in range(len(src)):
        i, j = dst[edge], src[edge]
        reverse = -1
        for other in range(dst_ptr[j], dst_ptr[j + 1]):
            if (
                src[other] == i
                and other != edge
                and shift[other, 0] == -shift[edge, 0]
                and shift[other, 1] == -shift[edge, 1]
                and shift[other, 2] == -shift[edge, 2]
            ):
                reverse = other
                break
        if reverse < 0 or edge < reverse:
            edges[pairs] = edge
            mutual[pairs] = 1 if reverse >= 0 else 0
            pairs += 1
    return edges[:pairs].copy(), mutual[:pairs].copy()


@njit(**FAST)
def silu_back_twice(values, gate, grad, by, of_grad, of_values):
    """Derivatives of sum(by * grad * silu'(values)) by `grad` and `values`, from gate, sigmoid of `values`."""
    one, two = values.dtype.type(1), values.dtype.type(2)
    for place in range(len(values)):
        value, opened = values[place], gate[place]
        shut = one - opened
        of_grad[place] = by[place] * opened * (one + value * shut)
        of_values[place] = by[place] * grad[place] * opened * shut * (two + value * (shut - opened))


@njit(**FAST)
def scaled_silu_back(values, gate, scale, grad, of_values, of_scale):
    """Derivatives of sum(grad * scale * silu(values)) by `values` [R, D] and `scale` [R].

    Args:
        values, grad: [R, D].
        gate: [R, D], sigmoid of `values`.
        scale: [R].
        of_values, of_scale: [R, D] and [R], written.
    """
    one = values.dtype.type(1)
    for r in range(values.shape[0]):
        factor, along = scale[r], values.dtype.type(0)
        for d in range(values.shape[1]):
            along += grad[r, d] * values[r, d] * gate[r, d]
        of_scale[r] = along
        for d in range(values.shape[1]):
            slope = gate[r, d] * (one + values[r, d] * (one - gate[r, d]))
            of_values[r, d] = factor * grad[r, d] * slope


@njit(**FAST)
def scaled_silu_back_twice(
    values, gate, scale, grad, by_values, by_scale, of_values, of_scale, of_grad
):
    """Derivatives of sum(by_X * result of `scaled_silu_back` for X) by its arguments.

    Arguments are those of `scaled_silu_back`; each `by_` has the shape of what it weights; derivatives are
    written.
    """
    one, two = values.dtype.type(1), values.dtype.type(2)
    for r in range(values.shape[0]):
        factor, by_factor, along = scale[r], by_scale[r], values.dtype.type(0)
        for d in range(values.shape[1]):
            slope = gate[r, d] * (one + values[r, d] * (one - gate[r, d]))
            along += by_values[r, d] * grad[r, d] * slope
        of_scale[r] = along
        for d in range(values.shape[1]):
            value, opened = values[r, d], gate[r, d]
            shut = one - opened
            slope = opened * (one + value * shut)
            of_grad[r, d] = by_values[r, d] * factor * slope + by_factor * value * opened
            curvature = opened * shut * (two + value * (shut - opened))
            of_values[r, d] = grad[r, d] * (
                by_values[r, d] * factor * curvature + by_factor * slope
            )
