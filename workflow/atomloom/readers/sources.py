"""Sources of records: files, folders, archives and compression, read as streams.

`list_files` lists the files of a source; `enumerate_records` cuts them into raw records, each a byte
string that a reader turns into one structure. Nothing is parsed here, and nothing is dropped
silently: bytes that cannot be split become a record whose parsing fails with the reason. It knows
formats only through the registry of readers.
"""

from __future__ import annotations

import bz2
import gzip
import io
import logging
import lzma
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from atomloom.errors import AtomloomError, legible
from atomloom.readers.base import (
    BYTE_ORDER_MARK,
    WIDE,
    is_wide,
    read_limited,
    unreadable,
)
from atomloom.readers.formats import ase_db, deepmd
from atomloom.readers.registry import REGISTRY, Piece, Reader, check_options, format_of, reader_of
from atomloom.store.files import (
    expand_home,
    open_plain,
    overlapped,
    plain_stat,
    read_ahead,
    scratch_folder,
)

log = logging.getLogger(__name__)

HEAD = 1 << 16
"""Number of bytes that are examined to recognise the format of a file."""
MAX_EXPANSION = 1000
"""Max ratio of unpacked to packed size; files beyond it, and beyond `LEAST_BOMB`, are refused."""
LEAST_BOMB = 1 << 30
MAX_UNPACKED_GB = 200.0
"""Default of the option `max_unpacked_gb`."""
MAX_TABLE_BYTES = 4 << 30
"""Max bytes of an unpacked label table, which is held in memory."""

READ, SKIPPED = "read", "not recognised"
"""Fates of a file of a folder; any other is logged."""

_COMPRESSED = {".gz": b"\x1f\x8b", ".xz": b"\xfd7zXZ\0", ".bz2": b"BZh"}
_OPENERS: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": lambda packed: gzip.GzipFile(fileobj=packed, mode="rb"),
    ".xz": lzma.LZMAFile,
    ".bz2": bz2.BZ2File,
}
_TARS = (".tar", ".tar.gz", ".tar.xz", ".tar.bz2", ".tgz", ".txz", ".tbz2", ".tbz")
_TABLES = ("*.csv", "*.tsv", "*.parquet", "id_prop*", "readme*", "license*", "licence*", "*.md", "*.rst",
           "*.pdf", "*.py", "*.ipynb", "*.yaml", "*.yml", "*.log", "*.html", "makefile")  # fmt: skip
_DAMAGE = (
    EOFError,
    zlib.error,
    lzma.LZMAError,
    gzip.BadGzipFile,
    zipfile.BadZipFile,
    tarfile.TarError,
    OSError,
)
_DIGITS = re.compile(r"(\d+)")
_GENERIC = frozenset(
    ("poscar", "contcar", "xdatcar", "vasprun", "outcar", "geometry", "input", "type")
)
"""Names of files that every calculation has; the folder tells them apart."""


@dataclass(frozen=True, eq=False)
class RawRecord:
    """Bytes of one structure, and their origin."""

    id: str
    """Name within the data set: the file's or archive member's stem, the value of an id column, or
    `<stem>-<number>` where a file holds several records without names."""
    file: int
    """Index into the list of source files."""
    member: str
    """Member of the archive; empty where the file is not an archive."""
    offset: int
    """Offset of the payload in the file on disk; -1 where it is not a byte range of it."""
    length: int
    """Size of the payload in bytes."""
    number: int
    """Number of the record within its file, from 0."""
    format: str
    """Format of the payload, for `parse_record`."""
    payload: bytes
    """Content of the record."""
    labels: Mapping[str, float | str] = field(default_factory=dict)
    """Values alongside the structure in its file; not part of the payload."""


