"""atomloom's own JSON of one structure, to which binary and database formats are rewritten.

Keys: `numbers`, `positions`, and optionally `cell`, `pbc`, `properties` and `per_atom`, which names the
properties that have one row per atom, except those that always do, such as `forces`. Floats are
written with all their digits, so nothing is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from atomloom.errors import AtomloomError
from atomloom.readers.base import PLAIN_JSON
from atomloom.readers.base import dump_structure as dump
from atomloom.readers.formats.json_document import load, split
from atomloom.structures.stress import stress_matrix
from atomloom.structures.structure import Structure

__all__ = ["ABOUT", "HINTS", "NAME", "OPTIONS", "PATTERNS", "dump", "parse", "sniff", "split"]

NAME = PLAIN_JSON
ABOUT = "one structure as atomloom's own JSON (numbers, positions, cell, pbc, properties)"
PATTERNS: tuple[str, ...] = ()
HINTS: tuple[str, ...] = ()
OPTIONS: dict[str, str] = {}


def sniff(head: bytes) -> bool:
    """Always false: files are recognised as `json`, which passes entries on to this reader."""
    return False


def parse(payload: bytes, options: Mapping[str, Any]) -> Structure:
    """Structure of one record, with its properties."""
    content = load(payload)
    for key in ("numbers", "positions"):
        if key not in content:
            raise AtomloomError(f"no `{key}`")
    numbers = np.array(content["numbers"], dtype=np.int64)
    cell = np.array(content.get("cell") or np.zeros((3, 3)), dtype=np.float64)
    pbc = np.array(content.get("pbc") or (False, False, False), dtype=bool)
    properties = {
        name: value if isinstance(value, (int, float)) else np.array(value, dtype=np.float64)
        for name, value in (content.get("properties") or {}).items()
    }
    if "stress" in properties:
        properties["stress"] = stress_matrix(np.asarray(properties["stress"]))
    return Structure(
        numbers,
        np.array(content["positions"], dtype=np.float64),
        cell,
        pbc,
        properties,
        per_atom=frozenset(map(str, content.get("per_atom") or ())),
    )
