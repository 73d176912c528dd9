"""File utilities of all stages: atomic writes, spec files, streaming digests.

It knows nothing of the content of the files.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import stat
import tempfile
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from atomloom.errors import AtomloomError
from atomloom.store.keys import FINGERPRINT_BYTES, canonical

TEMPORARY_SUFFIX = ".part"
"""Ending of files still being written; a killed job may leave them behind (see `atomloom gc`)."""

AT_ONCE = 64
"""Max number of calls that wait for files at a time."""
TOGETHER = 8
"""Number of files that one thread takes at once: a task of its own for each would cost more than a local disk."""
SMALL = 1 << 16
"""Max bytes of a file that is read ahead."""

SEAL = "seal"
"""Key of a JSON object that holds a digest of the others."""

Item = TypeVar("Item")
Result = TypeVar("Result")

_SPECIAL = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def plain_stat(path: str | os.PathLike[str]) -> os.stat_result:
    """Stat result of a plain file, or of the target of a link.

    Raises:
        AtomloomError: when it is a FIFO, a device, a socket or a folder: reading may block or never
            end.
        OSError: when it does not exist.
    """
    return _require_plain(path, os.stat(path))


def _require_plain(path: str | os.PathLike[str], facts: os.stat_result) -> os.stat_result:
    if not stat.S_ISREG(facts.st_mode):
        kind = _SPECIAL.get(stat.S_IFMT(facts.st_mode), "something else")
        raise AtomloomError(f"is {kind}, not a plain file: refused", where=path)
    return facts


def open_plain(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a plain file for reading; one of size 0 counts as empty, whatever it would yield.

    Files of the system (`/proc`) have size 0, and some never end. Errors as `plain_stat`. The file is looked at
    when it is open already: over a network each look at a name costs as much as opening.
    """
    return _opened_plain(path)[0]


def _opened_plain(path: str | os.PathLike[str]) -> tuple[BinaryIO, os.stat_result]:
    """The file and its stat result."""
    try:
        file = open(path, "rb", opener=_open_without_waiting)  # noqa: SIM115 - for who called
    except OSError:
        plain_stat(path)  # a socket, a folder: they cannot be opened
        raise
    facts = os.fstat(file.fileno())
    if not stat.S_ISREG(facts.st_mode) or not facts.st_size:
        file.close()
        _require_plain(path, facts)
        return io.BytesIO(), facts
    return file, facts


