"""ALIGNN: gated graph convolutions on a crystal graph and, in turns, on its line graph.

Choudhary and DeCost, npj Comput. Mater. 7, 185 (2021). The numbers are those of the published model,
whose parameter names this module keeps so that its checkpoints load; the algebra is rearranged:

- In a symmetric crystal, each orbit of atoms and edges is computed once (see atomloom.graphs.orbits).
- Edges between an atom and its own images, which the published graph holds twice, are stored once
  here and count twice, in sums and in batch statistics; so do pairs of them, see `LineEdges`.
- The four Linears of a convolution's nodes are one product.
- Angle features are interpolated from a table (see BasisTable), and so is their first
  product; the statistics of their batch norms are sums over the table.
- Angle features after the last line graph are not computed, since they are not used.
- On a CPU the line graph is processed in blocks that stay in the cache, without an index: at
  an atom every incoming edge is paired with every outgoing one (see `LineBlocks`, `_GatedPairs`).

It knows nothing of training.

Legend: B structures, N atoms, E edges, L edges of the line graph (pairs), D = width, T table rows;
after folding, N and E count classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atomloom.config.model import ALIGNNConfig
from atomloom.data.batch import GraphBatch
from atomloom.data.collate import Pass
from atomloom.graphs.line_graph import line_pairs
from atomloom.graphs.orbits import Orbits, find_orbits
from atomloom.models.common.features import (
    CGCNN_FEATURES,
    cgcnn_features,
    require_cgcnn_features,
)
from atomloom.models.common.heads import AtomFeatures, Heads
from atomloom.models.common.layers import (
    BasisTable,
    FunctionContext,
    GaussianBasis,
    Layers,
    Recomputing,
    WeightedBatchNorm,
    at_least_single,
    full_precision,
    gather,
    joined,
    product,
    product_dtype,
    read_out,
    rounded,
)
from atomloom.models.common.message_passing import Backend, Messages, messages
from atomloom.models.common.outputs import Head, Outputs

LONGEST = 8.0
"""Centre of the last Gaussian of lengths, A."""
EPS = 1e-6
"""Term added to the sum of an atom's gates."""
SHORTEST = 1e-6
"""Min length by which a vector is divided, A."""


# --- the line graph -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LineEdges:
    """Pairs (a, b) of edges such that b leaves the atom at which a arrives, by b, then a.

    Where edges stand for several copies, a pair is counted as in the line graph of the copies, where
    no edge follows itself but any edge follows the others: each copy of b follows `weights` copies
    of a, that is mult(a), minus one where a is b; and there are mult(b) times as many pairs.
    """

    src: Tensor
    """[L] int64, a."""
    dst: Tensor
    """[L] int64, b, ascending."""
    dst_ptr: Tensor
    """[E+1] int64, first pair of each b."""
    cosine: Tensor
    """[L], cosine of the angle at the common atom between the two far ends."""
    weights: Tensor
    """[L], number of copies of a that each copy of b follows."""
    counts: Tensor
    """[L], number of pairs of copies."""


def multiplicities(batch: GraphBatch) -> Tensor:
    """[E] multiplicity of each edge in published graphs: 2 from an atom to its own image."""
    copies = 1.0 + (batch.src == batch.dst).to(batch.positions.dtype)
    if batch.node_weight is None:
        return copies
    return copies * gather(batch.node_weight, batch.dst)


def line_edges_of_batch(batch: GraphBatch, vectors: Tensor, copies: Tensor) -> LineEdges:
    """Line graph of a batch, on its device.

    Args:
        batch: if its extras have `line_src` and `line_dst` [L], as `atomloom.graphs.line_graph.line_pairs`
            makes them, they are used; otherwise the device is asked for their number.
        vectors: [E, 3], A; cosines are differentiable in them.
        copies: [E], multiplicity of each edge.
    """
    arriving = batch.dst_ptr.diff()
    per_edge = gather(arriving, batch.src)
    ends = per_edge.cumsum(0)
    dst_ptr = torch.cat((ends.new_zeros(1), ends))
    if "line_src" in batch.extras:
        first, second = batch.extras["line_src"], batch.extras["line_dst"]
    else:
        second = torch.repeat_interleave(per_edge)
        offset = gather(batch.dst_ptr, batch.src) - dst_ptr[:-1]
        first = torch.arange(len(second), device=second.device) + gather(offset, second)
    unit = vectors / _norm(vectors).unsqueeze(1)
    # `vectors` point from dst to src's image: the first edge's from j to i, the second's from k to j.
    cosine = -(gather(unit, first) * gather(unit, second)).sum(dim=1)
    weights = gather(copies, first) - (first == second).to(copies.dtype)
    counts = weights * gather(copies, second)
    return LineEdges(first, second, dst_ptr, cosine.clamp(-1.0, 1.0), weights, counts)


