"""Detection of molecules in artificial boxes, and removal of the box."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from atomloom.structures.structure import Structure
from atomloom.structures.table import StructureTable

VACUUM = 10.0
"""Min empty space in A around the atoms, along the normal of each face, in an artificial box."""


def isolated_atoms(table: StructureTable) -> np.ndarray:
    """[S] bool, whether structures are a single atom whose periodic images, if any, are at least `VACUUM` away."""
    found = np.diff(table.node_ptr) == 1
    for row in np.flatnonzero(found & table.pbc.any(axis=1)):
        volume = abs(float(np.linalg.det(table.cell[row])))
        for axis in np.flatnonzero(table.pbc[row]):
            others = table.cell[row, [(axis + 1) % 3, (axis + 2) % 3]]
            area = float(np.linalg.norm(np.cross(*others)))
            found[row] &= area > 0 and volume / area > VACUUM - 1e-6
    return found


def without_fake_box(structure: Structure) -> Structure:
    """Structure as a molecule (pbc off, cell zero, no stress) where its box is artificial.

    A molecule that lies across a face of the box is made whole again. A cell with less than
    `VACUUM` along any periodic direction is left as it is, and so is a cell without volume.
    """
    if not structure.cell.any():
        return structure
    volume = structure.volume
    if not structure.pbc.any():
        return replace(structure, cell=np.zeros((3, 3)))
    if volume <= 0:
        return structure
    fractional = structure.positions @ np.linalg.inv(structure.cell)
    shift = np.zeros_like(fractional)
    for axis in np.flatnonzero(structure.pbc):
        others = structure.cell[[(axis + 1) % 3, (axis + 2) % 3]]
        height = volume / float(np.linalg.norm(np.cross(*others)))
        wrapped = fractional[:, axis] % 1.0
        ordered = np.sort(wrapped)
        gaps = np.diff(ordered, append=ordered[0] + 1.0)
        widest = int(np.argmax(gaps))
        if gaps[widest] * height <= VACUUM:
            return structure
        # the molecule begins after the widest gap: bring its atoms together there
        start = ordered[(widest + 1) % len(ordered)]
        whole = start + (wrapped - start) % 1.0
        shift[:, axis] = np.rint(whole - fractional[:, axis])
        shift[:, axis] -= shift[0, axis]  # the first atom stays where the file has it
    positions = structure.positions + shift @ structure.cell
    properties = {name: value for name, value in structure.properties.items() if name != "stress"}
    return replace(
        structure,
        positions=positions,
        cell=np.zeros((3, 3)),
        pbc=np.zeros(3, dtype=bool),
        properties=properties,
    )
