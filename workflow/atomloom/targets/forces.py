"""Forces: minus the derivative of the energy by the positions of the atoms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from atomloom.targets.base import Source, TargetSpec


@dataclass(frozen=True)
class Forces(TargetSpec):
    """Force per atom, in eV/A."""

    unit: str = "eV/A"
    kind: ClassVar[str] = "forces"
    names: ClassVar[tuple[str, ...]] = ("forces",)
    per: ClassVar[Literal["structure", "atom"]] = "atom"
    shape: ClassVar[tuple[int, ...]] = (3,)
    components: ClassVar[tuple[str, ...]] = ("x", "y", "z")
    source: ClassVar[Source] = "derivative"
