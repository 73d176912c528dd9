"""FHI-aims' geometry.in: lattice vectors and atoms, in A or in fractions of the cell.

Without lattice vectors it is a molecule. Settings for the calculation (constraints, moments, velocities)
are skipped, and so are sites of basis functions without a nucleus (`empty`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from atomloom.errors import AtomloomError
from atomloom.readers.base import decode, floats
from atomloom.readers.base import split_whole as split
from atomloom.structures.elements import species_number
from atomloom.structures.structure import Structure

__all__ = ["ABOUT", "HINTS", "NAME", "OPTIONS", "PATTERNS", "parse", "sniff", "split"]

NAME = "aims"
ABOUT = "geometry.in of FHI-aims, one structure"
PATTERNS = ("geometry.in", "geometry.in.*", "*geometry*.in")
HINTS = ("*.in",)
OPTIONS: dict[str, str] = {}

_OTHERS = (
    "calculate_friction", "charge_constraint", "constrain_relaxation", "empty", "esp_constraint",
    "hessian_", "homogeneous_field", "initial_", "isotope", "magnetic_", "nuclear_", "rrs_pbc_",
    "rt_tddft_", "set_vacuum_level", "symmetry_", "trust_radius", "velocity", "verbatim_writeout",
)  # fmt: skip
"""Beginnings of keywords that change neither the atoms nor their positions."""

_GIVEN = ("lattice_vector", "atom", "atom_frac")


def sniff(head: bytes) -> bool:
    """Whether a lattice vector or an atom comes first, apart from comments and keywords of the format."""
    for line in decode(head).splitlines():
        words = line.partition("#")[0].split()
        if not words or words[0].lower().startswith(_OTHERS):
            continue
        return words[0].lower() in _GIVEN and _is_row(words)
    return False


def parse(payload: bytes, options: Mapping[str, Any]) -> Structure:
    """Crystal of one record, or a molecule where there are no lattice vectors."""
    vectors: list[list[str]] = []
    atoms: list[list[str]] = []
    fractional: list[bool] = []
    numbers: list[int] = []
    for number, line in enumerate(decode(payload).splitlines(), start=1):
        words = line.partition("#")[0].split()
        if not words or words[0].lower().startswith(_OTHERS):
            continue
        where = f"line {number}: "
        keyword = words[0].lower()
        if keyword not in _GIVEN:
            raise AtomloomError(f"{where}`{words[0][:20]}` is not a known keyword")
        is_vector = keyword == "lattice_vector"
        if len(words) < (4 if is_vector else 5):
            wanted = "three numbers" if is_vector else "three numbers and a species"
            raise AtomloomError(f"{where}{keyword} without {wanted}")
        if is_vector:
            vectors.append(words[1:4])
        else:
            atoms.append(words[1:4])
            fractional.append(keyword == "atom_frac")
            numbers.append(_number(words[4], where))
    if len(vectors) not in (0, 3):
        raise AtomloomError(f"{len(vectors)} lattice vectors, not 3")
    if not atoms:
        raise AtomloomError("no atoms")
    cell = floats([x for row in vectors for x in row], "lattice_vector: ").reshape(-1, 3)
    positions = floats([x for row in atoms for x in row], "atoms: ").reshape(-1, 3)
    if any(fractional):
        if not vectors:
            raise AtomloomError("atom_frac, but no lattice vectors")
        positions = np.where(np.array(fractional)[:, None], positions @ cell, positions)
    periodic = bool(vectors)
    return Structure(
        np.array(numbers, dtype=np.uint8),
        positions,
        cell if periodic else np.zeros((3, 3)),
        np.full(3, periodic),
    )


def _is_row(words: list[str]) -> bool:
    try:
        numbers = floats(words[1:4])
    except AtomloomError:
        return False
    return len(numbers) == 3 and (words[0].lower() == "lattice_vector" or len(words) > 4)


def _number(species: str, where: str) -> int:
    try:
        return species_number(species)
    except AtomloomError as error:
        raise AtomloomError(f"{where}{error.what}") from None
