"""CSV tables with the text of a structure in one column; the other columns are labels."""

from __future__ import annotations

import codecs
import csv
import io
import math
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any, BinaryIO

from atomloom.errors import AtomloomError
from atomloom.readers import entries
from atomloom.readers.base import (
    MAX_RECORD_BYTES,
    Piece,
    borrowed,
    label_number,
    unreadable,
)
from atomloom.structures.structure import Structure

NAME = "csv"
ABOUT = "CSV with CIF, POSCAR or JSON text in a column"
PATTERNS: tuple[str, ...] = ()
HINTS = ("*.csv",)
OPTIONS = entries.OPTIONS

LOOKED_AT = 20
"""Number of rows examined to see whether a column with the usual name holds structures."""


LATIN_1 = "atomloom.latin-1"
"""Error handler for bytes that are not UTF-8, so that different names stay different."""


def sniff(head: bytes) -> bool:
    """Whether the first line names a column of structures, and structures are in it.

    A label table may have such a column as well, holding `cubic` or names of files.
    """
    text = head.decode("utf-8", "replace").lstrip("\ufeff")
    first = text.split("\n", 1)[0].strip()
    if "," not in first or len(first) > 10_000 or "{" in first:
        return False
    try:
        rows = csv.reader(io.StringIO(text.lstrip(), newline=""))
        header = next(rows)
        column = entries.find_column(header, None, entries.STRUCTURE_KEYS)
        if column is None:
            return False
        place = header.index(column)
        cells = [row[place] for row in islice(rows, LOOKED_AT) if row[place:]]
    except csv.Error:  # no text
        return False
    told = [cell for cell in cells if cell.strip()]
    return not told or any(
        cell.lstrip().startswith("{") or entries.is_entry(cell, {}) for cell in told
    )


def split(stream: BinaryIO, options: Mapping[str, Any]) -> Iterator[Piece]:
    """One record per row.

    Raises:
        AtomloomError: when no column holds structures, or the table is damaged.
    """
    csv.field_size_limit(MAX_RECORD_BYTES)  # the default of 128 KiB is too small for a large CIF
    text = io.TextIOWrapper(borrowed(stream), encoding="utf-8-sig", errors=LATIN_1, newline="")
    rows = csv.reader(_lines(text))
    try:
        header = next(rows, [])
        column = entries.find_column(
            header, options.get("structure_column"), entries.STRUCTURE_KEYS
        )
        if column is None:
            raise AtomloomError(
                f"no column of structures among {', '.join(header[:12]) or 'none'}",
                todo="name it by the option `structure_column`",
            )
        named = entries.find_column(header, options.get("id_column"), entries.ID_KEYS)
        texts = {column, named}
        for row in rows:
            if not row:
                continue
            if len(row) != len(header):
                yield unreadable(f"line {rows.line_num}: {len(row)} columns, not {len(header)}")
                continue
            values = entries.by_name(header, row)
            labels = {name: v if name in texts else _value(v) for name, v in values.items() if name}
            yield entries.row(labels, column, options)
    except csv.Error as error:
        raise AtomloomError(f"line {rows.line_num}: {error}") from None


def parse(payload: bytes, options: Mapping[str, Any]) -> Structure:
    """Refuse: a table is not a single record."""
    raise AtomloomError("a table is not a structure: its rows are")


def _lines(text: io.TextIOWrapper) -> Iterator[str]:
    for line in iter(partial(text.readline, MAX_RECORD_BYTES), ""):
        if len(line) == MAX_RECORD_BYTES:
            raise AtomloomError(f"a line of more than {MAX_RECORD_BYTES >> 20} MiB")
        yield line


def _as_latin_1(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return error.object[error.start : error.end].decode("latin-1"), error.end


codecs.register_error(LATIN_1, _as_latin_1)


def _value(text: str) -> float | str:
    number = label_number(text)
    return text if number is None or math.isinf(number) else number
