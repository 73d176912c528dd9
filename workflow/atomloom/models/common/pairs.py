"""Edges and their reverses, found as pairs: they share what depends on the distance alone.

It knows only indices and shifts, nothing of torch or of particular models.

Legend: N atoms, E edges, P pairs (edges without reverses).
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
