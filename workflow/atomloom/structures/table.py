"""Many structures as a few concatenated arrays, the form in which stages pass and store them.

Ragged data have pointers: atoms of structure s are rows node_ptr[s] to node_ptr[s+1]. S is the
number of structures, A the total number of atoms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from atomloom.store.forms import Form, misfit, misled, unbounded
from atomloom.store.keys import HASH_BYTES
from atomloom.structures.structure import MAX_ATOMIC_NUMBER, MAX_LENGTH, Structure

FORMS = {
    "node_ptr": Form(("S+1",), ("int64",)),
    "hash": Form(("S", HASH_BYTES), ("uint8",)),
    "numbers": Form(("A",), ("uint8",)),
    "positions": Form(("A", 3), ("float64",)),
    "cell": Form(("S", 3, 3), ("float64",)),
    "pbc": Form(("S", 3), ("bool",)),
}
"""Expected arrays of structures, in a shard and in a table."""


@dataclass(frozen=True, eq=False)
class StructureTable:
    """Table of S structures with A atoms in total."""

    hash: np.ndarray
    """[S, 32] uint8, structure hashes."""
    node_ptr: np.ndarray
    """[S+1] int64."""
    numbers: np.ndarray
    """[A] uint8, atomic numbers."""
    positions: np.ndarray
    """[A, 3] float64, A."""
    cell: np.ndarray
    """[S, 3, 3] float64, A, rows are vectors."""
    pbc: np.ndarray
    """[S, 3] bool."""
    properties: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Properties per structure [S, ...] or per atom [A, ...], float64; NaN where a record has no such value."""
    per_atom: frozenset[str] = frozenset()
    """Names of the properties that have one row per atom."""

    def __len__(self) -> int:
        return len(self.node_ptr) - 1

    def __getitem__(self, index: int) -> Structure:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        atoms = slice(self.node_ptr[index], self.node_ptr[index + 1])
        return Structure(
            numbers=self.numbers[atoms],
            positions=self.positions[atoms],
            cell=self.cell[index],
            pbc=self.pbc[index],
        )

    def take(self, rows: np.ndarray) -> StructureTable:
        """Select the structures of these rows, in this order, without properties."""
        counts = np.diff(self.node_ptr)[rows]
        node_ptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        atoms = np.repeat(self.node_ptr[rows] - node_ptr[:-1], counts) + np.arange(node_ptr[-1])
        return StructureTable(
            hash=self.hash[rows],
            node_ptr=node_ptr,
            numbers=self.numbers[atoms],
            positions=self.positions[atoms],
            cell=self.cell[rows],
            pbc=self.pbc[rows],
        )

    @classmethod
    def from_structures(cls, structures: Sequence[Structure]) -> StructureTable:
        """Concatenate structures; properties are left to the caller."""
        counts = np.array([len(s) for s in structures], dtype=np.int64)
        node_ptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        hashes = b"".join(s.hash for s in structures)
        return cls(
            hash=np.frombuffer(hashes, dtype=np.uint8).reshape(len(structures), HASH_BYTES),
            node_ptr=node_ptr,
            numbers=_stack([s.numbers for s in structures], (0,), np.uint8),
            positions=_stack([s.positions for s in structures], (0, 3), np.float64),
            cell=np.array([s.cell for s in structures], dtype=np.float64).reshape(-1, 3, 3),
            pbc=np.array([s.pbc for s in structures], dtype=bool).reshape(-1, 3),
        )


def _stack(arrays: list[np.ndarray], empty: tuple[int, ...], dtype: type) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(empty, dtype=dtype)


def no_structures(arrays: Mapping[str, np.ndarray]) -> str:
    """Reason why arrays of these names are not structures, in one clause; empty where they are."""
    if wrong := misfit(arrays, FORMS):
        return wrong
    numbers, pbc = arrays["numbers"], arrays["pbc"].view(np.uint8)
    if numbers.size and not 1 <= numbers.min() <= numbers.max() <= MAX_ATOMIC_NUMBER:
        return "`numbers` holds values that are not atomic numbers"
    if pbc.max(initial=0) > 1:
        return "`pbc` holds values that are neither true nor false"
    return (
        misled(arrays["node_ptr"], len(numbers), "node_ptr", least=1)
        or unbounded(arrays["positions"], MAX_LENGTH, "positions")
        or unbounded(arrays["cell"], MAX_LENGTH, "cell")
    )
