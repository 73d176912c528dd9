"""Energy: the total energy of a structure, which a potential predicts as a sum over its atoms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from atomloom.targets.base import Source, TargetSpec


@dataclass(frozen=True)
class Energy(TargetSpec):
    """Energy of a structure in eV; its errors are reported per atom."""

    unit: str = "eV"
    kind: ClassVar[str] = "energy"
    names: ClassVar[tuple[str, ...]] = ("energy",)
    source: ClassVar[Source] = "energy"

    @property
    def reported(self) -> str:
        return "energy_per_atom"

    @property
    def reported_unit(self) -> str:
        return "eV/atom"
