"""The Structure record: atoms in a cell, with named properties; the result of every reader.

It is the canonical form: float64 A, rows of `cell` are vectors, zero rows where a direction is not
periodic. It knows nothing of files, graphs or torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from atomloom.errors import AtomloomError
from atomloom.store.keys import structure_digest

MAX_ATOMIC_NUMBER = 118
MAX_LENGTH = 1e9
"""Max coordinate in A; beyond it, positions in units of 1e-8 A (as hashed) leave the range of integers."""
LEAST_SPAN = 1e-6
"""Min volume of periodic vectors as a share of the product of their lengths; below, they are dependent."""
PER_ATOM = frozenset((
    "forces", "charges", "magmoms", "energies", "stresses", "momenta", "velocities", "masses", "tags",
    "initial_charges", "initial_magmoms",
))  # fmt: skip
"""Properties that always have one row per atom; for others, the reader says whether they do."""
_RENAMED = {"energy": "energies", "free_energy": "free_energies", "stress": "stresses"}


@dataclass(frozen=True, eq=False)
class Structure:
    """Atoms in a cell. N is the number of atoms.

    Raises:
        AtomloomError: from the constructor when shapes disagree, a coordinate is not finite, an
            element is unknown or there is no atom.
    """

    numbers: np.ndarray
    """[N] uint8, atomic numbers."""
    positions: np.ndarray
    """[N, 3] float64, Cartesian, A. Not wrapped into the cell."""
    cell: np.ndarray
    """[3, 3] float64, A; rows are lattice vectors, zeros where not periodic and no box is known."""
    pbc: np.ndarray
    """[3] bool."""
    properties: Mapping[str, float | np.ndarray] = field(default_factory=dict)
    """Labels in the record: `energy` (eV), `forces` ([N, 3], eV/A), `stress` ([3, 3],
    eV/A^3, dE/dstrain/volume), and any other by its name in the file."""
    id: str = ""
    """Name of the record within its data set."""
    per_atom: frozenset[str] = frozenset()
    """Names of the properties that have one row per atom; those in `PER_ATOM` need not be named."""

    def __post_init__(self) -> None:
        numbers = np.asarray(self.numbers)
        count = len(numbers)
        if count == 0:
            raise AtomloomError("no atoms")
        known = numbers.tobytes() if numbers.dtype == np.uint8 else b"\0"
        if b"\0" in known or max(known) > MAX_ATOMIC_NUMBER:
            numbers = _atomic_numbers(numbers)
        positions = np.ascontiguousarray(self.positions, dtype=np.float64)
        cell = np.ascontiguousarray(self.cell, dtype=np.float64)
        pbc = np.ascontiguousarray(self.pbc, dtype=bool)
        if positions.shape != (count, 3):
            raise AtomloomError(f"{count} atoms but positions of shape {positions.shape}")
        if cell.shape != (3, 3) or pbc.shape != (3,):
            raise AtomloomError(f"cell of shape {cell.shape}, pbc of shape {pbc.shape}")
        if not np.abs(positions).max() < MAX_LENGTH:  # false for NaN as well
            atom = int(np.flatnonzero(~(np.abs(positions) < MAX_LENGTH).all(axis=1))[0])
            reason = (
                "beyond reason" if np.isfinite(positions[atom]).all() else "not a finite number"
            )
            raise AtomloomError(f"coordinate of atom {atom} is {reason}")
        _check_cell(cell.tolist(), pbc.tolist())
        self.__dict__.update(
            numbers=np.ascontiguousarray(numbers), positions=positions, cell=cell, pbc=pbc
        )
        if self.properties:
            per_atom = _names_per_atom(self.properties, self.per_atom, count)
            self.__dict__.update(per_atom=per_atom)

    def __len__(self) -> int:
        return len(self.numbers)

    def named(self, id: str) -> Structure:
        """Copy of the structure under another id; its arrays are shared and not checked again."""
        twin = object.__new__(Structure)
        twin.__dict__.update(self.__dict__, id=id)
        return twin

    @property
    def volume(self) -> float:
        """Cell volume in A^3 (0 where the cell is not three-dimensional)."""
        return float(abs(np.linalg.det(self.cell)))

    @property
    def hash(self) -> bytes:
        """32-byte content hash, see `atomloom.store.keys.structure_digest`."""
        return structure_digest(self.numbers, self.positions, self.cell, self.pbc)


def property_name(name: str, per_atom: bool) -> str:
    """Name under which a value of a file is kept: a column of atoms called `energy` is not the structure's
    energy, and a single number called `forces` is not a vector per atom."""
    if per_atom:
        return _RENAMED.get(name, name)
    return f"{name}_in_file" if name in ("forces", "stress") else name


def _names_per_atom(
    properties: Mapping[str, float | np.ndarray], declared: frozenset[str], count: int
) -> frozenset[str]:
    """Names of properties with one row per atom; shapes only confirm what names and readers say."""
    shapes = {name: np.shape(value) for name, value in properties.items()}
    usual = {n for n in PER_ATOM & shapes.keys() if shapes[n][:1] == (count,)}
    per_atom = usual | (declared & shapes.keys())
    wanted = {"energy": (), "forces": (count, 3), "stress": (3, 3)}
    for name in per_atom | (wanted.keys() & shapes.keys()):
        if shapes[name] != wanted.get(name, (count, *shapes[name][1:])):
            raise AtomloomError(f"{name} of shape {shapes[name]} for {count} atoms")
    return frozenset(per_atom)


def _atomic_numbers(numbers: np.ndarray) -> np.ndarray:
    bad = numbers[(numbers < 1) | (numbers > MAX_ATOMIC_NUMBER) | (numbers != numbers.astype(int))]
    if bad.size:
        raise AtomloomError(f"unknown element with atomic number {bad[0]}")
    return numbers.astype(np.uint8)


def _check_cell(cell: list[list[float]], pbc: list[bool]) -> None:
    """Refuse a cell that is not finite, or whose periodic vectors do not span a volume.

    Plain arithmetic: on nine numbers it is several times faster than array functions, and this is
    run once per record.
    """
    (a, b, c), (d, e, f), (g, h, i) = cell
    # a NaN makes the sum NaN, which fails every comparison; max() alone would lose it
    if (
        not abs(a) + abs(b) + abs(c) + abs(d) + abs(e) + abs(f) + abs(g) + abs(h) + abs(i)
        < MAX_LENGTH
    ):
        _refuse_entries(cell)
    if all(pbc):
        lengths = math.hypot(a, b, c) * math.hypot(d, e, f) * math.hypot(g, h, i)
        volume = a * (e * i - f * h) + b * (f * g - d * i) + c * (d * h - e * g)
        spanned = abs(volume) > LEAST_SPAN * lengths
    elif any(pbc):
        rows = np.array([row for row, periodic in zip(cell, pbc, strict=True) if periodic])
        lengths = float(np.prod(np.linalg.norm(rows, axis=1)))
        area = math.sqrt(max(float(np.linalg.det(rows @ rows.T)), 0.0))
        spanned = area > LEAST_SPAN * lengths
    else:
        return
    if not spanned:
        raise AtomloomError("periodic lattice vectors are zero or linearly dependent")


def _refuse_entries(cell: list[list[float]]) -> None:
    finite = all(math.isfinite(x) for row in cell for x in row)
    reason = "beyond reason" if finite else "not a finite number"
    raise AtomloomError(f"cell has an entry that is {reason}")
