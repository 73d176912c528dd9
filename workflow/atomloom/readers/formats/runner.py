"""RuNNer's input.data (also n2p2's): frames between `begin` and `end`, in bohr and hartree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, BinaryIO

import numpy as np

from atomloom.errors import AtomloomError
from atomloom.readers.base import MAX_RECORD_BYTES, Piece, decode, floats
from atomloom.structures.elements import atomic_numbers
from atomloom.structures.structure import Structure
from atomloom.structures.units import BOHR, HARTREE

NAME = "runner"
ABOUT = "RuNNer and n2p2 input.data"
PATTERNS = ("input.data", "*.input.data", "input.data.*")
HINTS = ("*.data",)
OPTIONS = {"runner_units": "`metal`: lengths in A and energies in eV, not in bohr and hartree"}


def sniff(head: bytes) -> bool:
    """Whether `begin` is alone on the first line."""
    lines = [line.strip() for line in head.splitlines() if line.strip()]
    return bool(lines) and lines[0] == b"begin"


def split(stream: BinaryIO, options: Mapping[str, Any]) -> Iterator[Piece]:
    """One record from each `begin` to its `end`; anything between frames is a record as well,
    which then fails to parse."""
    lines: list[bytes] = []
    offset = size = 0
    for line in iter(partial(stream.readline, MAX_RECORD_BYTES + 1), b""):
        word = line.split(None, 1)[:1]
        if word == [b"begin"] and any(entry.strip() for entry in lines):
            yield Piece(b"".join(lines), offset)
            offset, lines, size = offset + size, [], 0
        lines.append(line)
        size += len(line)
        if word == [b"end"]:
            yield Piece(b"".join(lines), offset)
            offset, lines, size = offset + size, [], 0
        if size > MAX_RECORD_BYTES:
            raise AtomloomError(f"no `end` within {MAX_RECORD_BYTES >> 20} MiB")
    if any(entry.strip() for entry in lines):
        yield Piece(b"".join(lines), offset)


def parse(payload: bytes, options: Mapping[str, Any]) -> Structure:
    """Structure of one frame: `atom x y z element charge energy fx fy fz`, lattice, energy and charge."""
    metal = options.get("runner_units") == "metal"
    length, unit = (1.0, 1.0) if metal else (BOHR, HARTREE)
    lines = decode(payload).split("\n")
    words = [line.split() for line in lines]
    filled = [row for row in words if row]
    if not filled or filled[0][0] != "begin" or filled[-1][0] != "end":
        raise AtomloomError("a frame does not go from `begin` to `end`")
    lattice: list[str] = []
    atoms: list[list[str]] = []
    properties: dict[str, float | np.ndarray] = {}
    for number, row in enumerate(words, start=1):
        if not row:
            continue
        if row[0] == "atom":
            if len(row) < 10:
                raise AtomloomError(f"line {number}: an atom of {len(row) - 1} values, not 9")
            atoms.append(row[1:10])
        elif row[0] == "lattice":
            if len(row) < 4:
                raise AtomloomError(f"line {number}: a lattice vector of {len(row) - 1} numbers")
            lattice += row[1:4]
        elif row[0] in ("energy", "charge") and len(row) > 1:
            value = float(floats(row[1:2], f"line {number}: ")[0])
            properties[row[0]] = value * unit if row[0] == "energy" else value
        elif row[0] not in ("begin", "end", "comment") and not row[0].startswith("#"):
            raise AtomloomError(f"line {number}: `{row[0][:20]}` is none of RuNNer's keywords")
    if len(lattice) not in (0, 9):
        raise AtomloomError(f"{len(lattice) // 3} lattice vectors, not 3")
    if not atoms:
        raise AtomloomError("no atoms")
    numbers = atomic_numbers(row[3] for row in atoms)
    positions = floats([token for row in atoms for token in row[:3]], "atoms: ").reshape(-1, 3)
    forces = floats([token for row in atoms for token in row[6:9]], "forces: ").reshape(-1, 3)
    properties["forces"] = forces * (unit / length)
    charges = floats([row[4] for row in atoms], "charges: ")
    if charges.any():
        properties["charges"] = charges
    cell = floats(lattice, "lattice: ").reshape(3, 3) * length if lattice else np.zeros((3, 3))
    return Structure(numbers, positions * length, cell, np.full(3, bool(lattice)), properties)
