"""FitSNAP's JSON: a comment line, then `{"Dataset": {"Data": [...], "EnergyStyle": ..., ...}}`.

One record per entry of `Data` (most files have one), rewritten as atomloom's plain JSON. Units are
those that the `Style` keys name. Stress has the sign of a pressure, positive when the cell is compressed,
which is the opposite of atomloom's; rows of `Lattice` are vectors, `Positions` are Cartesian.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from atomloom.errors import AtomloomError
from atomloom.readers.base import Piece, decode, read_limited, unreadable
from atomloom.readers.formats import plain_json
from atomloom.readers.formats.runner import BOHR, HARTREE
from atomloom.structures.elements import NUMBERS
from atomloom.structures.structure import Structure
from atomloom.structures.units import KILOBAR

NAME = "fitsnap"
ABOUT = "JSON of FitSNAP"
PATTERNS: tuple[str, ...] = ()
HINTS: tuple[str, ...] = ()
OPTIONS: dict[str, str] = {}

_HEAD = re.compile(rb'\A(?:\s*#[^\n]*\n)*\s*\{\s*"Dataset"\s*:')
_COMMENTS = re.compile(r"\A(?:\s*#[^\n]*(?:\n|\Z))*")
_UNITS: dict[str, dict[str, float]] = {
    "Lattice": {"angstrom": 1.0, "bohr": BOHR},
    "Positions": {"angstrom": 1.0, "bohr": BOHR},
    "Energy": {"electronvolt": 1.0, "ev": 1.0, "hartree": HARTREE, "rydberg": HARTREE / 2},
    "Forces": {
        "electronvoltperangstrom": 1.0,
        "ev/angstrom": 1.0,
        "hartreeperbohr": HARTREE / BOHR,
        "hartree/bohr": HARTREE / BOHR,
        "rydbergperbohr": HARTREE / 2 / BOHR,
    },
    "Stress": {
        "bar": KILOBAR / 1000,
        "kb": KILOBAR,
        "kbar": KILOBAR,
        "pascal": KILOBAR * 1e-8,
        "pa": KILOBAR * 1e-8,
        "gigapascal": KILOBAR * 10,
        "gpa": KILOBAR * 10,
    },
}


def sniff(head: bytes) -> bool:
    """Whether there is an object whose first key is `Dataset`, after comment lines if any."""
    return _HEAD.match(head) is not None


def split(stream: BinaryIO, options: Mapping[str, Any]) -> Iterator[Piece]:
    """One record per entry of `Data`.

    Raises:
        AtomloomError: when it is not JSON, or has no `Data`.
    """
    text = decode(read_limited(stream))
    try:
        document = json.loads(text[_COMMENTS.match(text).end() :])  # type: ignore[union-attr] # matches every text
    except RecursionError:
        raise AtomloomError("JSON nested too deeply") from None
    except ValueError as error:
        raise AtomloomError(f"not valid JSON: {error}") from None
    dataset = document.get("Dataset") if isinstance(document, dict) else None
    entries = dataset.get("Data") if isinstance(dataset, dict) else None
    if not isinstance(dataset, dict) or not isinstance(entries, list):
        raise AtomloomError("no `Dataset` with a list `Data`")
    styles = {name: dataset.get(f"{name}Style") for name in (*_UNITS, "AtomType")}
    for entry in entries:
        try:
            yield Piece(_rewritten(entry, styles), format=plain_json.NAME)
        except AtomloomError as error:
            yield unreadable(error)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            yield unreadable(f"cannot be parsed: {type(error).__name__}: {error}")


def parse(payload: bytes, options: Mapping[str, Any]) -> Structure:
    """Refuse: a document is not a single record."""
    raise AtomloomError("a document of FitSNAP is not a structure: its entries are")


def _rewritten(entry: Mapping[str, Any], styles: Mapping[str, Any]) -> bytes:
    if missing := {"AtomTypes", "Positions"} - entry.keys():
        raise AtomloomError(f"no `{min(missing)}`")
    symbols = entry["AtomTypes"]
    if str(styles["AtomType"] or "chemicalsymbol").lower() != "chemicalsymbol":
        raise AtomloomError(f"AtomTypeStyle is {styles['AtomType']}, not chemicalsymbol")
    numbers = [_number(symbol) for symbol in symbols]
    if len(numbers) != entry.get("NumAtoms", len(numbers)):
        raise AtomloomError(f"{len(numbers)} AtomTypes, but NumAtoms is {entry['NumAtoms']}")
    rows = (len(numbers), 3)
    properties: dict[str, Any] = {}
    if entry.get("Energy") is not None:
        properties["energy"] = float(entry["Energy"]) * _unit("Energy", styles)
    if entry.get("Forces") is not None:
        properties["forces"] = _array(entry, "Forces", rows, styles)
    periodic = entry.get("Lattice") is not None
    cell = _array(entry, "Lattice", (3, 3), styles) if periodic else np.zeros((3, 3))
    if entry.get("Stress") is not None:
        properties["stress"] = -_array(entry, "Stress", (3, 3), styles)
    positions = _array(entry, "Positions", rows, styles)
    return plain_json.dump(numbers, positions, cell, [periodic] * 3, properties)


def _number(symbol: Any) -> int:
    if symbol not in NUMBERS:  # a number would be a type of the potential, not of an element
        raise AtomloomError(f"unknown element `{str(symbol)[:20]}`")
    return NUMBERS[symbol]


def _array(
    entry: Mapping[str, Any], name: str, shape: tuple[int, int], styles: Mapping[str, Any]
) -> np.ndarray:
    try:
        values = np.array(entry[name], dtype=np.float64)
    except (TypeError, ValueError):
        raise AtomloomError(f"{name} is not a table of numbers") from None
    if values.shape != shape:
        raise AtomloomError(f"{name} of shape {values.shape}, not {shape}")
    return values * _unit(name, styles)


def _unit(name: str, styles: Mapping[str, Any]) -> float:
    """Factor from the unit of the file to A, eV, eV/A or eV/A^3; the default is that of FitSNAP's examples."""
    style = styles[name]
    if style is None and name != "Stress":
        return 1.0
    unit = _UNITS[name].get(str(style).lower())
    if unit is None:
        known = ", ".join(_UNITS[name])
        raise AtomloomError(f"{name}Style is {style}; known are: {known}")
    return unit
