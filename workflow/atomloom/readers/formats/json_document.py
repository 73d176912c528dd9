"""JSON documents of structures, from various programs: one record per entry, read as a stream.

Supported are a list of entries, a dict of entries by name, a single entry, one entry per line,
pandas' orientations `split` (Matbench), `records`, `index`, `table` and `columns` (its default, which
is read whole), ASE's JSON databases, and groups of entries (`{"train": {...}}`).
An entry is a pymatgen Structure or Molecule, a JARVIS atoms dict, the text of a CIF or POSCAR, or a
row that holds one of them alongside labels.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from atomloom.errors import AtomloomError
from atomloom.readers import entries
from atomloom.readers.base import MAX_RECORD_BYTES, Piece, borrowed, decode, unreadable
from atomloom.readers.formats import ase_json

NAME = "json"
ABOUT = "JSON of pymatgen, Materials Project, Matbench, JARVIS (single, list, dict, lines)"
PATTERNS = ("*.jsonl", "*.ndjson")
HINTS = ("*.json",)
OPTIONS = entries.OPTIONS

_SINGLE = frozenset((
    "@module", "@class", "@version", "sites", "lattice", "lattice_mat", "coords", "elements", "numbers",
    "positions", *entries.STRUCTURE_KEYS,
))  # fmt: skip
"""Keys that distinguish a single entry from a dict of entries by name."""

_HEAD = re.compile(rb"\A(?:\xef\xbb\xbf)?\s*[\[{]")
_SIGNS = (
    rb'"sites"', rb'"lattice_mat"', rb'"lattice"', rb'"structure"', rb'"cif"', rb'"poscar"',
    rb'{"columns"', rb'{"index"', rb'"atoms"', b"irect\\", b"artesian\\", rb"_cell_length_a",
)  # fmt: skip
_FIRST_READ = 1 << 20


def sniff(head: bytes) -> bool:
    """Whether there is a list or object with a key that structures have."""
    return _HEAD.match(head) is not None and any(sign in head for sign in _SIGNS)


def split(stream: BinaryIO, options: Mapping[str, Any]) -> Iterator[Piece]:
    """One record per entry; only one entry is held at a time."""
    scanner = _Scanner(stream)
    while scanner.peek():
        if scanner.peek() == "[":
            for value in scanner.items():
                yield from entries.entry(value, options)
        elif scanner.peek() == "{":
            yield from _object(scanner, options)
        else:
            yield from entries.entry(scanner.value(), options)


def parse(payload: bytes, options: Mapping[str, Any]) -> Piece:
    """Record of the only entry of a document."""
    pieces = list(split(io.BytesIO(payload), options))
    if len(pieces) != 1:
        raise AtomloomError(f"{len(pieces)} entries, not one")
    return pieces[0]


def _object(scanner: _Scanner, options: Mapping[str, Any]) -> Iterator[Piece]:
    """Records of a top-level object: a single entry, entries by name, or a table in pandas' form `split`."""
    others: dict[str, Any] = {}
    single = found = False
    rows: list[str] = []  # of an ASE database
    usual = _SINGLE | {str(options.get("structure_column"))}
    for key in scanner.object_keys():
        if key == "data" and "columns" in others and scanner.peek() == "[":
            yield from _table(scanner, others["columns"], others.get("index"), options)
            found = True
        elif single or key in usual or key in ("columns", "index"):
            single = single or key in usual
            others[key] = scanner.value()
        elif scanner.peek() == "[" and not found and key not in entries.ID_KEYS:
            others[key] = scanner.value()
        else:
            value = scanner.value()
            if rows and key == ase_json.METADATA:
                others[key] = value
            elif entries.is_entry(value, options):
                if isinstance(value, dict) and ase_json.is_row(value):
                    rows.append(key)
                yield from entries.entry(value, options, key)
                found = True
            else:
                others[key] = value  # a column next to that of structures, or an entry without one
    if single:
        yield from entries.columns(others, options) or entries.entry(others, options)
        return
    lists = [value for value in others.values() if _is_list_of_entries(value)]
    strange: dict[str, Any] = {k: value for k, value in others.items() if isinstance(value, dict)}
    if rows:
        strange.pop(ase_json.METADATA, None)
        ase_json.require_all(rows, strange, others.get("ids"))
    if found and "columns" not in others:  # an entry by name that would be lost
        strange |= {key: value for key, value in others.items() if value is None}
    if found or (strange and not lists):
        for key, value in strange.items():
            yield from entries.entry(value, options, key)
    elif "data" in others and "columns" in others:  # the columns came after the data
        yield from _rows(others["data"], others["columns"], others.get("index"), options)
    elif lists:
        for value in lists:
            for member in value:
                yield from entries.entry(member, options)
    else:
        yield unreadable(
            f"no structure in this object (keys: {', '.join(list(others)[:12]) or 'none'})"
        )


