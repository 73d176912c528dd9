"""Rows of an ASE database in a JSON file, with arrays written as `__ndarray__`.

`ase_db` reads SQLite and LMDB through ASE; a JSON file is streamed like any other, and its rows come here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from atomloom.errors import AtomloomError
from atomloom.readers.base import PLAIN_JSON, Piece, dump_structure, scalar_labels, unreadable
from atomloom.structures.stress import stress_matrix

CALCULATED = ("energy", "free_energy", "forces", "charges", "magmoms", "magmom", "dipole")
"""Results of a row that become properties of the structure."""

METADATA = "metadata"
"""Keys, after the rows, of data on the database as a whole."""


def is_row(value: Mapping[str, Any]) -> bool:
    """Whether an entry of a JSON is a row of such a database."""
    numbers = value.get("numbers")
    return isinstance(numbers, dict) and "__ndarray__" in numbers and "positions" in value


def require_all(rows: Sequence[str], others: Iterable[str], listed: Any) -> None:
    """Raise AtomloomError where the rows of a database are not those listed under its key `ids`.

    Args:
        rows: keys of its rows.
        others: keys of rows that cannot be read.
        listed: the value of `ids`; ignored if it is not a list.
    """
    if not isinstance(listed, list):
        return
    known = {str(id) for id in listed}
    wrong = [f"no row {id}" for id in known - {*rows, *others}]
    wrong += [f"row {id} besides" for id in {*rows} - known]
    if wrong:
        raise AtomloomError(f"damaged: `ids` lists {len(known)} rows, there is {min(wrong)}")


def row(value: Mapping[str, Any], id: str) -> Piece:
    """Record of a row: the structure as atomloom's plain JSON, the key-value pairs as labels."""
    name = f"-{int(id):06d}" if id.isdecimal() else id
    try:
        properties = {key: _array(value[key]) for key in CALCULATED if value.get(key) is not None}
        if value.get("stress") is not None:
            properties["stress"] = stress_matrix(_array(value["stress"]))
        cell, pbc = value.get("cell"), value.get("pbc")
        payload = dump_structure(
            _array(value["numbers"]),
            _array(value["positions"]),
            np.zeros((3, 3)) if cell is None else _array(cell),
            np.zeros(3, dtype=bool) if pbc is None else _array(pbc),
            properties,
        )
    except (AtomloomError, TypeError, ValueError, KeyError) as error:
        return unreadable(f"row {id}: {error}")._replace(id=name)
    labels = scalar_labels(value.get("key_value_pairs") or {})
    return Piece(payload, id=name, labels=labels, format=PLAIN_JSON)


def _array(value: Any) -> np.ndarray:
    """Array from a number, a list, `{"__ndarray__": [shape, type, values]}`, or a cell that wraps one."""
    if isinstance(value, dict) and "array" in value:
        value = value["array"]
    if isinstance(value, dict):
        shape, dtype, values = value["__ndarray__"]
        if not isinstance(dtype, str) or np.dtype(dtype).kind not in "biuf":
            raise AtomloomError(f"an array of type {str(dtype)[:20]}")
        return np.array(values, dtype=dtype).reshape(shape)
    return np.asarray(value)
