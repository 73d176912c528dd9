"""Structures: the record that travels the pipeline, and conversion from and to other libraries.

Importing this loads nothing heavier than numpy; chemistry libraries are imported by the adapter that
needs one, when it does.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from atomloom import former
from atomloom.structures.adapters import to_ase, to_pymatgen, to_structure
from atomloom.structures.structure import Structure
from atomloom.structures.table import StructureTable

__all__ = [
    "Structure",
    "StructureTable",
    "structure_hash",
    "to_ase",
    "to_pymatgen",
    "to_structure",
]


def structure_hash(structure: Any) -> bytes:
    """Content hash (32 bytes) of elements, geometry and periodicity of a structure of any library.

    Raises:
        AtomloomError: when it is not a structure.
    """
    return to_structure(structure).hash


def __getattr__(name: str) -> object:
    if name in ("RawRecord", "enumerate_records", "list_files", "parse_record", "read"):
        former.warn(f"{__name__}.{name}", f"atomloom.readers.{name}")
        return getattr(import_module("atomloom.readers"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
