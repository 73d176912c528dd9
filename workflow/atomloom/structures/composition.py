"""Composition of a structure as text: reduced formulas and element lists."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from atomloom.structures.elements import SYMBOLS


def reduced_formula(numbers: np.ndarray) -> str:
    """Reduced formula such as `TiO2`, as pymatgen writes it.

    Args:
        numbers: [N] atomic numbers.
    """
    return _formula(_counts(numbers))


def elements_text(numbers: np.ndarray) -> str:
    """Symbols of the elements by atomic number, such as `O,Ti`."""
    return ",".join(SYMBOLS[number] for number, _ in _counts(numbers))


def _counts(numbers: np.ndarray) -> tuple[tuple[int, int], ...]:
    found, counts = np.unique(numbers, return_counts=True)
    return tuple(zip(found.tolist(), counts.tolist(), strict=True))


@lru_cache(maxsize=1 << 16)
def _formula(counts: tuple[tuple[int, int], ...]) -> str:
    # pymatgen is imported only where a formula is asked for: convert and graphs never need it.
    from pymatgen.core import Composition

    return Composition({SYMBOLS[z]: n for z, n in counts}).reduced_formula
