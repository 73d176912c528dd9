"""Per atom: a scalar per atom, such as a magnetic moment or a charge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from atomloom.targets.base import Source, TargetSpec


@dataclass(frozen=True)
class PerAtom(TargetSpec):
    """Scalar per atom, in the order of the atoms."""

    kind: ClassVar[str] = "per_atom"
    names: ClassVar[tuple[str, ...]] = ("magmoms", "charges")
    per: ClassVar[Literal["structure", "atom"]] = "atom"
    source: ClassVar[Source] = "head"
