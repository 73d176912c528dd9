"""DeePMD-kit's folders of arrays: type.raw, type_map.raw and set.*/{coord,box,energy,force,virial}.npy,
or, without sets, the same arrays as text: coord.raw, box.raw, energy.raw and so on.

One record per frame, rewritten as atomloom's plain JSON. Lengths in A, energies in eV; DeePMD's virial
is -dE/dstrain, so stress = -virial / volume. Frames of mixed types (real_atom_types.npy) are read.
Where an array has more or fewer frames than the coordinates, it is unknown what belongs to which
frame: all of them are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from atomloom.errors import AtomloomError
from atomloom.readers.base import Piece, decode, floats, integer, unreadable
from atomloom.readers.formats import plain_json
from atomloom.store.files import read_plain
from atomloom.structures.elements import species_number
from atomloom.structures.stress import stress_of_virial
from atomloom.structures.structure import Structure

NAME = "deepmd"
ABOUT = "DeePMD-kit folder (type.raw, type_map.raw, set.*/*.npy or *.raw)"
PATTERNS = ("type.raw",)
HINTS: tuple[str, ...] = ()
OPTIONS: dict[str, str] = {}
NEEDS_FOLDER = True


def sniff(head: bytes) -> bool:
    """Always false: the format is recognised by the name type.raw."""
    return False


def companions(path: Path) -> list[Path]:
    """Other files that belong to the system of this type.raw."""
    folder = path.parent
    files = [*folder.glob("*.raw"), folder / "nopbc", *folder.glob("set.*/*.npy")]
    return sorted(file for file in files if is_companion(file) and file.is_file())


def is_companion(path: Path) -> bool:
    """Whether a file belongs to the system of some type.raw."""
    folder = path.parent
    if path.suffix == ".npy" and folder.name.startswith("set."):
        return (folder.parent / "type.raw").is_file()
    is_part = path.name == "nopbc" or (path.suffix == ".raw" and path.name != "type.raw")
    return is_part and (folder / "type.raw").is_file()


def split_path(path: Path, options: Mapping[str, Any]) -> Iterator[Piece]:
    """One record per frame, set by set.

    Raises:
        AtomloomError: when the system has no atoms or no names of elements, or neither sets nor
            coord.raw.
    """
    system = _System(path.parent)
    sets = sorted(path.parent.glob("set.*"), key=_place)
    if not sets and not (path.parent / "coord.raw").is_file():
        raise AtomloomError("neither set.* nor coord.raw next to it")
    number = 0
    for part in sets or [path.parent]:
        for piece in system.pieces(part, f"{part.name}: " if sets else ""):
            yield piece._replace(id=f"-{number:06d}")
            number += 1


def split(stream: BinaryIO, options: Mapping[str, Any]) -> Iterator[Piece]:
    """Refuse: the arrays can only be found by the folder's path."""
    raise AtomloomError("a DeePMD folder cannot be read inside an archive", todo="unpack it first")


def parse(payload: bytes, options: Mapping[str, Any]) -> Structure:
    """Refuse: a folder is not a single record."""
    raise AtomloomError("a DeePMD folder is not a structure: its frames are")


class _Binary:
    """Frames of one quantity, `width` numbers each, in an .npy file."""

    def __init__(self, path: Path, width: int) -> None:
        self.name = path.name
        values = np.load(path, mmap_mode="r", allow_pickle=False)
        own = int(np.prod(values.shape[1:])) if values.ndim > 1 else width
        if values.dtype.kind not in "fiu" or own != width or values.size % width:
            shape = f"shape {values.shape} of {values.dtype}"
            raise AtomloomError(f"{shape}, not {width} numbers per frame")
        self._values = values.reshape(-1, width)

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, frame: int) -> np.ndarray:
        return np.asarray(self._values[frame], dtype=np.float64)


_MAX_TEXT = 4 << 30


class _Text:
    """Frames of one quantity, one line of `width` numbers each, in a .raw file."""

    def __init__(self, path: Path, width: int) -> None:
        self.name, self._width = path.name, width
        rows = [
            line.partition("#")[0].split()
            for line in decode(read_plain(path, _MAX_TEXT)).splitlines()
        ]
        self._rows = [(number, row) for number, row in enumerate(rows, start=1) if row]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, frame: int) -> np.ndarray:
        number, row = self._rows[frame]
        where = f"{self.name}, line {number}: "
        if len(row) != self._width:
            raise AtomloomError(f"{where}{len(row)} numbers, not {self._width}")
        return floats(row, where)