def line_pairs_of(batch: GraphBatch) -> dict[str, Tensor]:
    """`line_src` and `line_dst` [L] of a batch on the CPU, for its extras."""
    first, second = line_pairs(batch.src.numpy(), batch.dst_ptr.numpy())
    return {"line_src": torch.from_numpy(first), "line_dst": torch.from_numpy(second)}


@dataclass(frozen=True)
class Block:
    """Pairs at a few atoms that have equal numbers of incoming (P) and outgoing (Q) edges."""

    shape: tuple[int, int, int]
    """Atoms, Q, P; pairs are in this order."""
    pairs: slice
    arriving: slice
    leaving: slice

    @property
    def rows(self) -> int:
        """Number of pairs."""
        return self.pairs.stop - self.pairs.start


class LineBlocks:
    """Pairs of the line graph by atom, as tables of all outgoing by all incoming edges.

    An edge arrives at one atom and leaves one, so that sums and sources along each side of such a
    table need no index. Atoms are sorted by their numbers of edges. Of equivalent atoms and equivalent
    outgoing edges, one is used.

    Args:
        batch: on a CPU.
        vectors: [E, 3], A, of all edges of the batch.
        copies: [E], multiplicity of each edge of the batch.
        orbits: classes of its atoms and edges.
        order: [F], the order in which classes of edges are used.
    """

    ROWS = 1024
    """Max pairs per block, unless an atom has more: they should stay in the processor's cache."""

    def __init__(
        self,
        batch: GraphBatch,
        vectors: Tensor,
        copies: Tensor,
        orbits: Orbits,
        order: np.ndarray,
    ) -> None:
        src, dst_ptr = batch.src.numpy(), batch.dst_ptr.numpy()
        edges = orbits.edges[order]
        start = orbits.atom_class[src[edges]]
        leave = np.bincount(start, minlength=len(orbits.atoms))
        first = dst_ptr[orbits.atoms]
        arrive = dst_ptr[orbits.atoms + 1] - first
        by_size = np.lexsort((arrive, leave))
        rank = np.empty_like(by_size)
        rank[by_size] = np.arange(len(by_size))
        leaving = np.argsort(rank[start], kind="stable")
        counts, first = arrive[by_size], first[by_size]
        ends = np.cumsum(counts)
        self.arriving_edges = np.arange(ends[-1] if len(ends) else 0) + np.repeat(
            first - ends + counts, counts
        )
        self.leaving_edges = edges[leaving]
        place = np.empty_like(leaving)
        place[leaving] = np.arange(len(leaving))
        self.leaving = torch.from_numpy(leaving)
        """[E], edges by the atom they leave."""
        self.place = torch.from_numpy(place)
        """[E], position of each edge in `leaving`."""
        number = np.empty_like(order)
        number[order] = np.arange(len(order))
        self.arriving = torch.from_numpy(number[orbits.edge_class[self.arriving_edges]])
        """Incoming edges, atom by atom; some of them several times."""
        self.blocks = self._cut(leave[by_size], counts)
        self.rows = self.blocks[-1].pairs.stop if self.blocks else 0
        near, far = torch.from_numpy(self.arriving_edges), torch.from_numpy(self.leaving_edges)
        unit = vectors / _norm(vectors).unsqueeze(1)
        self.cosine = self._cosines(gather(unit, near), gather(unit, far))
        """[L], cosines of the angles, as in LineEdges."""
        self.weights: Tensor | None = None
        """[L], as in LineEdges; None where all are one."""
        self.counts: Tensor | None = None
        """[L], as in LineEdges; None where all are one."""
        members = torch.from_numpy(orbits.edge_counts[order[leaving]]).to(copies.dtype)
        images = bool((copies != 1).any()) or bool((batch.src == batch.dst).any())
        if images or len(edges) < len(src):
            self._weigh(gather(copies, near), members * gather(copies, far), images)

    def _cut(self, leave: np.ndarray, arrive: np.ndarray) -> list[Block]:
        blocks = []
        pair = first_in = first_out = atom = 0
        changes = np.flatnonzero(np.diff(leave) | np.diff(arrive)) + 1
        for end in [*changes.tolist(), len(leave)]:
            q, p = int(leave[atom]), int(arrive[atom])
            while atom < end:
                many = min(end - atom, max(1, self.ROWS // max(p * q, 1))) if p * q else end - atom
                stop, last_in, last_out = (
                    pair + many * p * q,
                    first_in + many * p,
                    first_out + many * q,
                )
                if p * q:
                    blocks.append(
                        Block(
                            (many, q, p),
                            slice(pair, stop),
                            slice(first_in, last_in),
                            slice(first_out, last_out),
                        )
                    )
                pair, first_in, first_out, atom = stop, last_in, last_out, atom + many
        return blocks

    def _cosines(self, arriving: Tensor, leaving: Tensor) -> Tensor:
        cosine = arriving.new_empty(self.rows)
        for block in self.blocks:
            atoms, q, p = block.shape
            near = arriving[block.arriving].view(atoms, p, 3)
            far = leaving[block.leaving].view(atoms, q, 3)
            torch.bmm(far, near.transpose(1, 2), out=cosine[block.pairs].view(block.shape))
        return cosine.neg_().clamp_(-1.0, 1.0)

    def _weigh(self, of_arriving: Tensor, of_leaving: Tensor, images: bool) -> None:
        counts = of_leaving.new_empty(self.rows)
        weights = counts.new_empty(self.rows) if images else None
        near, far = torch.from_numpy(self.arriving_edges), torch.from_numpy(self.leaving_edges)
        for block in self.blocks:
            atoms, q, p = block.shape
            count = of_leaving[block.leaving].view(atoms, q, 1).expand(atoms, q, p)
            if weights is not None:
                ends = far[block.leaving].view(atoms, q, 1), near[block.arriving].view(atoms, 1, p)
                same = (ends[0] == ends[1]).to(count.dtype)
                weight = of_arriving[block.arriving].view(atoms, 1, p) - same
                weights[block.pairs] = weight.flatten()
                count = count * weight
            counts[block.pairs] = count.flatten()
        self.weights, self.counts = weights, counts


def _norm(vectors: Tensor) -> Tensor:
    """[E] norms, A, at least SHORTEST; the gradient is never NaN."""
    return vectors.square().sum(dim=-1).clamp(min=SHORTEST**2).sqrt()


# --- layers ---------------------------------------------------------------------------------------


class MLPLayer(nn.Module):
    """Linear, batch norm, SiLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            nn.Linear(inputs, outputs), WeightedBatchNorm(outputs), nn.SiLU()
        )

    def forward(self, values: Tensor, counts: Tensor | None) -> Tensor:
        """[R, outputs] from [R, inputs], with rows weighted by `counts` [R] in batch statistics."""
        linear, norm, activation = self.layer
        return activation(norm(linear(values), counts))


def _basis(low: float, high: float, centers: int) -> GaussianBasis:
    basis = GaussianBasis(low, high, centers)
    # Published weights were fitted with a spacing rounded to single precision, off by up to 5e-8.
    basis.centers = torch.linspace(low, high, centers)
    basis.gamma = 1.0 / float(np.diff(basis.centers.numpy()).mean())
    return basis


def _embedding(basis: GaussianBasis, between: int, width: int) -> nn.Sequential:
    return nn.Sequential(basis, MLPLayer(len(basis.centers), between), MLPLayer(between, width))


def _embed(embedding: nn.Sequential, x: Tensor, counts: Tensor | None) -> Tensor:
    basis, first, second = embedding
    return second(first(basis(x), counts), counts)


@dataclass(frozen=True, eq=False)
class Weighted:
    """Edges of a graph, with the multiplicities of edges and nodes."""

    messages: Messages
    weights: Tensor | None
    """[E, 1], of edges in sums at nodes; None if all are 1."""
    edge_counts: Tensor | None
    """[E], of edges in batch statistics."""
    node_counts: Tensor | None
    """[N], of nodes in batch statistics."""


class EdgeGatedConv(nn.Module):
    """Gated graph convolution with residuals (Bresson and Laurent, arXiv:1711.07553).

    m = A x_src + B x_dst + C y; x' = x + SiLU(BN(W x + sum s(m) V x_src / (sum s(m) + EPS)));
    y' = y + SiLU(BN(m)); s is the sigmoid.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.src_gate = nn.Linear(width, width)
        self.dst_gate = nn.Linear(width, width)
        self.edge_gate = nn.Linear(width, width)
        self.bn_edges = WeightedBatchNorm(width)
        self.src_update = nn.Linear(width, width)
        self.dst_update = nn.Linear(width, width)
        self.bn_nodes = WeightedBatchNorm(width)

    def of_nodes(self, nodes: Tensor, dtype: torch.dtype | None) -> tuple[Tensor, ...]:
        """A x, V x, B x and W x, [N, D] each; all biases of m are in the first."""
        linears = (self.src_gate, self.dst_update, self.dst_gate, self.src_update)
        bias = self.src_gate.bias + self.dst_gate.bias + self.edge_gate.bias
        biases = (bias, self.dst_update.bias, torch.zeros_like(bias), self.src_update.bias)
        weight = torch.cat([linear.weight for linear in linears])
        values = at_least_single(product(nodes, weight, torch.cat(biases), dtype))
        return values.split(self.width, dim=1)

    def new_nodes(
        self, nodes: Tensor, own: Tensor, total: Tensor, gates: Tensor, counts: Tensor | None
    ) -> Tensor:
        """x' from x, W x and the two sums, [N, D] each."""
        return nodes + F.silu(self.bn_nodes(own + total / (gates + EPS), counts))

    def forward(
        self,
        nodes: Tensor,
        edges: Tensor,
        graph: Weighted,
        dtype: torch.dtype | None,
        last: bool = False,
        part: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """New features x' [N, D] and y' [E, D] from x and y; the last convolution returns y unchanged.

        Args:
            nodes: [N, D].
            edges: [E, D].
            graph: their edges and multiplicities.
            dtype: see `product_dtype`.
            last: whether y' is not needed.
            part: [E, D], C y where known.
        """
        at_src, carried, at_dst, own = self.of_nodes(nodes, dtype)
        if part is None:
            part = product(edges, self.edge_gate.weight, None, dtype)
        gate = graph.messages.add_ends(at_src, at_dst) + part
        open_ = torch.sigmoid(gate)
        if graph.weights is not None:
            open_ = open_ * graph.weights
        total = graph.messages.weighted_sum(carried, open_)
        nodes = self.new_nodes(nodes, own, total, graph.messages.sum(open_), graph.node_counts)
        if last:
            return nodes, edges
        return nodes, edges + F.silu(self.bn_edges(gate, graph.edge_counts))

    def over_blocks(
        self,
        nodes: Tensor,
        pairs: Tensor,
        part: Tensor | None,
        blocks: LineBlocks,
        node_counts: Tensor | None,
        dtype: torch.dtype | None,
        last: bool,
    ) -> tuple[Tensor, Tensor]:
        """Apply the convolution to the blocks of a line graph.

        Args:
            nodes: [E, D].
            pairs: [L, D], in the order of the blocks.
            part: [L, D], C y where known; it is overwritten.
            blocks: of the line graph.
            node_counts: [E].
            dtype: see `product_dtype`.
            last: whether new features of pairs are not needed.
        """
        at_src, carried, at_dst, own = self.of_nodes(nodes, dtype)
        norm = self.bn_edges
        total, gates, following, mean, variance = _GatedPairs.apply(
            pairs,
            part,
            self.edge_gate.weight,
            torch.cat((at_src, carried), dim=1).index_select(0, blocks.arriving),
            gather(at_dst, blocks.leaving),
            norm.weight,
            norm.bias,
            None if self.training else (norm.running_mean, norm.running_var),
            norm.eps,
            blocks,
            dtype,
            last,
        )
        if self.training and not last:
            count = mean.new_tensor(
                float(blocks.rows if blocks.counts is None else blocks.counts.sum())
            )
            norm.track(mean, variance, count)
        total, gates = gather(total, blocks.place), gather(gates, blocks.place)
        return self.new_nodes(nodes, own, total, gates, node_counts), following


class _GatedPairs(torch.autograd.Function):
    """Gates and sums of an EdgeGatedConv on a line graph, block by block, derivative by hand.

    In the usual form, each of some twenty elementwise steps sends [L, D] through memory, and most of
    that time goes into pages of new arrays. Here only m and the new features of pairs are kept.
    """

    @staticmethod
    def forward(
        ctx: FunctionContext,
        pairs: Tensor,
        part: Tensor | None,
        weight: Tensor,
        arriving: Tensor,
        leaving: Tensor,
        scale: Tensor,
        shift: Tensor,
        moments: tuple[Tensor, Tensor] | None,
        eps: float,
        blocks: LineBlocks,
        dtype: torch.dtype | None,
        last: bool,
    ) -> tuple[Tensor | None, ...]:
        width = weight.shape[0]
        at_src, carried = arriving.split(width, dim=1)
        gate = pairs.new_empty(pairs.shape) if part is None else part
        total, gates = torch.zeros_like(leaving), torch.zeros_like(leaving)
        work = _Scratch(blocks, width, pairs.dtype)
        statistics = None if last or moments is not None else _Moments(width, pairs)
        low = rounded(weight, dtype)
        for block in blocks.blocks:
            m = gate[block.pairs]
            if part is None:
                _product_into(pairs[block.pairs], low.t(), m)
            by = m.view(*block.shape, width)
            by += _along_arriving(at_src, block)
            by += _along_leaving(leaving, block)
            open_ = torch.sigmoid(m, out=work(0, block))
            if blocks.weights is not None:
                open_ *= blocks.weights[block.pairs].unsqueeze(1)
            open_ = open_.view(*block.shape, width)
            shape = (*block.shape[:2], width)
            torch.sum(open_, dim=2, out=gates[block.leaving].view(shape))
            open_ *= _along_arriving(carried, block)
            torch.sum(open_, dim=2, out=total[block.leaving].view(shape))
            if statistics is not None:
                counts = None if blocks.counts is None else blocks.counts[block.pairs]
                statistics.add(m, counts, work(0, block))
        if last:
            mean = variance = following = factor = offset = None
        else:
            found = moments if statistics is None else statistics.result()
            assert found is not None
            mean, variance = found
            factor = scale * torch.rsqrt(variance + eps)
            offset = shift - mean * factor
            following = torch.empty_like(pairs)
            for block in blocks.blocks:
                rows = block.pairs
                bent = torch.addcmul(offset, gate[rows], factor, out=work(0, block))
                torch.add(pairs[rows], F.silu(bent, inplace=True), out=following[rows])
        ctx.blocks, ctx.dtype, ctx.last, ctx.eps = blocks, dtype, last, eps
        ctx.fixed, ctx.given = moments is not None, part is not None
        ctx.counted = None if statistics is None else statistics.count
        ctx.mark_non_differentiable(*(t for t in (mean, variance) if t is not None))
        ctx.set_materialize_grads(False)
        kept = None if part is not None else pairs
        ctx.save_for_backward(kept, weight, arriving, leaving, gate, mean, variance, factor, offset)
        return total, gates, following, mean, variance

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: FunctionContext,
        d_total: Tensor | None,
        d_gates: Tensor | None,
        d_following: Tensor | None,
        *_: None,
    ) -> tuple[Tensor | None, ...]:
        pairs, weight, arriving, leaving, gate, mean, variance, factor, offset = ctx.saved_tensors
        blocks, width = ctx.blocks, weight.shape[0]
        carried = arriving[:, width:]
        d_total = torch.zeros_like(leaving) if d_total is None else d_total
        d_gates = torch.zeros_like(leaving) if d_gates is None else d_gates
        work = _Scratch(blocks, width, gate.dtype)
        d_arriving, d_leaving = torch.zeros_like(arriving), torch.zeros_like(leaving)
        d_at_src, d_carried = d_arriving.split(width, dim=1)
        d_weight = None if ctx.given else torch.zeros_like(weight)
        # With a given part, `d_m` is its gradient and pairs pass unchanged.
        d_out = torch.empty_like(gate)
        low = rounded(weight, ctx.dtype)
        d_scale = d_shift = None

        def normed(block: Block, d_following: Tensor) -> Tensor:
            """Gradient by the normalised m of a block, and that m as it enters the SiLU."""
            bent = torch.addcmul(offset, gate[block.pairs], factor, out=work(0, block))
            return torch.ops.aten.silu_backward.grad_input(
                d_following[block.pairs], bent, grad_input=work(1, block)
            )

        if d_following is not None:
            sums = torch.zeros(2, width, dtype=torch.float64)
            for block in blocks.blocks:
                slope = normed(block, d_following)
                sums[0] += slope.sum(dim=0)
                centred = torch.sub(gate[block.pairs], mean, out=work(0, block))
                sums[1] += centred.mul_(slope).sum(dim=0)
            inverse = torch.rsqrt(variance + ctx.eps)
            d_shift = sums[0].to(gate.dtype)
            d_scale = sums[1].to(gate.dtype) * inverse
            if not ctx.fixed:
                # The part of slope * factor that mean and variance remove: constant + linear in m.
                total_count = max(ctx.counted, 1.0)
                linear = factor * inverse * d_scale / total_count
                constant = factor * d_shift / total_count - mean * linear

        for block in blocks.blocks:
            rows, shape = block.pairs, (*block.shape, width)
            m = gate[rows]
            open_ = torch.sigmoid(m, out=work(0, block))
            slope = work(1, block).view(shape)
            torch.mul(_along_leaving(d_total, block), _along_arriving(carried, block), out=slope)
            slope += _along_leaving(d_gates, block)
            slope = slope.view_as(m)
            weights = None if blocks.weights is None else blocks.weights[rows].unsqueeze(1)
            d_m = torch.ops.aten.sigmoid_backward.grad_input(
                slope, open_, grad_input=work(2, block)
            )
            if weights is not None:
                d_m *= weights
                open_ *= weights
            open_ = open_.view(shape)
            open_ *= _along_leaving(d_total, block)
            _set_sum(d_carried, block.arriving, open_, 1)
            if d_following is not None:
                d_m.addcmul_(normed(block, d_following), factor)
                if not ctx.fixed:
                    taken = torch.addcmul(constant, m, linear, out=work(0, block))
                    if blocks.counts is not None:
                        taken *= blocks.counts[rows].unsqueeze(1)
                    d_m -= taken
            by = d_m.view(shape)
            _set_sum(d_at_src, block.arriving, by, 1)
            _set_sum(d_leaving, block.leaving, by, 2)
            if d_weight is None:
                d_out[rows] = d_m
                continue
            d_low = rounded(d_m, ctx.dtype)
            if ctx.dtype is None:
                torch.addmm(d_weight, d_m.t(), pairs[rows], out=d_weight)
                if d_following is not None:
                    torch.addmm(d_following[rows], d_m, weight, out=d_out[rows])
                else:
                    torch.mm(d_m, weight, out=d_out[rows])
            else:
                d_weight += torch.mm(d_low.t(), rounded(pairs[rows], ctx.dtype))
                d_out[rows] = torch.mm(d_low, low)
                if d_following is not None:
                    d_out[rows] += d_following[rows]
        d_pairs, d_part = (d_following, d_out) if ctx.given else (d_out, None)
        return d_pairs, d_part, d_weight, d_arriving, d_leaving, d_scale, d_shift, *[None] * 5


class _Scratch:
    """Three arrays of the largest block's size."""

    def __init__(self, blocks: LineBlocks, width: int, dtype: torch.dtype) -> None:
        rows = max((block.rows for block in blocks.blocks), default=0)
        self.arrays = torch.empty(3, rows, width, dtype=dtype)

    def __call__(self, which: int, block: Block) -> Tensor:
        return self.arrays[which, : block.rows]


class _Moments:
    """Weighted mean and variance of rows that come block by block."""

    def __init__(self, width: int, like: Tensor) -> None:
        self.count, self.like = 0.0, like
        self.sums = torch.zeros(2, width, dtype=torch.float64)
        self.origin: Tensor | None = None

    def add(self, rows: Tensor, counts: Tensor | None, scratch: Tensor) -> None:
        if self.origin is None:  # near the mean, so that squares do not cancel
            self.origin = rows.mean(dim=0)
        apart = torch.sub(rows, self.origin, out=scratch)
        self.count += float(len(rows) if counts is None else counts.sum())
        if counts is None:
            self.sums[0] += apart.sum(dim=0)
            self.sums[1] += apart.square_().sum(dim=0)
        else:
            self.sums[0] += counts @ apart
            self.sums[1] += counts @ apart.square_()

    def result(self) -> tuple[Tensor, Tensor]:
        total = max(self.count, 1.0)
        first, second = self.sums / total
        variance = (second - first.square()).clamp(min=0.0).to(self.like.dtype)
        origin = 0.0 if self.origin is None else self.origin
        return (first + origin).to(self.like.dtype), variance


def _along_arriving(values: Tensor, block: Block) -> Tensor:
    """[atoms, 1, P, D] view of values [E, D] by incoming edge."""
    atoms, _, p = block.shape
    return values[block.arriving].view(atoms, 1, p, -1)


def _along_leaving(values: Tensor, block: Block) -> Tensor:
    """[atoms, Q, 1, D] view of values [E, D] by outgoing edge."""
    atoms, q, _ = block.shape
    return values[block.leaving].view(atoms, q, 1, -1)


def _set_sum(into: Tensor, rows: slice, values: Tensor, dim: int) -> None:
    torch.sum(values, dim=dim, out=into[rows].view(values.shape[0], -1, values.shape[-1]))


def _product_into(values: Tensor, weight: Tensor, out: Tensor) -> None:
    if values.dtype == weight.dtype:
        torch.mm(values, weight, out=out)
    else:
        out.copy_(torch.mm(values.to(weight.dtype), weight))


# --- the model ------------------------------------------------------------------------------------


class ALIGNNConv(nn.Module):
    """Convolution of the crystal graph, followed by one of its line graph."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.node_update = EdgeGatedConv(width)
        self.edge_update = EdgeGatedConv(width)


class ALIGNN(Recomputing):
    """Atomistic line graph neural network.

    Under autocast, only products over edges and pairs run in the lower precision.

    Args:
        config: hyper-parameters.
        outputs: number of outputs per structure.
        global_features: numbers per structure in `batch.extras["globals"]`.
        heads: further targets, scalars of atoms.
    """

    elements: Tensor

    def __init__(
        self,
        config: ALIGNNConfig,
        outputs: int,
        global_features: int = 0,
        heads: Sequence[Head] = (),
    ) -> None:
        super().__init__()
        width, between = config.width, config.embedding
        self.backend, self.readout = config.backend, config.readout
        self.global_features = global_features
        self.atom_embedding = MLPLayer(CGCNN_FEATURES, width)
        lengths = _basis(0.0, LONGEST, config.edge_bins)
        self.edge_embedding = _embedding(lengths, between, width)
        angles = _basis(-1.0, 1.0, config.angle_bins)
        self.angle_embedding = _embedding(angles, between, width)
        self.angle_table = BasisTable(angles, -1.0, 1.0)
        self.alignn_layers = Layers(ALIGNNConv(width) for _ in range(config.alignn_layers))
        self.gcn_layers = Layers(EdgeGatedConv(width) for _ in range(config.gcn_layers))
        if outputs:
            self.fc = nn.Linear(width + global_features, outputs)
        self.outputs, self.heads = outputs, Heads(heads, width + global_features)
        elements = torch.tensor(cgcnn_features(), dtype=torch.float32)
        self.register_buffer("elements", elements, persistent=False)

    def forward(self, batch: GraphBatch) -> Tensor | Outputs:
        """Predictions [B, outputs], and values of heads."""
        dtype = product_dtype(batch.positions)
        with full_precision(batch.positions):
            return self.predict(batch, multiplicities(batch), dtype)

    def require_elements(self, numbers: np.ndarray) -> None:
        """Raise AtomloomError unless the model knows every atomic number in `numbers`."""
        require_cgcnn_features(numbers, where="model")

    def passes(self, device: str, compiled: bool) -> tuple[Pass, ...]:
        """Tensors that a loader may compute for each batch: pairs of edges, where they are needed by
        index, on GPUs and by the plain backends. Without them the device is asked for their number."""
        by_blocks = self.backend == "auto" and device == "cpu" and not compiled
        return () if by_blocks else (line_pairs_of,)

    def predict(
        self, batch: GraphBatch, copies: Tensor, dtype: torch.dtype | None
    ) -> Tensor | Outputs:
        """Predictions.

        Args:
            batch: the batch.
            copies: [E], multiplicity of each edge.
            dtype: see `product_dtype`.
        """
        vectors = batch.edge_vectors()
        if self._blockwise(vectors):
            view, blocks = _by_orbits(batch, vectors, copies, self.backend)
            line: _Line = _BlockLine(self, blocks, view.graph.edge_counts)
        else:
            view = _as_it_stands(batch, vectors, copies, self.backend)
            line = _IndexedLine(self, line_edges_of_batch(batch, vectors, copies), copies)
        graph = view.graph
        nodes = self.atom_embedding(gather(self.elements, view.numbers), graph.node_counts)
        edges = _embed(self.edge_embedding, view.lengths, graph.edge_counts)
        pairs = None
        for number, layer in enumerate(self.alignn_layers, start=1):
            last = number == len(self.alignn_layers)

            def both(
                nodes: Tensor,
                edges: Tensor,
                pairs: Tensor | None,
                layer: ALIGNNConv = layer,
                last: bool = last,
            ) -> tuple[Tensor, Tensor, Tensor]:
                nodes, edges = layer.node_update(nodes, edges, graph, dtype)
                pairs, part = line.embedded() if pairs is None else (pairs, None)
                return nodes, *line.update(layer.edge_update, edges, pairs, part, dtype, last)

            nodes, edges, pairs = self.over_edges(both, nodes, edges, pairs)
        for number, convolution in enumerate(self.gcn_layers, start=1):
            last = number == len(self.gcn_layers)
            nodes, edges = self.over_edges(convolution, nodes, edges, graph, dtype, last)
        return self._read_out(nodes, view, batch)

    def _read_out(self, nodes: Tensor, view: _View, batch: GraphBatch) -> Tensor | Outputs:
        given = batch.extras["globals"] if self.global_features else None
        main, carried = None, self._carried()
        if self.outputs:
            main = self._of_structures(nodes, view, batch, given) + carried
        else:
            nodes = nodes + carried
        features = AtomFeatures(joined(nodes, given, view.node_graph), unfold=view.atom_class)
        return self.heads.with_main(main, features, batch)

    def _of_structures(
        self, nodes: Tensor, view: _View, batch: GraphBatch, given: Tensor | None
    ) -> Tensor:
        head: Callable[[Tensor], Tensor] = self.fc
        if view.graph.node_counts is not None:
            counts = view.graph.node_counts.unsqueeze(1)
            if self.readout == "mean":
                nodes = nodes * counts
            else:
                head = lambda values: self.fc(values) * counts  # noqa: E731
        return read_out(nodes, view.node_graph, batch.node_ptr, self.readout, head, given)

    def _blockwise(self, vectors: Tensor) -> bool:
        plain = vectors.requires_grad or torch.compiler.is_compiling()
        return self.backend == "auto" and vectors.device.type == "cpu" and not plain

    def _carried(self) -> Tensor:
        """Zero, as a function of the unused weights.

        Added to the output it gives them a zero gradient, without which data-parallel training
        waits for one or refuses to run.
        """
        one, other = self.alignn_layers[-1].edge_update.bn_edges, self.gcn_layers[-1].bn_edges
        of_one = one.weight.sum() + one.bias.sum()
        return 0.0 * (of_one + (other.weight.sum() + other.bias.sum()))


@dataclass(frozen=True, eq=False)
class _View:
    """Crystal graph as the layers see it."""

    numbers: Tensor
    """[N] int64."""
    node_graph: Tensor
    """[N] int64, the structure of each atom."""
    lengths: Tensor
    """[E], A."""
    graph: Weighted
    atom_class: Tensor | None = None
    """[atoms of the batch] int64, atom of the view that stands for each; None if each stands for itself."""


def _as_it_stands(batch: GraphBatch, vectors: Tensor, copies: Tensor, backend: Backend) -> _View:
    carrier = messages(
        batch.src, batch.dst, len(batch.numbers), dst_ptr=batch.dst_ptr, backend=backend
    )
    graph = Weighted(carrier, copies.unsqueeze(1), copies, batch.node_weight)
    return _View(batch.numbers, batch.node_graph, _norm(vectors), graph)


def _by_orbits(
    batch: GraphBatch, vectors: Tensor, copies: Tensor, backend: Backend
) -> tuple[_View, LineBlocks]:
    """View of one atom and edge per orbit in place of all, and the line graph of these."""
    arrays = (batch.numbers, batch.src, batch.dst, batch.node_ptr, batch.dst_ptr, vectors)
    orbits = find_orbits(*(array.numpy() for array in arrays))
    start, stop = (orbits.atom_class[end.numpy()[orbits.edges]] for end in (batch.src, batch.dst))
    order = np.argsort(stop, kind="stable")
    edges = torch.from_numpy(orbits.edges[order])
    start, stop = start[order], stop[order]
    atoms = torch.from_numpy(orbits.atoms)
    node_counts = torch.from_numpy(orbits.atom_counts).to(copies.dtype)
    members = torch.from_numpy(orbits.edge_counts[order]).to(copies.dtype)
    edge_counts = members * gather(copies, edges)
    stop_tensor = torch.from_numpy(stop)
    # Number of edges of a class that arrive at each atom of a class.
    weights = edge_counts / gather(node_counts, stop_tensor)
    dst_ptr = np.concatenate(([0], np.cumsum(np.bincount(stop, minlength=len(orbits.atoms)))))
    carrier = messages(
        torch.from_numpy(start),
        stop_tensor,
        len(atoms),
        dst_ptr=torch.from_numpy(dst_ptr),
        backend=backend,
    )
    view = _View(
        gather(batch.numbers, atoms),
        gather(batch.node_graph, atoms),
        gather(_norm(vectors), edges),
        Weighted(carrier, weights.unsqueeze(1), edge_counts, node_counts),
        torch.from_numpy(orbits.atom_class),
    )
    return view, LineBlocks(batch, vectors, copies, orbits, order)


class _Line(ABC):
    """Line graph whose edges have no features yet."""

    def __init__(
        self, model: ALIGNN, cosine: Tensor, counts: Tensor | None, copies: Tensor | None
    ) -> None:
        self.cosine, self.counts, self.copies = cosine, counts, copies
        self.embedding, self.table = model.angle_embedding, model.angle_table
        exact = cosine.dtype == torch.float64 or cosine.requires_grad
        self.rows: tuple[Tensor, Tensor] | None = None
        """Compute features of the table's angles [T, D], and their product in the first layer."""
        if not (exact or torch.compiler.is_compiling()) and self.table.pays(len(cosine)):
            shares = _shares(self.table, cosine, counts)
            rows = _embed(self.embedding, self.table.grid(cosine), shares)
            first = model.alignn_layers[0].edge_update.edge_gate
            self.rows = rows, F.linear(rows, first.weight)

    def embedded(self) -> tuple[Tensor, Tensor | None]:
        """Features of angles [L, D], and their product in the first layer where that costs little."""
        if self.rows is None:
            return _embed(self.embedding, self.cosine, self.counts), None
        features, part = (self.table.interpolate(rows, self.cosine) for rows in self.rows)
        return features, part

    @abstractmethod
    def update(
        self,
        layer: EdgeGatedConv,
        edges: Tensor,
        pairs: Tensor,
        part: Tensor | None,
        dtype: torch.dtype | None,
        last: bool,
    ) -> tuple[Tensor, Tensor]:
        """New features of edges [E, D] and angles [L, D] after a layer.

        Arguments are those of `EdgeGatedConv.over_blocks`.
        """


def _shares(table: BasisTable, x: Tensor, counts: Tensor | None) -> Tensor:
    """[T] weight of each row of a table in the sum of values interpolated at `x` [L].

    A sum over interpolated values is a weighted sum over the table's rows; so are mean and variance,
    because the square of so smooth a function is interpolated as well as the function.
    """
    with torch.enable_grad():
        probe = x.new_zeros((table.rows, 1)).requires_grad_()
        found = table.interpolate(probe, x)[:, 0]
        total = found.sum() if counts is None else found @ counts
        return torch.autograd.grad(total, probe)[0][:, 0]


class _IndexedLine(_Line):
    """Line graph as a plain graph, by the interface for messages."""

    def __init__(self, model: ALIGNN, line: LineEdges, copies: Tensor) -> None:
        super().__init__(model, line.cosine, line.counts, copies)
        carrier = messages(
            line.src, line.dst, len(copies), dst_ptr=line.dst_ptr, backend=model.backend
        )
        self.graph = Weighted(carrier, line.weights.unsqueeze(1), line.counts, copies)

    def update(
        self,
        layer: EdgeGatedConv,
        edges: Tensor,
        pairs: Tensor,
        part: Tensor | None,
        dtype: torch.dtype | None,
        last: bool,
    ) -> tuple[Tensor, Tensor]:
        return layer(edges, pairs, self.graph, dtype, last, part)


class _BlockLine(_Line):
    """Line graph in blocks."""

    def __init__(self, model: ALIGNN, blocks: LineBlocks, copies: Tensor | None) -> None:
        super().__init__(model, blocks.cosine, blocks.counts, copies)
        self.blocks = blocks

    def update(
        self,
        layer: EdgeGatedConv,
        edges: Tensor,
        pairs: Tensor,
        part: Tensor | None,
        dtype: torch.dtype | None,
        last: bool,
    ) -> tuple[Tensor, Tensor]:
        return layer.over_blocks(edges, pairs, part, self.blocks, self.copies, dtype, last)