def _open_without_waiting(path: str, flags: int) -> int:
    """File descriptor; that of a FIFO, too, which otherwise waits for somebody to write."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_plain(path: str | os.PathLike[str], limit: int) -> bytes:
    """Read a plain file.

    Raises:
        AtomloomError: as `plain_stat`, and when the file is larger than `limit` bytes.
        OSError: when it does not exist or cannot be read.
    """
    file, facts = _opened_plain(path)
    with file:
        if facts.st_size > limit:
            raise AtomloomError(f"is larger than {limit >> 20} MiB: refused", where=path)
        return file.read()


def overlapped(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Iterate over results of a function that waits for files, in the order of its arguments.

    Many calls wait at a time, some ahead of what is asked for: on a network file system the waiting is what
    thousands of small files cost.
    """
    size = min(TOGETHER, -(-len(items) // AT_ONCE))
    groups = (items[first : first + size] for first in range(0, len(items), size or 1))

    def together(group: Sequence[Item]) -> list[Result]:
        return [function(item) for item in group]

    with ThreadPoolExecutor(AT_ONCE) as pool:
        waiting = deque(pool.submit(together, group) for group in islice(groups, 2 * AT_ONCE))
        try:
            while waiting:
                found = waiting.popleft().result()
                waiting.extend(pool.submit(together, group) for group in islice(groups, 1))
                yield from found
        finally:
            for ahead in waiting:
                ahead.cancel()


def read_ahead(paths: Sequence[Path]) -> Iterator[Callable[[], BinaryIO]]:
    """Iterate over functions that open files as `open_plain` does, of small ones with what was read meanwhile."""
    if len(paths) == 1:
        return iter([partial(open_plain, paths[0])])
    return overlapped(_read_small, paths)


def _read_small(path: Path) -> Callable[[], BinaryIO]:
    try:
        file, facts = _opened_plain(path)
        with file:
            if facts.st_size <= SMALL:
                return partial(io.BytesIO, file.read())
    except (OSError, AtomloomError):
        pass  # raised again where the file is opened
    return partial(open_plain, path)


def expand_home(path: str | os.PathLike[str]) -> str:
    """Path with a leading `~` or `~name` replaced by the home folder.

    Raises:
        AtomloomError: when there is neither a user nor a file of this name.
    """
    expanded = os.path.expanduser(os.fspath(path))
    if expanded.startswith("~") and not os.path.lexists(expanded):
        raise AtomloomError("the home folder is not known", where=path, todo="give the whole path")
    return expanded


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Temporary folder where TMPDIR says.

    Raises:
        AtomloomError: when there is no place for one, or as `scratch_is_full`.
    """
    with contextlib.ExitStack() as stack:
        try:
            name = stack.enter_context(tempfile.TemporaryDirectory(prefix="atomloom-"))
        except OSError as error:
            raise _no_scratch(error) from None
        stack.enter_context(scratch_is_full())
        yield Path(name)


@contextlib.contextmanager
def scratch_is_full() -> Iterator[None]:
    """Raise AtomloomError where temporary files do not fit: who reads data would take it for damage of these."""
    try:
        yield
    except OSError as error:
        no_folder = error.errno == errno.ENOENT and error.filename is None
        if not no_folder and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise _no_scratch(error) from None


def _no_scratch(error: OSError) -> AtomloomError:
    return AtomloomError(
        f"temporary files cannot be written: {error.strerror}",
        where=f"TMPDIR={os.environ.get('TMPDIR', '')}",
        todo="set it to a folder with room",
    )


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file next to `path`, then rename it in one step.

    A reader sees either the old file or the complete new one, whatever happens in between, and a file
    in place survives a power cut. Of two writers of one path the last one wins. The mode is that of
    any new file in the folder, whatever mode `write` sets.

    Raises:
        AtomloomError: when the disk is full or the folder cannot be written to.
    """
    if str(path).startswith("~"):  # the home folder was not filled in
        raise AtomloomError("is not a place to write to", where=path, todo="give the whole path")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{TEMPORARY_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        write(temporary)
        with open(temporary, "rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) != mode:
                os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise AtomloomError(f"cannot be written: {error.strerror or error}", where=path) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    # The rename itself is durable only once the folder is synced, which some file systems refuse.
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text))


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON atomically."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object atomically, with a digest of its content, so that a flipped bit is noticed."""
    write_json(path, {**content, SEAL: _seal(content)})


def _seal(content: Mapping[str, Any]) -> str:
    text = json.dumps(json.loads(json.dumps(content)), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def read_json(path: Path, *names: str, todo: str = "remove it and run again") -> Any:
    """Read JSON; the seal of a sealed object is checked and left out of the result.

    Args:
        path: the file.
        names: keys that the object must have.
        todo: how to make the file again, for the message.

    Raises:
        AtomloomError: when the file is missing or damaged.
    """
    try:
        with open_plain(path) as file:
            content = json.loads(file.read())
    except OSError as error:
        raise AtomloomError(f"cannot be read: {error.strerror}", where=path, todo=todo) from None
    except (ValueError, RecursionError) as error:
        raise AtomloomError(f"is not valid JSON: {error}", where=path, todo=todo) from None
    if names and not isinstance(content, Mapping):
        raise AtomloomError("is not a JSON object", where=path, todo=todo)
    if isinstance(content, dict) and SEAL in content and content.pop(SEAL) != _seal(content):
        raise AtomloomError("is damaged: it differs from its seal", where=path, todo=todo)
    if missing := [name for name in names if name not in content]:
        raise AtomloomError(f"has no {', '.join(missing)}", where=path, todo=todo)
    return content


def require_digest(path: Path, digest: str | None, todo: str) -> None:
    """Raise AtomloomError if a file is missing, or does not have this `file_digest` (if known)."""
    if not path.exists():
        raise AtomloomError("does not exist", where=path, todo=todo)
    if digest is not None and file_digest(path) != digest:
        raise AtomloomError("is truncated or damaged: its digest differs", where=path, todo=todo)


def write_spec(folder: Path, spec: Mapping[str, Any]) -> None:
    """Write `spec.json`, which explains the name of a keyed folder, or check the existing one.

    Raises:
        AtomloomError: when the folder already holds another spec.
    """
    path = folder / "spec.json"
    wanted = canonical(spec)
    if path.exists():
        if read_json(path) != wanted:
            raise AtomloomError(
                "holds another spec than its name says", where=path, todo="remove the folder"
            )
        return
    write_json(path, wanted)


def file_digest(path: Path) -> str:
    """Hexadecimal digest of a file's bytes."""
    return stat_and_digest(path)[1]


def stat_and_digest(
    path: str | os.PathLike[str], limit: float = math.inf
) -> tuple[os.stat_result, str]:
    """Stat result of a plain file, and its digest; an empty one where it has more than `limit` bytes."""
    file, facts = _opened_plain(path)
    digest = hashlib.blake2b(digest_size=FINGERPRINT_BYTES)
    with file:
        if facts.st_size > limit:
            return facts, ""
        while block := file.read(1 << 20):
            digest.update(block)
    return facts, digest.hexdigest()
