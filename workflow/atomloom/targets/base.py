"""TargetSpec: one target, and all that the stages must know of its kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np


@dataclass(frozen=True)
class TargetSpec:
    """A target by name; each kind is a subclass that fills in the rest."""

    name: str
    """As `dataset.target` has it: a column of a label table, or a property of the records."""
    unit: str = ""
    """Unit of its values."""

    kind: ClassVar[str]
    """Name of the kind in `KINDS`."""
    per: ClassVar[Literal["structure", "atom"]] = "structure"
    """What has one value each."""
    shape: ClassVar[tuple[int, ...]] = ()
    """Shape of one value."""
    derived: ClassVar[bool] = False
    """Whether it follows from the energy, as a derivative, and needs no output of the network."""

    @property
    def is_column(self) -> bool:
        """Whether it is a scalar per structure, and so a column of `dataset.parquet`."""
        return self.per == "structure" and not self.shape

    def array_shape(self, structures: int, atoms: int) -> tuple[int, ...]:
        """Shape of the values of so many structures with so many atoms in all."""
        return (atoms if self.per == "atom" else structures, *self.shape)

    def known(self, values: np.ndarray, node_ptr: np.ndarray) -> np.ndarray:
        """[S] bool, whether a structure has at least one finite number among its values.

        Args:
            values: of the structures, in the shape of `array_shape`.
            node_ptr: [S+1], where the atoms of each structure begin.
        """
        finite = np.isfinite(values).any(axis=tuple(range(1, values.ndim)))
        if self.per == "structure" or not len(finite):
            return np.broadcast_to(finite, len(node_ptr) - 1)
        return np.logical_or.reduceat(finite, node_ptr[:-1])

    @property
    def reported(self) -> str:
        """Name under which its errors are reported."""
        return self.name

    @property
    def reported_unit(self) -> str:
        """Unit of these errors."""
        return self.unit
