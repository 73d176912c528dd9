"""POSCAR, CONTCAR and XDATCAR of VASP, versions 4 to 6, direct and Cartesian coordinates.

A file may hold several structures: the frames of an XDATCAR, with one common cell or a cell each, or
concatenated files. Velocities, the predictor-corrector and grids after the coordinates are
skipped; more coordinates than atoms, or a text followed by numbers, are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from atomloom.errors import AtomloomError
from atomloom.readers.base import MAX_RECORD_BYTES, Piece, decode, floats, integer
from atomloom.structures.elements import NUMBERS, atomic_numbers
from atomloom.structures.structure import Structure

NAME = "poscar"
ABOUT = "POSCAR, CONTCAR and XDATCAR of VASP"
PATTERNS = (
    "*.vasp", "*.poscar", "*.contcar", "*.xdatcar", "poscar*", "contcar*", "xdatcar*", "*_poscar",
    "*_contcar", "*_xdatcar",
)  # fmt: skip
HINTS = ()
OPTIONS: dict[str, str] = {}

MAX_ATOMS = 10_000_000
_BLOCK = 1 << 16
_LONGEST = 8 << 20
_AHEAD = 40
"""Number of lines within which elements and numbers of atoms must end."""
_FRAME = re.compile(rb"\s*(?:[a-z]+\s+configuration|konfig)\s*=", re.IGNORECASE)
_BEHIND = re.compile(
    r"(?:c|k|d|cart\w*|kart\w*|direct|fractional|lattice velocities.*|velocities|augmentation.*)\s*",
    re.IGNORECASE,
)
"""Lines that VASP writes between the numbers after the coordinates."""
_FLAGS = frozenset(("T", "F", "t", "f", ".T.", ".F.", ".TRUE.", ".FALSE."))
_FORTRAN = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[dD][-+]?\d+")
_ELEMENT = re.compile(r"([A-Z][a-z]?)(\d*)")


def sniff(head: bytes) -> bool:
    """Whether there are a comment, a number and three lines of three numbers."""
    lines = _unescaped(head).split(b"\n", 6)[1:5]
    rows = [line[:400].split() for line in lines]
    if list(map(len, rows)) not in ([1, 3, 3, 3], [3, 3, 3, 3]):
        return False
    words = [word for row in rows for word in row]
    try:
        return len(list(map(float, words))) > 0
    except ValueError:
        return all(map(_is_number, words))


def split(stream: BinaryIO, options: Mapping[str, Any]) -> Iterator[Piece]:
    """One record per structure; a frame of an XDATCAR without its own cell gets the last one."""
    lines = _Lines(stream)
    header: list[bytes] = []
    count = 0
    unnamed = False
    while ahead := lines.peek(_AHEAD):
        start, size = lines.offset, 0
        shared = header if _is_frame(ahead, unnamed) else []
        if not shared:
            try:
                _, counts, size = _composition(decode(b"".join(ahead)).split("\n"))
            except AtomloomError:  # parsing it will say what is wrong
                yield Piece(b"".join(lines.take(MAX_RECORD_BYTES)), start)
                return
            count = sum(counts)
        selective = ahead[size : size + 1] and ahead[size].lstrip()[:1] in (b"S", b"s")
        frame = lines.take(size + (2 if selective else 1) + count)
        header = shared or frame[:size]
        unnamed = not selective and not b"".join(frame[size : size + 1]).strip()
        while lines.peek(1) and not _begins(lines, unnamed):
            frame += lines.take(1)
            if lines.offset - start > MAX_RECORD_BYTES:
                raise AtomloomError(f"a record of more than {MAX_RECORD_BYTES >> 20} MiB")
        yield Piece(b"".join(shared + frame), -1 if shared else start)


def _is_frame(ahead: Sequence[bytes], unnamed: bool) -> bool:
    """Whether a frame of an XDATCAR without its own cell begins here.

    Args:
        ahead: the next lines.
        unnamed: whether a blank line came where frames of VASP 5.2.12 and later have a name.
    """
    if _FRAME.match(ahead[0]):
        return True
    if not unnamed or ahead[0].strip() or len(ahead) < 2:
        return False
    words = ahead[1].split()
    return len(words) == 3 and all(map(_is_number, words))


def _begins(lines: _Lines, unnamed: bool) -> bool:
    """Whether another structure begins here: a frame of an XDATCAR, or a whole POSCAR."""
    ahead = lines.peek(6)
    if _is_frame(ahead, unnamed):
        return True
    # most lines are those of grids and velocities and end here
    if len(ahead) < 6 or not (ahead[5].split() or [b"."])[0].isalnum():
        return False
    if not sniff(b"".join(ahead)):
        return False
    texts = decode(b"".join(lines.peek(_AHEAD))).split("\n")
    try:
        symbols, counts, end = _composition(texts)
        atomic_numbers(symbols or ())
    except AtomloomError:
        return False
    mode = texts[end].lstrip()[:1] if end < len(texts) else "?"
    return sum(counts) > 0 and (mode.isalpha() or (unnamed and not mode))


class _Lines:
    """Lines of a stream, with look-ahead."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lines: list[bytes] = []
        self._at = 0
        self._tail = b""
        self._ended = False
        self.offset = 0
        """Offset of the next line."""

    def peek(self, count: int) -> list[bytes]:
        """Next lines, fewer where the file ends, without consuming them.

        Raises:
            AtomloomError: when a line is too long.
        """
        while len(self._lines) < self._at + count and not self._ended:
            block = self._stream.read(_BLOCK)
            self._ended = len(block) < _BLOCK
            more = (self._tail + block).splitlines(keepends=True)
            self._tail = more.pop() if more and not self._ended else b""
            if len(self._tail) > _LONGEST:
                raise AtomloomError(f"a line of more than {_LONGEST >> 20} MiB")
            self._lines = self._lines[self._at :] + more
            self._at = 0
        return self._lines[self._at : self._at + count]

    def take(self, count: int) -> list[bytes]:
        """Next lines, consumed.

        Raises:
            AtomloomError: when they are too long for a record.
        """
        taken: list[bytes] = []
        size = 0
        while len(taken) < count and self.peek(1):
            block = self._lines[self._at : self._at + count - len(taken)]
            taken += block
            self._at += len(block)
            size += sum(map(len, block))
            if size > MAX_RECORD_BYTES:
                raise AtomloomError(f"a record of more than {MAX_RECORD_BYTES >> 20} MiB")
        self.offset += size
        return taken


