"""The evidence of a run: its card and the files beside it, in a folder or an archive.

An archive is unpacked into a temporary folder, by plain names and within bounds, so that whoever compares runs reads
folders alone. It knows nothing of what a model file holds.
"""

from __future__ import annotations

import shutil
import stat
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
from atomloom.store.files import read_json

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
            if zipfile.is_zipfile(path):
                _unpack(path, folder)
            else:
                shutil.copyfile(path, folder / CARD)
            yield Evidence(name, folder, _read_card(folder / CARD, path), None)
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
            if CARD not in {member.filename for member in members}:
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
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise AtomloomError(f"is a damaged archive: {error}", where=path) from None
