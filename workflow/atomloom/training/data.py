"""LabelledGraphs: what training is given, graphs in memory with their targets and splits.

S structures, K targets. It knows nothing of files and of devices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from atomloom.data.batching import check_rows
from atomloom.errors import AtomloomError
from atomloom.graphs.graph import GraphTable
from atomloom.keys import chain_hash


@dataclass(frozen=True, eq=False)
class LabelledGraphs:
    """A data set in memory.

    Raises:
        AtomloomError: from the constructor when targets do not fit the graphs, or a split has rows
            beyond them, twice, or in common with another split.
    """

    table: GraphTable
    """Graphs of all S structures."""
    targets: np.ndarray
    """[S, K] float64 in real units; NaN where unknown."""
    rows: Mapping[str, np.ndarray]
    """Rows of the table in `train`, `val` and `test`; a split may be missing or empty."""

    def __post_init__(self) -> None:
        if self.targets.ndim != 2 or len(self.targets) != len(self.table):
            raise AtomloomError(
                f"targets of shape {self.targets.shape} for {len(self.table)} structures"
            )
        splits = {n: check_rows(r, len(self.table), f"split {n}") for n, r in self.rows.items()}
        together = np.concatenate([np.zeros(0, dtype=np.int64), *splits.values()])
        if len(np.unique(together)) != len(together):
            raise AtomloomError("a structure is in two splits")
        object.__setattr__(self, "rows", splits)

    def split(self, name: str) -> np.ndarray:
        """Rows of a split; none where there is no such split."""
        return self.rows.get(name, np.zeros(0, dtype=np.int64))

    def digest(self) -> str:
        """Names the content: structures, sizes, targets and splits."""
        sizes = (self.table.node_ptr, self.table.edge_ptr)
        parts = [np.ascontiguousarray(array).tobytes() for array in (self.table.hash, *sizes)]
        parts.append(np.ascontiguousarray(self.targets).tobytes())
        for name in sorted(self.rows):
            parts += [name.encode(), self.rows[name].tobytes()]
        return chain_hash(parts)
