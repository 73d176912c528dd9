"""OUTCAR of VASP: one record per ionic step, with energy, forces and stress.

The energy is that for sigma -> 0, as in `vasprun`; `free_energy` is TOTEN, whose derivatives the
forces are. VASP's stress is in kB with the opposite sign of atomloom's. Results of a machine-learned
force field in the same file are skipped. Records are rewritten as atomloom's plain JSON.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

from atomloom.errors import AtomloomError
from atomloom.readers.base import Piece, decode, floats, integer, unreadable
from atomloom.readers.formats import plain_json
from atomloom.readers.formats.poscar import MAX_ATOMS
from atomloom.readers.formats.vasp import (
    OPTIONS,
    at_limit,
    refuse_unconverged,
    whole_steps,
)
from atomloom.structures.elements import NUMBERS
from atomloom.structures.structure import Structure
from atomloom.structures.units import KILOBAR

__all__ = ["ABOUT", "HINTS", "NAME", "OPTIONS", "PATTERNS", "parse", "sniff", "split"]

NAME = "outcar"
ABOUT = "OUTCAR of VASP, every ionic step"
PATTERNS = ("outcar*", "*_outcar", "*.outcar")
HINTS: tuple[str, ...] = ()

_HEAD = re.compile(rb"\A\s*vasp\.\d")
_GLUED = re.compile(r"(?<=\d)-(?=\d)")
"""Fortran columns that run into each other: 1.5-10.25 are two numbers."""
_ELEMENT = re.compile("[A-Z][a-z]?")
_LINE = 1 << 16


def sniff(head: bytes) -> bool:
    """Whether the first line gives VASP's version."""
    return _HEAD.match(head) is not None


def split(stream: BinaryIO, options: Mapping[str, Any]) -> Iterator[Piece]:
    """One record per ionic step.

    Raises:
        AtomloomError: when there is no complete step.
    """
    yield from whole_steps(_steps(stream, options), options)


def parse(payload: bytes, options: Mapping[str, Any]) -> Structure:
    """Refuse: a file is not a single record."""
    raise AtomloomError("an OUTCAR is not a structure: its ionic steps are")


@dataclass
class _Run:
    """Data common to all steps, from the head of the file."""

    titles: list[str] = field(default_factory=list)
    """Elements, from one TITEL line per POTCAR."""
    potentials: list[str] = field(default_factory=list)
    """Elements, from the POTCAR lines, which VASP writes twice."""
    counts: list[int] = field(default_factory=list)
    """Atoms per element."""
    limit: int = 0
    """NELM; 0 where it is unknown or the loop is one exact diagonalisation."""

    def note(self, line: str) -> None:
        """Take note of a line of the head."""
        words = line.split()
        if "TITEL" in line and len(words) > 3:
            self.titles.append(words[3])
        elif words[:1] == ["POTCAR:"] and len(words) > 1:
            self.potentials.append(words[2] if len(words) > 2 and "1/r" not in line else words[1])
        elif "ions per type =" in line:
            counts = line.partition("=")[2].split()
            self.counts = [integer(word, "ions per type") for word in counts]
            if sum(self.counts) > MAX_ATOMS:
                raise AtomloomError(f"ions per type: {sum(self.counts)} atoms")
        elif words[:2] == ["NELM", "="]:
            value = "".join(words[2:3]).rstrip(";")
            self.limit = int(value) if value.isdecimal() else 0
        elif words[:3] == ["IALGO", "=", "90"]:
            self.limit = 0 if self.limit == 1 else self.limit

    def numbers(self) -> list[int]:
        """Atomic numbers of all atoms."""
        kinds = len(self.counts)
        names = self.titles
        if len(names) != kinds and self.potentials in (once := self.potentials[:kinds], 2 * once):
            names = once
        if not kinds or len(names) != kinds:
            raise AtomloomError(f"elements of {len(names)} POTCARs for {kinds} kinds of ions")
        found = [_ELEMENT.match(name) for name in names]
        symbols = [match[0] if match else name for match, name in zip(found, names, strict=True)]
        for symbol in symbols:
            if symbol not in NUMBERS:
                raise AtomloomError(f"unknown element `{symbol[:20]}`")
        return [
            NUMBERS[symbol]
            for symbol, count in zip(symbols, self.counts, strict=True)
            for _ in range(count)
        ]


