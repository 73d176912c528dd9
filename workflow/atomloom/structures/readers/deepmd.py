"""DeePMD-kit's folders of arrays: type.raw, type_map.raw and set.*/{coord,box,energy,force,virial}.npy.

One record a frame, rewritten as atomloom's plain JSON. Lengths in A, energies in eV; DeePMD's virial
is -dE/dstrain, so stress = -virial / volume. Frames of mixed types (real_atom_types.npy) are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from atomloom.errors import AtomloomError
from atomloom.structures.elements import atomic_numbers
from atomloom.structures.readers import plain_json
from atomloom.structures.readers.base import Piece, stress_of_virial, unreadable
from atomloom.structures.structure import Structure

NAME = "deepmd"
ABOUT = "DeePMD-kit folder (type.raw, type_map.raw, set.*/*.npy)"
PATTERNS = ("type.raw",)
HINTS: tuple[str, ...] = ()
OPTIONS: dict[str, str] = {}
NEEDS_FOLDER = True


def sniff(head: bytes) -> bool:
    """Never: it is the name type.raw that tells."""
    return False


def companions(path: Path) -> list[Path]:
    """The other files that belong to the system of this type.raw."""
    folder = path.parent
    return sorted(
        file
        for file in [folder / "type_map.raw", folder / "nopbc", *folder.glob("set.*/*.npy")]
        if file.is_file()
    )


def is_companion(path: Path) -> bool:
    """Whether a file belongs to the system of some type.raw."""
    folder = path.parent.parent if path.suffix == ".npy" else path.parent
    is_part = (path.suffix == ".npy" and path.parent.name.startswith("set.")) or path.name in (
        "type_map.raw",
        "nopbc",
    )
    return is_part and (folder / "type.raw").is_file()


def split_path(path: Path, options: Mapping[str, Any]) -> Iterator[Piece]:
    """One record a frame, set after set.

    Raises:
        AtomloomError: when the system has no element names or no set.
    """
    folder = path.parent
    types = np.array(_words(path), dtype=np.int64) if _words(path) else np.zeros(0, dtype=np.int64)
    names = folder / "type_map.raw"
    if not names.is_file():
        raise AtomloomError("no type_map.raw beside it: elements are unknown")
    of_type = atomic_numbers(_words(names))
    periodic = not (folder / "nopbc").exists()
    sets = sorted(folder.glob("set.*"), key=_place)
    if not sets:
        raise AtomloomError("no set.* beside it")
    number = 0
    for part in sets:
        try:
            arrays = {
                name: np.load(part / f"{name}.npy", mmap_mode="r", allow_pickle=False)
                for name in ("coord", "box", "energy", "force", "virial", "real_atom_types")
                if (part / f"{name}.npy").is_file()
            }
            coordinates = arrays["coord"].reshape(len(arrays["coord"]), -1)
        except (OSError, ValueError, EOFError, KeyError) as error:
            reason = (
                f"{part.name}: no coord.npy"
                if isinstance(error, KeyError)
                else f"{part.name}: {error}"
            )
            yield unreadable(reason)._replace(id=f"-{number:06d}")
            number += 1
            continue
        for frame in range(len(coordinates)):
            name = f"-{number:06d}"
            number += 1
            try:
                payload = _frame(frame, types, of_type, periodic, arrays)
            except (AtomloomError, ValueError, IndexError) as error:
                yield unreadable(f"{part.name}, frame {frame}: {error}")._replace(id=name)
                continue
            yield Piece(payload, id=name, format=plain_json.NAME)


def split(stream: BinaryIO, options: Mapping[str, Any]) -> Iterator[Piece]:
    """The arrays can only be found by the folder's path."""
    raise AtomloomError("a DeePMD folder cannot be read inside an archive", todo="unpack it first")


def parse(payload: bytes, options: Mapping[str, Any]) -> Structure:
    """A folder is no single record."""
    raise AtomloomError("a DeePMD folder is no structure: its frames are")


def _frame(
    frame: int,
    types: np.ndarray,
    of_type: np.ndarray,
    periodic: bool,
    arrays: Mapping[str, np.ndarray],
) -> bytes:
    if "real_atom_types" in arrays:
        types = np.asarray(arrays["real_atom_types"][frame], dtype=np.int64).reshape(-1)
    real = types >= 0  # mixed systems of one padded size mark absent atoms by -1
    positions = np.asarray(arrays["coord"][frame], dtype=np.float64).reshape(len(types), 3)[real]
    if (types >= len(of_type)).any():
        raise AtomloomError(f"type {types.max()}, but type_map.raw has {len(of_type)} elements")
    cell = np.zeros((3, 3))
    if periodic:
        if "box" not in arrays:
            raise AtomloomError("no box.npy, and no file nopbc that says there is none")
        cell = np.asarray(arrays["box"][frame], dtype=np.float64).reshape(3, 3)
    properties: dict[str, Any] = {}
    if "energy" in arrays:
        properties["energy"] = float(np.asarray(arrays["energy"][frame]).reshape(()))
    if "force" in arrays:
        forces = np.asarray(arrays["force"][frame], dtype=np.float64)
        properties["forces"] = forces.reshape(len(types), 3)[real]
    if "virial" in arrays and periodic:
        properties["stress"] = stress_of_virial(np.asarray(arrays["virial"][frame]), cell)
    return plain_json.dump(of_type[types[real]], positions, cell, [periodic] * 3, properties)


def _words(path: Path) -> list[str]:
    return path.read_text().split()


def _place(folder: Path) -> tuple[int, str]:
    digits = re.sub(r"\D", "", folder.name)
    return (int(digits) if digits else -1, folder.name)
