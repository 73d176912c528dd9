"""Stress: the derivative of the energy by strain, per volume."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from atomloom.targets.base import TargetSpec


@dataclass(frozen=True)
class Stress(TargetSpec):
    """The stress of a structure in eV/A^3, in ASE's sign."""

    unit: str = "eV/A^3"
    kind: ClassVar[str] = "stress"
    shape: ClassVar[tuple[int, ...]] = (3, 3)
    derived: ClassVar[bool] = True
