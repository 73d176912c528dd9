"""TensorNet, a network of 3 x 3 matrices on atoms (Simeon and De Fabritiis, NeurIPS 2023,
arXiv:2306.06482), under the weight names of its first implementation.

A rotation R of a structure turns a matrix X of an atom into R X R^T. Messages are matrices of neighbours,
weighted by functions of the distance, and atoms combine them with their own by matrix products, XY + YX. In a
mirror image of the structure, skew-symmetric parts are mirrored as vectors are, and scalars, and so energies,
are the same. Matrices are stored by their components along a basis (`tensornet.kernels`): what is linear acts on 9 numbers instead of 27. Everything can
be differentiated twice, as training on forces does. On a CPU messages and products are compiled passes
(`tensornet.kernels`) with derivatives written by hand, messages over pairs of edges; elsewhere, and under
torch.compile, they are plain operations. It knows nothing of training.

Legend: B structures, N atoms, E edges, P pairs (edges without reverses), D features, R radial functions;
X [9, N, D], components of matrices (`tensors`), parts I, A, S of 1, 3 and 5 components (identity,
skew-symmetric, symmetric traceless).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atomloom.config.model import TensorNetConfig, TensorNetPropertyConfig, TensorNetSection
from atomloom.data.batch import GraphBatch
from atomloom.errors import AtomloomError
from atomloom.models.common import passes
from atomloom.models.common.heads import AtomFeatures, Heads
from atomloom.models.common.layers import (
    FunctionContext,
    Layers,
    at_least_single,
    full_precision,
    joined,
    product,
    product_dtype,
    read_out,
)
from atomloom.models.common.outputs import Head, Outputs
from atomloom.models.common.passes import ELEMENTS, CosineCutoff, Edges, ElementEmbedding
from atomloom.models.tensornet import kernels
from atomloom.models.tensornet.kernels import BASIS, COMPONENTS, PARTS

_MESSAGES = passes.Differentiable(kernels.push, kernels.push_back, kernels.push_back_twice)
_EMBEDDED = passes.Differentiable(kernels.embed, kernels.embed_back, kernels.embed_back_twice)
_NORMALISED = passes.Differentiable(
    kernels.normalise, kernels.normalise_back, kernels.normalise_back_twice
)
_COMBINED = passes.Differentiable(kernels.combine, kernels.combine_back, kernels.combine_back_twice)
_GROWN = passes.Differentiable(kernels.grow, kernels.grow_back, kernels.grow_back_twice)

# --- sums over edges ---


def shapes(directions: Tensor) -> Tensor:
    """Components [P, 9] of the matrices that directions [P, 3] make: identity, skew-symmetric, symmetric.

    Equation 7 of the paper.
    """
    x, y, z = directions.unbind(dim=1)
    identity = torch.full_like(x, math.sqrt(3.0))
    root = math.sqrt(2.0)
    symmetric = (
        root * x * y,
        root * x * z,
        root * y * z,
        (2.0 * z.square() - x.square() - y.square()) / math.sqrt(6.0),
        (x.square() - y.square()) / root,
    )
    return torch.stack((identity, root * x, root * y, root * z, *symmetric), dim=1)


def embedded(filters: Tensor, own: Tensor, other: Tensor, edges: Edges) -> Tensor:
    """First matrices of atoms, sums (p_i + q_j) (f_I I + f_A A + f_S S) over edges: [9, N, D].

    Equation 8 of the paper; p + q is its embedding of a pair of elements.

    Args:
        filters: f, [P, 3, D].
        own: p, [N, D], of the central atom.
        other: q, [N, D], of the neighbour.
        edges: with directions.
    """
    along = shapes(edges.directions)
    if edges.mutual is not None:
        shape = (COMPONENTS, *own.shape)
        return _EMBEDDED.over_pairs(edges, shape, (along, filters), (own, other))
    both = own.index_select(0, edges.dst) + other.index_select(0, edges.src)
    weighted = (filters * both.unsqueeze(1)).transpose(0, 1)
    of_edges = _scaled(along.t().unsqueeze(2).split(PARTS), weighted)
    return _summed(of_edges, edges.dst, own.shape[0])


def messages(filters: Tensor, tensors: Tensor, edges: Edges) -> Tensor:
    """Matrices of neighbours, weighted by filters [P, 3, D] and summed: [9, N, D].

    Equation 11 of the paper.
    """
    if edges.mutual is not None:
        return _MESSAGES.over_pairs(edges, tensors.shape, (filters,), (tensors,))
    sent = tensors.index_select(1, edges.src).split(PARTS)
    return _summed(_scaled(sent, filters.transpose(0, 1)), edges.dst, tensors.shape[1])


def _scaled(parts: Iterable[Tensor], factors: Tensor) -> Tensor:
    """Parts I, A and S, each times one of the factors [3, ...]."""
    return torch.cat([part * factor for part, factor in zip(parts, factors, strict=True)])


def _summed(of_edges: Tensor, index: Tensor, atoms: int) -> Tensor:
    found = of_edges.new_zeros((COMPONENTS, atoms, of_edges.shape[2]))
    return found.index_add(1, index, of_edges)


# --- matrices of atoms ---


def normalised(tensors: Tensor) -> Tensor:
    """X / (1 + |X|^2), with the Frobenius norm."""
    if passes.by_passes(tensors):
        return _NORMALISED.over_rows(tensors.shape, tensors)
    return tensors / (1.0 + tensors.square().sum(dim=0))


def combined(first: Tensor, second: Tensor, basis: Tensor) -> Tensor:
    """Normalised XY + YX: the products of equation 12 of the paper."""
    if passes.by_passes(first):
        return _COMBINED.over_rows(first.shape, first, second)
    return normalised(_symmetric_product(first, second, basis))


def grown(tensors: Tensor, change: Tensor, basis: Tensor) -> Tensor:
    """X + Y + YY: equation 13 of the paper."""
    if passes.by_passes(tensors):
        return _Grown.apply(tensors, change)
    return tensors + (change + 0.5 * _symmetric_product(change, change, basis))


def _symmetric_product(first: Tensor, second: Tensor, basis: Tensor) -> Tensor:
    """XY + YX by plain operations on matrices; basis: [9, 9], rows are those of `BASIS`."""
    left, right = ((basis.t() @ x.flatten(1)).view(3, 3, *x.shape[1:]) for x in (first, second))
    made = (left.unsqueeze(2) * right.unsqueeze(0)).sum(dim=1)
    made = made + (right.unsqueeze(2) * left.unsqueeze(0)).sum(dim=1)
    return (basis @ made.flatten(0, 1).flatten(1)).view(first.shape)


class _Grown(torch.autograd.Function):
    """`grown` by compiled passes; its derivative by the matrices that grow is `grad` itself."""

    @staticmethod
    def forward(ctx: FunctionContext, tensors: Tensor, change: Tensor) -> Tensor:
        (found,) = passes.empty_like(tensors)
        passes.run_over_rows(_GROWN.forward, tensors, change, found)
        ctx.save_for_backward(change)
        return found

    @staticmethod
    def backward(ctx: FunctionContext, grad: Tensor) -> tuple[Tensor, ...]:
        return grad, *_GROWN.back_over_rows(grad, *ctx.saved_tensors)


# --- the network ---


class _ExponentialBasis(nn.Module):
    """Gaussians of exp(-5 d / cutoff), with equally spaced centres: narrow at short distances.

    At a cutoff of 5 A these are the functions of the paper, as in PhysNet.
    """

    rate: Tensor
    centers: Tensor
    sharpness: Tensor

    def __init__(self, cutoff: float, functions: int) -> None:
        super().__init__()
        first = math.exp(-5.0)
        centers = torch.linspace(first, 1.0, functions, dtype=torch.float64)
        self.register_buffer("rate", torch.tensor([5.0 / cutoff]))
        self.register_buffer("centers", centers.float())
        self.register_buffer("sharpness", torch.tensor([(2.0 / functions * (1.0 - first)) ** -2]))

    def forward(self, lengths: Tensor) -> Tensor:
        """[P, R] values at lengths [P, 1]."""
        return torch.exp(
            (torch.exp(-lengths * self.rate) - self.centers).square() * -self.sharpness
        )


class _GaussianBasis(nn.Module):
    """Gaussians exp(-(d - c)^2 / 2) with equally spaced centres from 0 to 1 A beyond the cutoff, as in matgl."""

    centers: Tensor

    def __init__(self, cutoff: float, functions: int) -> None:
        super().__init__()
        centers = torch.linspace(0.0, cutoff + 1.0, functions, dtype=torch.float64)
        self.register_buffer("centers", centers.float())

    def forward(self, lengths: Tensor) -> Tensor:
        """[P, R] values at lengths [P, 1]."""
        return torch.exp((lengths - self.centers).square() * -0.5)


def _linears(*widths: int) -> Layers[nn.Linear]:
    return Layers(nn.Linear(*pair) for pair in pairwise(widths))


def _maps(width: int, count: int) -> Layers[nn.Linear]:
    """Linear maps of the parts of matrices, without biases."""
    return Layers(nn.Linear(width, width, bias=False) for _ in range(count))


def _by_part(values: Tensor, layer: nn.Linear, dtype: torch.dtype | None) -> Tensor:
    """Linear layer for the three parts of matrices: [R, 3 D], features of a part together.

    Its weights have the parts of a feature together.
    """
    weight = layer.weight.unflatten(0, (-1, 3)).transpose(0, 1).flatten(0, 1)
    bias = layer.bias.unflatten(0, (-1, 3)).t().flatten()
    return at_least_single(product(values, weight, bias, dtype))


def _mapped(
    tensors: Tensor, maps: Iterable[nn.Linear], dtype: torch.dtype | None
) -> tuple[Tensor, ...]:
    """Parts of matrices, each through its own linear map."""
    return tuple(
        at_least_single(product(part, linear.weight, None, dtype))
        for part, linear in zip(tensors.split(PARTS), maps, strict=True)
    )


class _TensorEmbedding(nn.Module):
    """First matrices of atoms."""

    def __init__(self, width: int, rbf: int) -> None:
        super().__init__()
        self.distance_proj1 = nn.Linear(rbf, width)
        self.distance_proj2 = nn.Linear(rbf, width)
        self.distance_proj3 = nn.Linear(rbf, width)
        self.emb = ElementEmbedding(ELEMENTS + 1, width)
        self.emb2 = nn.Linear(2 * width, width)
        self.linears_tensor = _maps(width, 3)
        self.linears_scalar = _linears(width, 2 * width, 3 * width)
        self.init_norm = nn.LayerNorm(width)

    def forward(
        self,
        numbers: Tensor,
        radial: Tensor,
        cutoff: Tensor,
        edges: Edges,
        dtype: torch.dtype | None,
    ) -> Tensor:
        """Matrices [9, N, D]; radial: [P, R], cutoff: [P, 1]."""
        layers = (self.distance_proj1, self.distance_proj2, self.distance_proj3)
        weight = torch.cat([layer.weight for layer in layers])
        bias = torch.cat([layer.bias for layer in layers])
        # The bias is the weight of one more radial function.
        filters = F.linear(
            torch.cat((radial * cutoff, cutoff), dim=1),
            torch.cat((weight, bias.unsqueeze(1)), dim=1),
        ).unflatten(1, (3, -1))
        # The linear map of two embeddings side by side is a sum over them.
        own, other = self.emb2.weight.chunk(2, dim=1)
        elements: Tensor = self.emb(numbers)
        tensors = embedded(
            filters, F.linear(elements, own, self.emb2.bias), F.linear(elements, other), edges
        )
        norms = self.init_norm(tensors.square().sum(dim=0))
        hidden = passes.activated(norms, self.linears_scalar[0], dtype)
        factors = passes.silu(_by_part(hidden, self.linears_scalar[1], dtype)).unflatten(1, (3, -1))
        return _scaled(_mapped(tensors, self.linears_tensor, dtype), factors.transpose(0, 1))


class _Interaction(nn.Module):
    """Messages and the products of an atom's matrices with them."""

    def __init__(self, width: int, rbf: int) -> None:
        super().__init__()
        self.linears_scalar = _linears(rbf, width, 2 * width, 3 * width)
        self.linears_tensor = _maps(width, 6)

    def forward(
        self,
        tensors: Tensor,
        radial: Tensor,
        cutoff: Tensor,
        edges: Edges,
        basis: Tensor,
        dtype: torch.dtype | None,
    ) -> Tensor:
        """Updated matrices [9, N, D]; radial: [P, R], cutoff: [P, 1]."""
        first, second, third = self.linears_scalar
        hidden = passes.activated(passes.activated(radial, first, None), second, dtype)
        filters = passes.scaled_silu(_by_part(hidden, third, dtype), cutoff).unflatten(1, (3, -1))
        tensors = normalised(tensors)
        mixed = torch.cat(_mapped(tensors, self.linears_tensor[:3], dtype))
        received = messages(filters, mixed, edges)
        made = combined(mixed, received, basis)
        change = torch.cat(_mapped(made, self.linears_tensor[3:], dtype))
        return grown(tensors, change, basis)


