"""Common parts of readers: the pieces a file is cut into, and small helpers for parsing text.

A reader is a module with the names of `Reader`. It knows nothing of folders, archives or
compression (`atomloom.readers.sources` does) or of the further use of a structure.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, BinaryIO, NamedTuple, Protocol, runtime_checkable

import numpy as np

from atomloom.errors import AtomloomError
from atomloom.structures.structure import Structure

MAX_RECORD_BYTES = 256 << 20
"""Max bytes of a single record; a larger one is refused instead of read into memory."""

_BLOCK = 1 << 16
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)

RECORD: ContextVar[str] = ContextVar("record", default="")
"""Name of the record being parsed, for log messages."""

PLAIN_JSON = "structure"
"""Name of the format that `dump_structure` writes."""
UNREADABLE = "unreadable"
"""Format of a record that stands for bytes that cannot be split; its payload is the reason."""


BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")
WIDE = "text in UTF-16 or UTF-32: save it as UTF-8"
"""Reason for refusing text in these encodings."""


class Piece(NamedTuple):
    """Record as a reader cuts it out of a file."""

    payload: bytes
    """Bytes for `parse`."""
    offset: int = -1
    """Offset of the payload in the file; -1 where it is not a byte range of the file."""
    id: str = ""
    """Name of the record, where the file gives one; a name that begins with a hyphen is appended to the
    name of the file."""
    labels: Mapping[str, float | str] = {}
    """Values alongside the structure, not in it."""
    format: str = ""
    """Format of the payload, where it is not the reader's own."""


@runtime_checkable
class Reader(Protocol):
    """Names that a reader module declares.

    A reader of files that must be opened by path (databases, folders of arrays) declares
    `split_path(path, options)` as well, and `NEEDS_FOLDER = True` if it opens other files of the folder. One
    whose records hold text by name, as comment lines of extxyz do, declares `texts(payload, names)`.
    """

    NAME: str
    """Name of the format in configs and records."""
    ABOUT: str
    """One line for `--help`."""
    PATTERNS: tuple[str, ...]
    """Globs of lower-case file names (without .gz and the like) that are of the format, unless
    `sniff` of another reader accepts the content and that of this one does not."""
    HINTS: tuple[str, ...]
    """Globs of names that count only for a file that the user names directly or that `sniff`
    accepts: names such as `*.json` have many uses."""
    OPTIONS: Mapping[str, str]
    """Options of the reader, each with a sentence."""

    def sniff(self, head: bytes) -> bool:
        """Whether a file that starts like this is of the format."""

    def split(self, stream: BinaryIO, options: Mapping[str, Any]) -> Iterator[Piece]:
        """Cut a file into records, in order, holding one at a time."""

    def parse(self, payload: bytes, options: Mapping[str, Any]) -> Structure | Piece:
        """Turn one record into a structure, or a container into the record of another format within."""


def split_whole(stream: BinaryIO, options: Mapping[str, Any]) -> Iterator[Piece]:
    """Cut a file into one record, the whole of it."""
    yield Piece(read_limited(stream), 0)


def read_limited(stream: BinaryIO, limit: int = MAX_RECORD_BYTES) -> bytes:
    """Read a stream to its end.

    Raises:
        AtomloomError: when that is more than `limit` bytes.
    """
    # not read(limit): that would allocate this much memory each time
    blocks, size = [], 0
    while block := stream.read(_BLOCK):
        blocks.append(block)
        size += len(block)
        if size > limit:
            raise AtomloomError(f"a record of more than {limit >> 20} MiB")
    return blocks[0] if len(blocks) == 1 else b"".join(blocks)


def is_wide(text: bytes) -> bool:
    """Whether text is in UTF-16 or UTF-32, with a byte order mark or without."""
    start = text[:64]
    return start.startswith(_WIDE_MARKS) or (
        len(start) >= 8 and any(start) and not (any(start[0::2]) and any(start[1::2]))
    )


