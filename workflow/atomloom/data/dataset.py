"""LabelledGraphs: what training is given, graphs in memory with their targets and splits.

S structures, A atoms, K targets, G global features. It knows nothing of files and of devices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from atomloom.config.training import Batching
from atomloom.data.batching import check_rows
from atomloom.data.loader import Loader
from atomloom.data.on_disk import OnDiskGraphs
from atomloom.data.placement import Placement, open_loader
from atomloom.errors import AtomloomError
from atomloom.graphs.graph import GraphTable
from atomloom.store.keys import chain_hash
from atomloom.structures.elements import SYMBOLS


@dataclass(frozen=True, eq=False)
class LabelledGraphs:
    """A data set in memory.

    Raises:
        AtomloomError: from the constructor when targets do not fit the graphs, or a split has rows
            beyond them, twice, or in common with another split.
    """

    table: GraphTable | OnDiskGraphs
    """Graphs of all S structures, in memory or on disk."""
    targets: np.ndarray
    """[S, K] float64 in real units; NaN where unknown. Of a potential, [S, 1] energies in eV."""
    rows: Mapping[str, np.ndarray]
    """Rows of the table in `train`, `val` and `test`; a split may be missing or empty."""
    forces: np.ndarray | None = None
    """[A, 3] float64, eV/A, of all atoms of the table; NaN where unknown; None where not learnt."""
    stress: np.ndarray | None = None
    """[S, 3, 3] float64, eV/A^3; likewise."""
    globals: np.ndarray | None = None
    """[S, G] float64, global features; NaN where unknown; None without any."""
    choice: Placement | None = None
    """How graphs on disk are gone through; None in memory."""

    def __post_init__(self) -> None:
        atoms, structures = len(self.table.numbers), len(self.table)
        for name, shape in (("forces", (atoms, 3)), ("stress", (structures, 3, 3))):
            array = getattr(self, name)
            if array is not None and array.shape != shape:
                raise AtomloomError(f"{name} of shape {array.shape}, not {shape}")
        if self.targets.ndim != 2 or len(self.targets) != len(self.table):
            raise AtomloomError(
                f"targets of shape {self.targets.shape} for {len(self.table)} structures"
            )
        if self.globals is not None and self.globals.shape[:1] != (structures,):
            raise AtomloomError(
                f"global features of shape {self.globals.shape} for {structures} structures"
            )
        splits = {n: check_rows(r, len(self.table), f"split {n}") for n, r in self.rows.items()}
        together = np.concatenate([np.zeros(0, dtype=np.int64), *splits.values()])
        if len(np.unique(together)) != len(together):
            raise AtomloomError("a structure is in two splits")
        object.__setattr__(self, "rows", splits)

    def loader(
        self,
        rows: np.ndarray,
        targets: np.ndarray | None = None,
        bounds: Batching | None = None,
        **options: Any,
    ) -> Loader:
        """Batches of some rows, wherever the graphs are; for the arguments see `Loader`."""
        return open_loader(self.table, rows, targets, bounds, choice=self.choice, **options)

    def split(self, name: str) -> np.ndarray:
        """Rows of a split; none where there is no such split."""
        return self.rows.get(name, np.zeros(0, dtype=np.int64))

    def elements(self, rows: np.ndarray) -> tuple[str, ...]:
        """Elements of some structures, by atomic number."""
        among = np.zeros(len(self.table), dtype=bool)
        among[rows] = True
        atoms = np.repeat(among, np.diff(self.table.node_ptr))
        return tuple(SYMBOLS[number] for number in np.unique(self.table.numbers[atoms]))

    def digest(self) -> str:
        """Names the content: structures, sizes, targets and splits."""
        sizes = (self.table.node_ptr, self.table.edge_ptr)
        parts = [np.ascontiguousarray(array).tobytes() for array in (self.table.hash, *sizes)]
        values = (self.targets, self.forces, self.stress, self.globals)
        known = [array for array in values if array is not None]
        parts += [np.ascontiguousarray(array).tobytes() for array in known]
        for name in sorted(self.rows):
            parts += [name.encode(), self.rows[name].tobytes()]
        return chain_hash(parts)
