"""Interface of all sources of derived features: named numbers of structures, or the reason why there are none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from atomloom.structures.table import StructureTable


@dataclass(frozen=True, eq=False)
class Described:
    """Numbers of one structure."""

    values: np.ndarray | None = None
    """[C] float64, in the order of the source's columns; None where it failed."""
    seconds: float = 0.0
    """Time it took."""
    failure: str = ""
    """Reason for a failure."""


class Source(Protocol):
    """Source of numbers of structures, ready to compute them."""

    columns: tuple[str, ...]
    """Names of the numbers."""
    costly: bool
    """Whether computing the numbers of a structure takes longer than looking for them in the store."""

    def describe(self, table: StructureTable) -> Iterator[Described]:
        """Iterate over the numbers of structures, in order; one that fails has a reason and stops nothing."""
