"""Passes compiled for a CPU, shared by potentials: how they are run, and what they are run on.

Models whose sums over edges are compiled passes with derivatives written by hand send messages over pairs
of edges. Elsewhere, and under torch.compile, they use plain operations on single edges: `by_passes` says
which. It knows nothing of particular models.

Legend: N atoms, P pairs (edges without reverses).
"""

from __future__ import annotations

import math
from collections.abc import Callable, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from atomloom.data.batch import GraphBatch
from atomloom.models.common import kernels
from atomloom.models.common.layers import FunctionContext, at_least_single, gather, product

ELEMENTS = 118
SHORTEST = 1e-6
"""Min length in A; shorter edges, of coinciding atoms, count as this long: gradients are never NaN."""
WORTH_A_THREAD = 1 << 17
"""Min numbers of a filter per thread for which another thread pays."""


def by_passes(values: Tensor) -> bool:
    """Whether to use compiled passes, rather than plain operations, for tensors like this."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


@dataclass(frozen=True, eq=False)
class Edges:
    """Edges along which messages are sent: pairs on a CPU, all single edges elsewhere."""

    src: Tensor
    """[P] int64, neighbour."""
    dst: Tensor
    """[P] int64, central atom, ascending."""
    mutual: Tensor | None
    """[P] int64, 1 where the edge stands for its reverse too; None for plain operations."""
    directions: Tensor
    """[P, 3], unit vectors from dst to src's image."""
    lengths: Tensor
    """[P], A."""

    @classmethod
    def of(cls, batch: GraphBatch) -> Edges:
        """Edges of a batch, differentiable in its vectors."""
        vectors = batch.edge_vectors()
        if not by_passes(vectors):
            src, dst, mutual = batch.src, batch.dst, None
        else:
            arrays = (batch.src, batch.dst, batch.dst_ptr, batch.shift)
            found = kernels.find_pairs(*(array.detach().numpy() for array in arrays))
            edges, mutual = (torch.from_numpy(array) for array in found)
            src, dst, vectors = (gather(array, edges) for array in (batch.src, batch.dst, vectors))
        lengths = vectors.square().sum(dim=1).clamp(min=SHORTEST**2).sqrt()
        return cls(src, dst, mutual, vectors / lengths.unsqueeze(1), lengths)


