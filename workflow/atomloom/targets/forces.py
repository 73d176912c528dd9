"""Forces: minus the derivative of the energy by the positions of the atoms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from atomloom.targets.base import TargetSpec


@dataclass(frozen=True)
class Forces(TargetSpec):
    """A force per atom, in eV/A."""

    unit: str = "eV/A"
    kind: ClassVar[str] = "forces"
    per: ClassVar[Literal["structure", "atom"]] = "atom"
    shape: ClassVar[tuple[int, ...]] = (3,)
    derived: ClassVar[bool] = True
