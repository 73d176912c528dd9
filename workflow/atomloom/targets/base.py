"""TargetSpec: one target, and everything the stages need to know of its kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

Source = Literal["output", "energy", "derivative", "head"]


@dataclass(frozen=True)
class TargetSpec:
    """Target by name; each kind is a subclass that fills in the rest."""

    name: str
    """Name in `dataset.target`: a column of a label table, or a property of the records."""
    unit: str = ""
    """Unit of its values."""

    kind: ClassVar[str]
    """Name of the kind in `KINDS`."""
    names: ClassVar[tuple[str, ...]] = ()
    """Names of targets that are of this kind for a potential, unless `dataset.target_kinds` says
    otherwise."""
    per: ClassVar[Literal["structure", "atom"]] = "structure"
    """Owner of one value: `atom` or `structure`."""
    shape: ClassVar[tuple[int, ...]] = ()
    """Shape of one value."""
    components: ClassVar[tuple[str, ...]] = ()
    """Names of the components of a value, in the order of tables; empty for a single number."""
    flat: ClassVar[tuple[int, ...]] = ()
    """Positions of these in a flattened value; by default in order."""
    source: ClassVar[Source] = "output"
    """Source in the network: one of its outputs per structure, the sum of its atomic energies, a derivative
    of that, or its own head on the features of atoms."""
    doubt_if_periodic: ClassVar[str] = ""
    """Warning for the log if structures are periodic; empty by default."""

    @property
    def is_column(self) -> bool:
        """Whether it is a scalar per structure, and so a column of `dataset.parquet`."""
        return self.per == "structure" and not self.shape

    def array_shape(self, structures: int, atoms: int) -> tuple[int, ...]:
        """Shape of the values of a number of structures with a total number of atoms."""
        return (atoms if self.per == "atom" else structures, *self.shape)

    def known(self, values: np.ndarray, node_ptr: np.ndarray) -> np.ndarray:
        """[S] bool, whether a structure has at least one finite number among its values.

        Args:
            values: of the structures, in the shape of `array_shape`.
            node_ptr: [S+1], first atom of each structure.
        """
        finite = np.isfinite(values).any(axis=tuple(range(1, values.ndim)))
        if self.per == "structure" or not len(finite):
            return np.broadcast_to(finite, len(node_ptr) - 1)
        return np.logical_or.reduceat(finite, node_ptr[:-1])

    @property
    def of_energy(self) -> bool:
        """Whether it is the energy of a potential, or follows from it."""
        return self.source in ("energy", "derivative")

    @property
    def derived(self) -> bool:
        """Whether it follows from the energy, as a derivative, and needs no output of the network."""
        return self.source == "derivative"

    @property
    def direct(self) -> bool:
        """Whether the network has a separate head for it."""
        return self.source == "head"

    @property
    def reported(self) -> str:
        """Name under which its errors are reported."""
        return self.name

    @property
    def reported_unit(self) -> str:
        """Unit of these errors."""
        return self.unit
