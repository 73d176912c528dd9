"""Vector: a vector per structure that rotates with it, such as the dipole moment of a molecule.

It is a sum over contributions of the atoms, and invariant under translation, like the dipole moment of a
neutral molecule. That of an ion depends on the origin, and that of a periodic crystal on the choice of
the cell (only its changes are meaningful): such values cannot be learnt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from atomloom.targets.base import Source, TargetSpec


@dataclass(frozen=True)
class Vector(TargetSpec):
    """Vector per structure, in the axes of its positions."""

    kind: ClassVar[str] = "vector"
    names: ClassVar[tuple[str, ...]] = ("dipole",)
    shape: ClassVar[tuple[int, ...]] = (3,)
    components: ClassVar[tuple[str, ...]] = ("x", "y", "z")
    source: ClassVar[Source] = "head"
    doubt_if_periodic: ClassVar[str] = (
        "a vector such as a dipole moment depends on the cell chosen for a periodic structure"
    )
