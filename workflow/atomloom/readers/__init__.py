"""Readers: from files, folders and archives of many formats to structures.

Importing this loads nothing heavier than numpy; chemistry libraries are imported by the reader that
needs one, when it does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from atomloom.errors import AtomloomError
from atomloom.readers.naming import tell_apart
from atomloom.readers.registry import parse_record
from atomloom.readers.sources import RawRecord, enumerate_records, list_files
from atomloom.structures.structure import Structure

__all__ = ["RawRecord", "enumerate_records", "list_files", "parse_record", "read"]


def read(path: str | Path, format: str = "auto", **options: Any) -> list[Structure]:
    """Read all structures of a file, folder or archive, in natural order, with their ids.

    Args:
        path: file, folder or archive, compressed or not.
        format: name of the format, or `auto` to recognise it by name and content.
        options: options of the readers, such as `box="molecule"` or `structure_column="cif"`; and
            `pattern`, a glob that names of files or members must match.

    Raises:
        AtomloomError: at the first record that is not a structure, or when nothing is found.
    """
    pattern = options.pop("pattern", None)
    files = list_files(path, pattern, format)
    structures: list[Structure] = []
    sources = []
    for record in enumerate_records(files, format, options, pattern):
        file = files[record.file]
        where = f"{file}::{record.member}" if record.member else str(file)
        try:
            structures.append(parse_record(record.format, record.payload, record.id, options))
            sources.append(where)
        except AtomloomError as error:
            raise AtomloomError(
                error.what, where=f"{where}, {record.id}", todo=error.todo
            ) from error
    if not structures:
        raise AtomloomError("no structure found", where=path)
    ids = [structure.id for structure in structures]
    told_apart, _ = tell_apart(ids, ids, sources)
    return [s if s.id == id else s.named(id) for s, id in zip(structures, told_apart, strict=True)]
