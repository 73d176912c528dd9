"""ASE databases (SQLite, or LMDB with the package ase-db-backends): one record per row.

The structure with energy, forces and stress is rewritten as atomloom's plain JSON; the key-value
pairs of the row are its labels. ASE itself opens a database for writing: it would create its tables in any
SQLite file. So SQLite is read here, from a file opened as immutable.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from atomloom.errors import AtomloomError
from atomloom.readers.base import MAX_RECORD_BYTES, Piece, scalar_labels, unreadable
from atomloom.readers.formats import plain_json
from atomloom.readers.formats.ase_json import CALCULATED
from atomloom.store.files import scratch_folder
from atomloom.structures.stress import stress_matrix
from atomloom.structures.structure import Structure

NAME = "ase-db"
ABOUT = "ASE database"
PATTERNS = ("*.db", "*.aselmdb")
HINTS: tuple[str, ...] = ()
OPTIONS: dict[str, str] = {}

VERSIONS = range(5, 10)
"""Versions of ASE's tables that are read; they store arrays as bytes of one layout."""

_NEEDED = ("id", "numbers", "positions", "cell", "pbc", "key_value_pairs")
_WANTED = (*_NEEDED, *CALCULATED, "stress")
_SCALARS = ("energy", "free_energy", "magmom")
_UNSAVED = ("-wal", "-journal")
"""Endings of files that SQLite creates next to a database while writing, and leaves when it is killed."""
_BESIDE = (*_UNSAVED, "-shm")


def sniff(head: bytes) -> bool:
    """Whether SQLite's magic bytes come first."""
    return head.startswith(b"SQLite format 3\0")


def companions(path: Path) -> list[Path]:
    """Files next to a database with changes that are not in it yet."""
    beside = [path.with_name(path.name + ending) for ending in _UNSAVED]
    return [file for file in beside if file.is_file() and file.stat().st_size]


def is_companion(path: Path) -> bool:
    """Whether a file belongs to a database next to it."""
    ending = next((ending for ending in _BESIDE if path.name.endswith(ending)), None)
    return ending is not None and path.with_name(path.name.removesuffix(ending)).is_file()


def split_path(path: Path, options: Mapping[str, Any]) -> Iterator[Piece]:
    """One record per row, in order of the ids.

    Raises:
        AtomloomError: when the file is not an ASE database, or is damaged.
    """
    with open(path, "rb") as file:
        is_sqlite = sniff(file.read(16))
    if path.name.endswith(".aselmdb") and not is_sqlite:
        yield from _lmdb(path)
        return
    if not is_sqlite:
        raise AtomloomError("is not an SQLite file, and so not an ASE database")
    try:
        with _undisturbed(path) as address, closing(sqlite3.connect(address, uri=True)) as database:
            yield from _sqlite(database)
    except sqlite3.Error as error:
        raise AtomloomError(f"damaged: SQLite says `{error}`") from None


@contextmanager
def _undisturbed(path: Path) -> Iterator[str]:
    """Address under which SQLite opens a database without creating files next to it.

    An `immutable` file is neither locked nor recovered. Where a writer has left changes next to it, the
    database is read from a copy, in which SQLite may apply them.

    Raises:
        AtomloomError: when it changes meanwhile.
    """
    unsaved = companions(path)
    if not unsaved:
        yield f"{path.absolute().as_uri()}?mode=ro&immutable=1"
        return
    files = [path, *unsaved]
    with scratch_folder() as folder:
        before = [_stamp(file) for file in files]
        for file in files:
            shutil.copyfile(file, folder / file.name)
        if [_stamp(file) for file in files] != before:
            raise AtomloomError("another program writes to this database: wait until it is done")
        yield (folder / path.name).as_uri()


def _stamp(path: Path) -> tuple[int, int]:
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns


def _sqlite(database: sqlite3.Connection) -> Iterator[Piece]:
    database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_RECORD_BYTES)
    database.text_factory = lambda text: text.decode(errors="replace")
    database.execute("PRAGMA trusted_schema = OFF")
    kinds = "SELECT name, type, sql FROM sqlite_master WHERE name IN ('systems', 'information')"
    made = {name: (kind, str(sql)) for name, kind, sql in database.execute(kinds)}
    # A view or a virtual table may have endless rows.
    if any(
        kind != "table" or not re.match(r"\s*CREATE\s+TABLE\b", sql, re.IGNORECASE)
        for kind, sql in made.values()
    ):
        raise AtomloomError("is an SQLite file whose tables are views: not an ASE database")
    columns = {row[1] for row in database.execute("PRAGMA table_info(systems)")}
    if not columns.issuperset(_NEEDED):
        raise AtomloomError("is an SQLite file, but not an ASE database")
    _check_version(database, "information" in made)
    wanted = [name for name in _WANTED if name in columns]
    last = None
    for values in database.execute(f"SELECT {', '.join(wanted)} FROM systems"):
        row = dict(zip(wanted, values, strict=True))
        # Pages that point to each other would give the same rows endlessly.
        if not isinstance(row["id"], int) or (last is not None and row["id"] <= last):
            raise AtomloomError(f"damaged: row {row['id']} comes after row {last}")
        last = row["id"]
        yield _piece(row)


def _check_version(database: sqlite3.Connection, told: bool) -> None:
    query = "SELECT value FROM information WHERE name = 'version'"
    value = (database.execute(query).fetchone() or ("",))[0] if told else "1"
    version = int(value) if str(value).isdecimal() else 0
    if version > VERSIONS[-1]:
        raise AtomloomError(f"is an ASE database of version {version}, newer than this atomloom")
    if version < VERSIONS[0]:
        raise AtomloomError(
            f"is an ASE database of the old version {value or 'none'}: convert a copy of it with "
            "`python -m ase.db.convert`"
        )


def _piece(row: Mapping[str, Any]) -> Piece:
    name = f"-{row['id']:06d}"
    try:
        known = [key for key in CALCULATED if row.get(key) is not None]
        properties = {key: _result(key, row[key]) for key in known}
        if row.get("stress") is not None:
            properties["stress"] = stress_matrix(_floats(row["stress"]))
        pbc = (
            [bool(row["pbc"] & bit) for bit in (1, 2, 4)] if row["pbc"] is not None else [False] * 3
        )
        payload = plain_json.dump(
            np.frombuffer(row["numbers"], "<i4"),
            _floats(row["positions"]).reshape(-1, 3),
            _floats(row["cell"]).reshape(3, 3),
            pbc,
            properties,
        )
        labels = scalar_labels(_pairs(row["key_value_pairs"]))
    except (AtomloomError, TypeError, ValueError) as error:
        return unreadable(f"row {row['id']}: {error}")._replace(id=name)
    return Piece(payload, id=name, labels=labels, format=plain_json.NAME)


def _result(name: str, value: Any) -> float | np.ndarray:
    if name in _SCALARS:
        # before version 6 the magnetic moment was an array of one number
        return float(_floats(value).reshape(())) if isinstance(value, bytes) else float(value)
    values = _floats(value)
    return values.reshape(-1, 3) if name == "forces" else values


def _floats(value: Any) -> np.ndarray:
    if not isinstance(value, bytes):
        raise AtomloomError(f"an array that is a {type(value).__name__}")
    return np.frombuffer(value, "<f8")


def _pairs(text: Any) -> dict[str, Any]:
    """Key-value pairs as plain JSON values: no ASE object is created from the content of a file."""
    try:
        pairs = json.loads(text or "{}")
    except RecursionError:
        raise AtomloomError("key-value pairs nested too deeply") from None
    if not isinstance(pairs, dict):
        raise AtomloomError("key-value pairs that are not a JSON object")
    return pairs


def _lmdb(path: Path) -> Iterator[Piece]:
    import ase.db

    try:
        with ase.db.connect(path, type="aselmdb", use_lock_file=False, readonly=True) as database:
            for row in database.select():
                yield _lmdb_piece(row)
    except ImportError as error:
        raise AtomloomError(
            f"ASE cannot open it: {error}", todo="pip install ase-db-backends"
        ) from None
    except AtomloomError:
        raise
    except Exception as error:  # LMDB, ASE and JSON each raise their own
        raise AtomloomError(f"ASE cannot read it: {str(error) or type(error).__name__}") from None


def _lmdb_piece(row: Any) -> Piece:
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


def split(stream: BinaryIO, options: Mapping[str, Any]) -> Iterator[Piece]:
    """Refuse: a database can only be opened by its path."""
    raise AtomloomError("a database must be opened by its path")


def parse(payload: bytes, options: Mapping[str, Any]) -> Structure:
    """Refuse: a database is not a single record."""
    raise AtomloomError("a database is not a structure: its rows are")