def parse(payload: bytes, options: Mapping[str, Any]) -> Structure:
    """Crystal of one record, periodic in three directions."""
    lines = decode(_unescaped(payload)).splitlines()
    if len(lines) < 8:
        raise AtomloomError(f"ends after {len(lines)} lines")
    cell = floats([token for n in (2, 3, 4) for token in _three(lines, n)], "lines 3 to 5: ")
    cell = cell.reshape(3, 3)
    scale = _scale(lines[1], cell)
    cell = cell * scale

    symbols, counts, line = _composition(lines)
    total = sum(counts)
    if not 0 < total <= MAX_ATOMS:
        raise AtomloomError(f"line {line}: {total} atoms" if counts else f"line {line}: no atoms")
    if symbols and len(symbols) != len(counts):
        raise AtomloomError(f"line 6: {len(symbols)} elements but {len(counts)} numbers of atoms")
    line += line < len(lines) and lines[line].lstrip()[:1] in ("S", "s")  # selective dynamics
    mode = lines[line].lstrip()[:1].lower() if line < len(lines) else ""
    rows = lines[line + 1 : line + 1 + total]
    if len(rows) < total:
        raise AtomloomError(f"{len(rows)} of {total} coordinate lines")
    words = [row.split(None, 3) for row in rows]
    tokens = [token for row in words for token in row[:3]]
    if len(tokens) != 3 * total:
        short = next(n for n, row in enumerate(words) if len(row) < 3)
        raise AtomloomError(f"line {line + 2 + short}: not three coordinates")
    _check_remainder(lines, line + 1 + total, total)
    coordinates = floats(tokens, f"lines {line + 2} to {line + 1 + total}: ").reshape(total, 3)
    # VASP: C, c, K, k mean Cartesian, anything else direct coordinates
    positions = coordinates * scale if mode in ("c", "k") and mode else coordinates @ cell
    numbers = _numbers(lines[0], symbols, counts, [row[3] if len(row) > 3 else "" for row in words])
    return Structure(numbers, positions, cell, np.ones(3, dtype=bool))


def _composition(lines: Sequence[str]) -> tuple[list[str], list[int], int]:
    """Elements (none in version 4), their numbers of atoms, and the index of the line after them.

    Both continue over several lines where there are many.
    """
    at = 5
    symbols: list[str] = []
    while at < len(lines) and (words := _words(lines[at])) and not words[0][0].isdigit():
        # VASP 6 appends a hash, POTCAR flavours an underscore: Ti/1a2b, Fe_pv
        symbols += [
            re.split("[/_]", w, maxsplit=1)[0] if "/" in w or "_" in w else w for w in words
        ]
        at += 1
    counts: list[int] = []
    while at < len(lines) and not (symbols and len(counts) >= len(symbols)):
        words = _words(lines[at])
        if counts and not all(word.isdigit() for word in words or [""]):
            break
        counts += [integer(word, f"line {at + 1}: number of atoms") for word in words]
        at += 1
        if not counts:
            break
    return symbols, counts, at


