"""PaiNN, a potential of scalars and vectors on atoms (Schuett, Unke, Gastegger, ICML 2021,
arXiv:2102.03150), under the weight names of SchNetPack.

Rotating a structure rotates the vectors and leaves scalars, and so energies, as they are. Everything
can be differentiated twice, as training on forces does. On a CPU messages and updates are compiled
passes (`painn.kernels`) with derivatives written by hand, messages over pairs of edges; elsewhere, and
under torch.compile, they are plain operations. It knows nothing of training.

Legend: N atoms, E edges, P pairs (edges without reverses), D features; F = 3 filters of an edge, for
scalars, directions and vectors; R radial functions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from atomloom.config.model import PaiNNConfig
from atomloom.data.batch import GraphBatch
from atomloom.errors import AtomloomError
from atomloom.models.common import passes
from atomloom.models.common.heads import AtomFeatures, Heads
from atomloom.models.common.layers import (
    FunctionContext,
    Layers,
    at_least_single,
    full_precision,
    gather,
    product,
    product_dtype,
    segment_sum,
)
from atomloom.models.common.outputs import Head, Outputs
from atomloom.models.common.passes import ELEMENTS, CosineCutoff, Edges, ElementEmbedding
from atomloom.models.painn import kernels

_MESSAGES = passes.Differentiable(kernels.push, kernels.push_back, kernels.push_back_twice)
_UPDATES = passes.Differentiable(kernels.update, kernels.update_back, kernels.update_back_twice)


def messages(filters: Tensor, scalars: Tensor, vectors: Tensor | None, edges: Edges) -> Tensor:
    """Messages summed over the neighbours of each atom: scalars and vectors, [N, 4, D].

    Equations 7 and 8 of the paper: m0_i = sum W0 x0_j and m_i = sum (W1 x1_j u + W2 y_j).

    Args:
        filters: W, [P, F, D]; F is 2 where there are no vectors.
        scalars: x, [N, 2, D].
        vectors: y, [N, 3, D], components before features; None for zeros.
        edges: with directions u.
    """
    if edges.mutual is not None:
        if vectors is None:
            vectors = scalars.new_zeros((0, 3, scalars.shape[2]))
        shape = (scalars.shape[0], 4, scalars.shape[2])
        of_pairs = (edges.directions, filters)
        return _MESSAGES.over_pairs(edges, shape, of_pairs, (scalars, vectors))
    weighted = filters[:, :2] * gather(scalars, edges.src)
    moved = weighted[:, 1:] * edges.directions.unsqueeze(2)
    if vectors is not None:
        moved = torch.addcmul(moved, filters[:, 2:], gather(vectors, edges.src))
    return segment_sum(torch.cat((weighted[:, :1], moved), dim=1), edges.dst, scalars.shape[0])


def norms(mixed: Tensor) -> Tensor:
    """|v| [N, D] of mixed = (v, w) [N, 3, 2, D], slightly more than zero where v is zero."""
    if passes.by_passes(mixed):
        return _Norms.apply(mixed)
    return torch.sqrt(mixed[:, :, 0].square().sum(dim=1) + kernels.FLOOR)


def updates(context: Tensor, mixed: Tensor) -> Tensor:
    """Changes of scalars and vectors by an update, a + c (v . w) and b w: [N, 4, D].

    Equations 9 and 10 of the paper.

    Args:
        context: a, b, c, [N, 3, D].
        mixed: v, w, [N, 3, 2, D].
    """
    if passes.by_passes(mixed):
        shape = (context.shape[0], 4, context.shape[2])
        return _UPDATES.over_rows(shape, context, mixed)
    first, second = mixed.unbind(dim=2)
    of_scalars, of_vectors, of_products = context.split(1, dim=1)
    products = (first * second).sum(dim=1, keepdim=True)
    return torch.cat((torch.addcmul(of_scalars, of_products, products), of_vectors * second), dim=1)


class _Norms(torch.autograd.Function):
    """`norms` by compiled passes."""

    @staticmethod
    def forward(ctx: FunctionContext, mixed: Tensor) -> Tensor:
        found = mixed.new_empty((mixed.shape[0], mixed.shape[3]))
        passes.run_over_rows(kernels.norms, mixed, found)
        ctx.save_for_backward(mixed)
        ctx.found = found.detach()
        return found

    @staticmethod
    def backward(ctx: FunctionContext, grad: Tensor) -> Tensor:
        return _NormsBack.apply(grad, *ctx.saved_tensors, ctx.found)


class _NormsBack(torch.autograd.Function):
    """First derivative of `_Norms`, which can be differentiated once more."""

    @staticmethod
    def forward(ctx: FunctionContext, grad: Tensor, mixed: Tensor, found: Tensor) -> Tensor:
        (of_mixed,) = passes.empty_like(mixed)
        passes.run_over_rows(kernels.norms_back, mixed, found, grad, of_mixed)
        ctx.save_for_backward(grad, mixed)
        ctx.found = found
        return of_mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionContext, by_mixed: Tensor) -> tuple[Tensor, Tensor, None]:
        grad, mixed = ctx.saved_tensors
        of_mixed, of_grad = passes.empty_like(mixed, grad)
        passes.run_over_rows(
            kernels.norms_back_twice, mixed, ctx.found, grad, by_mixed, of_mixed, of_grad
        )
        return of_grad, of_mixed, None


class _RadialBasis(nn.Module):
    """Gaussians with equally spaced centres from 0 to the cutoff, as wide as the spacing."""

    widths: Tensor
    offsets: Tensor

    def __init__(self, cutoff: float, functions: int) -> None:
        super().__init__()
        centres = torch.linspace(0.0, cutoff, functions, dtype=torch.float64)
        self.register_buffer("widths", torch.full_like(centres, float(centres[1])).float())
        self.register_buffer("offsets", centres.float())

    def forward(self, lengths: Tensor) -> Tensor:
        """[P, R] values at lengths [P, 1]."""
        return torch.exp((lengths - self.offsets).square() * (-0.5 / self.widths.square()))


def _two_layers(inputs: int, hidden: int, outputs: int) -> Layers[nn.Linear]:
    layers = Layers((nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)))
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    return layers


def _apply(layers: Layers[nn.Linear], values: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Apply Linear, SiLU, Linear; products in `dtype`, see `product_dtype`."""
    first, second = layers
    hidden = passes.activated(values, first, dtype)
    return at_least_single(product(hidden, second.weight, second.bias, dtype))


