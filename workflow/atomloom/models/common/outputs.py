"""Outputs: what a network gives that has heads for some targets, beside the tensor of its others.

A network without such heads gives that tensor alone. It knows nothing of particular networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor


@dataclass(frozen=True)
class Head:
    """What a head gives: a value per atom or per structure."""

    name: str
    """Name of the target."""
    per: Literal["structure", "atom"]
    """What has one value each."""
    shape: tuple[int, ...]
    """Shape of one value; vectors turn with the structure."""


@dataclass(frozen=True, eq=False)
class Outputs:
    """All that a network says of a batch."""

    main: Tensor | None
    """[B, outputs], or of a potential energies of atoms [N]; None where it predicts none of these."""
    heads: Mapping[str, Tensor] = field(default_factory=dict)
    """By name of the target, [N, ...] or [B, ...]."""

    @classmethod
    def of(cls, said: Any) -> Outputs:
        """What a network gave, which may be a tensor alone."""
        return cls(said) if isinstance(said, Tensor) else said

    @property
    def required(self) -> Tensor:
        """`main`, of a network that is known to have it."""
        if self.main is None:
            raise ValueError("the network has heads alone")
        return self.main

    def tensors(self) -> list[Tensor]:
        """All of them."""
        return [*([] if self.main is None else [self.main]), *self.heads.values()]
