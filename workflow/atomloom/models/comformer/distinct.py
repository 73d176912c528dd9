"""Rows of tensors that stand for several edges each: every distinct edge of a batch is computed once.

The classes are those of `atomloom.graphs.equal_edges`, on a CPU; elsewhere, where a device would have to
be asked for their number, each edge stands for itself.

Legend: N atoms, E edges, L, P, U and R classes of edges by length, by length and elements, by length and
angles, and of (edge, axis) by length and angle; D features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from atomloom.data.batch import GraphBatch
from atomloom.graphs.equal_edges import find_equal_edges
from atomloom.models.common.layers import gather, segment_sum

PREFIX = "distinct_"
"""Prefix of the names of these tensors in the extras of a batch."""


@dataclass(frozen=True, eq=False)
class Distinct:
    """Edges that stand for all of their class, and the class of each edge; None: each stands for itself."""

    lengths: Tensor | None = None
    """[L] int64, an edge of each length."""
    length_of: Tensor | None = None
    """[E] int64."""
    pairs: Tensor | None = None
    """[P] int64, an edge of each length between equal elements."""
    pair_of: Tensor | None = None
    """[E] int64."""
    edges: Tensor | None = None
    """[U] int64, an edge of each length with equal angles."""
    edge_of: Tensor | None = None
    """[E] int64."""
    angles: Tensor | None = None
    """[R] int64, of the elements [U, 3], flattened: one of each axis, length and angle."""
    angle_of: Tensor | None = None
    """[3 U] int64."""

    @classmethod
    def of(cls, batch: GraphBatch, lengths: Tensor, cosines: Tensor | None = None) -> Distinct:
        """Classes of a batch's edges: those that it came with, or found here where that is possible."""
        if lengths.requires_grad:  # of every edge
            return cls()
        known = {
            name.removeprefix(PREFIX): tensor
            for name, tensor in batch.extras.items()
            if name.startswith(PREFIX)
        }
        if known:
            return cls(**known)
        if lengths.device.type != "cpu" or torch.compiler.is_compiling():
            return cls()
        return cls(**_found(batch, lengths, cosines))


def _found(batch: GraphBatch, lengths: Tensor, cosines: Tensor | None) -> dict[str, Tensor]:
    found = find_equal_edges(
        batch.numbers.numpy(),
        batch.src.numpy(),
        batch.dst.numpy(),
        batch.node_graph.numpy(),
        lengths.detach().numpy(),
        None if cosines is None else cosines.detach().numpy(),
    )
    tensors = {}
    for item in fields(found):
        classes = getattr(found, item.name)
        if classes is not None:
            tensors[item.name] = torch.from_numpy(classes.first)
            tensors[item.name.removesuffix("s") + "_of"] = torch.from_numpy(classes.of)
    return tensors


def distinct_of(batch: GraphBatch, lengths: Tensor, cosines: Tensor | None) -> Mapping[str, Tensor]:
    """Tensors of `Distinct` by their names in the extras of a batch on a CPU."""
    return {PREFIX + name: tensor for name, tensor in _found(batch, lengths, cosines).items()}


def chosen(values: Tensor, index: Tensor | None) -> Tensor:
    """Rows of `values` by `index`; all of them if that is None."""
    return values if index is None else gather(values, index)


def counted(weights: Tensor | None, of: Tensor | None, classes: Tensor | None) -> Tensor | None:
    """Total weight of each class from weights of its members; None if all are 1.

    Args:
        weights: [members]; None if all are 1.
        of: [members], the class of each; None if each stands for itself.
        classes: [classes], as in `Distinct`.
    """
    if of is None or classes is None:
        return weights
    if weights is None:
        weights = torch.ones(of.shape[0], device=of.device)
    return segment_sum(weights, of, classes.shape[0])
