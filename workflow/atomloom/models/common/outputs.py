"""Outputs of a network with heads for some targets, alongside the tensor of the others.

A network without such heads returns only that tensor. It knows nothing of particular networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class Head:
    """Head of a network: one value per atom or per structure."""

    name: str
    """Name of the target."""
    per: Literal["structure", "atom"]
    """Owner of one value: `atom` or `structure`."""
    shape: tuple[int, ...]
    """Shape of one value; vectors rotate with the structure."""


class Outputs(NamedTuple):
    """Complete output of a network for a batch.

    A tuple, in which FSDP finds the tensors: with any other class it would leave gradients unreduced.
    """

    main: Tensor | None
    """[B, outputs], or for a potential atomic energies [N]; None if it predicts neither."""
    heads: dict[str, Tensor] = {}
    """Values of heads by target, [N, ...] or [B, ...]."""

    @classmethod
    def of(cls, said: Any) -> Outputs:
        """Wrap the output of a network, which may be a single tensor."""
        return cls(said) if isinstance(said, Tensor) else said

    @property
    def required(self) -> Tensor:
        """Tensor `main` of a network that is known to have it."""
        if self.main is None:
            raise ValueError("the network has only heads")
        return self.main

    def tensors(self) -> list[Tensor]:
        """All tensors of the output."""
        return [*([] if self.main is None else [self.main]), *self.heads.values()]
