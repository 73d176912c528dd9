"""Forms of the arrays of a shard: their shapes and types, and the ranges of its pointers.

A shard with correct digests can still be nonsense, made by another program or by a defect, and compiled
kernels follow its pointers unchecked. Each function returns the fault in one clause, or an empty text;
all of them read each element at most once. This module knows only numpy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Form:
    """Shape and types of one array."""

    shape: tuple[int | str, ...]
    """Extents: a number, or a letter for an extent that is equal in all arrays (`S+1`: one more)."""
    types: tuple[str, ...]
    optional: bool = False


def misfit(arrays: Mapping[str, np.ndarray], forms: Mapping[str, Form]) -> str:
    """Fault of an array that is missing, of another type, or of a shape that does not match the others."""
    extents: dict[str, int] = {}
    for name, form in forms.items():
        array = arrays.get(name)
        if array is None:
            if form.optional:
                continue
            return f"there is no array `{name}`"
        if array.dtype.name not in form.types:
            return f"`{name}` has type {array.dtype.name}, not {' or '.join(form.types)}"
        if array.ndim != len(form.shape):
            return f"`{name}` has shape {array.shape}, not {_written(form)}"
        for extent, wanted in zip(array.shape, form.shape, strict=True):
            if isinstance(wanted, str):
                more = 1 if wanted.endswith("+1") else 0
                wanted = more + extents.setdefault(wanted.removesuffix("+1"), extent - more)
            if extent != wanted or min(extents.values(), default=0) < 0:
                return f"`{name}` has shape {array.shape}, which does not match the other arrays"
    return ""


def misled(pointer: np.ndarray, count: int, name: str, least: int = 0) -> str:
    """Fault of a pointer [S+1] that does not cut `count` rows into S parts of at least `least` rows."""
    ends = pointer[0] == 0 and pointer[-1] == count
    # Compared before subtracting: differences of arbitrary numbers wrap around.
    if (
        ends
        and (pointer[1:] >= pointer[:-1]).all()
        and np.diff(pointer).min(initial=least) >= least
    ):
        return ""
    return f"`{name}` does not cut {count} rows into {len(pointer) - 1} parts"


def beyond(index: np.ndarray, pointer: np.ndarray, counts: np.ndarray, name: str) -> str:
    """Fault of an unsigned index [E], cut into parts by `pointer` [S+1], that exceeds its `counts` [S]."""
    filled = np.flatnonzero(pointer[1:] > pointer[:-1])
    if len(filled):
        most = np.maximum.reduceat(index, pointer[filled])
        outside = np.flatnonzero(most >= counts[filled])
        if len(outside):
            row = filled[outside[0]]
            return f"`{name}` of row {row} names number {most[outside[0]]} of {counts[row]}"
    return ""


def unsorted(index: np.ndarray, pointer: np.ndarray, name: str) -> str:
    """Fault of an index [E] that decreases within one of the parts cut by `pointer` [S+1]."""
    falls = np.flatnonzero(index[1:] < index[:-1]) + 1
    starts = np.zeros(len(index) + 1, dtype=bool)
    starts[pointer] = True
    return "" if starts[falls].all() else f"`{name}` is not in order"


def unbounded(array: np.ndarray, limit: float, name: str) -> str:
    """Fault of an array with a value that is NaN, or `limit` or more from zero."""
    # NaN is propagated by both, and fails every comparison.
    inside = not array.size or (array.min() > -limit and array.max() < limit)
    return "" if inside else f"`{name}` holds numbers that are not finite, or too large"


def _written(form: Form) -> str:
    return f"[{', '.join(map(str, form.shape))}]"
