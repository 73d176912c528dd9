"""The evidence of a run: its card and the files beside it, in a folder or an archive.

An archive is unpacked into a temporary folder, by plain names and within bounds, and held against the digests in its
metadata, so that whoever compares runs reads folders alone. It knows nothing of what a model file holds.
"""

from __future__ import annotations

import errno
import hashlib
import lzma
import shutil
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atomloom.errors import AtomloomError
from atomloom.pipeline.run_card import CARD
from atomloom.pipeline.runs import dataset_folders, find_run, run_folders, short_name
from atomloom.store.files import open_plain, read_json

METADATA = "ro-crate-metadata.json"
"""Name of the member of an archive that has the SHA-256 of all others."""
DAMAGES = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(NotImplementedError, RuntimeError, EOFError, ValueError, IndexError),
)
"""Errors by which `zipfile` says that an archive is damaged; some are an OSError, as those of the disk are."""
NOT_OF_DISK = (None, errno.EINVAL, errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG)
"""Numbers of an OSError that is due to what an archive holds: places, data and names that cannot be."""
MOST_FILES = 1_000
MOST_TIMES = 200
"""Max size of what an archive holds, in sizes of the archive itself."""


@dataclass(frozen=True)
class Evidence:
    """A trained run, as its files tell."""

    name: str
    """Name as it was given."""
    folder: Path
    """Folder with the card and with what there is besides; temporary for an archive or a card alone."""
    card: Mapping[str, Any]
    """Content of the run card."""
    origin: Path | None
    """Folder that the run was made in; None for an archive or a card alone."""

    def file(self, name: str) -> Path | None:
        """File of the run; None where it is missing."""
        path = self.folder / name
        return path if path.is_file() else None

    @property
    def key(self) -> str:
        """Run key; empty if the card has none."""
        return str(self.card.get("run_key", ""))

    @property
    def metrics(self) -> dict[str, Any] | None:
        """Errors: target -> split -> name -> number; None of a run that was not evaluated."""
        path = self.file("metrics.json")
        return None if path is None else read_json(path)

    def section(self, *names: str) -> Mapping[str, Any]:
        """Section of the card; empty where it is missing, as in cards of before."""
        found: Any = self.card
        for name in names:
            found = found.get(name) if isinstance(found, Mapping) else None
        return found if isinstance(found, Mapping) else {}


@contextmanager
def opened(name: str, results: Path) -> Iterator[Evidence]:
    """Evidence of the run that is meant by a name.

    Args:
        name: a run's folder or card, an archive of it, its short name or key, or a data set with one run.
        results: folder of the results that short names, keys and data sets are looked for in.

    Raises:
        AtomloomError: when there is no such run, several are meant, or its card is missing or damaged.
    """
    path = Path(name)
    if path.is_file() and path.name != CARD:
        with tempfile.TemporaryDirectory(prefix="atomloom-") as temporary:
            folder = Path(temporary)
            archive = _is_archive(path)
            if archive:
                _unpack(path, folder)
            else:
                shutil.copyfile(path, folder / CARD)
            card = _read_card(folder / CARD, path)
            if archive:
                _require_members(folder, path)
            yield Evidence(name, folder, card, None)
        return
    folder = _folder_of(path, name, results)
    yield Evidence(name, folder, _read_card(folder / CARD, folder / CARD), folder)


def _folder_of(path: Path, name: str, results: Path) -> Path:
    """Folder of the run that is meant."""
    if path.is_file():
        return path.resolve().parent
    if name and ((path / CARD).exists() or (path / "spec.json").exists()):
        return path.resolve()
    for dataset in (path, results / name):
        if (dataset / "runs").is_dir() and dataset_folders(dataset) == [dataset]:
            found = [run for run in run_folders(dataset) if (run / CARD).exists()]
            if len(found) == 1:
                return found[0].resolve()
            names = ", ".join(short_name(run.name) for run in found[:6])
            raise AtomloomError(
                f"{len(found)} trained runs" if found else "no trained run",
                where=dataset,
                todo=f"name one: {names}{' ...' * (len(found) > 6)}" if found else "",
            )
    return find_run(results, name).folder.resolve()


def _read_card(path: Path, named: Path) -> Mapping[str, Any]:
    """Content of a run card.

    Raises:
        AtomloomError: when it is missing, damaged or edited, or is no run card.
    """
    if not path.exists():
        raise AtomloomError("no run card here: the run is not finished", where=named)
    try:
        card = read_json(path, "config", "run_key", todo="")
    except AtomloomError as error:
        what = error.what
        if "seal" in what:
            what = "is not as atomloom wrote it: damaged, or edited by hand"
        raise AtomloomError(what, where=named) from None
    if not isinstance(card["config"], Mapping) or not isinstance(card["run_key"], str):
        raise AtomloomError("is not a run card", where=named)
    return card


def _is_archive(path: Path) -> bool:
    """Whether a file is an archive by its ending or its first bytes, be it whole or damaged."""
    with open_plain(path) as file:
        return file.read(2) == b"PK" or path.suffix.lower() == ".zip"


def _require_members(folder: Path, path: Path) -> None:
    """Check what was unpacked against the metadata of the archive.

    Raises:
        AtomloomError: when a member is missing, was edited or added, or there are no metadata.
    """
    crate = folder / METADATA
    if not crate.exists():
        raise AtomloomError(f"is not an archive of `export-run`: no {METADATA} in it", where=path)
    try:
        entities = read_json(crate, "@graph", todo="")["@graph"]
        digests = {str(one["@id"]): one["sha256"] for one in entities if one["@type"] == "File"}
    except (AtomloomError, KeyError, TypeError):
        raise AtomloomError(
            f"is a damaged archive: {METADATA} cannot be read", where=path
        ) from None
    members = {
        file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()
    }
    found = {
        "is missing": digests.keys() - members.keys(),
        "is not in its metadata": members.keys() - digests.keys() - {METADATA},
        "was edited": {
            name
            for name in digests.keys() & members.keys()
            if sha256_of(members[name]) != digests[name]
        },
    }
    wrong = [f"{name} {what}" for what, names in found.items() for name in sorted(names)]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise AtomloomError(
            f"is not as `export-run` wrote it: {', '.join(wrong[:3])}{more}", where=path
        )


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unpack(path: Path, folder: Path) -> None:
    """Unpack the files of an archive, of which none may lead out of the folder.

    Raises:
        AtomloomError: when it is damaged, holds no run card, or more than an archive of a run does.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            size = sum(member.file_size for member in members)
            if len(members) > MOST_FILES or size > MOST_TIMES * path.stat().st_size:
                raise AtomloomError("holds more than an archive of a run does: refused", where=path)
            names = {member.filename for member in members}
            if len(names) < len(members):
                raise AtomloomError("holds two members of one name: refused", where=path)
            if CARD not in names:
                raise AtomloomError(f"is not an archive of a run: no {CARD} in it", where=path)
            for member in members:
                own = folder / member.filename
                linked = stat.S_ISLNK(member.external_attr >> 16)
                if linked or not own.resolve().is_relative_to(folder.resolve()):
                    raise AtomloomError(
                        f"has a member that leads out of it: {member.filename}", where=path
                    )
                own.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as content, open(own, "wb") as file:
                    shutil.copyfileobj(content, file)
    except (*DAMAGES, OSError) as error:
        if isinstance(error, OSError) and error.errno not in NOT_OF_DISK:
            raise
        told = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise AtomloomError(f"is a damaged archive: {told}", where=path) from None
