"""Values that are computed once for each structure: the labels of a teacher, derived features.

They are kept in shards, one per chunk, in a folder named by what determines them besides the structure.
What some shard of the folder has is copied by structure hash. A long chunk saves its results
regularly, so that a killed job resumes where it was. This module knows nothing of what the values are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np

from atomloom.errors import AtomloomError
from atomloom.store.shards import SUFFIX
from atomloom.structures.table import StructureTable

PARTIAL = "partial"
"""Folder for the results of unfinished chunks, next to the finished ones."""
KEEP_EVERY = 60.0
"""Seconds between two saves of an unfinished chunk."""


class Value(Protocol):
    """Value of one structure."""

    @property
    def failure(self) -> str:
        """Reason for a failure; empty if there is none."""


V = TypeVar("V", bound=Value)


@dataclass(frozen=True)
class Derivation(Generic[V]):
    """Computing, reading and writing of one kind of values."""

    compute: Callable[[StructureTable], Iterable[V]]
    """Values of structures, in order."""
    known_in: Callable[[Path, Set[bytes]], Mapping[bytes, V]] | None
    """Values in a shard of the structures with these hashes, without failures; None if computing them takes no
    longer than looking for them."""
    write: Callable[[Path, StructureTable, Mapping[int, V]], None]
    """Write a shard with the values of some rows."""
    done: str
    """Participle of what is done, for the log."""
    keep_every: float = KEEP_EVERY


@dataclass(frozen=True)
class Derived(Generic[V]):
    """Values of all structures of a chunk."""

    values: Mapping[int, V]
    borrowed: int
    """Number of rows whose values were known."""

    @property
    def failed(self) -> int:
        """Number of failures."""
        return sum(1 for value in self.values.values() if value.failure)

    @property
    def copied(self) -> str:
        """Known values, in words for the log."""
        return f", {self.borrowed:,} known ones copied" if self.borrowed else ""


def derive(
    how: Derivation[V], path: Path, table: StructureTable, log: Callable[[str], None]
) -> Derived[V]:
    """Compute the values of a chunk that are not known, and write its shard."""
    partial = path.with_name(PARTIAL) / path.name
    done = _known(how, path.parent, table, partial)
    borrowed = len(done)
    rows = rows_by_structure(table, [row for row in range(len(table)) if row not in done])
    missing = np.array([same[0] for same in rows], dtype=np.int64)
    saved = begun = time.monotonic()
    for same, value in zip(rows, how.compute(table.take(missing)), strict=True):
        done.update(dict.fromkeys(same, value))
        if time.monotonic() - saved > how.keep_every:
            how.write(partial, table, done)
            saved = time.monotonic()
            rate = (len(done) - borrowed) / (saved - begun)
            left = (len(table) - len(done)) / rate
            log(f"{len(done)}/{len(table)} {how.done}, {rate:.2g}/s, {left:.0f} s left")
    how.write(path, table, done)
    partial.unlink(missing_ok=True)
    return Derived(done, borrowed)


def rows_by_structure(table: StructureTable, rows: Iterable[int]) -> list[list[int]]:
    """Rows of equal structures together, in the order of their first ones."""
    same: dict[bytes, list[int]] = {}
    for row in rows:
        same.setdefault(table.hash[row].tobytes(), []).append(int(row))
    return list(same.values())


def _known(how: Derivation[V], folder: Path, table: StructureTable, partial: Path) -> dict[int, V]:
    """Values of rows whose structures are in some shard."""
    wanted = {table.hash[row].tobytes() for row in range(len(table))}
    known: dict[bytes, V] = {}
    if how.known_in is None:
        return {}
    for path in [*sorted(folder.glob(f"*{SUFFIX}")), partial]:
        try:
            known |= how.known_in(path, wanted)
        except AtomloomError:
            continue  # absent or damaged: computed again
    return {
        row: known[table.hash[row].tobytes()]
        for row in range(len(table))
        if table.hash[row].tobytes() in known
    }
