"""Padding of batches to one of a few shapes, for recorded steps, where each new shape is costly.

The padding is structures of one atom after the others; the last one has all further atoms. They
count nothing: targets are unknown, edges have multiplicity 0, atoms weight 0 in batch statistics. So
outputs of the other structures, gradients and running statistics are those of the original batch,
to rounding. Atoms of the padding have no more edges than others, and edges of the same lengths: a
network must not overflow on them. Everything happens on the batch's device, without synchronisation.

Legend: B structures, N atoms, E edges, L pairs of edges, of the padded batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from atomloom.data.batch import LABEL_OF, SLOTS, GraphBatch

OF_ATOMS = ("forces", LABEL_OF["atom"])
OF_STRUCTURES = ("stress", "globals", LABEL_OF["structure"])
OF_PAIRS = ("line_src", "line_dst")
"""Prefixes of the names of extras that can be padded, by what they belong to."""
STEPS_PER_OCTAVE = 4
"""Number of sizes to which counts are rounded up, between a power of two and the next."""
MOST_WASTE = 1.25
"""Max ratio of the edges of a shape to those of a batch that is padded to it."""
MOST_PLACES = 2
"""Max ratio of the length of rows of atoms by place to that of a batch: attention takes the square of it."""
SPARE_EDGES = 2
"""Number of edges of the padding that form a pair."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a padded batch."""

    structures: int
    atoms: int
    edges: int
    pairs: int
    places: int = 0
    """Length of the rows of atoms by place, if there are any."""


def padded_shape(batch: GraphBatch) -> Shape | None:
    """Shape to which a batch is padded; None if it has tensors that cannot be padded."""
    known = (*OF_ATOMS, *OF_STRUCTURES, *OF_PAIRS, SLOTS)
    if batch.triplets is not None or batch.vectors is None:
        return None
    if not all(name.startswith(known) for name in batch.extras):
        return None
    if not len(batch.src) or batch.node_weight is not None:
        return None
    if sum(name.startswith(SLOTS) for name in batch.extras) > 1:
        return None  # the number of structures of each group varies
    structures = rounded_up(batch.size + 1)
    edges = rounded_up(len(batch.src) + SPARE_EDGES)
    return Shape(
        structures,
        rounded_up(len(batch.numbers) + _atoms_wanted(batch, structures, edges)),
        edges,
        rounded_up(_pairs(batch)),
        rounded_up(_places(batch)),
    )


def fits(batch: GraphBatch, shape: Shape) -> bool:
    """Whether a batch that can be padded fits a shape without much waste."""
    edges = len(batch.src)
    return (
        shape.structures > batch.size
        and edges + SPARE_EDGES <= shape.edges <= MOST_WASTE * edges + SPARE_EDGES
        and shape.atoms - len(batch.numbers) >= _atoms_wanted(batch, shape.structures, shape.edges)
        and shape.pairs >= _pairs(batch)
        and _places(batch) <= shape.places <= MOST_PLACES * _places(batch)
    )