def plain_text(payload: bytes) -> bytes:
    """Text without a byte order mark, with line feeds in place of carriage returns.

    Raises:
        AtomloomError: when it is in UTF-16 or UTF-32.
    """
    if is_wide(payload):
        raise AtomloomError(WIDE)
    payload = payload.removeprefix(BYTE_ORDER_MARK)
    if b"\r" in payload and b"\n" not in payload:
        payload = payload.replace(b"\r", b"\n")
    return payload


def unreadable(reason: object) -> Piece:
    """Record that stands for bytes that cannot be read; parsing it raises the reason."""
    return Piece(" ".join(str(reason).split()).encode(), format=UNREADABLE)


def decode(payload: bytes) -> str:
    """Text of a record; bytes that are not UTF-8 are taken for Latin-1 (names of authors)."""
    try:
        return payload.decode()
    except UnicodeDecodeError:
        return payload.decode("latin-1")


def floats(tokens: list[str], where: str = "") -> np.ndarray:
    """[len(tokens)] float64 values of words.

    Raises:
        AtomloomError: naming the first token that is not a number.
    """
    try:
        values = np.array(list(map(float, tokens)), dtype=np.float64)
    except ValueError:
        values = np.array([_float(token, where) for token in tokens], dtype=np.float64)
    if "_" in "".join(tokens):  # Python reads 1_0 as 10
        raise AtomloomError(f"{where}not a number: `{next(t for t in tokens if '_' in t)[:40]}`")
    return values


def _float(token: str, where: str) -> float:
    try:
        return float(token)
    except ValueError:
        try:
            return float(token.lower().replace("d", "e"))  # Fortran's double precision exponent
        except ValueError:
            raise AtomloomError(f"{where}not a number: `{token[:40]}`") from None


def label_number(text: str) -> float | None:
    """Number in a cell of a table; None where it is not a number.

    Only the usual notation: Python would also accept `1_0`, digits of other scripts and `infinity`.
    """
    text = text.strip()
    return float(text) if _NUMBER.fullmatch(text) else None


def integer(token: str, what: str, least: int = 0) -> int:
    """Whole number written in a word.

    Raises:
        AtomloomError: naming `what` when the token is not one, or is below `least`.
    """
    if (
        not (token.isascii() and token.lstrip("+-").isdigit())
        or len(token) > 18
        or int(token) < least
    ):
        raise AtomloomError(f"{what} is not a count: `{token[:40]}`")
    return int(token)


def scalar_labels(row: Mapping[str, Any], leave_out: Iterable[str] = ()) -> dict[str, float | str]:
    """Values of a row that can be labels: numbers as floats, and texts."""
    skip = set(leave_out)
    labels: dict[str, float | str] = {}
    for name, value in row.items():
        if name in skip:
            continue
        if isinstance(value, (bool, int, float)):
            labels[str(name)] = float(value)
        elif isinstance(value, str):
            labels[str(name)] = value
    return labels


def dump_json(value: Any) -> bytes:
    """Canonical compact JSON: equal content gives equal bytes, whatever the spacing in the file."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def borrowed(stream: BinaryIO) -> BinaryIO:
    """View of a stream that a text wrapper may drop without closing the stream."""
    return io.BufferedReader(_Borrowed(stream), 1 << 16)


class _Borrowed(io.RawIOBase):
    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def dump_structure(
    numbers: Any, positions: Any, cell: Any, pbc: Any, properties: Mapping[str, Any]
) -> bytes:
    """Payload of a structure, from unchecked arrays."""
    return dump_json(
        {
            "numbers": np.asarray(numbers).tolist(),
            "positions": np.asarray(positions, dtype=np.float64).tolist(),
            "cell": np.asarray(cell, dtype=np.float64).tolist(),
            "pbc": np.asarray(pbc, dtype=bool).tolist(),
            "properties": {
                name: np.asarray(value, dtype=np.float64).tolist()
                for name, value in properties.items()
            },
        }
    )
