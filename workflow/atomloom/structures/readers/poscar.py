"""POSCAR and CONTCAR of VASP, versions 4 and 5, direct and Cartesian coordinates.

Velocities and whatever follows the coordinates are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from atomloom.errors import AtomloomError
from atomloom.structures.elements import NUMBERS, atomic_numbers
from atomloom.structures.readers.base import decode, floats, integer
from atomloom.structures.readers.base import split_whole as split
from atomloom.structures.structure import Structure

__all__ = ["ABOUT", "HINTS", "NAME", "OPTIONS", "PATTERNS", "parse", "sniff", "split"]

NAME = "poscar"
ABOUT = "POSCAR and CONTCAR of VASP"
PATTERNS = ("*.vasp", "*.poscar", "poscar*", "contcar*", "*_poscar", "*_contcar", "*.contcar")
HINTS = ()
OPTIONS: dict[str, str] = {}

MAX_ATOMS = 10_000_000


def sniff(head: bytes) -> bool:
    """A comment, a number, three lines of three numbers."""
    lines = _unescaped(head).split(b"\n", 6)[1:5]
    try:
        counts = [len(floats(line[:400].decode().split())) for line in lines]
    except (AtomloomError, UnicodeDecodeError):
        return False
    return len(counts) == 4 and counts[0] in (1, 3) and counts[1:] == [3, 3, 3]


def parse(payload: bytes, options: Mapping[str, Any]) -> Structure:
    """The crystal, periodic in three directions."""
    lines = decode(_unescaped(payload)).splitlines()
    if len(lines) < 8:
        raise AtomloomError(f"ends after {len(lines)} lines")
    cell = floats([token for n in (2, 3, 4) for token in _three(lines, n)], "lines 3 to 5: ")
    cell = cell.reshape(3, 3)
    scale = _scale(lines[1], cell)
    cell = cell * scale

    words = lines[5].split()
    symbols: list[str] | None = None
    line = 5
    if not words or not words[0].isdigit():
        # VASP 6 appends a hash, POTCAR flavours an underscore: Ti/1a2b, Fe_pv
        symbols = [re.split("[/_]", word, maxsplit=1)[0] for word in words]
        line = 6
    counts = [integer(word, f"line {line + 1}: number of atoms") for word in _words(lines[line])]
    total = sum(counts)
    if not 0 < total <= MAX_ATOMS:
        raise AtomloomError(
            f"line {line + 1}: {total} atoms" if counts else f"line {line + 1}: no atoms"
        )
    line += 1
    if symbols is not None and len(symbols) != len(counts):
        raise AtomloomError(f"line 6: {len(symbols)} elements but {len(counts)} numbers of atoms")
    selective = line < len(lines) and lines[line].lstrip()[:1] in ("S", "s")
    line += selective
    mode = lines[line].lstrip()[:1].lower() if line < len(lines) else ""
    rows = lines[line + 1 : line + 1 + total]
    if len(rows) < total:
        raise AtomloomError(f"{len(rows)} of {total} coordinate lines")
    tokens = [token for row in rows for token in row.split(None, 3)[:3]]
    if len(tokens) != 3 * total:
        short = next(n for n, row in enumerate(rows) if len(row.split(None, 3)) < 3)
        raise AtomloomError(f"line {line + 2 + short}: not three coordinates")
    coordinates = floats(tokens, f"lines {line + 2} to {line + 1 + total}: ").reshape(total, 3)
    # VASP: C, c, K, k mean Cartesian, anything else direct coordinates
    positions = coordinates * scale if mode in ("c", "k") and mode else coordinates @ cell

    if symbols is None:
        behind = [(row.split() + [""] * 7)[6 if selective else 3] for row in rows]
        symbols = _symbols_of_version_4(lines[0], counts, behind)
    numbers = np.repeat(atomic_numbers(symbols), counts)
    return Structure(numbers, positions, cell, np.ones(3, dtype=bool))


def _unescaped(payload: bytes) -> bytes:
    """Text that went through JSON once too often has a backslash and an n for every line end."""
    if b"\\n" in payload and b"\n" not in payload.strip():
        return payload.replace(b"\\n", b"\n")
    return payload


def _three(lines: list[str], number: int) -> list[str]:
    tokens = lines[number].split()
    if len(tokens) < 3:
        raise AtomloomError(f"line {number + 1}: not a lattice vector")
    return tokens[:3]


def _scale(line: str, cell: np.ndarray) -> float | np.ndarray:
    """Scaling factor, or three of them; a negative one is the volume of the cell in A^3."""
    tokens = line.split()
    if len(tokens) >= 3 and all(_is_number(token) for token in tokens[:3]):
        factors = floats(tokens[:3], "line 2: ")
        if (factors <= 0).any():
            raise AtomloomError("line 2: three scaling factors must be positive")
        return factors
    if not tokens:
        raise AtomloomError("line 2: no scaling factor")
    factor = float(floats(tokens[:1], "line 2: ")[0])
    if factor < 0:
        volume = abs(float(np.linalg.det(cell)))
        if not volume > 0:
            raise AtomloomError("lines 3 to 5: lattice vectors are linearly dependent")
        return (-factor / volume) ** (1 / 3)
    if factor == 0:
        raise AtomloomError("line 2: scaling factor is zero")
    return factor


def _is_number(token: str) -> bool:
    try:
        float(token)
    except ValueError:
        return False
    return True


def _words(line: str) -> list[str]:
    """Tokens before a comment."""
    words = line.split()
    for place, word in enumerate(words):
        if word[0] in "!#":
            return words[:place]
    return words


def _symbols_of_version_4(comment: str, counts: list[int], behind: list[str]) -> list[str]:
    """VASP 4 has no line of elements: by the comment, else by words behind the coordinates."""
    words = [word.strip("0123456789") for word in comment.split()]
    words = words[: next((n for n, word in enumerate(words) if word not in NUMBERS), len(words))]
    if len(words) == len(counts):
        return words
    firsts = np.cumsum([0, *counts[:-1]]).tolist()
    found = [behind[first] if count else "H" for first, count in zip(firsts, counts, strict=True)]
    if all(word in NUMBERS for word in found):
        return found
    raise AtomloomError("no element symbols: neither a line of them nor in the comment")
