"""File utilities of all stages: atomic writes, spec files, streaming digests.

It knows nothing of the content of the files.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import stat
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from atomloom.errors import AtomloomError
from atomloom.store.keys import FINGERPRINT_BYTES, canonical

TEMPORARY_SUFFIX = ".part"
"""Ending of files still being written; a killed job may leave them behind (see `atomloom gc`)."""

SEAL = "seal"
"""Key of a JSON object that holds a digest of the others."""

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
    facts = os.stat(path)
    if not stat.S_ISREG(facts.st_mode):
        kind = _SPECIAL.get(stat.S_IFMT(facts.st_mode), "something else")
        raise AtomloomError(f"is {kind}, not a plain file: refused", where=path)
    return facts


def open_plain(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a plain file for reading; one of size 0 counts as empty, whatever it would yield.

    Files of the system (`/proc`) have size 0, and some never end. Errors as `plain_stat`.
    """
    return open(path, "rb") if plain_stat(path).st_size else io.BytesIO()


def read_plain(path: str | os.PathLike[str], limit: int) -> bytes:
    """Read a plain file.

    Raises:
        AtomloomError: as `plain_stat`, and when the file is larger than `limit` bytes.
        OSError: when it does not exist or cannot be read.
    """
    if plain_stat(path).st_size > limit:
        raise AtomloomError(f"is larger than {limit >> 20} MiB: refused", where=path)
    with open_plain(path) as file:
        return file.read()


def expand_home(path: str | os.PathLike[str]) -> str:
    """Path with a leading `~` or `~name` replaced by the home folder.

    Raises:
        AtomloomError: when there is neither a user nor a file of this name.
    """
    expanded = os.path.expanduser(os.fspath(path))
    if expanded.startswith("~") and not os.path.lexists(expanded):
        raise AtomloomError("the home folder is not known", where=path, todo="give the whole path")
    return expanded


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
    digest = hashlib.blake2b(digest_size=FINGERPRINT_BYTES)
    with open_plain(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