def _atoms_wanted(batch: GraphBatch, structures: int, edges: int) -> int:
    """Number of atoms of the padding: one per structure, and enough for the ends of the edges."""
    ends = -(-(edges - len(batch.src)) * len(batch.numbers) // len(batch.src))
    return max(structures - batch.size, ends)


def _pairs(batch: GraphBatch) -> int:
    pairs = batch.extras.get("line_src")
    return 0 if pairs is None else len(pairs)


def _places(batch: GraphBatch) -> int:
    return max(
        (t.shape[1] for name, t in batch.extras.items() if name.startswith(SLOTS)), default=0
    )


def rounded_up(count: int) -> int:
    """Next of the sizes to which counts are rounded, at most a quarter more."""
    step = max(1, (1 << max(0, count.bit_length() - 1)) // STEPS_PER_OCTAVE)
    return -(-count // step) * step


class PaddedBatch:
    """Tensors of one shape that take one batch after another.

    Args:
        like: a batch that fits.
        shape: of the padded batch, see `padded_shape`.
    """

    def __init__(self, like: GraphBatch, shape: Shape) -> None:
        assert like.vectors is not None  # or `padded_shape` would have none
        self.shape = shape
        device, floats = like.positions.device, like.positions.dtype
        self._counting = torch.arange(max(shape.atoms, shape.edges) + 1, device=device)

        def of(rows: int, tensor: Tensor) -> Tensor:
            return torch.zeros((rows, *tensor.shape[1:]), dtype=tensor.dtype, device=device)

        def weight(rows: int) -> Tensor:
            return torch.zeros(rows, dtype=floats, device=device)

        structures, atoms, edges, pairs = shape.structures, shape.atoms, shape.edges, shape.pairs
        belonging = ((OF_ATOMS, atoms), (OF_STRUCTURES, structures), (OF_PAIRS, pairs))
        extras = {
            name: torch.full((structures, shape.places), -1, device=device)
            if name.startswith(SLOTS)
            else of(next(rows for names, rows in belonging if name.startswith(names)), tensor)
            for name, tensor in like.extras.items()
        }
        self.batch = GraphBatch(
            numbers=of(atoms, like.numbers),
            positions=of(atoms, like.positions),
            cell=of(structures, like.cell),
            node_graph=of(atoms, like.node_graph),
            node_ptr=of(structures + 1, like.node_ptr),
            src=of(edges, like.src),
            dst=of(edges, like.dst),
            dst_ptr=of(atoms + 1, like.dst_ptr),
            shift=of(edges, like.shift),
            vectors=of(edges, like.vectors),
            multiplicity=weight(edges),
            lattice=None if like.lattice is None else of(structures, like.lattice),
            targets=None if like.targets is None else of(structures, like.targets),
            rows=None if like.rows is None else of(structures, like.rows),
            extras=extras,
            node_weight=weight(atoms),
        )

    def fill(self, batch: GraphBatch) -> GraphBatch:
        """Fill in a batch, which must fit the shape, and return the padded batch."""
        into, shape = self.batch, self.shape
        assert into.vectors is not None
        assert into.multiplicity is not None
        assert into.node_weight is not None
        assert batch.vectors is not None
        structures, atoms, edges = batch.size, len(batch.numbers), len(batch.src)
        more_atoms, more_edges = shape.atoms - atoms, shape.edges - edges
        for name in ("numbers", "positions"):
            _copy(getattr(into, name), getattr(batch, name), getattr(batch, name)[:1])
        for name in ("cell", "lattice", "rows"):
            value = getattr(batch, name)
            if value is not None:
                _copy(getattr(into, name), value, value[:1])
        count = self._counting
        owners = count[:more_atoms].clamp(max=shape.structures - structures - 1) + structures
        _copy(into.node_graph, batch.node_graph, owners)
        _copy(into.node_ptr, batch.node_ptr, count[1 : shape.structures - structures + 1] + atoms)
        into.node_ptr[-1:].fill_(shape.atoms)
        _copy(into.node_weight, None, 0.0, rows=atoms)

        # Further edges lead from the further atoms to themselves, evenly distributed.
        ends = count[:more_edges] * more_atoms // more_edges + atoms
        _copy(into.src, batch.src, ends)
        _copy(into.dst, batch.dst, ends)
        first = (count[: more_atoms + 1] * more_edges + more_atoms - 1) // more_atoms
        _copy(into.dst_ptr, batch.dst_ptr[:-1], first + edges)
        _copy(into.shift, batch.shift, 0.0)
        _copy(into.vectors, batch.vectors, batch.vectors[count[:more_edges] % edges])
        _copy(into.multiplicity, batch.multiplicity, 0.0, rows=edges)
        if batch.targets is not None:
            assert into.targets is not None
            _copy(into.targets, batch.targets, torch.nan)
        for name, value in batch.extras.items():
            if name in OF_PAIRS:
                spare = shape.edges - (1 if name == "line_src" else 2)
                _copy(into.extras[name], value, spare)
            elif name.startswith(SLOTS):
                into.extras[name].fill_(-1)[: value.shape[0], : value.shape[1]].copy_(value)
            else:
                _copy(into.extras[name], value, 0.0 if name == "globals" else torch.nan)
        return into


def _copy(into: Tensor, values: Tensor | None, rest: Tensor | float, rows: int = 0) -> None:
    """Copy values (`rows` ones, if there are none) into the first rows, and `rest` into the others."""
    rows = len(values) if values is not None else rows
    if values is None:
        into[:rows].fill_(1.0)
    else:
        into[:rows].copy_(values)
    if isinstance(rest, Tensor):
        into[rows:].copy_(rest.expand(len(into) - rows, *into.shape[1:]))
    else:
        into[rows:].fill_(rest)