def list_files(
    source: str | Path, pattern: str | None = None, format: str | None = None
) -> list[Path]:
    """List the files of a source, in natural order (2.cif before 10.cif).

    For a folder these are all files below it that some reader recognises, by name or content, and
    archives; hidden files, label tables and documents are left out, and so is an OUTCAR next to the
    vasprun.xml of the same run. With a `pattern` (a glob of the name or of the path below the folder)
    these are all files that match, and with a `format` all that are not documents.

    Raises:
        AtomloomError: when there is no such file or folder.
    """
    root = Path(expand_home(source))
    given = _given(format)
    try:
        if not root.is_dir():
            plain_stat(root)
            return [root, *_beside(root)]
    except OSError as error:
        raise AtomloomError(
            f"cannot be read: {error.strerror}", where=source, todo="check dataset.source"
        ) from None
    found: list[str] = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        found += [os.path.join(folder, name) for name in names if not _is_hidden(name)]
    found.sort(key=lambda path: natural_key(os.path.relpath(path, root)))
    listed = frozenset(found)
    kept, skipped = [], []

    def judged(path: Path) -> str:
        """Fate of a file; an empty one where it is listed after the file that it belongs to."""
        if _is_companion(path):
            return ""
        if pattern is None and given is None and _said_twice(path, listed):
            return "left out, its steps are in the vasprun.xml next to it"
        relative = path.relative_to(root).as_posix()
        return READ if _wanted(relative, pattern, given, lambda: _head_of(path)) else SKIPPED

    paths = list(map(Path, found))
    for path, fate in zip(paths, overlapped(judged, paths), strict=True):
        if fate == READ:
            kept += [path, *_beside(path)]
        elif fate == SKIPPED:
            skipped.append(path.relative_to(root).as_posix())
        elif fate:
            log.info("%s: %s", path, fate)
    if skipped:
        log.info("%s: %d files that no reader recognises: %s", root, len(skipped), _some(skipped))
    return kept


def _given(format: str | None) -> str | None:
    """Requested format; None where each file is recognised by itself.

    Raises:
        AtomloomError: when there is no such format.
    """
    if format in (None, "auto"):
        return None
    try:
        reader_of(str(format))
    except AtomloomError as error:
        raise AtomloomError(error.what, where="dataset.format", todo=error.todo) from None
    return format


def enumerate_records(
    files: Sequence[Path],
    format: str = "auto",
    options: Mapping[str, Any] | None = None,
    pattern: str | None = None,
) -> Iterator[RawRecord]:
    """Iterate over the raw records of files, file by file, in the order of their bytes.

    Only one record is held at a time (of a JSON or CSV, one entry).

    Args:
        files: as returned by `list_files`.
        format: name of the records' format, or `auto` to recognise it by name and content, file by file.
        options: options of the readers.
        pattern: a glob that name or path of archive members must match.

    Raises:
        AtomloomError: when a file is missing, an archive is damaged or unsafe, a file of several
            records breaks off in the middle, or an option is unknown.
    """
    options = dict(options or {})
    check_options(options)
    given = _given(format)
    own = [(n, path) for n, path in enumerate(map(Path, files)) if not _is_companion(path, given)]
    opening = read_ahead([path for _, path in own])
    for (index, path), opens in zip(own, opening, strict=True):
        yield from _File(index, path, given, options, pattern, opens).records()


def read_table(source: str | Path) -> bytes:
    """Read a label table, a file or a member of an archive (`archive::member`), unpacked.

    Raises:
        AtomloomError: when the file or the member is missing, larger than `MAX_TABLE_BYTES`, damaged or
            unsafe.
    """
    name, _, member = str(source).partition("::")
    path = Path(name)
    with _opened(path, {}) as opened, _damage_named(path, member):
        if opened.damage:
            raise AtomloomError(opened.damage, where=path)
        if not member:
            if opened.kind != "single":
                raise AtomloomError(
                    "is an archive", where=path, todo="name its member: archive::member"
                )
            return _table_bytes(opened.stream, path)
        if opened.kind == "single":
            raise AtomloomError("is not an archive", where=path)
        for entry, stream, _ in opened.members():
            if entry == member or entry.removeprefix("./") == member:
                head, stream = _with_head(stream)
                opener = next(
                    (_OPENERS[e] for e, m in _COMPRESSED.items() if head.startswith(m)), None
                )
                if opener is not None:
                    stream = io.BufferedReader(_Unpacked(stream, opener, path, opened.limit))
                return _table_bytes(stream, path)
    raise AtomloomError(f"no member `{member}`", where=path)


