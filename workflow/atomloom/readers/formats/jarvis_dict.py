"""JARVIS atoms dict (`jarvis.core.atoms.Atoms.to_dict()`); jarvis-tools itself is not needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from atomloom.errors import AtomloomError
from atomloom.readers.formats.json_document import load, split
from atomloom.structures.elements import atomic_numbers
from atomloom.structures.structure import Structure

__all__ = ["ABOUT", "HINTS", "NAME", "OPTIONS", "PATTERNS", "parse", "sniff", "split"]

NAME = "jarvis"
ABOUT = "one JARVIS atoms dict as JSON"
PATTERNS: tuple[str, ...] = ()
HINTS: tuple[str, ...] = ()
OPTIONS: dict[str, str] = {}


def sniff(head: bytes) -> bool:
    """Always false: files are recognised as `json`, which passes entries on to this reader."""
    return False


def parse(payload: bytes, options: Mapping[str, Any]) -> Structure:
    """Crystal of one record, periodic in three directions; all digits of the lattice are kept."""
    content = load(payload)
    for key in ("lattice_mat", "coords", "elements"):
        if key not in content:
            raise AtomloomError(f"no `{key}`")
    cell = np.array(content["lattice_mat"], dtype=np.float64)
    coordinates = np.array(content["coords"], dtype=np.float64)
    numbers = atomic_numbers(str(symbol).strip() for symbol in content["elements"])
    if coordinates.ndim != 2 or cell.shape != (3, 3):
        raise AtomloomError(f"coords of shape {coordinates.shape}, lattice_mat of {cell.shape}")
    positions = coordinates if _is_true(content.get("cartesian", False)) else coordinates @ cell
    return Structure(numbers, positions, cell, np.ones(3, dtype=bool))


def _is_true(value: Any) -> bool:
    return value is True or str(value).strip().lower() in ("true", "1")
