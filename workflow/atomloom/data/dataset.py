"""LabelledGraphs: the input of training, graphs with their targets and splits.

S structures, A atoms, K targets, G global features. It knows nothing of files or devices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Unpack

import numpy as np

from atomloom.config.training import Batching
from atomloom.data.batching import check_rows
from atomloom.data.loader import Loader, LoaderOptions
from atomloom.data.on_disk import GraphSource
from atomloom.data.placement import Placement, open_loader
from atomloom.errors import AtomloomError
from atomloom.store.keys import chain_hash
from atomloom.structures.elements import SYMBOLS
from atomloom.targets import TargetSpec


@dataclass(frozen=True, eq=False)
class LabelledGraphs:
    """Data set in memory.

    Raises:
        AtomloomError: from the constructor when targets do not fit the graphs, or a split has rows
            beyond them, twice, or in common with another split.
    """

    table: GraphSource
    """Graphs of all S structures, in memory or on disk."""
    targets: np.ndarray
    """[S, K] float64 in real units; NaN where unknown. For a potential, [S, 1] energies in eV."""
    rows: Mapping[str, np.ndarray]
    """Rows of the table in `train`, `val`, `test` and test sets with names; any may be missing or empty."""
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Values of the targets that are more than a scalar per structure, by name: [S, ...] or, per atom
    of the table, [A, ...] float64; NaN where unknown."""
    specs: Sequence[TargetSpec] = ()
    """Specs of the targets in `arrays`."""
    global_features: np.ndarray | None = None
    """[S, G] float64, global features; NaN where unknown; None without any."""
    global_names: tuple[str, ...] = ()
    """[G] names of them; by default those of the config."""
    choice: Placement | None = None
    """Placement of graphs on disk; None in memory."""
    isolated_atoms: Mapping[str, float] = field(default_factory=dict)
    """Energies in eV of isolated atoms by element, where they are the references of a potential."""

    def __post_init__(self) -> None:
        structures, atoms = len(self.table), int(self.table.node_ptr[-1])
        names = sorted(spec.name for spec in self.specs)
        if names != sorted(self.arrays):
            raise AtomloomError(f"arrays of {sorted(self.arrays)} for the targets {names}")
        for spec in self.specs:
            found, shape = self.arrays[spec.name].shape, spec.array_shape(structures, atoms)
            if found != shape:
                raise AtomloomError(f"{spec.name} of shape {found}, not {shape}")
        if self.targets.ndim != 2 or len(self.targets) != len(self.table):
            raise AtomloomError(
                f"targets of shape {self.targets.shape} for {len(self.table)} structures"
            )
        given, named = self.global_features, self.global_names
        if given is not None and (
            given.shape[:1] != (structures,) or (named and given.shape[1:] != (len(named),))
        ):
            raise AtomloomError(
                f"global features of shape {given.shape} for {structures} structures"
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
        **options: Unpack[LoaderOptions],
    ) -> Loader:
        """Loader of some rows, in memory or on disk; for the arguments see `Loader`."""
        return open_loader(self.table, rows, targets, bounds, choice=self.choice, **options)

    def split(self, name: str) -> np.ndarray:
        """Rows of a split; empty if there is no such split."""
        return self.rows.get(name, np.zeros(0, dtype=np.int64))

    def known(self) -> np.ndarray:
        """[S] bool, whether at least one target of a structure is known, even if only its forces."""
        found = np.isfinite(self.targets).any(axis=1)
        for spec in self.specs:
            found |= spec.known(self.arrays[spec.name], self.table.node_ptr)
        return found

    def elements(self, rows: np.ndarray) -> tuple[str, ...]:
        """Elements of some structures, by atomic number."""
        among = np.zeros(len(self.table), dtype=bool)
        among[rows] = True
        atoms = np.repeat(among, np.diff(self.table.node_ptr))
        return tuple(SYMBOLS[number] for number in np.unique(self.table.numbers[atoms]))

    def digest(self) -> str:
        """Digest of the content: structures, sizes, targets and splits."""
        sizes = (self.table.node_ptr, self.table.edge_ptr)
        parts = [np.ascontiguousarray(array).tobytes() for array in (self.table.hash, *sizes)]
        values = [self.targets, *(self.arrays[name] for name in sorted(self.arrays))]
        values += [] if self.global_features is None else [self.global_features]
        parts += [np.ascontiguousarray(array).tobytes() for array in values]
        for element in sorted(self.isolated_atoms):
            parts += [element.encode(), np.float64(self.isolated_atoms[element]).tobytes()]
        for name in sorted(self.rows):
            parts += [name.encode(), self.rows[name].tobytes()]
        return chain_hash(parts)