def _table_bytes(stream: Any, path: Path) -> bytes:
    try:
        return read_limited(stream, MAX_TABLE_BYTES)
    except AtomloomError as error:
        if error.where:
            raise
        raise AtomloomError(
            f"a table of more than {MAX_TABLE_BYTES >> 30} GiB",
            where=path,
            todo="cut it into several",
        ) from None


def record_id(name: str) -> str:
    """Id that a file or member gives to its record: its name without extensions.

    Names that every calculation has, such as POSCAR or vasprun.xml, give the name of the folder.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    stem = _without_compression(path.name)
    bare, ending = os.path.splitext(stem)
    if ending.lower() in _endings(tuple(REGISTRY)):
        stem = bare
    if stem.lower() in _GENERIC and path.parent.name:
        return path.parent.name
    return stem


def source_name(path: Path, member: str = "") -> str:
    """Location of a record as written in tables: `file` or `archive::member`.

    Raises:
        AtomloomError: when the file's name is not UTF-8, which no table can hold.
    """
    if legible(str(path)) != str(path):
        raise AtomloomError(
            "the name of this file is not UTF-8", where=legible(str(path)), todo="rename it"
        )
    return f"{path}::{member}" if member else str(path)


def natural_key(text: str) -> list[tuple[int, int | str]]:
    """Sort key under which 2.cif comes before 10.cif."""
    parts = _DIGITS.split(text)
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts if part]


@lru_cache(maxsize=8)
def _endings(formats: tuple[str, ...]) -> frozenset[str]:
    """Extensions that carry only the format."""
    patterns = [p for f in formats for p in (*REGISTRY[f].PATTERNS, *REGISTRY[f].HINTS)]
    return frozenset(p[1:] for p in patterns if p.startswith("*.")) | {
        ".raw",
        ".dat",
        ".data",
        ".txt",
    }


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _beside(path: Path) -> list[Path]:
    """Files that a reader opens in addition to this one."""
    if path.name == "type.raw":
        return deepmd.companions(path)
    return ase_db.companions(path) if path.suffix == ".db" else []


def _is_companion(path: Path, given: str | None = None) -> bool:
    """Whether a file is read as part of another one, of a format that may be read here."""
    if given in (None, deepmd.NAME) and deepmd.is_companion(path):
        return True
    return given in (None, ase_db.NAME) and ase_db.is_companion(path)


def _said_twice(path: Path, listed: Collection[str]) -> bool:
    """Whether a file is an OUTCAR next to its vasprun.xml, which is then among the files of the source."""
    bare = _without_compression(path.name)
    if "OUTCAR" not in bare:
        return False
    other = bare.replace("OUTCAR", "vasprun.xml")
    others = [path.with_name(f"{other}{ending}") for ending in ("", *_COMPRESSED)]
    return any(str(one) in listed and one.is_file() for one in others)


def _wanted(relative: str, pattern: str | None, given: str | None, head: Any) -> bool:
    """Whether a file of a folder or archive is to be read."""
    name = relative.rsplit("/", 1)[-1]
    if pattern is not None:
        return fnmatchcase(name, pattern) or fnmatchcase(relative, pattern)
    if given is not None:
        reader = reader_of(given)
        bare = _without_compression(name).lower()
        if any(fnmatchcase(bare, p) for p in (*reader.PATTERNS, *reader.HINTS)) or _is_archive(
            name
        ):
            return True
        return (
            not any(fnmatchcase(bare, table) for table in _TABLES)
            and _other_format(bare, given) is None
        )
    if _is_archive(name) or format_of(_without_compression(name), hints=False) is not None:
        return True
    return format_of(_without_compression(name), head(), hints=False) is not None


def _other_format(name: str, given: str) -> str | None:
    """Other format that a name certainly belongs to, if any."""
    found = format_of(name, hints=False)
    return found if found != given else None


def _is_archive(name: str) -> bool:
    return name.lower().endswith((*_TARS, ".zip"))


def _without_compression(name: str) -> str:
    stem, ending = os.path.splitext(name)
    return stem if ending.lower() in _COMPRESSED else name


def _head_of(path: Path) -> bytes:
    """First bytes of a file, unpacked; empty where that fails."""
    try:
        with open_plain(path) as file:
            head = file.read(16)
            file.seek(0)
            for ending, magic in _COMPRESSED.items():
                if head.startswith(magic):
                    with _OPENERS[ending](file) as unpacked:
                        return unpacked.read(HEAD)
            return file.read(HEAD)
    except (*_DAMAGE, AtomloomError):
        return b""


@contextmanager
def _damage_named(path: Path, member: str = "") -> Iterator[None]:
    """Turn errors while unpacking into an `AtomloomError` that says where."""
    where = f"{path}::{member}" if member else str(path)
    try:
        yield
    except _DAMAGE as error:
        raise AtomloomError(_reason(error), where=where) from None
    except (
        RuntimeError,
        NotImplementedError,
    ) as error:  # raised by zipfile for what it cannot unpack
        raise AtomloomError(f"cannot be unpacked: {error}", where=where) from None


class _Unpacked(io.RawIOBase):
    """Stream of the unpacked bytes of a file, counted to detect archive bombs."""

    def __init__(self, packed: BinaryIO, opener: Any, path: Path, limit: float) -> None:
        self._packed, self._path, self._limit = packed, path, limit
        self._inner = opener(packed)
        self._count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._inner.readinto(buffer)
        self._count += count
        if self._count > self._limit:
            raise AtomloomError(
                f"unpacks to more than {self._limit / 1e9:g} GB",
                where=self._path,
                todo="raise the option max_unpacked_gb if that is right",
            )
        if self._count > LEAST_BOMB and self._count > MAX_EXPANSION * self._packed.tell():
            raise AtomloomError(
                f"unpacks to more than {MAX_EXPANSION} times its size",
                where=self._path,
                todo="refused",
            )
        return count

    def close(self) -> None:
        self._inner.close()
        super().close()


@dataclass
class _Opened:
    """Open source file: an archive, or a single file that may be compressed."""

    path: Path
    kind: str
    """`tar`, `zip` or `single`."""
    stream: Any
    packed: bool
    """Whether bytes on disk differ from those of the stream."""
    limit: float
    damage: str = ""
    """Reason why its first bytes cannot be unpacked; empty if they can."""

    def members(self) -> Iterator[tuple[str, BinaryIO, int]]:
        """(name, stream, offset of its first byte on disk or -1) of every file in the archive."""
        return self._tar() if self.kind == "tar" else self._zip()

    def _tar(self) -> Iterator[tuple[str, BinaryIO, int]]:
        with _damage_named(self.path):
            archive = tarfile.TarFile.open(fileobj=self.stream, mode="r|", bufsize=1 << 18)
        with archive:
            while True:
                with _damage_named(self.path):
                    entry = archive.next()
                if entry is None:
                    return
                archive.members = []  # type: ignore[attr-defined] # tarfile remembers every member: too much for a million
                if entry.isdir():
                    continue
                self._refuse_unsafe(entry.name)
                if not entry.isreg() or entry.issparse():
                    kind = "a link" if entry.issym() or entry.islnk() else "not a plain file"
                    raise AtomloomError(
                        f"member `{entry.name}` is {kind}: refused", where=self.path
                    )
                stream = archive.extractfile(entry)
                if stream is not None:
                    yield entry.name, stream, -1 if self.packed else entry.offset_data  # type: ignore[misc] # read like any binary file

    def _zip(self) -> Iterator[tuple[str, BinaryIO, int]]:
        with _damage_named(self.path):
            archive = zipfile.ZipFile(self.stream)
        with archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            for entry in entries:
                self._refuse_unsafe(entry.filename)
                if stat.S_ISLNK(entry.external_attr >> 16):
                    raise AtomloomError(
                        f"member `{entry.filename}` is a link: refused", where=self.path
                    )
                if entry.flag_bits & 1:
                    raise AtomloomError(f"member `{entry.filename}` is encrypted", where=self.path)
                if entry.file_size > max(LEAST_BOMB, MAX_EXPANSION * entry.compress_size):
                    raise AtomloomError(
                        f"member `{entry.filename}` unpacks to more than {MAX_EXPANSION} times its size: "
                        "refused",
                        where=self.path,
                    )
            if sum(entry.file_size for entry in entries) > self.limit:
                raise AtomloomError(
                    f"unpacks to more than {self.limit / 1e9:g} GB",
                    where=self.path,
                    todo="raise the option max_unpacked_gb if that is right",
                )
            for entry in entries:
                with _damage_named(self.path, entry.filename):
                    stream = archive.open(entry)
                with stream:
                    yield entry.filename, io.BufferedReader(stream, 1 << 16), -1  # type: ignore[type-var] # also reads into buffers

    def _refuse_unsafe(self, name: str) -> None:
        parts = name.replace("\\", "/").split("/")
        if name.startswith(("/", "\\")) or ".." in parts or re.match(r"[A-Za-z]:", name):
            raise AtomloomError(f"member `{name}` would leave its folder: refused", where=self.path)


@contextmanager
def _opened(
    path: Path, options: Mapping[str, Any], opens: Callable[[], BinaryIO] | None = None
) -> Iterator[_Opened]:
    """Open a source file, recognised by its first bytes rather than its name; `opens` gives its content."""
    limit = float(options.get("max_unpacked_gb", MAX_UNPACKED_GB)) * 1e9
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open_plain(path) if opens is None else opens())
            magic = file.read(8)
            file.seek(0)
        except OSError as error:
            raise AtomloomError(f"cannot be read: {error.strerror}", where=path) from None
        if magic.startswith((b"PK\x03\x04", b"PK\x05\x06")):
            yield _Opened(path, "zip", file, True, limit)
            return
        ending = next((e for e, start in _COMPRESSED.items() if magic.startswith(start)), "")
        stream: Any = file
        damage = ""
        if ending:
            unpacked = stack.enter_context(_Unpacked(file, _OPENERS[ending], path, limit))
            stream = stack.enter_context(io.BufferedReader(unpacked, 1 << 18))
        try:
            head, stream = _with_head(stream)
        except _DAMAGE as error:
            head, damage = b"", _reason(error)
        named = path.name.lower().endswith(_TARS)
        kind = "tar" if head[257:262] == b"ustar" or (named and head) else "single"
        yield _Opened(path, kind, stream, bool(ending), limit, damage)


def _with_head(stream: Any) -> tuple[bytes, Any]:
    """First `HEAD` bytes of a stream, and a stream that still has them."""
    head = stream.read(HEAD)
    if len(head) < HEAD:
        return head, io.BytesIO(head)
    # never by seeking back: a member of a streamed tar claims to be seekable, but is not
    return head, io.BufferedReader(_Prefixed(head, stream), 1 << 18)


class _Prefixed(io.RawIOBase):
    """Stream of bytes that were read ahead, followed by the rest."""

    def __init__(self, head: bytes, rest: Any) -> None:
        self._head, self._rest = memoryview(head), rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._head:
            return self._rest.readinto(buffer)
        count = min(len(buffer), len(self._head))
        buffer[:count] = self._head[:count]
        self._head = self._head[count:]
        return count


class _LineFeeds(io.RawIOBase):
    """Stream of a text with carriage returns, as old editors wrote them, replaced by line feeds."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer)).replace(b"\r", b"\n")
        buffer[: len(data)] = data
        return len(data)


