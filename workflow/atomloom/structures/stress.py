"""Stress as a matrix, in eV/A^3 and ASE's sign, from the forms used in files."""

from __future__ import annotations

import numpy as np

from atomloom.errors import AtomloomError


def stress_matrix(values: np.ndarray) -> np.ndarray:
    """[3, 3] stress from nine numbers, or from six in ASE's order xx yy zz yz xz xy.

    Raises:
        AtomloomError: for any other number of values.
    """
    values = np.asarray(values, dtype=np.float64).reshape(-1)
    if values.size == 9:
        return values.reshape(3, 3)
    if values.size == 6:
        xx, yy, zz, yz, xz, xy = values.tolist()
        return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    raise AtomloomError(f"a stress of {values.size} numbers, not 6 or 9")


def stress_of_virial(virial: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Stress in ASE's sign (dE/dstrain / volume) from a virial -dE/dstrain in eV.

    Raises:
        AtomloomError: when the cell has no volume.
    """
    volume = abs(np.linalg.det(cell))
    if volume < 1e-12:
        raise AtomloomError("a virial, but a cell without volume")
    return -stress_matrix(virial) / volume
