"""Scalar: a number per structure, such as a band gap; a class, if the loss says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from atomloom.targets.base import TargetSpec


@dataclass(frozen=True)
class Scalar(TargetSpec):
    """Scalar per structure, predicted by an output of the network."""

    kind: ClassVar[str] = "scalar"
