"""Extended XYZ and plain XYZ, one record per frame, with its own parser.

A comment line `key=value key="several values"` holds the cell, the meaning of the columns and
numbers such as the energy. Energies are in eV, forces in eV/A, stresses in eV/A^3 with ASE's sign,
virials in eV (stress = -virial / volume), unless the line names units (`energy-unit=hartree`). Energy,
forces and stress are those of one level of theory. A frame without `Lattice` is a molecule.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import islice
from typing import Any, BinaryIO

import numpy as np

from atomloom.errors import AtomloomError
from atomloom.readers.base import MAX_RECORD_BYTES, Piece, decode, floats, integer
from atomloom.readers.levels import TODO, Choice, choose
from atomloom.structures.elements import atomic_numbers
from atomloom.structures.stress import stress_matrix, stress_of_virial
from atomloom.structures.structure import Structure, property_name
from atomloom.structures.units import unit_factor

NAME = "extxyz"
ABOUT = "extended and plain XYZ, any number of frames"
PATTERNS = ("*.xyz", "*.extxyz", "*.exyz")
HINTS: tuple[str, ...] = ()
OPTIONS = {
    "energy_key": "name of the energy on the comment line, where it is not one of the usual names",
    "forces_key": "name of the column of forces, where it is not one of the usual names",
    "stress_key": "name of the stress on the comment line, where it is not one of the usual names",
}

ELEMENT = ("species", "element", "elements", "symbol", "symbols")
POSITION = ("pos", "positions", "position")

# possessive, and only at the start of a word: a comment of a megabyte must not take a minute; a word
# after a blank that is followed by `=` is the next key, not the value of an empty one
_PAIR = re.compile(
    r"""(?<![^\s="'])([^\s="']++)["']?+\s*+=\s*+(?!(?<=\s)[^\s="']++\s*+=)"""
    r"""("(?:[^"\\]|\\.)*+"|'(?:[^'\\]|\\.)*+'|\[[^"'=]*\]|\{[^}"'=]*+\}|[^\s"']++)"""
)
_BARE_PBC = re.compile(
    r"(?<!\S)pbc\s*=\s*((?:[A-Za-z01]+\s+)*[A-Za-z01]+)(?!\S)(?!\s*=)", re.IGNORECASE
)
_WORD_BEHIND = re.compile(r"\s*=\s*[^\s\"']++\s++([A-Za-z][A-Za-z./]*+)(?!\S)(?!\s*=)")
_PER_ATOM = re.compile(r"(?:/|_per_| per )atoms?$")
_CELL_KEY = re.compile(r"unit[-_.]?cell", re.IGNORECASE)
_UNIT_KEY = re.compile(r"(?:(.+?)[-_.]?)?units?(?:[-_.](.+))?", re.IGNORECASE)
_OTHER_UNITS = re.compile(
    r"\b(?:in|units?:?)\s*\(?(?:bohr|a\.u\.|au|atomic units)(?!\w)|\bcell\(|\{(?:atomic_unit|angstrom)\}",
    re.IGNORECASE,
)
"""Plain comments of other programs (i-PI among them) whose coordinates may be in bohr."""
_TRUE = frozenset(("T", "t", "1", "true", "True", "TRUE"))
_FLAGS = _TRUE | {"F", "f", "0", "false", "False", "FALSE"}
_POWERS = {"energy": 0, "force": -1, "stress": -3, "virial": 0}
"""Quantity with an energy in its unit -> the power of a length in it."""
_QUANTITIES = (
    ("virial", "virial"), ("stress", "stress"), ("pressure", "stress"), ("force", "force"),
    ("energ", "energy"), ("length", "length"), ("distance", "length"), ("pos", "length"),
    ("coord", "length"), ("cell", "length"), ("lattice", "length"), ("box", "length"),
)  # fmt: skip
"""Quantity of a unit, by a part of its key."""
_NEUTRAL = frozenset((
    "metal", "ase", "ev", "a", "å", "ang", "angstrom", "ev/a", "ev/å", "ev/ang", "ev/angstrom", "ev/a^3", "ev/å^3",
))  # fmt: skip
"""Units that need no conversion, whatever their quantity."""
_BLOCK = 1 << 16
_LINE = 16 << 20
_LINES = 64
"""Number of lines read before their length is checked."""
_HEAD = re.compile(
    rb"\A\s*\d{1,9}[ \t]*\r?\n(?:[^\n]*\bproperties[ \t]*=|[^\n]*\r?\n[ \t]*[A-Za-z0-9]{1,3}[ \t]+[-+]?[\d.])",
    re.IGNORECASE,
)


def sniff(head: bytes) -> bool:
    """Whether there are a count, a comment and an atom."""
    return _HEAD.match(head) is not None


def split(stream: BinaryIO, options: Mapping[str, Any]) -> Iterator[Piece]:
    """One record per frame. Where the count of a frame is wrong, the lines before the next count
    become a separate record, which then fails to parse."""
    offset = 0
    rows = iter(partial(stream.readline, _LINE), b"")
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
            block = list(islice(rows, min(wanted, _LINES)))
            lines += block
            wanted -= len(block)
            size += sum(map(len, block))
            if size >= _LINE and (size > MAX_RECORD_BYTES or max(map(len, block)) >= _LINE):
                raise AtomloomError(
                    f"a frame of more than {MAX_RECORD_BYTES >> 20} MiB, or a line of more than "
                    f"{_LINE >> 20} MiB"
                )
            if not block:
                break
        frame = b"".join(lines)
        yield Piece(frame, offset)
        offset += len(frame)
        line = stream.readline(_BLOCK)


def _until_count(stream: BinaryIO, line: bytes, offset: int) -> tuple[Piece, bytes]:
    """Lines up to the next count, as one record, and that line."""
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
    """Structure of one frame, with its energy, forces and stress."""
    head, _, rest = decode(payload).partition("\n")
    comment, _, body = rest.partition("\n")
    count = integer(head.strip(), "line 1: number of atoms", least=1)
    keys = _keys(comment) if "=" in comment else {}
    layout = _layout((_pop(keys, "Properties") or "").strip("\"' "))
    if layout is None:
        return _plain(count, comment, keys, body, options)
    tokens = body.split()
    width = layout.width
    if len(tokens) != count * width:
        _explain(count, width, body)
    numbers = _elements(tokens[layout.element :: width], comment, layout.by_number)
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
    units = _units(keys, comment, count)
    cell, pbc = _cell(keys, comment)
    if units.length != 1.0:
        positions, cell = positions * units.length, cell * units.length
    choice = _choice(keys, layout.vectors, options)
    units = _with_unit_behind(units, choice.energy, keys, comment, count)
    properties = _numbers(keys, choice, cell, units)
    of_atoms = {}
    for name, values in columns.items():
        values = np.ascontiguousarray(values if values.shape[1] > 1 else values[:, 0])
        if name == choice.forces:
            factor = units.of("forces", "force", 1, -1)
            name, values = "forces", values if factor == 1.0 else values * factor
        elif name == "forces":
            name = "forces_in_file"
        else:
            name = property_name(name, per_atom=True)
        if (
            name in properties
        ):  # a column and a number of the same name, such as charges and the charge
            properties[f"{name}_in_comment"] = properties.pop(name)
        of_atoms[name] = values
    return Structure(
        numbers, positions, cell, pbc, properties | of_atoms, per_atom=frozenset(of_atoms)
    )


def texts(payload: bytes, names: Sequence[str]) -> dict[str, str]:
    """Values of some names on the comment line of a frame, as text; a frame that cannot be read has none."""
    comment = decode(b"".join(payload.split(b"\n", 2)[1:2]))
    try:
        keys = _keys(comment) if "=" in comment else {}
    except AtomloomError:
        return {}
    return {name: keys[name].strip("\"'") for name in names if name in keys}


class _Layout:
    """Columns of each quantity, from `Properties`."""

    __slots__ = (
        "by_number", "columns", "element", "position", "usual", "vectors", "width"
    )  # fmt: skip

    def __init__(self, text: str) -> None:
        parts = text.split(":")
        if len(parts) % 3:
            raise AtomloomError(f"Properties `{text[:80]}` is not a list of name:type:columns")
        self.width, self.element, self.position = 0, -1, -1
        self.columns: list[tuple[str, int, int]] = []
        kinds = []
        by_number = -1
        for name, kind, size in zip(parts[0::3], parts[1::3], parts[2::3], strict=True):
            columns = integer(size, f"columns of `{name[:40]}` in Properties", least=1)
            if columns > 10_000:
                raise AtomloomError(f"{columns} columns of `{name[:40]}`")
            if kind == "S" and columns == 1 and name.lower() in ELEMENT:
                self.element = self.width
            elif kind == "R" and columns == 3 and name.lower() in POSITION and self.position < 0:
                self.position = self.width
            elif kind == "I" and columns == 1 and name in ("Z", "numbers", "atomic_number"):
                by_number = self.width
            elif kind in ("R", "I"):
                self.columns.append((name, self.width, columns))
            elif kind not in ("S", "L"):
                raise AtomloomError(f"type `{kind[:20]}` of `{name[:40]}` in Properties")
            kinds += [kind] * columns
            self.width += columns
        self.by_number = self.element < 0
        if self.by_number:
            self.element = by_number
        if self.position < 0 or self.element < 0:
            missing = "pos:R:3" if self.position < 0 else "species:S:1"
            raise AtomloomError(f"Properties `{text[:80]}` has no {missing}")
        names = [name for name, _, _ in self.columns]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise AtomloomError(f"two columns `{twice[:40]}` in Properties")
        self.vectors = tuple(name for name, _, size in self.columns if size == 3)
        # the element first and only numbers after it: all of them are read at once
        self.usual = self.element == 0 and all(kind in ("R", "I") for kind in kinds[1:])


@lru_cache(maxsize=256)
def _layout(text: str) -> _Layout | None:
    return _Layout(text) if text else None


def _elements(words: list[str], comment: str, by_number: bool = False) -> np.ndarray:
    """[N] atomic numbers, from symbols, or from numbers that cannot be types of LAMMPS or OVITO.

    Raises:
        AtomloomError: when they can, or one is not an element.
    """
    if words[0].isdigit() and not by_number:
        kinds = set(words)
        if kinds == {str(n + 1) for n in range(len(kinds))} or comment.startswith(
            "Atoms. Timestep"
        ):
            raise AtomloomError(
                f"`{min(kinds)}` for an element: type numbers, which may be any elements",
                todo="write symbols instead (in LAMMPS, dump_modify element)",
            )
    return atomic_numbers(words)


def _column(tokens: list[str], first: int, size: int, width: int, count: int) -> np.ndarray:
    picked = [tokens[column::width] for column in range(first, first + size)]
    return np.stack([floats(column, "atoms: ") for column in picked], axis=1)


def _explain(count: int, width: int, body: str) -> None:
    """Raise an error that names the wrong line."""
    rows = body.splitlines()
    for place, row in enumerate(rows[:count]):
        if len(row.split()) != width:
            raise AtomloomError(f"line {place + 3}: {len(row.split())} columns, not {width}")
    raise AtomloomError(f"{len(rows)} of {count} atoms")


def _plain(
    count: int, comment: str, keys: dict[str, str], body: str, options: Mapping[str, Any]
) -> Structure:
    """Parse a frame without `Properties`: element and position; other columns have no meaning."""
    if "forces_key" in options:
        raise AtomloomError(f"no Properties, so no column `{options['forces_key']}`")
    if _OTHER_UNITS.search(comment):
        raise AtomloomError(f"lengths that may not be in A: `{comment.strip()[:80]}`")
    rows = [row.split(None, 4)[:4] for row in body.splitlines()[:count]]
    if len(rows) < count:
        raise AtomloomError(f"{len(rows)} of {count} atoms")
    if body.count("\n") > count and body.split("\n", count)[count].strip():
        raise AtomloomError(f"more than {count} atoms")
    for place, row in enumerate(rows):
        if len(row) < 4:
            raise AtomloomError(f"line {place + 3}: not an element and three coordinates")
    numbers = _elements([row[0] for row in rows], comment)
    positions = floats([token for row in rows for token in row[1:]], "atoms: ").reshape(count, 3)
    units = _units(keys, comment, count)
    cell, pbc = _cell(keys, comment)
    if units.length != 1.0:
        positions, cell = positions * units.length, cell * units.length
    choice = _choice(keys, (), options)
    units = _with_unit_behind(units, choice.energy, keys, comment, count)
    properties = _numbers(keys, choice, cell, units)
    return Structure(numbers, positions, cell, pbc, properties)


def _keys(comment: str) -> dict[str, str]:
    """Values of the comment line by name.

    Raises:
        AtomloomError: when two values have the same name.
    """
    pairs = _PAIR.findall(comment)
    keys = dict(pairs)
    if len(keys) < len(pairs):
        for name, text in pairs:
            if keys[name] != text:
                raise AtomloomError(f"`{name[:40]}` occurs twice on the comment line")
    return keys


def _pop(keys: dict[str, str], name: str) -> str | None:
    """Remove and return the value of a name, ignoring case."""
    if name in keys:
        return keys.pop(name)
    lower = name.lower()
    found = next((key for key in keys if key.lower() == lower), None)
    return None if found is None else keys.pop(found)


def _cell(keys: dict[str, str], comment: str) -> tuple[np.ndarray, np.ndarray]:
    """[3, 3] cell and [3] pbc; removes their keys."""
    lattice, flags = _pop(keys, "Lattice"), _pop(keys, "pbc")
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
    if len(words) == 1 and (bare := _BARE_PBC.search(comment)):
        words = bare[1].split()
        words = words[: next((n for n, word in enumerate(words) if word not in _FLAGS), len(words))]
    words = words * 3 if len(words) == 1 else words
    if len(words) != 3 or not _FLAGS.issuperset(words):
        raise AtomloomError(f"pbc is {' '.join(words)[:40] or flags[:40]}, not three of T and F")
    return cell, np.array([word in _TRUE for word in words])


def _values(text: str) -> list[str]:
    """Words of a quoted, bracketed or bare value."""
    if text[:1] in "\"'":
        text = text[1:-1].removeprefix("_JSON")  # ASE's mark of a nested list
    if "[" in text or "{" in text or "," in text:
        text = re.sub(r"[\[\]{},]", " ", text)
    return text.split()


class _Units:
    """Factors to eV and A from the units that a comment line names; removes their keys.

    Raises:
        AtomloomError: when a unit is not known.
    """

    def __init__(self, keys: dict[str, str], count: int) -> None:
        self._named: dict[str, tuple[str, str]] = {}
        self._count = count
        for key in list(keys):
            match = _UNIT_KEY.fullmatch(key)
            if (
                match is None
                or _CELL_KEY.fullmatch(key)
                or all(map(_is_number, _values(keys[key])))
            ):
                continue
            quantity = _quantity(match[1] or match[2] or "")
            unit = keys[key].strip("\"'")
            if quantity == "any":
                if not all(word.lower() in _NEUTRAL for word in re.split(r"[\s,;]+", unit.strip())):
                    raise AtomloomError(
                        f"`{key}` is {unit[:40]}: its quantity is not known",
                        todo="name it energy-unit, force-unit",
                    )
            elif quantity:
                if self._named.setdefault(quantity, (key, unit))[1] != unit:
                    raise AtomloomError(f"`{key}` and `{self._named[quantity][0]}` differ")
                del keys[key]
        self._settle()

    def _settle(self) -> None:
        self.length = self.of("length", "length", 0, 1)
        self._foreign = self.length != 1.0 or any(
            self.of(name, name, 1, power) != (self._count if _PER_ATOM.search(unit) else 1)
            for name, power in _POWERS.items()
            for _, unit in [self._named.get(name, ("", ""))]
            # a stress in GPa says nothing about energies
            if unit and (name != "stress" or "/" in unit)
        )

    def with_energy(self, key: str, unit: str, count: int) -> _Units:
        """Units with that of the energy added."""
        known = self._named.get("energy")
        if known is not None and known[1] != unit:
            raise AtomloomError(f"`{key}` is in {unit}, but `{known[0]}` is {known[1][:40]}")
        units = _Units({}, count)
        units._named = {**self._named, "energy": (key, unit)}
        units._settle()
        return units

    def of(self, what: str, quantity: str, energy: int, length: int) -> float:
        """Factor of a quantity of the frame.

        Raises:
            AtomloomError: when its unit is unknown, or missing where others are named.
        """
        if quantity == "virial" and quantity not in self._named:
            _, unit = self._named.get("energy", ("", ""))
            if unit and not _PER_ATOM.search(unit):
                quantity = "energy"  # a virial is an energy
        if quantity not in self._named:
            if quantity != "length" and self._foreign:
                raise AtomloomError(
                    f"other units than eV and A are named, but not that of {what}",
                    todo=f"name it by {quantity}-unit on the comment line",
                )
            return 1.0
        key, unit = self._named[quantity]
        bare = _PER_ATOM.sub("", unit)
        factor = unit_factor(bare if energy and not length else unit, energy, length)
        if factor is None:
            raise AtomloomError(f"`{key}` is {unit[:40]}, which is not a known unit of {quantity}")
        return factor * (self._count if bare != unit else 1)


_NO_UNITS = _Units({}, 1)


def _units(keys: dict[str, str], comment: str, count: int) -> _Units:
    """Units that a comment line names; removes their keys.

    Raises:
        AtomloomError: when they are in a table, or one is unknown.
    """
    if "nit" not in comment and "NIT" not in comment:
        return _NO_UNITS
    opened = (key for key, value in keys.items() if value[0] in "{[" and not _values(value))
    table = next(filter(_UNIT_KEY.fullmatch, opened), None)
    if table is not None:
        raise AtomloomError(
            f"`{table}` is a table, which is not read", todo="name them energy-unit, force-unit"
        )
    return _Units(keys, count)


def _quantity(name: str) -> str:
    """Quantity of a unit; `any` where its name does not say, empty where no value of the frame has it."""
    lower = name.lower()
    if not lower:
        return "any"
    return next((quantity for part, quantity in _QUANTITIES if part in lower), "")


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return "_" not in word and word.isascii()


def _choice(keys: dict[str, str], vectors: tuple[str, ...], options: Mapping[str, Any]) -> Choice:
    return choose(
        tuple(keys),
        vectors,
        options.get("energy_key"),
        options.get("forces_key"),
        options.get("stress_key"),
    )


def _numbers(
    keys: dict[str, str], choice: Choice, cell: np.ndarray, units: _Units
) -> dict[str, float | np.ndarray]:
    """Numbers of the comment line: `energy`, `stress`, and the others by their names."""
    properties: dict[str, float | np.ndarray] = {}
    for name, text in keys.items():
        if name in (choice.energy, choice.stress, choice.virial):
            continue
        words = _values(text)
        if words and all(map(_is_number, words)):
            values = [float(word) for word in words]
            factor = units.of(name, "energy", 1, 0) if "energy" in name.lower() else 1.0
            kept = f"{name}_in_file" if name == "energy" else property_name(name, per_atom=False)
            properties[kept] = values[0] * factor if len(values) == 1 else np.array(values) * factor
        elif len(words) == 1 and words[0] in _FLAGS:
            properties[property_name(name, per_atom=False)] = float(words[0] in _TRUE)
    if choice.energy is not None:
        properties["energy"] = _energy(choice.energy, keys, units)
        if choice.same or choice.kinetic is not None:
            _refuse_doubt(choice, keys, units, properties)
    if choice.stress is not None:
        stress = stress_matrix(floats(_values(keys[choice.stress]), f"{choice.stress}: "))
        properties["stress"] = stress * units.of("stress", "stress", 1, -3)
    if choice.virial is not None:
        virial = floats(_values(keys[choice.virial]), f"{choice.virial}: ")
        stress = stress_of_virial(virial * units.of("virial", "virial", 1, 0), cell)
        given = properties.setdefault("stress", stress)
        if not np.allclose(
            given, stress, rtol=0.01, atol=0.01 * float(np.abs(stress).max()) + 1e-6
        ):
            raise AtomloomError(
                f"`{choice.stress}` is not -`{choice.virial}` / volume, so a sign or a unit differs",
                todo="name one of them by the option stress_key",
            )
    return properties


def _energy(name: str, keys: dict[str, str], units: _Units) -> float:
    """Energy in eV."""
    words = _values(keys[name])
    if len(words) == 2 and _is_energy_unit(words[1]):
        words = words[:1]
    values = floats(words, f"{name}: ")
    if values.size != 1:
        raise AtomloomError(f"{name} has {values.size} values")
    return float(values[0]) * units.of("energy", "energy", 1, 0)


def _with_unit_behind(
    units: _Units, name: str | None, keys: dict[str, str], comment: str, count: int
) -> _Units:
    """Units, with that of the energy where it follows the number."""
    if name is None:
        return units
    text = keys[name]
    if text[0] in "\"'[{":
        words = _values(text)
        unit = words[1] if len(words) == 2 else ""
    else:
        unit = _behind(name, comment)
    return units.with_energy(name, unit, count) if unit and _is_energy_unit(unit) else units


def _is_energy_unit(word: str) -> bool:
    return unit_factor(_PER_ATOM.sub("", word), 1, 0) is not None


def _behind(name: str, comment: str) -> str:
    """Bare word after the bare value of a name."""
    at = comment.find(name)
    while at >= 0:
        match = _WORD_BEHIND.match(comment, at + len(name))
        if match and (at == 0 or comment[at - 1].isspace()):
            return match[1]
        at = comment.find(name, at + 1)
    return ""


def _refuse_doubt(
    choice: Choice,
    keys: dict[str, str],
    units: _Units,
    properties: Mapping[str, float | np.ndarray],
) -> None:
    """Refuse an energy where there is another one, so that it is unknown which is meant."""
    energy = float(properties["energy"])
    for name in choice.same:
        other = _energy(name, keys, units)
        if not abs(other - energy) <= 1e-6 * max(1.0, abs(energy)):
            raise AtomloomError(
                f"`{choice.energy}` and `{name}` differ, {energy:g} and {other:g} eV", todo=TODO
            )
    if choice.kinetic is not None and properties.get(choice.kinetic, 0.0) != 0.0:
        raise AtomloomError(
            f"`{choice.energy}` may include `{choice.kinetic}`, and there is no potential energy",
            todo=TODO,
        )
