"""Primitive cells by spglib, for graph specs with `primitive: true`.

It knows structures, nothing of graphs and files.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from atomloom.errors import AtomloomError
from atomloom.store.keys import POSITION_QUANTUM
from atomloom.structures.table import StructureTable

SYMPREC = 1e-3
"""Max distance in A of atoms from exact translational copies of each other. Raise `BUILDER` with it."""


def reduce_table(table: StructureTable) -> StructureTable:
    """Reduce each crystal to its primitive cell, in the given orientation, its geometry not idealised.

    Structures that are not periodic in three directions stay as they are. Hashes stay those of the
    input. Coordinates are first rounded as for the hash, so that equal hashes give equal cells.

    Raises:
        AtomloomError: naming the structure, if spglib finds no primitive cell.
    """
    numbers, positions, cells = [], [], np.array(table.cell)
    counts = np.diff(table.node_ptr)
    for row in range(len(table)):
        atoms = slice(table.node_ptr[row], table.node_ptr[row + 1])
        if not table.pbc[row].all():
            numbers.append(table.numbers[atoms])
            positions.append(table.positions[atoms])
            continue
        cell = np.rint(table.cell[row] / POSITION_QUANTUM) * POSITION_QUANTUM
        rounded = np.rint(table.positions[atoms] / POSITION_QUANTUM) * POSITION_QUANTUM
        fractions = _times(rounded, _inverse(cell))
        reduced = _primitive(table, row, cell, fractions, table.numbers[atoms])
        cells[row] = reduced[0]
        positions.append(_times(reduced[1], reduced[0]))
        numbers.append(reduced[2].astype(np.uint8))
        counts[row] = len(reduced[2])
    if not len(table):
        return table
    return replace(
        table,
        node_ptr=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        numbers=np.concatenate(numbers),
        positions=np.concatenate(positions),
        cell=cells,
        properties={},
    )


def name_of(table: StructureTable, row: int) -> str:
    """Name of a structure of a table for messages: its formula and the start of its hash."""
    from atomloom.structures.composition import reduced_formula  # imports pymatgen

    atoms = slice(table.node_ptr[row], table.node_ptr[row + 1])
    short = table.hash[row].tobytes().hex()[:12]
    return f"structure {reduced_formula(table.numbers[atoms])} ({short})"


def _primitive(
    table: StructureTable,
    row: int,
    cell: np.ndarray,
    fractions: np.ndarray,
    numbers: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    import spglib

    given: Any = (cell, fractions, numbers.astype(np.intc))
    try:
        found = spglib.standardize_cell(given, to_primitive=True, no_idealize=True, symprec=SYMPREC)
    except spglib.SpglibError as error:
        found, reason = None, f": {error}"
    else:
        reason = ""
    if found is None:
        raise AtomloomError(
            f"spglib finds no primitive cell{reason}",
            where=name_of(table, row),
            todo="check for coinciding atoms, or set `primitive` to false",
        )
    lattice, places, kinds = found
    return np.asarray(lattice), np.asarray(places), np.asarray(kinds)


# Written out instead of left to BLAS, whose last bits depend on the machine.
def _times(rows: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return rows[:, :1] * matrix[0] + rows[:, 1:2] * matrix[1] + rows[:, 2:] * matrix[2]


def _inverse(matrix: np.ndarray) -> np.ndarray:
    a, b, c = matrix
    columns = np.stack([np.cross(b, c), np.cross(c, a), np.cross(a, b)], axis=1)
    return columns / (a * columns[:, 0]).sum()
