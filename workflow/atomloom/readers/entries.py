"""Entries of a table or a JSON document: which part is the structure, its name, its labels.

Serves the readers of CSV and JSON. Only the structure becomes the payload of the record, so that
a new label does not make a new record.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from atomloom.errors import AtomloomError
from atomloom.readers.base import (
    Piece,
    dump_json,
    plain_text,
    scalar_labels,
    unreadable,
)
from atomloom.readers.formats import ase_json, cif, extxyz, poscar, xsf

STRUCTURE_KEYS = (
    "structure", "atoms", "cif", "poscar", "final_structure", "relaxed_structure",
    "optimized_structure", "cif_string", "structure_cif", "crystal", "molecule", "xyz",
    "initial_structure",
)  # fmt: skip
"""Columns in which structures are looked for, in this order."""

ID_KEYS = (
    "id", "jid", "material_id", "mp_id", "mpid", "mp-id", "matbench_id", "mbid", "structure_id",
    "entry_id", "task_id", "_id", "identifier", "name", "filename", "file",
)  # fmt: skip
"""Columns in which names of records are looked for, in this order."""

OPTIONS = {
    "structure_column": "column or key that holds the structure, where its name is unusual",
    "id_column": "column or key that names the record, where its name is unusual",
}

_TEXTS = (cif, poscar, extxyz, xsf)


def find_column(columns: Iterable[Any], given: Any, usual: tuple[str, ...]) -> str | None:
    """Column that an option names, else the first usual one that exists, ignoring case.

    Raises:
        AtomloomError: when there is no column of the given name.
    """
    names = [str(column) for column in columns]
    if given is not None:
        if str(given) not in names:
            raise AtomloomError(
                f"no column `{given}`", todo=f"columns are: {', '.join(names[:30])}"
            )
        return str(given)
    by_lower = {name.strip().lower(): name for name in reversed(names)}
    return next((by_lower[name] for name in usual if name in by_lower), None)


def entry(value: Any, options: Mapping[str, Any], id: str = "", **labels: str) -> Iterator[Piece]:
    """Iterate over the records of one entry: one, or those of a group of entries by name.

    An entry is a structure (a dict, or the text of a file), a row in which one value is a structure,
    or a dict of entries, whose key becomes the label `group` of its members.
    """
    if isinstance(value, str):
        yield text_piece(value, id, labels)
        return
    if not isinstance(value, dict):
        yield unreadable(f"an entry that is not a structure but a {type(value).__name__}")._replace(
            id=id
        )
        return
    if ase_json.is_row(value):
        yield ase_json.row(value, id)
        return
    kind = kind_of(value)
    if kind:
        yield Piece(dump_json(value), id=id, labels=labels, format=kind)
        return
    given = options.get("structure_column")
    column = str(given) if given in value else find_column(value, None, STRUCTURE_KEYS)
    if column is not None and isinstance(value[column], (dict, str)):
        yield row(value, column, options, id, labels)
        return
    if value and "group" not in labels and all(isinstance(v, (dict, str)) for v in value.values()):
        for name, member in value.items():
            yield from entry(member, options, str(name), **labels, group=id)
        return
    keys = ", ".join(list(value)[:12])
    yield unreadable(f"no structure in this entry (keys: {keys or 'none'})")._replace(id=id)


def by_name(names: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    """Values of a row by the names of their columns.

    Where two columns of the same name differ, it is unknown which is meant: the value is a text that
    names both, and so not a number.
    """
    row: dict[str, Any] = {}
    for name, value in zip(names, values, strict=True):
        differs = name in row and row[name] != value
        row[name] = f"{row[name]} and {value}" if differs else value
    return row


def is_entry(value: Any, options: Mapping[str, Any], groups: bool = True) -> bool:
    """Whether a value looks like an entry, or like a group of entries by name."""
    if isinstance(value, str):
        return "\n" in value.replace("\\n", "\n").replace("\r", "\n")
    if not isinstance(value, dict):
        return False
    if kind_of(value) or ase_json.is_row(value) or options.get("structure_column") in value:
        return True
    column = find_column(value, None, STRUCTURE_KEYS)
    if column is not None and isinstance(value[column], (dict, str)):
        return True
    return groups and any(is_entry(member, options, groups=False) for member in value.values())


def columns(values: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[Piece] | None:
    """Records of a table given column by column, each a dict by index, as pandas writes it by
    default; None where the values are not such a table."""
    column = find_column(values, options.get("structure_column"), STRUCTURE_KEYS)
    structures = values[column] if column is not None else None
    if not isinstance(structures, dict) or kind_of(structures) or ase_json.is_row(structures):
        return None
    others = {name: by for name, by in values.items() if isinstance(by, dict)}
    if any(by.keys() != structures.keys() for by in others.values()) or not structures:
        return None
    named = not all(index.isdecimal() for index in structures)
    return (
        row({name: by[i] for name, by in others.items()}, str(column), options, i if named else "")
        for i in structures
    )


def row(
    values: Mapping[str, Any],
    column: str,
    options: Mapping[str, Any],
    id: str = "",
    labels: Mapping[str, float | str] = {},
) -> Piece:
    """Record of a row whose structure is in `column`; the other values are its labels."""
    named = find_column(values, options.get("id_column"), ID_KEYS)
    if named is not None and isinstance(values[named], (str, int)) and str(values[named]).strip():
        id = str(values[named]).strip()
    beside = scalar_labels(values, leave_out=(column, named) if named else (column,)) | dict(labels)
    structure = values[column]
    if isinstance(structure, str):
        return text_piece(structure, id, beside)
    kind = kind_of(structure) if isinstance(structure, dict) else ""
    if not kind:
        return unreadable(f"`{column}` holds no structure")._replace(id=id, labels=beside)
    return Piece(dump_json(structure), id=id, labels=beside, format=kind)


def kind_of(value: Mapping[str, Any]) -> str:
    """Format of a structure given as a dict; empty if it is not a structure."""
    if isinstance(value.get("sites"), list):
        return "pymatgen"
    if "lattice_mat" in value and "elements" in value:
        return "jarvis"
    if "numbers" in value and "positions" in value:
        return "structure"
    return ""


def text_piece(text: str, id: str, labels: Mapping[str, float | str]) -> Piece:
    """Record of a structure given as the text of a file of some format."""
    try:
        payload = plain_text(text.encode())
    except AtomloomError as error:
        return unreadable(error)._replace(id=id, labels=labels)
    for reader in _TEXTS:
        if reader.sniff(payload[:4096]):
            return Piece(payload, id=id, labels=labels, format=reader.NAME)
    if text.lstrip()[:1] == "{":
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if isinstance(value, dict) and kind_of(value):
            return Piece(dump_json(value), id=id, labels=labels, format=kind_of(value))
    start = " ".join(text[:40].split())
    return unreadable(
        f"`{start}...` is not a structure in a known format" if start else "empty"
    )._replace(id=id, labels=labels)