def _is_list_of_entries(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def _table(
    scanner: _Scanner, columns: Any, index: Any, options: Mapping[str, Any]
) -> Iterator[Piece]:
    yield from _rows(scanner.items(), columns, index, options)


def _rows(rows: Any, columns: Any, index: Any, options: Mapping[str, Any]) -> Iterator[Piece]:
    if not isinstance(columns, list):
        raise AtomloomError("`columns` is not a list")
    names = [str(column) for column in columns]
    column = entries.find_column(names, options.get("structure_column"), entries.STRUCTURE_KEYS)
    if column is None:
        raise AtomloomError(
            f"no column of structures among {', '.join(names[:12])}",
            todo="name it by the option `structure_column`",
        )
    named = isinstance(index, list) and all(isinstance(name, str) for name in index)
    for number, values in enumerate(rows):
        id = index[number] if named and number < len(index) else ""
        if not isinstance(values, list) or len(values) != len(names):
            yield unreadable(f"row {number} does not have {len(names)} values")._replace(id=id)
            continue
        yield entries.row(entries.by_name(names, values), column, options, id)


class _Scanner:
    """Scanner of the values of a JSON text, one by one, with a buffer no larger than needed."""

    def __init__(self, stream: BinaryIO) -> None:
        self._text = io.TextIOWrapper(borrowed(stream), encoding="utf-8-sig", errors="strict")
        self._decoder = json.JSONDecoder()
        self._buffer, self._at, self._ended = "", 0, False

    def peek(self) -> str:
        """Next character that is not a space; empty at the end."""
        while True:
            while self._at < len(self._buffer):
                if self._buffer[self._at] not in " \t\r\n":
                    return self._buffer[self._at]
                self._at += 1
            if not self._more(_FIRST_READ):
                return ""

    def value(self) -> Any:
        """Next value, decoded."""
        if not self.peek():
            raise AtomloomError("the JSON ends too early")
        size = _FIRST_READ
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._at)
            except (ValueError, RecursionError) as error:
                if isinstance(error, RecursionError):
                    raise AtomloomError("JSON nested too deeply") from None
                if len(self._buffer) - self._at > MAX_RECORD_BYTES:
                    raise AtomloomError("one JSON entry is too large, or damaged") from None
                if not self._more(size):
                    raise AtomloomError(f"not valid JSON: {error.msg}") from None  # type: ignore[attr-defined] # the only ValueError of the decoder
                size *= 2
                continue
            # a number may continue in what has not been read yet
            if end == len(self._buffer) and self._more(size):
                continue
            self._at = end
            return value

    def items(self) -> Iterator[Any]:
        """Iterate over the list that starts here."""
        self._expect("[")
        if self.peek() == "]":
            self._at += 1
            return
        while True:
            yield self.value()
            if self._expect(",]") == "]":
                return

    def object_keys(self) -> Iterator[str]:
        """Iterate over the keys of the object that starts here; the caller takes the value after each key."""
        self._expect("{")
        if self.peek() == "}":
            self._at += 1
            return
        while True:
            key = self.value()
            if not isinstance(key, str):
                raise AtomloomError("not valid JSON: a key that is not text")
            self._expect(":")
            yield key
            if self._expect(",}") == "}":
                return

    def _expect(self, characters: str) -> str:
        found = self.peek()
        if not found or found not in characters:
            got = f"`{found}`" if found else "the end"
            raise AtomloomError(f"not valid JSON: {got} where one of `{characters}` should be")
        self._at += 1
        return found

    def _more(self, size: int) -> bool:
        if self._ended:
            return False
        try:
            text = self._text.read(size)
        except UnicodeDecodeError as error:
            raise AtomloomError(f"not valid JSON: {error}") from None
        self._ended = not text
        self._buffer = self._buffer[self._at :] + text
        self._at = 0
        return bool(text)


def load(payload: bytes) -> dict[str, Any]:
    """Decode the object in a record's payload.

    Raises:
        AtomloomError: when it is not an object.
    """
    try:
        value = json.loads(decode(payload))
    except RecursionError:
        raise AtomloomError("JSON nested too deeply") from None
    except ValueError as error:
        raise AtomloomError(f"not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise AtomloomError("not a JSON object")
    return value
