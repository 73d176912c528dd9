"""Forms: which shapes and types the arrays of a shard must have, and where its pointers may point.

A shard whose digests are right can still be nonsense, made by other hands or by a defect, and compiled
kernels follow its pointers without looking. Each function says what is wrong in one clause, or nothing;
all of them look at each element once at most. This module knows numpy alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Form:
    """Shape and types of one array."""

    shape: tuple[int | str, ...]
    """Extents: a number, or a letter for what is equal in all arrays (`S+1`: one more than that)."""
    types: tuple[str, ...]
    optional: bool = False


def misfit(arrays: Mapping[str, np.ndarray], forms: Mapping[str, Form]) -> str:
    """Which array is missing, of another type, or of a shape that does not go with the others."""
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
                return f"`{name}` has shape {array.shape}, which does not go with the other arrays"
    return ""


def misled(pointer: np.ndarray, count: int, name: str, least: int = 0) -> str:
    """Whether a pointer [S+1] does not cut `count` rows into S parts of at least `least` rows."""
    ends = pointer[0] == 0 and pointer[-1] == count
    # Compared before it is subtracted: differences of wild numbers wrap around.
    if (
        ends
        and (pointer[1:] >= pointer[:-1]).all()
        and np.diff(pointer).min(initial=least) >= least
    ):
        return ""
    return f"`{name}` does not cut {count} rows into {len(pointer) - 1} parts"


def beyond(index: np.ndarray, pointer: np.ndarray, counts: np.ndarray, name: str) -> str:
    """Whether an index [E] without signs, whose parts `pointer` [S+1] cuts, leaves its `counts` [S]."""
    filled = np.flatnonzero(pointer[1:] > pointer[:-1])
    if len(filled):
        most = np.maximum.reduceat(index, pointer[filled])
        outside = np.flatnonzero(most >= counts[filled])
        if len(outside):
            row = filled[outside[0]]
            return f"`{name}` of row {row} names number {most[outside[0]]} of {counts[row]}"
    return ""


def unsorted(index: np.ndarray, pointer: np.ndarray, name: str) -> str:
    """Whether an index [E] falls within one of the parts that `pointer` [S+1] cuts."""
    falls = np.flatnonzero(index[1:] < index[:-1]) + 1
    starts = np.zeros(len(index) + 1, dtype=bool)
    starts[pointer] = True
    return "" if starts[falls].all() else f"`{name}` is not in order"


def unbounded(array: np.ndarray, limit: float, name: str) -> str:
    """Whether a value is NaN, or `limit` or more from zero."""
    # NaN is passed on by both, and passes no comparison.
    inside = not array.size or (array.min() > -limit and array.max() < limit)
    return "" if inside else f"`{name}` holds numbers that are not finite, or beyond reason"


def _written(form: Form) -> str:
    return f"[{', '.join(map(str, form.shape))}]"
