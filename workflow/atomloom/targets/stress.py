"""Stress: the derivative of the energy by strain, per volume."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from atomloom.targets.base import Source, TargetSpec


@dataclass(frozen=True)
class Stress(TargetSpec):
    """Stress of a structure in eV/A^3, in ASE's sign."""

    unit: str = "eV/A^3"
    kind: ClassVar[str] = "stress"
    names: ClassVar[tuple[str, ...]] = ("stress",)
    shape: ClassVar[tuple[int, ...]] = (3, 3)
    components: ClassVar[tuple[str, ...]] = ("xx", "yy", "zz", "yz", "xz", "xy")
    flat: ClassVar[tuple[int, ...]] = (0, 4, 8, 5, 2, 1)
    source: ClassVar[Source] = "derivative"
