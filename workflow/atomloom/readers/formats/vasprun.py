"""vasprun.xml of VASP: one record per ionic step, with energy, forces and stress.

The energy is that for sigma -> 0, as in ASE and pymatgen; `free_energy` is the one whose derivatives
the forces are. VASP's stress is in kB with the opposite sign of atomloom's. A step whose electronic
loop took all the steps it was allowed (NELM) is refused, as pymatgen leaves it out.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO
from xml.sax.saxutils import escape

import numpy as np

from atomloom.errors import AtomloomError
from atomloom.readers.base import Piece, floats, integer
from atomloom.readers.formats.vasp import (
    OPTIONS,
    at_limit,
    refuse_unconverged,
    whole_steps,
)
from atomloom.structures.elements import NUMBERS, atomic_numbers
from atomloom.structures.structure import Structure
from atomloom.structures.units import KILOBAR

__all__ = ["ABOUT", "HINTS", "NAME", "OPTIONS", "PATTERNS", "parse", "sniff", "split"]

NAME = "vasprun"
ABOUT = "vasprun.xml of VASP, every ionic step"
PATTERNS = ("vasprun*.xml", "*vasprun.xml", "vasprun.xml*")
HINTS = ("*.xml",)

_SHORTENED = {"X": "Xe", "r": "Zr"}
"""Symbols that VASP misspells."""
_ENERGIES = {"e_fr_energy", "e_wo_entrp", "e_0_energy"}


def sniff(head: bytes) -> bool:
    """Whether the root element of a vasprun.xml is there."""
    return b"<modeling>" in head


def split(stream: BinaryIO, options: Mapping[str, Any]) -> Iterator[Piece]:
    """One record per <calculation>: the list of atoms and the structure, energy, forces and stress of
    the step, as XML; the electronic structure is left out.

    Raises:
        AtomloomError: when there is no complete step.
    """
    yield from whole_steps(_steps(stream), options)


def _steps(stream: BinaryIO) -> Iterator[Piece]:
    atoms = b""
    settings: dict[str, str] = {}
    depth = 0
    root = ElementTree.Element("")
    try:
        for event, element in ElementTree.iterparse(stream, ("start", "end")):
            if event == "start":
                root = element if depth == 0 else root
                depth += 1
                continue
            depth -= 1
            if element.tag == "atominfo" and not atoms:
                kept = [e for e in element if e.get("name") in ("atoms", "atomtypes")]
                atoms = b"".join(ElementTree.tostring(e) for e in kept)
            elif element.tag in ("incar", "parameters"):
                # the latter holds the values VASP used, and its first NELM counts: that of the
                # response functions has the same name
                named = [(str(e.get("name")), (e.text or "").strip()) for e in element.iter("i")]
                settings |= dict(reversed(named))
            elif element.tag in ("eigenvalues", "dos", "projected", "dielectricfunction"):
                element.clear()
            elif element.tag == "calculation":
                yield Piece(b"<step>" + atoms + _essence(element, settings) + b"</step>")
            if depth == 1:
                root.clear()
    except ElementTree.ParseError as error:
        raise AtomloomError(f"not valid XML: {error}") from None


def _essence(calculation: ElementTree.Element, settings: Mapping[str, str]) -> bytes:
    """Parts of a step that `parse` needs: the energy of the last electronic step, the limit of their
    number where they reached it, and an external pressure where one is set."""
    parts = [e for e in calculation if e.tag in ("structure", "energy")]
    parts += [e for e in calculation if e.tag == "varray" and e.get("name") in ("forces", "stress")]
    essence = b"".join(ElementTree.tostring(part) for part in parts)
    electronic = _electronic_loop(calculation.findall("scstep/energy"), settings)
    if electronic:
        essence += b"<last>" + ElementTree.tostring(electronic[-1]) + b"</last>"
    limit = settings.get("NELM", "")
    exact = limit == "1" and settings.get("ALGO", "").upper() == "EXACT"  # diagonalised in one step
    if limit.isdigit() and len(electronic) >= int(limit) and not exact:
        essence += f"<loop>{limit}</loop>".encode()
    pressure = settings.get("PSTRESS", "")
    if pressure.strip("0.-"):
        essence += f"<pressure>{escape(pressure)}</pressure>".encode()
    return essence


def _electronic_loop(
    energies: list[ElementTree.Element], settings: Mapping[str, str]
) -> list[ElementTree.Element]:
    """Electronic steps without those of a linear response, which follow them: steps of the loop
    have only the usual energies, except the first and the last one."""
    responds = "T" in (settings.get(name, "F")[:1] for name in ("LEPSILON", "LCALCEPS"))
    if responds or settings.get("IBRION") in ("7", "8"):
        names = [{energy.get("name") for energy in step} for step in energies]
        return energies[
            : next((n + 1 for n in range(1, len(names)) if names[n] != _ENERGIES), None)
        ]
    return energies


def parse(payload: bytes, options: Mapping[str, Any]) -> Structure:
    """Crystal of one ionic step."""
    if payload.lstrip()[:6] != b"<step>":
        raise AtomloomError("no ionic step of a vasprun.xml")
    try:
        step = ElementTree.fromstring(payload)
    except ElementTree.ParseError as error:
        raise AtomloomError(f"not valid XML: {error}") from None
    limit = step.findtext("loop")
    if limit:
        refuse_unconverged(at_limit(integer(limit, "<loop>")), options)
    numbers = atomic_numbers(_symbols(step))
    cell = _array(step.find("structure/crystal/varray[@name='basis']"), "basis")
    fractional = _array(step.find("structure/varray[@name='positions']"), "positions")
    if cell.shape != (3, 3) or fractional.shape != (len(numbers), 3):
        raise AtomloomError(
            f"{len(numbers)} atoms, but basis of shape {cell.shape}, positions of {fractional.shape}"
        )
    properties: dict[str, float | np.ndarray] = {}
    free = step.find("energy/i[@name='e_fr_energy']")
    if free is not None:
        properties["free_energy"] = _number(free) - _work_of_pressure(step, cell)
        properties["energy"] = properties["free_energy"] + _towards_zero_smearing(step)
    forces = step.find("varray[@name='forces']")
    if forces is not None:
        vectors = _array(forces, "forces")
        if vectors.shape != fractional.shape:
            raise AtomloomError(f"forces of shape {vectors.shape}")
        properties["forces"] = vectors
    stress = step.find("varray[@name='stress']")
    if stress is not None:
        tensor = _array(stress, "stress")
        if tensor.shape != (3, 3):
            raise AtomloomError(f"stress of shape {tensor.shape}")
        properties["stress"] = tensor * -KILOBAR
    return Structure(numbers, fractional @ cell, cell, np.ones(3, dtype=bool), properties)


def _symbols(step: ElementTree.Element) -> list[str]:
    """Symbols of the atoms; one that VASP truncates is taken from the pseudopotential."""
    rows = [[c.text or "" for c in row] for row in step.iterfind("array[@name='atoms']/set/rc")]
    if not rows:
        raise AtomloomError("no list of atoms (<atominfo>)")
    kinds = [
        [c.text or "" for c in row] for row in step.iterfind("array[@name='atomtypes']/set/rc")
    ]
    symbols = []
    for row in rows:
        symbol = row[0].strip()
        if symbol not in NUMBERS:
            kind = row[1].strip() if len(row) > 1 else ""
            potential = (
                kinds[int(kind) - 1] if kind.isdigit() and 0 < int(kind) <= len(kinds) else [""]
            )
            words = potential[-1].split()[1:2]  # PAW_PBE Xe_GW 25Mar2010
            named = re.match("[A-Z][a-z]?", words[0]) if words else None
            if named is not None and named[0] in NUMBERS and symbol in named[0]:
                symbol = named[0]
            else:
                symbol = _SHORTENED.get(symbol, symbol)
        symbols.append(symbol)
    return symbols


def _work_of_pressure(step: ElementTree.Element, cell: np.ndarray) -> float:
    """PV in eV of an external pressure (PSTRESS), which VASP adds to the energy of an ionic step."""
    pressure = step.find("pressure")
    volume = abs(float(np.linalg.det(cell)))
    return 0.0 if pressure is None else _number(pressure) * KILOBAR * volume


def _towards_zero_smearing(step: ElementTree.Element) -> float:
    """E(sigma -> 0) - F, from the last electronic step; the e_0_energy of the ionic step is wrong
    in some versions of VASP, while its e_fr_energy alone holds classical van der Waals terms."""
    for path in ("last/energy", "energy"):
        free, zero = (
            step.find(f"{path}/i[@name='{name}']") for name in ("e_fr_energy", "e_0_energy")
        )
        if free is not None and zero is not None:
            return _number(zero) - _number(free)
    return 0.0


def _number(element: ElementTree.Element) -> float:
    return float(floats([(element.text or "").strip()], f"{element.get('name')}: ")[0])


def _array(element: ElementTree.Element | None, what: str) -> np.ndarray:
    if element is None:
        raise AtomloomError(f"no {what}")
    rows = [(row.text or "").split() for row in element]
    if not rows or len({len(row) for row in rows}) != 1:
        raise AtomloomError(f"{what}: rows of different length")
    return floats([token for row in rows for token in row], f"{what}: ").reshape(len(rows), -1)
