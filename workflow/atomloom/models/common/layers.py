"""Building blocks shared by the models: sums over edges, weighted batch norm, radial bases, tables.

Everything here works on plain tensors, on any device, under autograd, autocast and torch.compile,
and never synchronises with the device. It knows nothing of particular models or of training.

Legend: B structures, N atoms, E edges, D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Generic, TypeGuard, TypeVar, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Module = TypeVar("Module", bound=nn.Module)

FunctionContext = Any
"""First argument of a `torch.autograd.Function`, which accepts any attribute."""


class Layers(nn.ModuleList, Generic[Module]):
    """Module list of one class."""

    if TYPE_CHECKING:  # nn.ModuleList does everything but forgets the class

        def __init__(self, modules: Iterable[Module]) -> None: ...

        def __iter__(self) -> Iterator[Module]: ...

        @overload
        def __getitem__(self, idx: slice) -> Layers[Module]: ...
        @overload
        def __getitem__(self, idx: int) -> Module: ...
        def __getitem__(self, idx: int | slice) -> Module | Layers[Module]: ...


def linear(layers: nn.Sequential, place: int) -> nn.Linear:
    """Linear layer at an index."""
    found = layers[place]
    assert isinstance(found, nn.Linear)
    return found


def full_precision(reference: Tensor) -> AbstractContextManager[object]:
    """Context without autocast on the device of `reference`.

    Statistics, sums over many terms and products of two weights belong in it: in bf16 they lose
    digits that the rest of the step cannot recover.
    """
    if reference.device.type == "meta":  # shapes only, without any precision
        return nullcontext()
    return torch.autocast(device_type=reference.device.type, enabled=False)


def product_dtype(reference: Tensor) -> torch.dtype | None:
    """Type of large products under autocast; None where autocast is off.

    A model that asks once and then works in `full_precision` decides itself which products are
    rounded: those over edges, which take the time, and not those over atoms and structures, which
    cost little and whose rounding errors every edge would share.
    """
    kind = reference.device.type
    if kind == "meta":
        return None
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def rounded(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Value in `dtype`; unchanged if that is None."""
    return value if dtype is None else value.to(dtype)


def product(
    values: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype | None
) -> Tensor:
    """Product values @ weight^T + bias, computed in `dtype` unless that is None."""
    bias = None if bias is None else rounded(bias, dtype)
    return F.linear(rounded(values, dtype), rounded(weight, dtype), bias)


def centred_product(
    values: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype | None
) -> Tensor:
    """Product as by `product`, with the mean row subtracted and added back in full precision.

    For inputs of a batch norm, which subtracts the mean: rounding in proportion to the mean would
    matter much where rows differ little.
    """
    if dtype is None:
        return F.linear(values, weight, bias)
    mean = values.detach().mean(dim=0) if values.shape[0] else values.new_zeros(values.shape[1:])
    return product(values - mean, weight, None, dtype) + F.linear(mean, weight, bias)


def at_least_single(value: Tensor) -> Tensor:
    """Value, converted to float32 if it is in half precision."""
    return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value


