"""vasprun.xml of VASP: every ionic step a record, with energy, forces and stress.

The energy is that for sigma -> 0, as ASE and pymatgen give it; `free_energy` is the one the forces
belong to. VASP's stress is in kB with the opposite sign of ours.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from atomloom.errors import AtomloomError
from atomloom.structures.elements import atomic_numbers
from atomloom.structures.readers.base import Piece, floats
from atomloom.structures.structure import Structure

NAME = "vasprun"
ABOUT = "vasprun.xml of VASP, every ionic step"
PATTERNS = ("vasprun*.xml", "*vasprun.xml", "vasprun.xml*")
HINTS = ("*.xml",)
OPTIONS: dict[str, str] = {}

KILOBAR = 6.241509074460763e-4  # eV/A^3: 1e8 Pa, CODATA 2018

_KEPT = ("structure", "varray", "energy", "scstep")


def sniff(head: bytes) -> bool:
    """The root element of a vasprun.xml."""
    return b"<modeling>" in head


def split(stream: BinaryIO, options: Mapping[str, Any]) -> Iterator[Piece]:
    """One record a <calculation>: the list of atoms and what the step says of structure, energy,
    forces and stress, as XML; electronic structure is left behind.

    Raises:
        AtomloomError: where the XML breaks off.
    """
    atoms = b""
    depth = 0
    steps = 0
    try:
        for event, element in ElementTree.iterparse(stream, ("start", "end")):
            if event == "start":
                depth += 1
                continue
            depth -= 1
            if element.tag == "atominfo" and not atoms:
                kept = [e for e in element if e.get("name") in ("atoms", "atomtypes")]
                atoms = b"".join(ElementTree.tostring(e) for e in kept)
            elif element.tag in ("eigenvalues", "dos", "projected", "dielectricfunction"):
                element.clear()
            elif element.tag == "calculation":
                yield Piece(b"<step>" + atoms + _essence(element) + b"</step>")
                steps += 1
            if depth == 1:
                element.clear()
    except ElementTree.ParseError as error:
        raise AtomloomError(f"not valid XML: {error}") from None
    if not steps:
        raise AtomloomError("no ionic step (<calculation>)")


def _essence(calculation: ElementTree.Element) -> bytes:
    """What parse needs of a step; of the electronic steps, the last one's energy."""
    parts = [e for e in calculation if e.tag in ("structure", "energy")]
    parts += [e for e in calculation if e.tag == "varray" and e.get("name") in ("forces", "stress")]
    electronic = calculation.findall("scstep/energy")
    last = b"<last>" + ElementTree.tostring(electronic[-1]) + b"</last>" if electronic else b""
    return b"".join(ElementTree.tostring(part) for part in parts) + last


def parse(payload: bytes, options: Mapping[str, Any]) -> Structure:
    """One ionic step; a crystal."""
    if payload.lstrip()[:6] != b"<step>":
        raise AtomloomError("no ionic step of a vasprun.xml")
    try:
        step = ElementTree.fromstring(payload)
    except ElementTree.ParseError as error:
        raise AtomloomError(f"not valid XML: {error}") from None
    symbols = [row[0].text or "" for row in step.iterfind("array[@name='atoms']/set/rc")]
    if not symbols:
        raise AtomloomError("no list of atoms (<atominfo>)")
    numbers = atomic_numbers(symbol.strip() for symbol in symbols)
    cell = _array(step.find("structure/crystal/varray[@name='basis']"), "basis")
    fractional = _array(step.find("structure/varray[@name='positions']"), "positions")
    if cell.shape != (3, 3) or fractional.shape != (len(numbers), 3):
        raise AtomloomError(
            f"{len(numbers)} atoms, but basis of shape {cell.shape}, positions of {fractional.shape}"
        )
    properties: dict[str, float | np.ndarray] = {}
    free = step.find("energy/i[@name='e_fr_energy']")
    if free is not None:
        properties["free_energy"] = _number(free)
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


def _towards_zero_smearing(step: ElementTree.Element) -> float:
    """E(sigma -> 0) - F. The last electronic step has it; the e_0_energy of the ionic step is wrong
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