def _check_remainder(lines: list[str], first: int, atoms: int) -> None:
    """Refuse anything after the coordinates that may be atoms; velocities, the predictor-corrector, grids
    and remarks are skipped."""
    following = lines[first].split()[:3] if first < len(lines) else []
    if len(following) == 3 and all(map(_is_number, following)):
        raise AtomloomError(f"line {first + 1}: more coordinates than atoms")
    text = -1
    vectors = blocks = (
        0  # rows of three numbers since the last other line; complete runs of one per atom
    )
    for number in range(first, len(lines)):
        start = lines[number].lstrip()[:1]
        if start.isalpha() or not start:
            blocks += vectors == atoms
            vectors = 0
        if start.isalpha():
            text = -1 if _BEHIND.fullmatch(lines[number].strip()) else number
        elif text >= 0 and start and start not in "#!":
            raise AtomloomError(
                f"line {text + 1}: `{lines[text].strip()[:40]}`, and the numbers after it, are not velocities"
            )
        elif start:
            vectors += 1 if len(lines[number].split()) == 3 else -len(lines)
    if blocks + (vectors == atoms) > 1:
        raise AtomloomError(
            f"several times {atoms} rows after the coordinates: more than velocities"
        )


def _numbers(comment: str, symbols: list[str], counts: list[int], behind: list[str]) -> np.ndarray:
    """[N] atomic numbers, from the line of elements, the words after the coordinates or the comment.

    Raises:
        AtomloomError: when there is no element, or two of these disagree.
    """
    by_atom = _elements_behind(behind, counts)
    where = "line 6"
    if not symbols:
        symbols, where = _elements_of_comment(comment, counts), "the comment"
    if not symbols:
        if by_atom is None:
            raise AtomloomError(
                "no element symbols: neither a line of them, nor words after the coordinates, and the "
                "comment is not a list of them",
                todo="put one above the numbers of atoms",
            )
        return by_atom
    numbers = np.repeat(atomic_numbers(symbols), counts)
    if by_atom is not None and not np.array_equal(numbers, by_atom):
        raise AtomloomError(f"{where} has other elements than the words after the coordinates")
    return numbers


def _elements_behind(behind: list[str], counts: list[int]) -> np.ndarray | None:
    """[N] atomic numbers from the symbols after the coordinates, of all atoms or of the first of each
    kind; None without symbols."""
    if not any(behind):
        return None
    words = [_word_behind(text) for text in behind]
    symbols: list[str] = []
    for count in counts:
        of_kind = words[len(symbols) : len(symbols) + count]
        symbols += [of_kind[0] if word not in NUMBERS else word for word in of_kind]
    return atomic_numbers(symbols) if all(symbol in NUMBERS for symbol in symbols) else None


def _word_behind(text: str) -> str:
    """First word after three coordinates that is not a flag of the selective dynamics."""
    words = text.split(None, 4)
    if len(words) >= 3 and _FLAGS.issuperset(words[:3]):
        words = words[3:]
    return words[0] if words else ""


def _elements_of_comment(comment: str, counts: list[int]) -> list[str]:
    """Elements of a comment that is nothing but a list of them, as in VASP 4; numbers in it must be those
    of the atoms, or in proportion to them."""
    found = [_ELEMENT.fullmatch(word) for word in _words(comment)]
    symbols = [match[1] for match in found if match and match[1] in NUMBERS]
    if len(symbols) != len(found) or len(found) != len(counts):
        return []
    if any(match[2] for match in found if match):
        formula = [int(match[2] or 1) for match in found if match]
        if any(formula[0] * n != counts[0] * m for n, m in zip(counts, formula, strict=True)):
            return []
    return symbols


def _unescaped(payload: bytes) -> bytes:
    """Text with line ends restored, where JSON-encoding it twice left a backslash and an n for each."""
    if b"\\n" in payload and b"\n" not in payload.strip() and payload.lstrip()[:1] not in b"{[":
        return payload.replace(b"\\n", b"\n")
    return payload


def _three(lines: list[str], number: int) -> list[str]:
    tokens = lines[number].split()
    if len(tokens) < 3:
        raise AtomloomError(f"line {number + 1}: not a lattice vector")
    return tokens[:3]


def _scale(line: str, cell: np.ndarray) -> float | np.ndarray:
    """Scaling factor, or three of them; a negative one is the volume of the cell in A^3."""
    tokens = line.split()
    if len(tokens) >= 3 and all(_is_number(token) for token in tokens[:3]):
        factors = floats(tokens[:3], "line 2: ")
        if (factors <= 0).any():
            raise AtomloomError("line 2: three scaling factors must be positive")
        return factors
    if not tokens:
        raise AtomloomError("line 2: no scaling factor")
    factor = float(floats(tokens[:1], "line 2: ")[0])
    if factor < 0:
        volume = abs(float(np.linalg.det(cell)))
        if not volume > 0:
            raise AtomloomError("lines 3 to 5: lattice vectors are linearly dependent")
        return (-factor / volume) ** (1 / 3)
    if factor == 0:
        raise AtomloomError("line 2: scaling factor is zero")
    return factor


def _is_number(token: str | bytes) -> bool:
    try:
        float(token)
    except ValueError:
        return _FORTRAN.fullmatch(decode(token) if isinstance(token, bytes) else token) is not None
    return True


def _words(line: str) -> list[str]:
    """Tokens before a comment."""
    words = line.split()
    if "!" not in line and "#" not in line:
        return words
    for place, word in enumerate(words):
        if word[0] in "!#":
            return words[:place]
    return words
