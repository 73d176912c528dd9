"""The registry of formats, and the way from a record's bytes to a structure.

One module per format, each declaring the names of `base.Reader`; a new format is one module and one
line in `REGISTRY`. Nothing here knows of folders, archives or compression, and chemistry libraries
are imported only by a reader that needs one, when it does.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

import numpy as np

from atomloom.errors import AtomloomError
from atomloom.readers.base import (
    RECORD,
    UNREADABLE,
    Piece,
    Reader,
    is_wide,
    plain_text,
)
from atomloom.readers.formats import (
    aims,
    ase_db,
    cif,
    csv_table,
    deepmd,
    extxyz,
    fitsnap,
    jarvis_dict,
    json_document,
    outcar,
    plain_json,
    poscar,
    pymatgen_dict,
    runner,
    vasprun,
    xsf,
)
from atomloom.structures.structure import Structure
from atomloom.structures.vacuum import without_fake_box

__all__ = [
    "REGISTRY",
    "UNREADABLE",
    "Piece",
    "Reader",
    "check_options",
    "format_of",
    "parse_record",
    "reader_of",
    "texts_of",
]

REGISTRY: dict[str, Reader] = {
    reader.NAME: reader
    for reader in (
        cif,
        poscar,
        extxyz,
        xsf,
        aims,
        vasprun,
        outcar,
        fitsnap,
        json_document,
        csv_table,
        ase_db,
        deepmd,
        runner,
        pymatgen_dict,
        jarvis_dict,
        plain_json,
    )
}
"""Reader by name of the format, in the order in which files are sniffed."""

COMMON_OPTIONS = {
    "box": "`molecule`: drop a cell with more than 10 A of vacuum around the atoms in each direction",
    "max_unpacked_gb": "an archive that unpacks to more than this is refused; default 200",
}
"""Options common to all formats."""
CHOICES: dict[str, tuple[str, ...]] = {
    "box": ("keep", "molecule"),
    "xsf_forces": ("ev", "rydberg", "hartree"),
    "runner_units": ("bohr", "metal"),
}
"""Allowed values of options with a fixed choice, the default first."""


def reader_of(format: str) -> Reader:
    """Reader of a format.

    Raises:
        AtomloomError: when there is no such format.
    """
    if format not in REGISTRY:
        raise AtomloomError(f"unknown format `{format}`", todo=f"known are: {', '.join(REGISTRY)}")
    return REGISTRY[format]


def format_of(name: str, head: bytes = b"", hints: bool = True) -> str | None:
    """Format of a file, by its first bytes; its name decides where several formats begin alike,
    or where no reader recognises the content.

    Args:
        name: file name, without the extension of a compression.
        head: the first bytes of its content; some 64 KiB usually suffice.
        hints: also accept names that other formats share, such as `*.json`.

    Returns:
        The format's name, or None when no reader recognises the file.
    """
    lower = name.rsplit("/", 1)[-1].lower()
    named, hinted = _by_name(lower, tuple(REGISTRY))
    if named is not None and getattr(REGISTRY[named], "NEEDS_FOLDER", False):
        return named  # the format is the folder, not a file in it
    if head:
        head = _recognisable(head)
        for likely in (named, hinted):
            if likely is not None and REGISTRY[likely].sniff(head):
                return likely
        for reader in REGISTRY.values():
            if reader.sniff(head):
                return reader.NAME
    return named or (hinted if hints else None)


def _recognisable(head: bytes) -> bytes:
    """Text as the readers' `sniff` expects it, even in an encoding that will be refused."""
    if not is_wide(head):
        return plain_text(head)
    with suppress(UnicodeError):
        return head[: len(head) // 4 * 4].decode("utf-16").encode()
    return head


def _by_name(lower: str, formats: tuple[str, ...]) -> tuple[str | None, str | None]:
    """Format that a name belongs to, and the one that it only hints at."""
    endings, patterns, hints = _names(formats)
    named = endings.get(lower[lower.rfind(".") :])
    if named is not None:
        return named, None
    named = next((format for pattern, format in patterns if fnmatchcase(lower, pattern)), None)
    hinted = next((format for pattern, format in hints if fnmatchcase(lower, pattern)), None)
    # poscars.json and contcar_labels.csv are not files of VASP
    return named if hinted in (None, named) else None, hinted


@lru_cache(maxsize=8)
def _names(
    formats: tuple[str, ...],
) -> tuple[dict[str, str], list[tuple[str, str]], list[tuple[str, str]]]:
    """Formats by extension, the patterns that are more than an extension, and the hints."""
    pairs = [(pattern, format) for format in formats for pattern in REGISTRY[format].PATTERNS]
    plain = [(p, f) for p, f in pairs if re.fullmatch(r"\*\.\w+", p)]
    hints = [(pattern, format) for format in formats for pattern in REGISTRY[format].HINTS]
    return (
        {p[1:]: f for p, f in reversed(plain)},
        [pair for pair in pairs if pair not in plain],
        hints,
    )


def texts_of(format: str, payload: bytes, names: Sequence[str]) -> dict[str, str]:
    """Values of some names inside a record, as text, for formats that hold text (extxyz)."""
    texts = getattr(REGISTRY.get(format), "texts", None)
    return {} if texts is None else texts(payload, names)


def parse_record(
    format: str, payload: bytes, id: str = "", options: Mapping[str, Any] | None = None
) -> Structure:
    """Parse one record to a structure, in eV and A.

    Args:
        format: name of the record's format.
        payload: the record's bytes.
        id: name of the record, which becomes that of the structure.
        options: options of the readers and `box`, see `check_options`.

    Raises:
        AtomloomError: saying what is wrong with the record; no other exception.
    """
    options = options or {}
    # takes as long as the symmetry of a CIF, and only ordering logs messages meanwhile
    named = RECORD.set(id) if options.get("order") else None
    try:
        with np.errstate(all="ignore"):  # overflows are not finite numbers, and refused as such
            structure = _parse(format, payload, options)
        if structure.properties:
            _refuse_nan(structure)
        if options.get("box") == "molecule":
            structure = without_fake_box(structure)
    except AtomloomError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise AtomloomError(f"cannot be parsed: {type(error).__name__}: {error}") from error
    except Exception as error:  # of a library's own kind; the other records must still be read
        raise AtomloomError(f"cannot be parsed: {str(error) or type(error).__name__}") from error
    finally:
        if named is not None:
            RECORD.reset(named)
    return structure.named(id) if id else structure


def _parse(format: str, payload: bytes, options: Mapping[str, Any]) -> Structure:
    """Parse one record to a structure; the content of a container goes to the reader of its format."""
    if format == UNREADABLE:
        raise AtomloomError(payload.decode())
    if not payload.strip():
        raise AtomloomError("empty file")
    found = reader_of(format).parse(plain_text(payload), options)
    if isinstance(found, Piece):
        return _parse(found.format, found.payload, options)
    return found


def _refuse_nan(structure: Structure) -> None:
    """Refuse values that are not finite: a failed calculation is not a reference, and a NaN spoils a batch."""
    for name in ("energy", "forces", "stress"):
        value = structure.properties.get(name)
        if value is not None and not np.isfinite(value).all():
            raise AtomloomError(f"{name} is not finite")


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options that no reader knows, so that a typing error is not ignored.

    Raises:
        AtomloomError: naming the option and the nearest known one.
    """
    known = {name for reader in REGISTRY.values() for name in reader.OPTIONS} | set(COMMON_OPTIONS)
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(str(name), sorted(known), n=1)
            raise AtomloomError(
                f"unknown option `{name}`",
                where="dataset.options",
                todo=f"did you mean `{close[0]}`?"
                if close
                else f"known are: {', '.join(sorted(known))}",
            )
    for name, choices in CHOICES.items():
        if options.get(name, choices[0]) not in choices:
            listed = " or ".join(f"`{choice}`" for choice in choices[-2:])
            listed = ", ".join([*(f"`{choice}`" for choice in choices[:-2]), listed])
            raise AtomloomError(f"{name} should be {listed}", where="dataset.options")
    for name in ("order", "truncated", "unconverged"):
        if not isinstance(options.get(name, False), bool):
            raise AtomloomError(f"{name} should be true or false", where="dataset.options")
    seconds = options.get("order_seconds", 1.0)
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < 1e9:
        raise AtomloomError("order_seconds should be a number of seconds", where="dataset.options")