def run_over_pairs(
    kernel: Callable[..., None],
    edges: Edges,
    given: tuple[Tensor, ...],
    of_pairs: tuple[Tensor, ...],
    of_atoms: tuple[Tensor, ...],
    work: int,
) -> None:
    """Run one compiled pass, in as many threads as pay for `work` numbers; writes `of_pairs` and `of_atoms`.

    Threads share the pairs. Each has its own sums over atoms, which are added in order: results
    depend on the number of threads only by rounding.
    """
    assert edges.mutual is not None  # passes iterate over pairs
    fixed = [array.detach().contiguous().numpy() for array in (edges.src, edges.dst, edges.mutual)]
    fixed += [array.detach().contiguous().numpy() for array in given]
    fixed += [array.numpy() for array in of_pairs]
    pairs = edges.src.shape[0]
    threads = max(1, min(torch.get_num_threads(), work // WORTH_A_THREAD))
    sums = [[array.zero_() for array in of_atoms]]
    sums += [[torch.zeros_like(array) for array in of_atoms] for _ in range(threads - 1)]

    def part(thread: int) -> None:
        first, last = pairs * thread // threads, pairs * (thread + 1) // threads
        kernel(first, last, *fixed, *(array.numpy() for array in sums[thread]))

    if threads == 1:
        part(0)
        return
    list(_pool(threads).map(part, range(threads)))
    for more in sums[1:]:
        for whole, share in zip(of_atoms, more, strict=True):
            whole.add_(share)


def run_over_rows(kernel: Callable[..., None], *arrays: Tensor) -> None:
    """Run one compiled pass over rows of arrays, such as atoms; it writes contiguous arrays."""
    kernel(*(array.detach().contiguous().numpy() for array in arrays))


def empty_like(*arrays: Tensor) -> tuple[Tensor, ...]:
    """Contiguous arrays of the same shapes, without values."""
    return tuple(torch.empty_like(array, memory_format=torch.contiguous_format) for array in arrays)


@dataclass(frozen=True, eq=False)
class Differentiable:
    """A compiled pass with one result, and its first two derivatives, written by hand.

    Each takes the arguments of the one before it, without its results, and then what weights those.
    """

    forward: Callable[..., None]
    back: Callable[..., None]
    """Derivatives of sum(grad * result), by every argument of the pass."""
    back_twice: Callable[..., None]
    """Derivatives of sum(by_X * result of `back` for X), over all X; by every argument of the pass, then by grad."""

    def over_pairs(
        self,
        edges: Edges,
        shape: Sequence[int],
        of_pairs: Sequence[Tensor],
        of_atoms: Sequence[Tensor],
    ) -> Tensor:
        """Sums over edges of this shape, from values of pairs, of which filters are last, and of atoms."""
        return _OverPairs.apply(self, edges, len(of_pairs), shape, *of_pairs, *of_atoms)

    def over_rows(self, shape: Sequence[int], *given: Tensor) -> Tensor:
        """Rows of this shape, from rows of arrays such as atoms."""
        return _OverRows.apply(self, shape, *given)

    def back_over_rows(self, grad: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        """First derivative of `over_rows`, by all that is given, which can be differentiated once more."""
        return _OverRowsBack.apply(self, grad, *given)


class _OverPairs(torch.autograd.Function):
    """`Differentiable.over_pairs`."""

    @staticmethod
    def forward(
        ctx: FunctionContext,
        way: Differentiable,
        edges: Edges,
        pairs: int,
        shape: Sequence[int],
        *given: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(*given)
        ctx.way, ctx.edges, ctx.pairs = way, edges, pairs
        sums = given[-1].new_empty(shape)
        run_over_pairs(way.forward, edges, given, (), (sums,), given[pairs - 1].numel())
        return sums

    @staticmethod
    def backward(ctx: FunctionContext, grad: Tensor) -> tuple[Tensor | None, ...]:
        found = _OverPairsBack.apply(ctx.way, ctx.edges, ctx.pairs, grad, *ctx.saved_tensors)
        return None, None, None, None, *found


class _OverPairsBack(torch.autograd.Function):
    """First derivative of `_OverPairs`, which can be differentiated once more."""

    @staticmethod
    def forward(
        ctx: FunctionContext,
        way: Differentiable,
        edges: Edges,
        pairs: int,
        grad: Tensor,
        *given: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(grad, *given)
        ctx.way, ctx.edges, ctx.pairs = way, edges, pairs
        found, work = empty_like(*given), given[pairs - 1].numel()
        run_over_pairs(way.back, edges, (*given, grad), found[:pairs], found[pairs:], work)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionContext, *by: Tensor) -> tuple[Tensor | None, ...]:
        grad, *given = ctx.saved_tensors
        pairs, arrays = ctx.pairs, (*given, grad, *by)
        found, work = empty_like(*given, grad), given[pairs - 1].numel()
        run_over_pairs(ctx.way.back_twice, ctx.edges, arrays, found[:pairs], found[pairs:], work)
        return None, None, None, found[-1], *found[:-1]


class _OverRows(torch.autograd.Function):
    """`Differentiable.over_rows`."""

    @staticmethod
    def forward(
        ctx: FunctionContext, way: Differentiable, shape: Sequence[int], *given: Tensor
    ) -> Tensor:
        ctx.save_for_backward(*given)
        ctx.way = way
        found = given[0].new_empty(shape)
        run_over_rows(way.forward, *given, found)
        return found

    @staticmethod
    def backward(ctx: FunctionContext, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *_OverRowsBack.apply(ctx.way, grad, *ctx.saved_tensors)


class _OverRowsBack(torch.autograd.Function):
    """First derivative of `_OverRows`, which can be differentiated once more."""

    @staticmethod
    def forward(
        ctx: FunctionContext, way: Differentiable, grad: Tensor, *given: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(grad, *given)
        ctx.way = way
        found = empty_like(*given)
        run_over_rows(way.back, *given, grad, *found)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionContext, *by: Tensor) -> tuple[Tensor | None, ...]:
        grad, *given = ctx.saved_tensors
        found = empty_like(*given, grad)
        run_over_rows(ctx.way.back_twice, *given, grad, *by, *found)
        return None, found[-1], *found[:-1]


def silu(values: Tensor) -> Tensor:
    """x sigmoid(x), with derivatives in few operations."""
    return _SiLU.apply(values) if by_passes(values) else F.silu(values)


def activated(values: Tensor, layer: nn.Linear, dtype: torch.dtype | None) -> Tensor:
    """SiLU of a linear layer, whose product is in `dtype`; see `product_dtype`."""
    return silu(at_least_single(product(values, layer.weight, layer.bias, dtype)))


class _SiLU(torch.autograd.Function):
    """`silu` with its own derivative; torch decomposes the derivative if that is differentiated again."""

    @staticmethod
    def forward(ctx: FunctionContext, values: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        return F.silu(values)

    @staticmethod
    def backward(ctx: FunctionContext, grad: Tensor) -> Tensor:
        return _SiLUBack.apply(grad, *ctx.saved_tensors)


class _SiLUBack(torch.autograd.Function):
    """First derivative of `_SiLU`, which can be differentiated once more."""

    @staticmethod
    def forward(ctx: FunctionContext, grad: Tensor, values: Tensor) -> Tensor:
        ctx.save_for_backward(grad, values)
        return torch.ops.aten.silu_backward(grad, values)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionContext, by: Tensor) -> tuple[Tensor, Tensor]:
        grad, values = ctx.saved_tensors
        of_grad, of_values = empty_like(grad, values)
        arrays = (values, torch.sigmoid(values), grad, by, of_grad, of_values)
        run_over_rows(kernels.silu_back_twice, *(x.contiguous().view(-1) for x in arrays))
        return of_grad, of_values


def scaled_silu(values: Tensor, scale: Tensor) -> Tensor:
    """x sigmoid(x) of values [R, D], each row times its scale [R, 1]."""
    if by_passes(values):
        return _ScaledSiLU.apply(values, scale)
    return F.silu(values) * scale


class _ScaledSiLU(torch.autograd.Function):
    """`scaled_silu` with derivatives by compiled passes."""

    @staticmethod
    def forward(ctx: FunctionContext, values: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(values, scale)
        return F.silu(values).mul_(scale)

    @staticmethod
    def backward(ctx: FunctionContext, grad: Tensor) -> tuple[Tensor, Tensor]:
        return _ScaledSiLUBack.apply(grad, *ctx.saved_tensors)


class _ScaledSiLUBack(torch.autograd.Function):
    """First derivative of `_ScaledSiLU`, which can be differentiated once more."""

    @staticmethod
    def forward(
        ctx: FunctionContext, grad: Tensor, values: Tensor, scale: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(grad, values, scale)
        ctx.gate = torch.sigmoid(values)
        found = empty_like(values, scale)
        given = (values, ctx.gate, scale.flatten(), grad, found[0], found[1].view(-1))
        run_over_rows(kernels.scaled_silu_back, *given)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionContext, *by: Tensor) -> tuple[Tensor, ...]:
        grad, values, scale = ctx.saved_tensors
        of_values, of_scale, of_grad = empty_like(values, scale, grad)
        given = (values, ctx.gate, scale.flatten(), grad, by[0], by[1].flatten())
        found = (of_values, of_scale.view(-1), of_grad)
        run_over_rows(kernels.scaled_silu_back_twice, *given, *found)
        return of_grad, of_values, of_scale


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="atomloom-passes")


class CosineCutoff(nn.Module):
    """Cutoff function (cos(pi d / cutoff) + 1) / 2 up to the cutoff, 0 beyond."""

    cutoff: Tensor

    def __init__(self, cutoff: float) -> None:
        super().__init__()
        self.register_buffer("cutoff", torch.tensor([cutoff]))

    def forward(self, lengths: Tensor) -> Tensor:
        """[P, 1] values at lengths [P, 1]."""
        inside = lengths.minimum(self.cutoff)
        return 0.5 * (torch.cos(inside * (math.pi / self.cutoff)) + 1.0)


class ElementEmbedding(nn.Embedding):
    """Embedding with one row per atomic number; loads tables that end with an earlier element."""

    def _load_from_state_dict(
        self, state_dict: MutableMapping[str, Tensor], prefix: str, *rest: Any
    ) -> None:
        key = prefix + "weight"
        rows = state_dict[key].shape[0] if key in state_dict else self.num_embeddings
        if rows < self.num_embeddings:
            own = self.weight.detach()[rows:].to(state_dict[key])
            state_dict[key] = torch.cat((state_dict[key], own))
        super()._load_from_state_dict(state_dict, prefix, *rest)