@dataclass
class _Step:
    """Lines read of an ionic step."""

    cell: list[str] = field(default_factory=list)
    rows: list[str] = field(default_factory=list)
    """Lines of positions and forces."""
    surplus: str = ""
    """Line found where a line of hyphens should end these."""
    stress: str = ""
    free_energy: str = ""
    energy: str = ""
    iterations: int = 0
    verdict: str = ""
    """VASP's own words on why the electronic loop ended."""


def _steps(stream: BinaryIO, options: Mapping[str, Any]) -> Iterator[Piece]:
    run, step = _Run(), _Step()
    lines = (decode(line) for line in iter(lambda: stream.readline(_LINE), b""))
    learned = summary = False
    for line in lines:
        if not step.iterations and not step.rows:
            run.note(line)
        if "Iteration" in line and "(" in line and line.lstrip().startswith("-"):
            step.iterations += not step.verdict  # the later ones are of the linear response
        elif "aborting loop" in line:
            step.verdict = step.verdict or line.strip()
        elif "direct lattice vectors" in line:
            step.cell = [next(lines, "") for _ in range(3)]
        elif "FORCE on cell" in line:
            learned = line.lstrip().startswith("ML")
        elif line.lstrip().startswith("in kB ") and not learned:
            step.stress = line
        elif "TOTAL-FORCE (eV/Angst)" in line and "(ML)" not in line:
            next(lines, "")
            step.rows = [next(lines, "") for _ in range(sum(run.counts))]
            step.surplus = next(lines, "").strip(" -\n\r")
        elif "FREE ENERGIE OF THE ION-ELECTRON SYSTEM" in line:
            summary = True
        elif summary and "TOTEN" in line:
            summary = "ML TOTEN" not in line
            step.free_energy = line.partition("=")[2]
        elif summary and "energy(sigma->0)" in line and line.endswith("\n"):
            step.energy = line.rpartition("=")[2]
            yield _piece(run, step, options)
            step, summary = _Step(cell=step.cell), False
        elif "General timing and accounting" in line:
            return
    if step.iterations or step.rows:
        raise AtomloomError("the file ends within a step")


def _piece(run: _Run, step: _Step, options: Mapping[str, Any]) -> Piece:
    try:
        return Piece(_payload(run, step, options), format=plain_json.NAME)
    except AtomloomError as error:
        return unreadable(error)


def _payload(run: _Run, step: _Step, options: Mapping[str, Any]) -> bytes:
    if "not reached" in step.verdict or "hard stop" in step.verdict:
        refuse_unconverged(f"`{step.verdict.strip(' -')}`", options)
    elif 0 < run.limit <= step.iterations:  # VASP 5 says that EDIFF is reached there as well
        refuse_unconverged(at_limit(run.limit), options)
    numbers = run.numbers()
    cell = np.array([_numbers(line, 3, "lattice vectors: ") for line in step.cell])
    if cell.shape != (3, 3):
        raise AtomloomError("no lattice vectors")
    if not step.rows:
        raise AtomloomError("no positions and forces")
    if step.surplus:
        raise AtomloomError(f"more positions than {len(step.rows)} ions")
    table = np.array([_numbers(line, 6, "positions and forces: ") for line in step.rows])
    properties: dict[str, Any] = {
        "free_energy": _numbers(step.free_energy, 1, "free energy: ")[0],
        "energy": _numbers(step.energy, 1, "energy(sigma->0): ")[0],
        "forces": table[:, 3:],
    }
    if step.stress:
        xx, yy, zz, xy, yz, zx = _numbers(step.stress.partition("kB")[2], 6, "stress: ")
        stress = np.array([[xx, xy, zx], [xy, yy, yz], [zx, yz, zz]])
        properties["stress"] = stress * -KILOBAR
    return plain_json.dump(numbers, table[:, :3], cell, [True] * 3, properties)


def _numbers(line: str, count: int, where: str) -> np.ndarray:
    """First numbers of a line.

    Raises:
        AtomloomError: when there are fewer, or one is not a number.
    """
    words = _GLUED.sub(" -", line).split()[:count]
    if len(words) < count:
        raise AtomloomError(f"{where}{len(words)} numbers, not {count}")
    return floats(words, where)
