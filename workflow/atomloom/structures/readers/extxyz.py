"""Extended XYZ and plain XYZ, one record a frame, by a parser of its own.

A comment line `key=value key="several values"` holds the cell, the meaning of the columns and
numbers such as the energy. Energies are in eV, forces in eV/A, stresses in eV/A^3 with ASE's sign,
virials in eV (stress = -virial / volume). A frame without `Lattice` is a molecule.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import islice
from typing import Any, BinaryIO

import numpy as np

from atomloom.errors import AtomloomError
from atomloom.structures.elements import atomic_numbers
from atomloom.structures.readers.base import (
    MAX_RECORD_BYTES,
    Piece,
    decode,
    floats,
    integer,
    stress_matrix,
    stress_of_virial,
    unreadable,
)
from atomloom.structures.structure import Structure, property_name

NAME = "extxyz"
ABOUT = "extended and plain XYZ, any number of frames"
PATTERNS = ("*.xyz", "*.extxyz", "*.exyz")
HINTS: tuple[str, ...] = ()
OPTIONS = {
    "energy_key": "name of the energy on the comment line, where it is none of the usual ones",
    "forces_key": "name of the column of forces, where it is none of the usual ones",
    "stress_key": "name of the stress on the comment line, where it is none of the usual ones",
}

ENERGY = (
    "energy", "Energy", "REF_energy", "dft_energy", "DFT_energy", "ref_energy", "total_energy",
    "TotEnergy", "potential_energy", "free_energy", "REF_free_energy",
)  # fmt: skip
FORCES = (
    "forces", "force", "Forces", "REF_forces", "dft_forces", "DFT_forces", "ref_forces", "dft_force",
    "REF_force", "Force",
)  # fmt: skip
STRESS = ("stress", "Stress", "REF_stress", "dft_stress", "DFT_stress", "ref_stress")
VIRIAL = (
    "virial", "virials", "Virial", "REF_virial", "REF_virials", "dft_virial", "DFT_virial", "ref_virial",
)  # fmt: skip
ELEMENT = ("species", "element", "elements", "symbol", "symbols")
POSITION = ("pos", "positions", "position")

# possessive, and only where a word begins: a comment of a megabyte must not take a minute
_PAIR = re.compile(
    r"""(?<![^\s="'])([^\s="']++)\s*+=\s*+("[^"]*+"|'[^']*+'|\[[^"'=]*\]|\{[^}"'=]*+\}|[^\s"']++)"""
)
_TRUE = frozenset(("T", "t", "1", "true", "True", "TRUE"))
_FALSE = frozenset(("F", "f", "0", "false", "False", "FALSE"))
_BLOCK = 1 << 16
_HEAD = re.compile(rb"\A\s*\d{1,9}[ \t]*\r?\n[^\n]*\r?\n[ \t]*[A-Za-z0-9]{1,3}[ \t]+[-+]?[\d.]")


def sniff(head: bytes) -> bool:
    """A count, a comment, an atom."""
    return _HEAD.match(head) is not None


def split(stream: BinaryIO, options: Mapping[str, Any]) -> Iterator[Piece]:
    """One record a frame. Where the count of a frame is wrong, what stands before the next line
    that is a count becomes a record of its own, which then fails to parse."""
    offset = 0
    line = stream.readline(_BLOCK)
    while line:
        count = line.strip()
        if not count:
            offset += len(line)
            line = stream.readline(_BLOCK)
            continue
        if not count.isdigit() or len(count) > 9:
            piece, line = _until_count(stream, line, offset)
            yield piece
            offset += len(piece.payload)
            continue
        lines = [line]
        wanted, size = int(count) + 1, len(line)
        while wanted > 0:
            block = list(islice(stream, min(wanted, _BLOCK)))
            lines += block
            wanted -= len(block)
            size += sum(map(len, block)) if len(block) == _BLOCK else 0
            if size > MAX_RECORD_BYTES:
                yield unreadable(f"a frame of more than {MAX_RECORD_BYTES >> 20} MiB")
                return
            if not block:
                break
        frame = b"".join(lines)
        yield Piece(frame, offset)
        offset += len(frame)
        line = stream.readline(_BLOCK)


def _until_count(stream: BinaryIO, line: bytes, offset: int) -> tuple[Piece, bytes]:
    """The lines up to the next one that is a count, as one record, and that line."""
    lines, size = [line], len(line)
    for line in iter(lambda: stream.readline(_BLOCK), b""):
        if line.strip().isdigit():
            return Piece(b"".join(lines), offset), line
        lines.append(line)
        size += len(line)
        if size > MAX_RECORD_BYTES:
            raise AtomloomError(f"no frame within {MAX_RECORD_BYTES >> 20} MiB")
    return Piece(b"".join(lines), offset), b""


def parse(payload: bytes, options: Mapping[str, Any]) -> Structure:
    """One frame, with the energy, forces and stress it has."""
    head, _, rest = decode(payload).partition("\n")
    comment, _, body = rest.partition("\n")
    count = integer(head.strip(), "line 1: number of atoms", least=1)
    keys = dict(_PAIR.findall(comment)) if "=" in comment else {}
    tokens = body.split()
    layout = _layout(
        keys.pop("Properties", keys.pop("properties", "")).strip("\"'"), options.get("forces_key")
    )
    if layout is None:
        return _plain(count, comment, keys, body, options)
    width = layout.width
    if len(tokens) != count * width:
        _explain(count, width, body)
    numbers = atomic_numbers(tokens[layout.element :: width])
    columns: dict[str, np.ndarray] = {}
    if layout.usual:
        del tokens[0::width]
        table = floats(tokens, "atoms: ").reshape(count, width - 1)
        positions = table[:, layout.position - 1 : layout.position + 2]
        for name, first, size in layout.columns:
            columns[name] = table[:, first - 1 : first - 1 + size]
    else:
        positions = _column(tokens, layout.position, 3, width, count)
        for name, first, size in layout.columns:
            columns[name] = _column(tokens, first, size, width, count)
    cell, pbc = _cell(keys)
    properties = _numbers(keys, cell, options)
    for name, values in columns.items():
        properties[name] = np.ascontiguousarray(values if values.shape[1] > 1 else values[:, 0])
    return Structure(numbers, positions, cell, pbc, properties, per_atom=frozenset(columns))


class _Layout:
    """Where each quantity stands in a row of `Properties`."""

    __slots__ = ("columns", "element", "position", "usual", "width")

    def __init__(self, text: str, forces_key: str | None) -> None:
        parts = text.split(":")
        if len(parts) % 3:
            raise AtomloomError(f"Properties `{text[:80]}` is no list of name:type:columns")
        self.width, self.element, self.position = 0, -1, -1
        self.columns: list[tuple[str, int, int]] = []
        kinds = []
        by_number = -1
        for name, kind, size in zip(parts[0::3], parts[1::3], parts[2::3], strict=True):
            columns = integer(size, f"columns of `{name[:40]}` in Properties", least=1)
            if columns > 10_000:
                raise AtomloomError(f"{columns} columns of `{name[:40]}`")
            if kind == "S" and columns == 1 and name in ELEMENT:
                self.element = self.width
            elif kind == "R" and columns == 3 and name in POSITION and self.position < 0:
                self.position = self.width
            elif kind == "I" and columns == 1 and name in ("Z", "numbers", "atomic_number"):
                by_number = self.width
            elif kind in ("R", "I"):
                self.columns.append((name, self.width, columns))
            elif kind not in ("S", "L"):
                raise AtomloomError(f"type `{kind[:20]}` of `{name[:40]}` in Properties")
            kinds += [kind] * columns
            self.width += columns
        if self.element < 0:
            self.element = by_number
        if self.position < 0 or self.element < 0:
            missing = "pos:R:3" if self.position < 0 else "species:S:1"
            raise AtomloomError(f"Properties `{text[:80]}` has no {missing}")
        names = [name for name, _, size in self.columns if size == 3]
        chosen = forces_key or next((name for name in FORCES if name in names), None)
        if forces_key and forces_key not in names:
            raise AtomloomError(f"no column `{forces_key}` in Properties `{text[:80]}`")
        self.columns = [
            (
                "forces"
                if name == chosen
                else "forces_in_file"
                if name == "forces"
                else property_name(name, per_atom=True),
                first,
                size,
            )
            for name, first, size in self.columns
        ]
        # the element first and nothing but numbers behind: all of them are read at once
        self.usual = self.element == 0 and all(kind in ("R", "I") for kind in kinds[1:])


@lru_cache(maxsize=256)
def _layout(text: str, forces_key: str | None) -> _Layout | None:
    return _Layout(text, forces_key) if text else None


def _column(tokens: list[str], first: int, size: int, width: int, count: int) -> np.ndarray:
    picked = [tokens[column::width] for column in range(first, first + size)]
    return np.stack([floats(column, "atoms: ") for column in picked], axis=1)


def _explain(count: int, width: int, body: str) -> None:
    """Say which line is wrong."""
    rows = body.splitlines()
    for place, row in enumerate(rows[:count]):
        if len(row.split()) != width:
            raise AtomloomError(f"line {place + 3}: {len(row.split())} columns, not {width}")
    raise AtomloomError(f"{len(rows)} of {count} atoms")


def _plain(
    count: int, comment: str, keys: dict[str, str], body: str, options: Mapping[str, Any]
) -> Structure:
    """A frame without `Properties`: element and position, other columns have no meaning."""
    if "forces_key" in options:
        raise AtomloomError(f"no Properties, so no column `{options['forces_key']}`")
    rows = [row.split(None, 4)[:4] for row in body.splitlines()[:count]]
    if len(rows) < count:
        raise AtomloomError(f"{len(rows)} of {count} atoms")
    if body.count("\n") > count and body.split("\n", count)[count].strip():
        raise AtomloomError(f"more than {count} atoms")
    for place, row in enumerate(rows):
        if len(row) < 4:
            raise AtomloomError(f"line {place + 3}: not an element and three coordinates")
    numbers = atomic_numbers([row[0] for row in rows])
    positions = floats([token for row in rows for token in row[1:]], "atoms: ").reshape(count, 3)
    cell, pbc = _cell(keys)
    return Structure(numbers, positions, cell, pbc, _numbers(keys, cell, options))


def _cell(keys: dict[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """[3, 3] cell and [3] pbc; takes their keys out."""
    lattice = keys.pop("Lattice", None) or keys.pop("lattice", None)
    flags = keys.pop("pbc", None)
    if lattice is None:
        cell = np.zeros((3, 3))
    else:
        values = floats(_values(lattice), "Lattice: ")
        if values.size == 3:
            cell = np.diag(values)
        elif values.size == 9:
            cell = values.reshape(3, 3)
        else:
            raise AtomloomError(f"Lattice of {values.size} numbers, not 9")
    if flags is None:
        return cell, np.full(3, lattice is not None)
    words = _values(flags)
    words = words * 3 if len(words) == 1 else words
    if len(words) != 3 or not all(word in _TRUE or word in _FALSE for word in words):
        raise AtomloomError(f"pbc is {flags[:40]}, not three of T and F")
    return cell, np.array([word in _TRUE for word in words])


def _values(text: str) -> list[str]:
    """The words of a quoted, bracketed or bare value."""
    if text[:1] in "\"'":
        text = text[1:-1]
    if "[" in text or "{" in text or "," in text:
        text = re.sub(r"[\[\]{},]", " ", text)
    return text.split()


def _numbers(
    keys: dict[str, str], cell: np.ndarray, options: Mapping[str, Any]
) -> dict[str, float | np.ndarray]:
    """Numbers of the comment line: `energy`, `stress`, and the others by their names."""
    properties: dict[str, float | np.ndarray] = {}
    if not keys:
        return properties
    energy = _first(keys, options.get("energy_key"), ENERGY)
    stress = _first(keys, options.get("stress_key"), STRESS)
    virial = None if stress else _first(keys, None, VIRIAL)
    for name, text in keys.items():
        if name == stress:
            properties["stress"] = stress_matrix(floats(_values(text), f"{name}: "))
        elif name == virial:
            properties["stress"] = stress_of_virial(floats(_values(text), f"{name}: "), cell)
        elif name == energy:
            (properties["energy"],) = _one(floats(_values(text), f"{name}: "), name)
        else:
            try:
                properties[
                    name if name not in ("energy", "stress", "forces") else f"{name}_in_file"
                ] = float(text)
            except ValueError:
                continue  # texts, and lists of unknown meaning
    return properties


def _one(values: np.ndarray, name: str) -> list[float]:
    if values.size != 1:
        raise AtomloomError(f"{name} has {values.size} values")
    return values.tolist()


def _first(keys: dict[str, str], given: str | None, usual: tuple[str, ...]) -> str | None:
    if given is not None:
        if given not in keys:
            raise AtomloomError(f"no `{given}` on the comment line")
        return given
    return next((name for name in usual if name in keys), None)