def _reason(error: BaseException) -> str:
    """Reason why a file cannot be unpacked."""
    return f"damaged: {getattr(error, 'strerror', None) or str(error) or 'ends too early'}"


class _File:
    """Records of one source file."""

    def __init__(
        self,
        index: int,
        path: Path,
        given: str | None,
        options: Mapping[str, Any],
        pattern: str | None,
        opens: Callable[[], BinaryIO],
    ) -> None:
        self.index, self.path, self.given = index, path, given
        self.options, self.pattern, self.opens = options, pattern, opens
        self.number = 0

    def records(self) -> Iterator[RawRecord]:
        """Iterate over records of the file, or of the members of the archive."""
        with _opened(self.path, self.options, self.opens) as opened:
            self.limit = opened.limit
            if opened.kind == "single":
                if _is_archive(self.path.name):
                    raise AtomloomError(
                        opened.damage or "damaged, or not an archive", where=self.path
                    )
                if opened.damage:
                    yield self._record(unreadable(opened.damage), record_id(self.path.name), "", -1)
                    return
                pieces = self._top_level(opened)
                yield from self._named(
                    pieces, record_id(str(self.path.absolute())), "", opened.packed
                )
                return
            yield from self._of_archive(opened)

    def _top_level(self, opened: _Opened) -> Iterator[Piece]:
        name = self.path.name
        if not opened.packed and _without_compression(name) != name:
            yield unreadable(f"is named {self.path.suffix} but is not compressed that way")
            return
        yield from self._split(
            _without_compression(name), opened.stream, None if opened.packed else self.path
        )

    def _of_archive(self, opened: _Opened) -> Iterator[RawRecord]:
        skipped = []
        for name, stream, base in opened.members():
            short = name.removeprefix("./")
            if short.startswith(".") or "/." in short or "__MACOSX/" in short:
                continue
            member = _Member(stream, self.path, name)
            if not _wanted(short, self.pattern, self.given, member.head):
                skipped.append(short)
                continue
            yield from self._named(
                self._of_member(short, member), record_id(short), name, base < 0, base
            )
        if skipped:
            log.info(
                "%s: %d members that no reader recognises: %s",
                self.path,
                len(skipped),
                _some(skipped),
            )
        if not self.number:
            raise AtomloomError(
                f"no member that a reader recognises (first: {_some(skipped) or 'it is empty'})",
                where=self.path,
                todo="set dataset.format or dataset.pattern",
            )

    def _of_member(self, name: str, member: _Member) -> Iterator[Piece]:
        """Pieces of a member, unpacked again where it is compressed inside the archive."""
        bare = _without_compression(name)
        if bare == name:
            yield from self._split(name, member.stream, None)
            return
        opener = _OPENERS[os.path.splitext(name)[1].lower()]
        with io.BufferedReader(
            _Unpacked(member.stream, opener, self.path, self.limit), 1 << 16
        ) as stream:
            for piece in self._split(bare, stream, None):
                yield piece._replace(offset=-1)

    def _named(
        self, pieces: Iterator[Piece], stem: str, member: str, packed: bool, base: int = 0
    ) -> Iterator[RawRecord]:
        """Records of the pieces of one file or member; a single record is named by the stem."""
        pieces = self._whole(pieces, f"{self.path}::{member}" if member else str(self.path))
        base = -1 if packed else base
        first, second = next(pieces, None), next(pieces, None)
        if first is None:
            first = unreadable("empty: no record in it")
        for place, piece in enumerate(chain((first,), () if second is None else (second,), pieces)):
            id = piece.id
            if not id:
                id = stem if second is None else f"{stem}-{place:06d}"
            elif id[0] == "-":
                id = stem + id
            yield self._record(piece, id, member, base)

    def _record(self, piece: Piece, id: str, member: str, base: int) -> RawRecord:
        number = self.number
        self.number += 1
        return RawRecord(
            id=legible(id),
            file=self.index,
            member=legible(member),
            offset=base + piece.offset if base >= 0 and piece.offset >= 0 else -1,
            length=len(piece.payload),
            number=number,
            format=piece.format,
            payload=piece.payload,
            labels={n: legible(v) if isinstance(v, str) else v for n, v in piece.labels.items()},
        )

    def _whole(self, pieces: Iterator[Piece], where: str) -> Iterator[Piece]:
        """Pieces in order; a file that cannot be split at all is one piece that says so."""
        count = 0
        try:
            for piece in pieces:
                yield piece
                count += 1
            return
        except _DAMAGE as error:
            reason, todo = _reason(error), ""
        except AtomloomError as error:
            if error.where:
                raise
            reason, todo = error.what, error.todo
        except Exception as error:  # a reader failed: these bytes are bad, others may be good
            reason, todo = f"cannot be split: {type(error).__name__}: {error}", ""
        if todo and not count:  # the config can repair it
            raise AtomloomError(reason, where=where, todo=todo)
        if count:
            # An unknown number of records is lost: the share of quarantined records would
            # not show it.
            raise AtomloomError(f"breaks off after {count} records: {reason}", where=where)
        yield unreadable(reason)

    def _split(self, name: str, stream: Any, path: Path | None) -> Iterator[Piece]:
        """Cut an unpacked file into pieces by its reader; `path` is its path on disk, if it has one."""
        head, stream = _with_head(stream)
        format = self.given or format_of(name, head)
        if format is None:
            yield unreadable("in no format that a reader recognises" if head else "empty file")
            return
        reader = REGISTRY[format]
        if hasattr(reader, "split_path"):  # not text
            pieces = self._cut(reader, stream, path)
        elif is_wide(head):
            pieces = iter((unreadable(WIDE),))
        else:
            pieces = self._cut_text(reader, head, stream)
        for piece in pieces:
            yield piece if piece.format else piece._replace(format=format)

    def _cut_text(self, reader: Reader, head: bytes, stream: Any) -> Iterator[Piece]:
        """Pieces of a text, after its byte order mark, with line ends that every reader knows."""
        behind = 0
        if head.startswith(BYTE_ORDER_MARK):
            behind = len(stream.read(len(BYTE_ORDER_MARK)))
        if b"\r" in head and b"\n" not in head:
            stream = io.BufferedReader(_LineFeeds(stream), 1 << 16)
            behind = -1  # the bytes read differ from those on disk
        for piece in reader.split(stream, self.options):
            if behind and piece.offset >= 0:
                piece = piece._replace(offset=piece.offset + behind if behind > 0 else -1)
            yield piece

    def _cut(self, reader: Reader, stream: Any, path: Path | None) -> Iterator[Piece]:
        by_path = getattr(reader, "split_path", None)
        if by_path is None or (path is None and getattr(reader, "NEEDS_FOLDER", False)):
            yield from reader.split(stream, self.options)
        elif path is not None:
            yield from by_path(path, self.options)
        else:
            with scratch_folder() as folder:
                spooled = folder / f"spooled{reader.PATTERNS[0][1:]}"
                with open(spooled, "wb") as file:
                    shutil.copyfileobj(stream, file)
                yield from by_path(spooled, self.options)


class _Member:
    """Member of an archive whose first bytes are read only on demand."""

    def __init__(self, stream: Any, path: Path, name: str) -> None:
        self.stream, self._path, self._name = stream, path, name

    def head(self) -> bytes:
        """First bytes, unpacked."""
        with _damage_named(self._path, self._name):
            head, self.stream = _with_head(self.stream)
        for ending, magic in _COMPRESSED.items():
            if head.startswith(magic):
                try:
                    with _OPENERS[ending](io.BytesIO(head)) as unpacked:
                        return unpacked.read1(HEAD)
                except _DAMAGE:
                    return b""
        return head
