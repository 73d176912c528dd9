"""GraphBatch, the input of a model: several graphs, concatenated, as tensors on one device.

B structures, N atoms, E edges, T triplets in the batch. Atom and edge indices count through the
batch. Edges are sorted by dst. This module knows nothing of stores or training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

LABEL_OF = {"atom": "atom label: ", "structure": "structure label: "}
"""Prefixes of names in `extras` of the targets of heads, by the owner of a value."""
SLOTS = "attention slots "
"""Prefix of names in `extras` of the atoms of structures by place, [structures, places] int64 per group; -1 where
there is none."""


def label_name(target: str, per: str) -> str:
    """Name in `extras` of the values of a target with its own head."""
    return LABEL_OF[per] + target


@dataclass
class GraphBatch:
    """Batch of neighbour graphs; floats are in the working precision."""

    numbers: Tensor
    """[N] int64, atomic numbers."""
    positions: Tensor
    """[N, 3], A."""
    cell: Tensor
    """[B, 3, 3], A, rows are vectors."""
    node_graph: Tensor
    """[N] int64, structure of each atom, ascending."""
    node_ptr: Tensor
    """[B+1] int64, first atom of each structure."""
    src: Tensor
    """[E] int64, neighbour."""
    dst: Tensor
    """[E] int64, central atom, ascending."""
    dst_ptr: Tensor
    """[N+1] int64, first edge of each central atom."""
    shift: Tensor
    """[E, 3] in the working precision, cell of src's image as seen from dst."""
    vectors: Tensor | None = None
    """[E, 3], A, from dst to src's image, computed in float64 before rounding; None where they must
    be differentiated, see `edge_vectors`."""
    multiplicity: Tensor | None = None
    """[E] in the working precision, multiplicity of each edge in the published graph (1 or 2); None
    if every edge counts once."""
    lattice: Tensor | None = None
    """[B, 3, 3], A, lattice triads."""
    triplets: Tensor | None = None
    """[T, 2] int64, pairs of edges with one dst."""
    targets: Tensor | None = None
    """[B, K] targets, standardised or raw as given to the loader; NaN where unknown."""
    rows: Tensor | None = None
    """[B] int64, rows of the structures in the data set."""
    node_weight: Tensor | None = None
    """[N] in the working precision, weight of each atom in batch statistics: 0 for padding; None if
    every atom counts once."""
    extras: dict[str, Tensor] = field(default_factory=dict)
    """Further tensors that only some models or losses use."""

    @property
    def size(self) -> int:
        """Number of structures B."""
        return self.cell.shape[0]

    def edge_vectors(self) -> Tensor:
        """[E, 3] from dst to src's image; differentiable in positions and cell if `vectors` is None."""
        if self.vectors is not None:
            return self.vectors
        offsets = torch.einsum("ei,eij->ej", self.shift, self.cell[self.node_graph[self.dst]])
        return self.positions[self.src] + offsets - self.positions[self.dst]

    def to(self, device: torch.device | str, non_blocking: bool = True) -> GraphBatch:
        """Copy on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> GraphBatch:
        """Copy in page-locked memory, from which transfers to a GPU can overlap with computing."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, apply: Callable[[Tensor], Tensor]) -> GraphBatch:
        moved = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                value = apply(value)
            elif isinstance(value, dict):
                value = {key: apply(tensor) for key, tensor in value.items()}
            moved[item.name] = value
        return GraphBatch(**moved)