class _Representation(nn.Module):
    """Scalars and vectors of atoms from numbers and edges.

    Under autocast, products of weights with hidden features of atoms and of edges run in the lower precision,
    and everything else in full precision.
    """

    basis: Tensor

    def __init__(self, config: TensorNetSection) -> None:
        super().__init__()
        self.matgl = config.variant == "matgl"
        kind = _GaussianBasis if self.matgl else _ExponentialBasis
        self.radial_basis = kind(config.cutoff, config.rbf)
        self.cutoff_fn = CosineCutoff(config.cutoff)
        self.tensor_embedding = _TensorEmbedding(config.width, config.rbf)
        self.layers = Layers(_Interaction(config.width, config.rbf) for _ in range(config.layers))
        self.out_norm = nn.LayerNorm(3 * config.width)
        self.linear = nn.Linear(3 * config.width, config.width)
        basis = torch.from_numpy(BASIS.reshape(COMPONENTS, COMPONENTS))
        self.register_buffer("basis", basis, persistent=False)

    def forward(self, batch: GraphBatch, dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
        """Scalars [N, D] and vectors [N, 3, D]; products in `dtype`, see `product_dtype`."""
        edges = Edges.of(batch)
        lengths = edges.lengths.unsqueeze(1)
        cutoff, radial = self.cutoff_fn(lengths), self.radial_basis(lengths)
        basis = self.basis.to(lengths.dtype)
        tensors = self.tensor_embedding(batch.numbers, radial, cutoff, edges, dtype)
        for layer in self.layers:
            tensors = layer(tensors, radial, cutoff, edges, basis, dtype)
        parts = tensors.split(PARTS)
        norms = self.out_norm(torch.cat([part.square().sum(dim=0) for part in parts], dim=1))
        scalars = F.linear(norms, self.linear.weight, self.linear.bias)
        return scalars if self.matgl else passes.silu(scalars), parts[1].transpose(0, 1)


class _Output(nn.Module):
    """Numbers of an atom from its scalars, by two layers."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.outnet = _linears(inputs, hidden, outputs)

    def forward(self, scalars: Tensor) -> Tensor:
        """[..., outputs]."""
        first, second = self.outnet
        return F.linear(passes.activated(scalars, first, None), second.weight, second.bias)


class _GatedOutput(nn.Module):
    """Energy of an atom by two networks of its scalars, of which one gates the other; as in matgl."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = _linears(width, width, width, width, 1)
        self.gates = _linears(width, width, width, width, 1)

    def forward(self, scalars: Tensor) -> Tensor:
        """[N, 1]."""
        values, gate = scalars, scalars
        for layer, other in zip(self.layers[:-1], self.gates[:-1], strict=True):
            values, gate = (
                passes.activated(values, layer, None),
                passes.activated(gate, other, None),
            )
        return self.layers[-1](values) * torch.sigmoid(self.gates[-1](gate))


class TensorNet(nn.Module):
    """TensorNet potential: atomic energies, with forces and stress by `evaluate_potential`, and heads.

    Heads are for scalars and vectors of atoms.

    Args:
        config: hyper-parameters.
        outputs: 1, the energy; or 0, with heads only.
        heads: further targets.
    """

    def __init__(
        self, config: TensorNetConfig, outputs: int = 1, heads: Sequence[Head] = ()
    ) -> None:
        super().__init__()
        if outputs not in (0, 1):
            raise AtomloomError(f"a potential predicts one number per atom, not {outputs}")
        self.representation = _Representation(config)
        width = config.width
        output = _GatedOutput(width) if config.variant == "matgl" else _Output(width, width // 2, 1)
        self.output = output if outputs else None
        self.heads = Heads(heads, width, width)

    def forward(self, batch: GraphBatch) -> Tensor | Outputs:
        """Atomic energies [N], in the network's unit, and values of heads."""
        dtype = product_dtype(batch.positions)
        with full_precision(batch.positions):
            scalars, vectors = self.representation(batch, dtype)
            energies = None if self.output is None else self.output(scalars).squeeze(1)
            return self.heads.with_main(energies, AtomFeatures(scalars, vectors), batch)


class TensorNetProperty(nn.Module):
    """TensorNet for numbers per structure, and heads for scalars and vectors of atoms.

    Args:
        config: hyper-parameters.
        outputs: number of outputs per structure; 0 with heads only.
        global_features: numbers per structure in `batch.extras["globals"]`.
        heads: further targets.
    """

    def __init__(
        self,
        config: TensorNetPropertyConfig,
        outputs: int,
        global_features: int = 0,
        heads: Sequence[Head] = (),
    ) -> None:
        super().__init__()
        self.representation = _Representation(config)
        self.readout, self.global_features = config.readout, global_features
        width = config.width
        self.output = _Output(width + global_features, width, outputs) if outputs else None
        self.heads = Heads(heads, width + global_features, width)

    def forward(self, batch: GraphBatch) -> Tensor | Outputs:
        """Predictions [B, outputs], and values of heads."""
        dtype = product_dtype(batch.positions)
        with full_precision(batch.positions):
            scalars, vectors = self.representation(batch, dtype)
            given = batch.extras["globals"] if self.global_features else None
            main = None
            if self.output is not None:
                main = read_out(
                    scalars,
                    batch.node_graph,
                    batch.node_ptr,
                    self.readout,
                    self.output,
                    given,
                )
            features = AtomFeatures(joined(scalars, given, batch.node_graph), vectors)
            return self.heads.with_main(main, features, batch)
