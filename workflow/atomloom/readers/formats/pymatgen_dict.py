"""pymatgen Structure or Molecule as the dict of its `as_dict()`; pymatgen itself is not needed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from atomloom.errors import AtomloomError
from atomloom.readers.formats.json_document import load, split
from atomloom.readers.ordering import OPTIONS, TODO, ordered
from atomloom.structures.elements import SYMBOLS, atomic_number
from atomloom.structures.structure import Structure, property_name

__all__ = ["ABOUT", "HINTS", "NAME", "OPTIONS", "PATTERNS", "parse", "sniff", "split"]

NAME = "pymatgen"
ABOUT = "one pymatgen Structure or Molecule as JSON"
PATTERNS: tuple[str, ...] = ()
HINTS: tuple[str, ...] = ()


FULL_OCCUPANCY = 1e-3


def sniff(head: bytes) -> bool:
    """Always false: files are recognised as `json`, which passes entries on to this reader."""
    return False


def parse(payload: bytes, options: Mapping[str, Any]) -> Structure:
    """Crystal of one record, or a molecule where there is no lattice."""
    content = load(payload)
    sites = content.get("sites")
    if not isinstance(sites, list):
        raise AtomloomError("no list of sites")
    lattice = content.get("lattice")
    numbers = np.empty(len(sites), dtype=np.uint8)
    for place, site in enumerate(sites):
        species = site["species"]
        if len(species) != 1 or abs(species[0].get("occu", 1) - 1) > FULL_OCCUPANCY:
            if options.get("order") and lattice is not None:
                return ordered(_disordered(lattice, sites), options)
            shares = ", ".join(f"{s.get('element')} {s.get('occu')}" for s in species)
            raise AtomloomError(f"disordered site {place} ({shares})", todo=TODO)
        numbers[place] = _number_of(species[0]["element"])
    if lattice is None:
        positions = np.array([site["xyz"] for site in sites], dtype=np.float64)
        return _structure(content, numbers, positions, np.zeros((3, 3)), np.zeros(3, dtype=bool))
    cell = np.array(lattice["matrix"], dtype=np.float64)
    if all("abc" in site for site in sites):
        positions = np.array([site["abc"] for site in sites], dtype=np.float64) @ cell
    else:
        positions = np.array([site["xyz"] for site in sites], dtype=np.float64)
    pbc = np.array(lattice.get("pbc") or (True, True, True), dtype=bool)
    return _structure(content, numbers, positions, cell, pbc)


def _structure(
    content: Mapping[str, Any],
    numbers: np.ndarray,
    positions: np.ndarray,
    cell: np.ndarray,
    pbc: np.ndarray,
) -> Structure:
    """Structure with its scalar properties, and with the numbers or vectors of its sites."""
    columns = _columns(content["sites"])
    properties: dict[str, float | np.ndarray] = {
        property_name(str(name), per_atom=False): float(value)
        for name, value in (content.get("properties") or {}).items()
        if isinstance(value, (int, float))
    }
    properties.update(columns)
    return Structure(numbers, positions, cell, pbc, properties, per_atom=frozenset(columns))


def _disordered(lattice: Mapping[str, Any], sites: list[Any]) -> Any:
    """pymatgen Structure of lattice, species and coordinates only.

    pymatgen's `from_dict` would import any module that a site's properties name, and run its code.
    """
    from pymatgen.core import Lattice
    from pymatgen.core import Structure as Crystal

    species: list[dict[str, float]] = []
    for site in sites:
        shares: dict[str, float] = {}
        for kind in site["species"]:
            symbol = SYMBOLS[_number_of(kind["element"])]
            shares[symbol] = shares.get(symbol, 0.0) + float(kind.get("occu", 1))
        species.append(shares)
    cartesian = not all("abc" in site for site in sites)
    coordinates = [site["xyz" if cartesian else "abc"] for site in sites]
    cell = np.array(lattice["matrix"], dtype=np.float64)
    a, b, c = (bool(flag) for flag in lattice.get("pbc") or (True, True, True))
    return Crystal(
        Lattice(cell, pbc=(a, b, c)),
        species,
        np.array(coordinates, dtype=np.float64),
        coords_are_cartesian=cartesian,
    )


@lru_cache(maxsize=1024)
def _number_of(symbol: str) -> int:
    found = re.match("[A-Za-z]+", symbol)
    if found is None:
        raise AtomloomError(f"unknown element `{symbol[:20]}`")
    return atomic_number(found.group())


def _columns(sites: list[Any]) -> dict[str, np.ndarray]:
    """Properties of all sites that are numbers or vectors."""
    found: dict[str, np.ndarray] = {}
    first = sites[0].get("properties") if sites else None
    for name in first or ():
        values = [(site.get("properties") or {}).get(name) for site in sites]
        try:
            array = np.array(values, dtype=np.float64)
        except (TypeError, ValueError):
            continue  # texts, dicts, or a site without it
        if array.ndim <= 2 and not np.isnan(array).all():
            found[property_name(str(name), per_atom=True)] = array
    return found
