"""XSF of XCrySDen, with energies and forces as aenet adds them (eV, eV/A).

A comment `# total energy = -123.4 eV` gives the energy, in eV unless it names another unit; columns
after the coordinates are the forces: aenet's where there is such an energy, else those of XCrySDen
(hartree/A), which ASE and Quantum ESPRESSO write. Animations (ANIMSTEPS) are one record per step.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from atomloom.errors import AtomloomError
from atomloom.readers.base import (
    Piece,
    decode,
    floats,
    integer,
    read_limited,
    unreadable,
)
from atomloom.structures.elements import atomic_numbers
from atomloom.structures.structure import Structure
from atomloom.structures.units import unit_factor

NAME = "xsf"
ABOUT = "XSF of XCrySDen and aenet, with energies and forces"
PATTERNS = ("*.xsf", "*.axsf")
HINTS: tuple[str, ...] = ()
OPTIONS = {
    "xsf_forces": "unit of the forces: `ev`, `rydberg` or `hartree` per A; by default `ev` with an "
    "energy in eV, and `hartree`, as in XCrySDen, without an energy"
}

_PERIODIC = {
    "CRYSTAL": (True, True, True),
    "SLAB": (True, True, False),
    "POLYMER": (True, False, False),
    "MOLECULE": (False, False, False),
}
_OF_DIMENSION = dict(zip("3210", _PERIODIC, strict=True))
_ENERGY = re.compile(
    r"total energy\s*(?:[(\[]\s*([^)\]]*?)\s*[)\]])?\s*[=:]\s*(\S+)[ \t]*[(\[]?[ \t]*([^\s,;()\[\]]*)([ \t]+per[ \t]+atom)?",
    re.IGNORECASE,
)
_HEAD = re.compile(
    rb"\A(?:[ \t]*(?:#[^\n]*)?\r?\n)*+[ \t]*"
    rb"(?:CRYSTAL|SLAB|POLYMER|MOLECULE|DIM-GROUP|ANIMSTEPS[ \t]+\d+|PRIMVEC(?:[ \t]+\d+)?|ATOMS(?:[ \t]+\d+)?|INFO)"
    rb"[ \t]*(?:#[^\n]*)?\r?$",
    re.MULTILINE,
)
_STEP = re.compile(r"^\s*(PRIMVEC|CONVVEC|PRIMCOORD|CONVCOORD|ATOMS)\s+(\d+)\s*$")
_SECTION = re.compile(r"^\s*[A-Za-z_-]{3,}")


def sniff(head: bytes) -> bool:
    """Whether one of the keywords is alone on the first line that is not a comment."""
    return _HEAD.match(head) is not None


def split(stream: BinaryIO, options: Mapping[str, Any]) -> Iterator[Piece]:
    """One record: the file; of an animation, one record per step."""
    payload = read_limited(stream)
    told = re.search(rb"^\s*ANIMSTEPS\s+(\d+)", payload[: 1 << 16], re.MULTILINE)
    if told is None:
        yield Piece(payload, 0)
        return
    shared: list[str] = []  # lines before the first step and sections without a number
    steps: dict[int, list[str]] = {}
    target, comments = shared, []
    for line in decode(payload).splitlines():
        text = line.strip()
        if text.startswith("ANIMSTEPS"):
            continue
        numbered = _STEP.match(line)
        if text.startswith("#"):
            comments.append(line)  # of the section that follows
            continue
        if numbered:
            target = steps.setdefault(int(numbered[2]), [])
            line = numbered[1]
        elif _SECTION.match(line) and text.split()[0] in (
            *_PERIODIC,
            "PRIMVEC",
            "CONVVEC",
            "DIM-GROUP",
        ):
            target = shared
        target += [*comments, line]
        comments = []
    if not steps:
        yield Piece(payload, 0)
        return
    if len(steps) > 1 and any(_ENERGY.search(line) for line in shared if line.lstrip()[:1] == "#"):
        raise AtomloomError(f"one total energy for {len(steps)} steps")
    for number in sorted(steps):
        yield Piece("\n".join([*shared, *steps[number], ""]).encode())
    if len(steps) != int(told[1]):
        yield unreadable(f"ANIMSTEPS {int(told[1])}, but {len(steps)} steps")


def parse(payload: bytes, options: Mapping[str, Any]) -> Structure:
    """Structure of one record; without PRIMVEC it is a molecule."""
    lines = decode(payload).splitlines()
    cell = np.zeros((3, 3))
    named = ""
    foreign = False
    rows: list[list[str]] = []
    properties: dict[str, float | np.ndarray] = {}
    found = False
    at = 0
    while at < len(lines):
        text = lines[at].strip()
        at += 1
        if not text:
            continue
        if text[0] == "#":
            found_energy = _ENERGY.search(text)
            if found_energy:
                energy, foreign = _energy(found_energy, f"line {at}: ")
                if properties.setdefault("energy", energy) != energy:
                    raise AtomloomError(f"line {at}: another total energy than before")
            continue
        word = text.split()[0].upper()
        if word in _PERIODIC or word == "DIM-GROUP":
            if word == "DIM-GROUP":
                dimension = (lines[at].split() or [""])[0] if at < len(lines) else ""
                word = _OF_DIMENSION.get(dimension, "")
                at += 1
                if not word:
                    raise AtomloomError(
                        f"line {at}: `{dimension[:20]}` is not a number of directions"
                    )
            if named not in ("", word):
                raise AtomloomError(f"line {at}: {word}, but {named} before")
            named = word
        elif word == "PRIMVEC":
            tokens = [token for line in lines[at : at + 3] for token in line.split()]
            if len(tokens) != 9:
                raise AtomloomError(f"line {at}: PRIMVEC is not followed by three vectors")
            cell = floats(tokens, f"lines {at + 1} to {at + 3}: ").reshape(3, 3)
            at += 3
        elif word in ("CONVVEC", "RECIPVEC"):
            at += 3
        elif word == "PRIMCOORD" and not found:
            counts = lines[at].split() if at < len(lines) else []
            count = integer(counts[0] if counts else "", f"line {at + 1}: number of atoms", least=1)
            rows = [line.split() for line in lines[at + 1 : at + 1 + count]]
            if len(rows) < count:
                raise AtomloomError(f"{len(rows)} of {count} atoms")
            first, found = at + 2, True
            at += 1 + count
        elif word == "ATOMS" and not found:
            first, found = at + 1, True
            while at < len(lines) and (lines[at].split() and not _SECTION.match(lines[at])):
                rows.append(lines[at].split())
                at += 1
        elif word == "CONVCOORD":
            at += 1 + integer(
                (lines[at].split() or [""])[0] if at < len(lines) else "", f"line {at + 1}: count"
            )
        elif word.startswith("BEGIN_"):
            break  # grids follow the structure
        elif word == "INFO":
            while at < len(lines) and lines[at].strip() != "END_INFO":
                at += 1
            at += 1
        else:
            raise AtomloomError(f"line {at}: `{text[:40]}` is none of XSF's keywords")
    if not found:
        raise AtomloomError("neither PRIMCOORD nor ATOMS")
    widths = {len(row) for row in rows}
    if not rows or min(widths) < 4:
        bad = next((n for n, row in enumerate(rows) if len(row) < 4), 0)
        raise AtomloomError(f"line {first + bad}: not an element and three coordinates")
    numbers = atomic_numbers(row[0] for row in rows)
    has_forces = min(widths) >= 7
    if not has_forces and max(widths) >= 7:
        raise AtomloomError("forces of some atoms only")
    width = 6 if has_forces else 3
    table = floats([token for row in rows for token in row[1 : 1 + width]], "atoms: ").reshape(
        -1, width
    )
    if has_forces:
        given = options.get("xsf_forces")
        if foreign and given is None and table[:, 3:].any():
            raise AtomloomError(
                "the energy is not in eV, and nothing says what the forces are in",
                todo="set the option xsf_forces",
            )
        unit = given or ("ev" if "energy" in properties else "hartree")
        properties["forces"] = table[:, 3:] * (unit_factor(f"{unit}/a", 1, -1) or 1.0)
    pbc = _PERIODIC[named or ("CRYSTAL" if cell.any() else "MOLECULE")]
    return Structure(numbers, table[:, :3], cell, np.array(pbc), properties)


def _energy(found: re.Match[str], where: str) -> tuple[float, bool]:
    """Energy in eV, and whether the file has it in another unit."""
    before, number, behind, per_atom = found.groups()
    unit = (before or behind or "eV") + (per_atom or "")
    factor = unit_factor(unit, 1, 0) or unit_factor(unit.rstrip("."), 1, 0)
    if factor is None:
        raise AtomloomError(f"{where}`{unit[:40]}` is not a known unit of energy")
    return float(floats([number], where)[0]) * factor, factor != 1.0