_Arrays = Mapping[str, _Binary | _Text]


class _System:
    """Common data of all frames of a folder."""

    def __init__(self, folder: Path) -> None:
        words = _words(folder / "type.raw")
        self.types = np.array([integer(word, "type.raw: a type") for word in words], dtype=np.int64)
        if not len(self.types):
            raise AtomloomError("no atoms")
        if not (folder / "type_map.raw").is_file():
            raise AtomloomError(
                "no type_map.raw next to it: elements are unknown; write one, with a symbol per type"
            )
        self.names = _words(folder / "type_map.raw")
        self.periodic = not (folder / "nopbc").exists()

    def pieces(self, folder: Path, where: str) -> Iterator[Piece]:
        """Frames of a set, or of a folder of texts; where the arrays do not fit together each is refused."""
        arrays, reason = self._arrays(folder)
        count = len(arrays["coord"]) if "coord" in arrays else 0
        if not reason:
            others = [array for array in arrays.values() if len(array) != count]
            reason = ", ".join(f"{array.name} {len(array)}" for array in others)
            reason = reason and f"{arrays['coord'].name} has {count} frames, {reason}"
        for frame in range(max(count, 1) if reason else count):
            try:
                if reason:
                    raise AtomloomError(reason)
                payload = self._frame(arrays, frame)
            except (AtomloomError, ValueError) as error:
                place = "" if reason else f"frame {frame}: "
                yield unreadable(f"{where}{place}{error}")
                continue
            yield Piece(payload, format=plain_json.NAME)

    def _arrays(self, folder: Path) -> tuple[_Arrays, str]:
        """Existing arrays by name, the coordinates first, and the reason why one cannot be read."""
        atoms = len(self.types)
        widths = {"coord": 3 * atoms, "box": 9, "energy": 1, "force": 3 * atoms, "virial": 9,
                  "real_atom_types": atoms}  # fmt: skip
        binary = folder.name.startswith("set.")
        ending, kind = (".npy", _Binary) if binary else (".raw", _Text)
        arrays: dict[str, _Binary | _Text] = {}
        for name, width in widths.items():
            path = folder / f"{name}{ending}"
            if not path.is_file():
                if name == "coord":
                    return arrays, f"no {path.name}"
                continue
            try:
                arrays[name] = kind(path, width)
            except (AtomloomError, OSError, ValueError, EOFError) as error:
                return arrays, f"{path.name}: {error}"
        return arrays, ""

    def _frame(self, arrays: _Arrays, frame: int) -> bytes:
        types = self.types
        if "real_atom_types" in arrays:
            types = arrays["real_atom_types"][frame].astype(np.int64)
        real = types != -1  # mixed systems, padded to one size, mark absent atoms in this way
        numbers = [self._element(kind) for kind in types[real].tolist()]
        cell = np.zeros((3, 3))
        if self.periodic:
            if "box" not in arrays:
                raise AtomloomError("no box, and no file nopbc that says there is none")
            cell = arrays["box"][frame].reshape(3, 3)
        properties: dict[str, Any] = {}
        if "energy" in arrays:
            properties["energy"] = float(arrays["energy"][frame][0])
        if "force" in arrays:
            properties["forces"] = arrays["force"][frame].reshape(-1, 3)[real]
        if "virial" in arrays and self.periodic:
            properties["stress"] = stress_of_virial(arrays["virial"][frame], cell)
        positions = arrays["coord"][frame].reshape(-1, 3)[real]
        return plain_json.dump(numbers, positions, cell, [self.periodic] * 3, properties)

    def _element(self, kind: int) -> int:
        if not 0 <= kind < len(self.names):
            raise AtomloomError(f"type {kind}, but type_map.raw has {len(self.names)} elements")
        return species_number(self.names[kind])


def _words(path: Path) -> list[str]:
    return decode(read_plain(path, _MAX_TEXT)).split()


def _place(folder: Path) -> tuple[int, str]:
    digits = re.sub(r"\D", "", folder.name)
    return (int(digits) if digits else -1, folder.name)