class _Interaction(nn.Module):
    """Weights of a message block, figure 2b of the paper."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.interatomic_context_net = _two_layers(width, width, 3 * width)


class _Mixing(nn.Module):
    """Weights of an update block, figure 2c of the paper."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.intraatomic_context_net = _two_layers(2 * width, width, 3 * width)
        self.mu_channel_mix = nn.Linear(width, 2 * width, bias=False)
        nn.init.xavier_uniform_(self.mu_channel_mix.weight)


class _Representation(nn.Module):
    """Scalars and vectors of atoms from numbers and edges."""

    def __init__(self, config: PaiNNConfig) -> None:
        super().__init__()
        width, layers = config.width, config.layers
        self.width, self.shared_filters = width, config.shared_filters
        self.embedding = ElementEmbedding(ELEMENTS + 1, width, padding_idx=0)
        self.cutoff_fn = CosineCutoff(config.cutoff)
        self.radial_basis = _RadialBasis(config.cutoff, config.rbf)
        filters = 3 * width * (1 if config.shared_filters else layers)
        self.filter_net = nn.Linear(config.rbf, filters)
        nn.init.xavier_uniform_(self.filter_net.weight)
        nn.init.zeros_(self.filter_net.bias)
        self.interactions = Layers(_Interaction(width) for _ in range(layers))
        self.mixing = Layers(_Mixing(width) for _ in range(layers))

    def forward(self, batch: GraphBatch, dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
        """Scalars [N, D] and vectors [N, 3, D]; products of atoms' features in `dtype`."""
        edges = Edges.of(batch)
        lengths = edges.lengths.unsqueeze(1)
        cutoff = self.cutoff_fn(lengths)
        # The filters' bias is one more radial function.
        radial = torch.cat((self.radial_basis(lengths) * cutoff, cutoff), dim=1)
        weights = torch.cat((self.filter_net.weight, self.filter_net.bias.unsqueeze(1)), dim=1)
        weights = weights.view(-1, 3 * self.width, weights.shape[1]).transpose(1, 2).contiguous()

        scalars: Tensor = self.embedding(batch.numbers)
        vectors: Tensor | None = None
        for layer, (interaction, mixing) in enumerate(
            zip(self.interactions, self.mixing, strict=True)
        ):
            own = weights[0 if self.shared_filters else layer]
            scalars, vectors = self._interact(
                interaction, scalars, vectors, radial, own, edges, dtype
            )
            scalars, vectors = self._mix(mixing, scalars, vectors, dtype)
        assert vectors is not None  # there is a layer
        return scalars, vectors

    def _interact(
        self,
        interaction: _Interaction,
        scalars: Tensor,
        vectors: Tensor | None,
        radial: Tensor,
        weights: Tensor,
        edges: Edges,
        dtype: torch.dtype | None,
    ) -> tuple[Tensor, Tensor]:
        """Apply the message block. Before the first there are no vectors, and no filters for them."""
        sent = _apply(interaction.interatomic_context_net, scalars, dtype)
        sent, factors = sent.view(-1, 3, self.width).split((2, 1), dim=1)
        moved = None if vectors is None else factors * vectors
        filters = (radial @ weights[:, : (2 if vectors is None else 3) * self.width]).unflatten(
            1, (-1, self.width)
        )
        received, moves = messages(filters, sent.contiguous(), moved, edges).split((1, 3), dim=1)
        return scalars + received.squeeze(1), moves if vectors is None else vectors + moves

    def _mix(
        self, mixing: _Mixing, scalars: Tensor, vectors: Tensor, dtype: torch.dtype | None
    ) -> tuple[Tensor, Tensor]:
        """Apply the update block."""
        mixed = at_least_single(product(vectors, mixing.mu_channel_mix.weight, None, dtype))
        mixed = mixed.unflatten(2, (2, self.width))
        context = torch.cat((scalars, norms(mixed)), dim=1)
        context = _apply(mixing.intraatomic_context_net, context, dtype)
        changes = updates(context.view(-1, 3, self.width), mixed)
        of_scalars, of_vectors = changes.split((1, 3), dim=1)
        return scalars + of_scalars.squeeze(1), vectors + of_vectors


class _Output(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.outnet = _two_layers(width, width // 2, 1)


class PaiNN(nn.Module):
    """PaiNN potential: atomic energies, with forces and stress by `evaluate_potential`, and heads.

    Heads are for scalars and vectors of atoms. Under autocast, only products of atoms' features run in the
    lower precision.

    Args:
        config: hyper-parameters.
        outputs: 1, the energy; or 0, with heads only.
        heads: further targets.
    """

    def __init__(self, config: PaiNNConfig, outputs: int = 1, heads: Sequence[Head] = ()) -> None:
        super().__init__()
        if outputs not in (0, 1):
            raise AtomloomError(f"a potential predicts one number per atom, not {outputs}")
        self.representation = _Representation(config)
        self.output = _Output(config.width) if outputs else None
        self.heads = Heads(heads, config.width, config.width)

    def represent(self, batch: GraphBatch) -> tuple[Tensor, Tensor]:
        """Scalars [N, D] and vectors [N, 3, D], components before features."""
        dtype = product_dtype(batch.positions)
        with full_precision(batch.positions):
            return self.representation(batch, dtype)

    def forward(self, batch: GraphBatch) -> Tensor | Outputs:
        """Atomic energies [N], in the network's unit, and values of heads."""
        dtype = product_dtype(batch.positions)
        with full_precision(batch.positions):
            scalars, vectors = self.representation(batch, dtype)
            energies = None
            if self.output is not None:
                energies = _apply(self.output.outnet, scalars, dtype).squeeze(1)
            return self.heads.with_main(energies, AtomFeatures(scalars, vectors), batch)