def segment_sum(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Sum the rows of `values` [E, ...] that share an index: [size, ...], in at least float32.

    On a GPU the order of additions varies from run to run unless
    torch.use_deterministic_algorithms is on; on a CPU it does not.
    """
    values = at_least_single(values)
    return values.new_zeros((size, *values.shape[1:])).index_add(0, index, values)


def gather(values: Tensor, index: Tensor) -> Tensor:
    """Rows of `values` by `index`; its backward is faster on a CPU than that of `values[index]`."""
    return values.index_select(0, index)


def mean_over_structures(values: Tensor, node_graph: Tensor, node_ptr: Tensor) -> Tensor:
    """Mean of the atoms' features [N, D] for each structure: [B, D], in at least float32."""
    with full_precision(values):
        sums = segment_sum(values, node_graph, node_ptr.shape[0] - 1)
        return sums / node_ptr.diff().clamp(min=1).to(sums.dtype).unsqueeze(1)


def pool(values: Tensor, node_graph: Tensor, node_ptr: Tensor, how: str) -> Tensor:
    """Mean or sum (`how`) of the atoms' features [N, D] for each structure: [B, D]."""
    if how == "mean":
        return mean_over_structures(values, node_graph, node_ptr)
    with full_precision(values):
        return segment_sum(values, node_graph, node_ptr.shape[0] - 1)


def read_out(
    nodes: Tensor,
    node_graph: Tensor,
    node_ptr: Tensor,
    how: str,
    head: Callable[[Tensor], Tensor],
    given: Tensor | None = None,
) -> Tensor:
    """Predictions [B, outputs] from atoms' features [N, D].

    `mean`: the head of the mean over atoms. `sum`: the sum over atoms of the head of each, so that a
    structure twice as large has exactly twice the value.

    Args:
        nodes: [N, D].
        node_graph: [N], the structure of each atom.
        node_ptr: [B+1], the first atom of each structure.
        how: `mean` or `sum`.
        head: from [R, D + G] to [R, outputs].
        given: [B, G], global features, concatenated to the input of the head.
    """
    if how == "mean":
        pooled = pool(nodes, node_graph, node_ptr, "mean")
        return head(pooled if given is None else torch.cat((pooled, given.to(pooled.dtype)), dim=1))
    return pool(head(joined(nodes, given, node_graph)), node_graph, node_ptr, "sum")


def joined(nodes: Tensor, given: Tensor | None, node_graph: Tensor) -> Tensor:
    """[N, D + G] features of atoms [N, D] joined with those of their structures [B, G], if any."""
    if given is None:
        return nodes
    return torch.cat((nodes, gather(given, node_graph).to(nodes.dtype)), dim=1)


_recomputing: ContextVar[bool] = ContextVar("recomputing", default=False)


@contextmanager
def _second_time() -> Iterator[None]:
    token = _recomputing.set(True)
    try:
        yield
    finally:
        _recomputing.reset(token)


def recomputed(function: Callable[..., Any], *inputs: Any) -> Any:
    """Call function(*inputs) with gradient checkpointing: only the inputs are kept, and the rest is
    recomputed in the backward pass (Chen et al., arXiv:1604.06174).

    The numbers are those of the plain call: `WeightedBatchNorm` tracks a batch only once, and the same
    random numbers are drawn again.
    """
    return checkpoint(
        function, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), _second_time())
    )


