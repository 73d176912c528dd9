"""ASE databases (SQLite, or LMDB with the package ase-db-backends): one record a row.

The structure with energy, forces and stress is rewritten as atomloom's plain JSON; the key-value
pairs of the row are its labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from atomloom.errors import AtomloomError
from atomloom.structures.readers import plain_json
from atomloom.structures.readers.ase_json import CALCULATED
from atomloom.structures.readers.base import Piece, scalar_labels, stress_matrix, unreadable
from atomloom.structures.structure import Structure

NAME = "ase-db"
ABOUT = "ASE database"
PATTERNS = ("*.db", "*.aselmdb")
HINTS: tuple[str, ...] = ()
OPTIONS: dict[str, str] = {}


def sniff(head: bytes) -> bool:
    """SQLite's magic bytes."""
    return head.startswith(b"SQLite format 3\0")


def split_path(path: Path, options: Mapping[str, Any]) -> Iterator[Piece]:
    """One record a row, in order of their ids."""
    import ase.db

    kind = "aselmdb" if path.name.endswith(".aselmdb") else "db"
    try:
        with ase.db.connect(path, type=kind, use_lock_file=False) as database:
            for row in database.select():
                yield _piece(row)
    except ImportError as error:
        raise AtomloomError(
            f"ASE cannot open it: {error}", todo="pip install ase-db-backends"
        ) from None
    except AtomloomError:
        raise
    except Exception as error:  # sqlite3, ASE and JSON each raise their own
        raise AtomloomError(f"ASE cannot read it: {error or type(error).__name__}") from None


def split(stream: BinaryIO, options: Mapping[str, Any]) -> Iterator[Piece]:
    """A database can only be opened by its path."""
    raise AtomloomError("a database must be opened by its path")


def parse(payload: bytes, options: Mapping[str, Any]) -> Structure:
    """A database is no single record."""
    raise AtomloomError("a database is no structure: its rows are")


def _piece(row: Any) -> Piece:
    name = f"-{row.id:06d}"
    try:
        properties = {key: row[key] for key in CALCULATED if row.get(key) is not None}
        if row.get("stress") is not None:
            properties["stress"] = stress_matrix(row.stress)
        payload = plain_json.dump(row.numbers, row.positions, row.cell, row.pbc, properties)
    except (AtomloomError, TypeError, ValueError, KeyError, AttributeError) as error:
        return unreadable(f"row {row.id}: {error}")._replace(id=name)
    labels = scalar_labels(dict(row.key_value_pairs))
    return Piece(payload, id=name, labels=labels, format=plain_json.NAME)
