"""Heads: from features of atoms to further targets, a value per atom or per structure.

Scalars come from scalar features by two layers; vectors are sums of vector features, weighted by numbers
that two layers compute from the scalars, so that they rotate with the structure (a gated readout, as PaiNN has
for dipole moments: Schuett et al., arXiv:2102.03150). A value of a structure is the sum over its atoms.
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
    """Inputs of heads: features of atoms, or of classes of equivalent atoms."""

    scalars: Tensor
    """[N, D], scalar features."""
    vectors: Tensor | None = None
    """[N, 3, V] vector features, components before features."""
    unfold: Tensor | None = None
    """[atoms of the batch] int64, row that stands for each atom; None if rows are the atoms."""


class _ScalarHead(nn.Module):
    """Head for a number per atom."""

    def __init__(self, scalars: int, vectors: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(scalars, max(1, scalars // 2))
        self.out = nn.Linear(max(1, scalars // 2), 1)

    def forward(self, features: AtomFeatures) -> Tensor:
        return self.out(F.silu(self.hidden(features.scalars))).squeeze(1)


class _VectorHead(nn.Module):
    """Head for a vector per atom."""

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
    """Heads of a network, in order.

    Args:
        heads: specifications of the heads.
        scalars: number of scalar features D.
        vectors: number of vector features V.
    """

    def __init__(self, heads: Sequence[Head], scalars: int, vectors: int = 0) -> None:
        super().__init__(_OF_SHAPE[head.shape](scalars, vectors) for head in heads)
        self.of = tuple(heads)
        self.width = scalars
        """Number of scalar features of an atom."""

    def forward(self, features: AtomFeatures, batch: GraphBatch) -> dict[str, Tensor]:
        """Values by target, [N, ...] or [B, ...], in at least float32."""
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
        """Output of the network: only `main` if there is no head."""
        return Outputs(main, self(features, batch)) if len(self) or main is None else main
