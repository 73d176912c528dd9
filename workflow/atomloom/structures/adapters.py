"""Conversion of structures from and to the objects of pymatgen, ASE and jarvis-tools.

An object is recognised by the library its class comes from, so that no library is imported unless
it is already in use or asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from atomloom.errors import AtomloomError
from atomloom.structures.elements import SYMBOLS, atomic_numbers
from atomloom.structures.stress import stress_matrix
from atomloom.structures.structure import Structure, property_name

if TYPE_CHECKING:
    import ase
    import pymatgen.core

_ASE_OWN = frozenset(
    ("numbers", "positions", "initial_magmoms", "initial_charges", "momenta", "masses", "tags")
)
FULL_OCCUPANCY = 1e-3


def to_structure(obj: Any) -> Structure:
    """Convert a pymatgen Structure or Molecule, ASE Atoms or jarvis Atoms to a Structure.

    Results of an ASE calculator, numbers in `info` and numeric arrays become properties; so do
    numeric site properties of pymatgen.

    Raises:
        AtomloomError: when the object is none of these, or has disordered sites.
    """
    if isinstance(obj, Structure):
        return obj
    origins = {cls.__module__.split(".")[0] for cls in type(obj).__mro__}
    if "ase" in origins and hasattr(obj, "get_positions"):
        return _from_ase(obj)
    if "pymatgen" in origins and hasattr(obj, "species_and_occu"):
        return _from_pymatgen(obj)
    if "jarvis" in origins and hasattr(obj, "lattice_mat"):
        return _from_jarvis(obj)
    raise AtomloomError(
        f"a {type(obj).__module__}.{type(obj).__name__} is not a structure",
        todo="give a pymatgen Structure or Molecule, ASE Atoms or jarvis Atoms",
    )


def to_ase(structure: Structure) -> ase.Atoms:
    """Convert to ASE Atoms; energy, forces and stress become results of a SinglePointCalculator, other
    numbers go to `info`, other arrays of one row per atom to `arrays`."""
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator

    atoms = Atoms(
        numbers=structure.numbers,
        positions=structure.positions,
        cell=structure.cell,
        pbc=structure.pbc,
    )
    results: dict[str, float | np.ndarray] = {}
    for name, value in structure.properties.items():
        if name == "stress":
            xx, xy, xz, _, yy, yz, _, _, zz = np.asarray(value).reshape(9).tolist()
            results["stress"] = np.array([xx, yy, zz, yz, xz, xy])
        elif name in ("energy", "free_energy", "forces"):
            results[name] = value
        elif name in structure.per_atom:
            atoms.arrays[name] = np.array(value)
        else:
            atoms.info[name] = value
    if results:
        atoms.calc = SinglePointCalculator(atoms, **results)
    if structure.id:
        atoms.info["id"] = structure.id
    return atoms


def to_pymatgen(structure: Structure) -> pymatgen.core.Structure | pymatgen.core.Molecule:
    """Convert to a pymatgen Structure, or a Molecule where no direction is periodic. Sites are not wrapped."""
    from pymatgen.core import Lattice, Molecule
    from pymatgen.core import Structure as Crystal

    species = [SYMBOLS[number] for number in structure.numbers]
    if not structure.pbc.any():
        return Molecule(species, structure.positions)
    lattice = Lattice(structure.cell, pbc=tuple(structure.pbc.tolist()))
    return Crystal(lattice, species, structure.positions, coords_are_cartesian=True)


def _from_ase(atoms: Any) -> Structure:
    properties: dict[str, float | np.ndarray] = {}
    for name, value in atoms.info.items():
        if isinstance(value, (int, float, np.number)) and not isinstance(value, bool):
            properties[property_name(str(name), per_atom=False)] = float(value)
    columns = {
        property_name(name, per_atom=True): np.asarray(value, dtype=np.float64)
        for name, value in atoms.arrays.items()
        if name not in _ASE_OWN and value.dtype.kind in "fiu"
    }
    properties |= columns
    for name in ("energy", "free_energy", "forces", "stress"):
        value = _result(atoms, name)
        if value is not None:
            array = np.asarray(value, dtype=np.float64)
            if name == "stress":
                array = stress_matrix(array)
            properties[name] = array if array.size > 1 or name == "forces" else array.item()
    return Structure(
        atoms.numbers,
        atoms.positions.copy(),
        np.array(atoms.cell),
        np.array(atoms.pbc),
        properties,
        per_atom=frozenset(columns),
    )


def _result(atoms: Any, name: str) -> Any:
    """Result that the calculator already has for these atoms; it is never started."""
    calculator = atoms.calc
    if name not in (getattr(calculator, "results", None) or {}):
        return None
    return calculator.get_property(name, atoms, allow_calculation=False)


def _from_pymatgen(obj: Any) -> Structure:
    symbols = []
    for place, species in enumerate(obj.species_and_occu):
        if len(species) != 1 or abs(sum(species.values()) - 1) > FULL_OCCUPANCY:
            raise AtomloomError(
                f"disordered site {place} ({species})", todo="order the structure first"
            )
        (kind,) = species
        symbols.append(getattr(kind, "element", kind).symbol)
    properties: dict[str, float | np.ndarray] = {
        property_name(str(name), per_atom=False): float(value)
        for name, value in (getattr(obj, "properties", None) or {}).items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    columns: dict[str, np.ndarray] = {}
    for name, values in obj.site_properties.items():
        try:
            array = np.array(values, dtype=np.float64)
        except (TypeError, ValueError):
            continue
        if array.ndim in (1, 2) and not np.isnan(array).all():
            columns[property_name(str(name), per_atom=True)] = array
    lattice = getattr(obj, "lattice", None)
    cell = np.zeros((3, 3)) if lattice is None else np.array(lattice.matrix)
    pbc = np.zeros(3, dtype=bool) if lattice is None else np.array(lattice.pbc)
    return Structure(
        atomic_numbers(symbols),
        np.array(obj.cart_coords),
        cell,
        pbc,
        properties | columns,
        per_atom=frozenset(columns),
    )


def _from_jarvis(obj: Any) -> Structure:
    cell = np.array(obj.lattice_mat, dtype=np.float64)
    coordinates = np.array(obj.coords, dtype=np.float64)
    positions = coordinates if obj.cartesian else coordinates @ cell
    symbols = [str(symbol).strip() for symbol in obj.elements]
    return Structure(atomic_numbers(symbols), positions, cell, np.ones(3, dtype=bool))