class Recomputing(nn.Module):
    """Model whose parts can be recomputed in the backward pass."""

    gradient_checkpointing = False
    """Whether layers over edges are recomputed in the backward pass instead of kept."""

    @property
    def recomputes(self) -> bool:
        """Whether this pass uses gradient checkpointing."""
        return self.gradient_checkpointing and self.training and torch.is_grad_enabled()

    def over_edges(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """Call function(*inputs), a part of the network whose intermediates are much larger than its inputs."""
        return recomputed(function, *inputs) if self.recomputes else function(*inputs)


class _Normalised(torch.autograd.Function):
    """Batch norm of weighted rows with the derivative written by hand: half the memory traffic."""

    @staticmethod
    def forward(
        ctx: FunctionContext,
        values: Tensor,
        weights: Tensor,
        total: Tensor,
        scale: Tensor,
        shift: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean = (weights @ values) / total
        centred = values - mean
        # A second pass: squares of uncentred values would cancel where the mean is large.
        variance = (weights @ centred.square()) / total
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(values, weights, total, scale, variance, centred)
        return torch.addcmul(shift, centred, scale * torch.rsqrt(variance + eps)), mean, variance

    @staticmethod
    def backward(ctx: FunctionContext, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 6
        values, weights, total, scale, variance, centred = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted, including these
            mean = (weights @ values) / total
            centred = values - mean
            variance = (weights @ centred.square()) / total
        slope = torch.rsqrt(variance + ctx.eps)
        grad_shift = grad.sum(dim=0)
        grad_scale = (grad * centred).sum(dim=0) * slope
        through_moments = torch.addcmul(grad_shift, centred, grad_scale * slope)
        grad_values = grad - through_moments * (weights / total).unsqueeze(1)
        return grad_values * (scale * slope), None, None, grad_scale, grad_shift, None


class WeightedBatchNorm(nn.BatchNorm1d):
    """Batch norm over weighted rows: that of rows repeated by their weights, without repeating them.

    Names of weights and buffers, running statistics (with the unbiased variance by the total count)
    and evaluation are those of nn.BatchNorm1d. Statistics are always taken outside autocast. One row
    normalises to its bias; no rows leave the running statistics alone.
    """

    # optional in nn.BatchNorm1d, but not here
    momentum: float
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, values: Tensor, weights: Tensor | None = None) -> Tensor:
        """Normalised rows [R, D], in at least float32; in training, tracks running statistics.

        Args:
            values: [R, D], the rows.
            weights: [R], multiplicity of each row; 1 by default.
        """
        with full_precision(values):
            values = at_least_single(values)
            if not self.training:
                scale = self.weight * torch.rsqrt(self.running_var + self.eps)
                return torch.addcmul(self.bias, values - self.running_mean, scale)
            if weights is None:
                weights = values.new_ones(values.shape[0])
            weights = weights.to(values.dtype)
            count = weights.sum()
            total = count.clamp(min=1.0)
            if torch.compiler.is_compiling():  # which fuses the plain formula
                mean = (weights @ values) / total
                centred = values - mean
                variance = (weights @ centred.square()) / total
                scale = self.weight * torch.rsqrt(variance + self.eps)
                normalised = torch.addcmul(self.bias, centred, scale)
            else:
                normalised, mean, variance = _Normalised.apply(
                    values, weights, total, self.weight, self.bias, self.eps
                )
            self.track(mean.detach(), variance.detach(), count)
            return normalised

    @torch.no_grad()
    def track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Update the running statistics by those of a batch of `count` values."""
        if not torch.compiler.is_compiling() and _recomputing.get():
            return
        seen = (count > 0).to(mean.dtype)
        momentum = self.momentum * seen
        unbiased = variance * (count / (count - 1.0).clamp(min=1.0))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)
        self.num_batches_tracked.add_(1)


class GaussianBasis(nn.Module):
    """Gaussian basis exp(-(x - c)^2 / spacing) for equally spaced centres c; [..., centers].

    The factor is one over the spacing, not over its square: the Gaussians overlap widely.
    """

    centers: Tensor

    def __init__(self, low: float, high: float, centers: int) -> None:
        super().__init__()
        self.low, self.high = low, high
        self.gamma = (centers - 1) / (high - low)
        self.register_buffer(
            "centers", torch.linspace(low, high, centers, dtype=torch.float64).float()
        )

    def forward(self, x: Tensor) -> Tensor:
        """[..., centers] values at `x` [...]."""
        return torch.exp((x.unsqueeze(-1) - self.centers).square() * -self.gamma)

    @property
    def width(self) -> float:
        """Standard deviation of the Gaussians."""
        return 1.0 / math.sqrt(2.0 * self.gamma)


class BasisTable:
    """Table of a smooth function of one number, for cubic interpolation.

    A stack of layers on top of a Gaussian basis is a function of one number. Where there are many
    more edges than rows in a table, it is cheaper to put the rows through those layers and to
    interpolate between them; gradients reach the layers through the table. With 32 rows per standard
    deviation of the Gaussians, cubic interpolation is as exact as float32.

    Legend: T rows, D features.
    """

    ROWS_PER_WIDTH = 32
    REACH = 6.0
    """Standard deviations beyond the outermost centres at which every Gaussian has vanished."""

    def __init__(self, basis: GaussianBasis, low: float, high: float) -> None:
        self.step = basis.width / self.ROWS_PER_WIDTH
        # The grid includes zero: positions in it are then as exact as x where x is small.
        self.first = math.floor(low / self.step)
        self.last = math.ceil(high / self.step) - 1
        # A cubic reaches one point beyond its cell on either side.
        self.rows = self.last - self.first + 4

    def pays(self, count: int) -> bool:
        """Whether `count` interpolations are cheaper than as many evaluations."""
        return count > 2 * self.rows

    def grid(self, reference: Tensor) -> Tensor:
        """[T] points at which to evaluate the function, with dtype and device of `reference`."""
        points = torch.arange(
            self.first - 1, self.last + 3, device=reference.device, dtype=torch.float64
        )
        return (points * self.step).to(reference.dtype)

    def interpolate(self, table: Tensor, x: Tensor) -> Tensor:
        """[R, D] values of the tabulated function [T, D] at `x` [R], clamped to the table's range."""
        position = (x / self.step).clamp(float(self.first), float(self.last + 1))
        cell = position.floor().clamp(max=float(self.last))
        t = position - cell
        # Lagrange's cubic through the points -1, 0, 1, 2.
        weights = torch.stack(
            (
                t * (t - 1.0) * (2.0 - t) / 6.0,
                (t - 1.0) * (t + 1.0) * (t - 2.0) / 2.0,
                t * (t + 1.0) * (2.0 - t) / 2.0,
                t * (t - 1.0) * (t + 1.0) / 6.0,
            ),
            dim=1,
        )
        rows = (cell.to(torch.int64) - self.first).unsqueeze(1)
        rows = rows + torch.arange(4, device=x.device)
        with full_precision(table):
            return F.embedding_bag(rows, table, per_sample_weights=weights, mode="sum")


def tabulated(function: Callable[[Tensor], Tensor], table: BasisTable | None, x: Tensor) -> Tensor:
    """Values of `function` [R] -> [R, D] at `x` [R]: interpolated where that is allowed and pays.

    In float64, and where `x` itself must be differentiated, it is evaluated directly.
    """
    if not tabulates(table, x):
        return function(x)
    return table.interpolate(at_least_single(function(table.grid(x))), x)


def tabulates(table: BasisTable | None, x: Tensor) -> TypeGuard[BasisTable]:
    """Whether `tabulated` interpolates."""
    exact = x.dtype == torch.float64 or x.requires_grad
    return table is not None and not exact and table.pays(x.shape[0])


def tabulated_parts(
    function: Callable[[Tensor], Tensor],
    table: BasisTable,
    x: Tensor,
    widths: Sequence[int],
    keep: bool = True,
) -> list[Callable[[], Tensor]]:
    """Functions that return parts of `tabulated`, of given numbers of columns.

    Args:
        function: [R] -> [R, sum of widths].
        table: see `tabulated`.
        x: [R].
        widths: columns of each part.
        keep: False: a part is interpolated at each call, for use inside `recomputed`.
    """

    def kept(part: Tensor) -> Callable[[], Tensor]:
        return lambda: part

    def interpolated(part: Tensor) -> Callable[[], Tensor]:
        return lambda: table.interpolate(part.contiguous(), x)

    if keep or not tabulates(table, x):
        return [kept(part) for part in tabulated(function, table, x).split(list(widths), dim=1)]
    rows = at_least_single(function(table.grid(x))).split(list(widths), dim=1)
    return [interpolated(part) for part in rows]


class EdgeBlocks:
    """Edges grouped by one of their atoms into blocks of fixed length, for batched products.

    An atom takes as many blocks as its edges need; the last is padded with zeros. The number of
    blocks is bounded by shapes alone, so that nothing synchronises with the device; unused blocks
    belong to a dummy atom N.

    Legend: K blocks of P edges.
    """

    LENGTH = 32

    def __init__(self, index: Tensor, size: int) -> None:
        """Args:
        index: [E], the atom of each edge, in any order.
        size: N.
        """
        edges = index.shape[0]
        self.edges, self.size = edges, size
        self.blocks = edges // self.LENGTH + size
        counts = index.new_zeros(size).index_add(0, index, torch.ones_like(index))
        needed = (counts + self.LENGTH - 1) // self.LENGTH
        block_end = needed.cumsum(0)
        start = counts.cumsum(0) - counts
        order = torch.argsort(index, stable=True)
        owner = index.index_select(0, order)
        rank = torch.arange(edges, device=index.device) - start.index_select(0, owner)
        first = (block_end - needed).index_select(0, owner)
        slot_of_sorted = first * self.LENGTH + rank
        self.slot = torch.empty_like(index).index_copy(0, order, slot_of_sorted)
        """[E], position of each edge among the K P."""
        self.owner = torch.searchsorted(
            block_end, torch.arange(self.blocks, device=index.device), right=True
        )
        """[K], atom of each block; N for unused blocks."""

    def pack(self, values: Tensor) -> Tensor:
        """Blocks [K, P, D] from edge values [E, D]."""
        packed = values.new_zeros((self.blocks * self.LENGTH, values.shape[1]))
        packed = packed.index_copy(0, self.slot, values)
        return packed.view(self.blocks, self.LENGTH, -1)

    def unpack(self, packed: Tensor) -> Tensor:
        """Edge values [E, D] from [K, P, D]."""
        return packed.reshape(self.blocks * self.LENGTH, -1).index_select(0, self.slot)

    def spread(self, values: Tensor) -> Tensor:
        """[K, ...] values of each block's atom, from atoms' values [N, ...]."""
        return values.index_select(0, self.owner.clamp(max=self.size - 1))

    def collect(self, values: Tensor) -> Tensor:
        """Sum over each atom's blocks: [N, ...] from [K, ...]."""
        return segment_sum(values, self.owner, self.size + 1)[: self.size]
