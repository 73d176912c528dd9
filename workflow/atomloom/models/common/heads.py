"""Heads: from features of atoms to further targets, a value per atom or per structure.

Scalars come from scalar features by two layers; vectors are sums of vector features, weighed by numbers
that two layers make of the scalars, so that they turn with the structure (a gated readout, as PaiNN has
for dipole moments: Schuett et al., arXiv:2102.03150). What belongs to a structure is the sum over its atoms.
It knows nothing of particular networks.

Legend: B structures, N atoms, D scalar features, V vector features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from atomloom.data.batch import GraphBatch
from atomloom.models.common.layers import at_least_single, gather, segment_sum
from atomloom.models.common.outputs import Head, Outputs


@dataclass(frozen=True, eq=False)
class AtomFeatures:
    """What heads see of atoms, or of classes of equal atoms."""

    scalars: Tensor
    """[N, D]."""
    vectors: Tensor | None = None
    """[N, 3, V], components before features."""
    unfold: Tensor | None = None
    """[atoms of the batch] int64, which row stands for each atom; None where rows are the atoms."""


class _ScalarHead(nn.Module):
    """A number per atom."""

    def __init__(self, scalars: int, vectors: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(scalars, max(1, scalars // 2))
        self.out = nn.Linear(max(1, scalars // 2), 1)

    def forward(self, features: AtomFeatures) -> Tensor:
        return self.out(F.silu(self.hidden(features.scalars))).squeeze(1)


class _VectorHead(nn.Module):
    """A vector per atom."""

    def __init__(self, scalars: int, vectors: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(scalars, max(1, scalars // 2))
        self.gates = nn.Linear(max(1, scalars // 2), vectors)

    def forward(self, features: AtomFeatures) -> Tensor:
        gates = self.gates(F.silu(self.hidden(features.scalars)))
        return (features.vectors @ gates.unsqueeze(2)).squeeze(2)


_OF_SHAPE: dict[tuple[int, ...], Callable[[int, int], nn.Module]] = {
    (): _ScalarHead,
    (3,): _VectorHead,
}


class Heads(nn.ModuleList):
    """The heads of a network, in order.

    Args:
        heads: what they give.
        scalars: D.
        vectors: V.
    """

    def __init__(self, heads: Sequence[Head], scalars: int, vectors: int = 0) -> None:
        super().__init__(_OF_SHAPE[head.shape](scalars, vectors) for head in heads)
        self.of = tuple(heads)

    def forward(self, features: AtomFeatures, batch: GraphBatch) -> dict[str, Tensor]:
        """By name of the target, [N, ...] or [B, ...], in at least float32."""
        found = {}
        for head, module in zip(self.of, self, strict=True):
            values = at_least_single(module(features))
            if features.unfold is not None:
                values = gather(values, features.unfold)
            if head.per == "structure":
                values = segment_sum(values, batch.node_graph, batch.size)
            found[head.name] = values
        return found

    def with_main(
        self, main: Tensor | None, features: AtomFeatures, batch: GraphBatch
    ) -> Tensor | Outputs:
        """What the network gives: `main` alone where there is no head."""
        return Outputs(main, self(features, batch)) if len(self) or main is None else main
