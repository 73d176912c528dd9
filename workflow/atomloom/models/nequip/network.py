"""NequIP, a potential of features that rotate with a structure (Batzner et al., Nat. Commun. 13, 2453
(2022), arXiv:2101.03164), with the linear self-connections of SevenNet (Park et al., J. Chem. Theory
Comput. 20, 4857 (2024), arXiv:2402.03789).

An atom has scalars, vectors and tensors up to some degree. In each interaction they are coupled with
spherical harmonics of the directions to neighbours, weighted by filters of the distances, summed, mixed
within their kind and passed through gates. Everything can be differentiated twice, as training on forces
does. On a CPU the convolution is a compiled pass over pairs of edges (`nequip.kernels`); elsewhere, and
under torch.compile, it is plain operations. It knows nothing of training.

Legend: N atoms, P pairs or edges, S components of harmonics, W filters of an edge, X, M and G numbers of
an atom before the convolution, after it and before the gate; each is laid out as its `Layout` says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from atomloom.config.model import NequIPConfig
from atomloom.data.batch import GraphBatch
from atomloom.errors import AtomloomError
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
from atomloom.models.common.passes import (
    ELEMENTS,
    Edges,
    ElementEmbedding,
    empty_like,
    run_over_pairs,
    silu,
)
from atomloom.models.nequip import kernels
from atomloom.models.nequip.tables import EVEN_SCALAR, Irrep, Layout, Paths, harmonic_steps

SILU = 1.6765324703310913
"""Factor that gives SiLU of a normal variable a mean square of 1."""
TANH = 1.59253741972283
"""Factor for tanh, as SILU."""


class Convolution(nn.Module):
    """Sums over neighbours of features coupled with harmonics: equation 8 of Batzner et al."""

    def __init__(self, paths: Paths) -> None:
        super().__init__()
        self.paths = paths
        places, ptr, entries, factors = [], [0], [], []
        for path in paths.paths:
            source, target = path.source, path.target
            sign = (-1) ** path.degree
            of_source = (source.start, source.copies, source.irrep.components)
            of_target = (target.start, target.copies, target.irrep.components, path.first)
            places.append((*of_source, path.degree**2, sign, *of_target, path.weight))
            found = np.argwhere(path.factors)
            entries.append(found)
            factors.append(path.factors[tuple(found.T)])
            ptr.append(ptr[-1] + len(found))
        self.tables = (np.array(places), np.array(ptr), np.concatenate(entries))
        self.factors = np.concatenate(factors)
        for place, path in enumerate(paths.paths):
            self.register_buffer(f"path_{place}", torch.from_numpy(path.factors), persistent=False)

    def passes(self, kernel: Callable[..., None], values: Tensor) -> Callable[..., None]:
        """Compiled pass along these paths, in the precision of `values`."""
        factors = self.factors.astype(torch.empty(0, dtype=values.dtype).numpy().dtype)

        def along(first: int, last: int, src: Any, dst: Any, mutual: Any, *arrays: Any) -> None:
            kernel(first, last, src, dst, mutual, *self.tables, factors, *arrays)

        return along

    def forward(self, features: Tensor, harmonics: Tensor, filters: Tensor, edges: Edges) -> Tensor:
        """[N, M] from features [N, X], harmonics [P, S] and filters [P, W]."""
        if edges.mutual is not None:
            return _Convolved.apply(features, harmonics, filters, edges, self)
        sent = gather(features, edges.src)
        coupled: dict[Irrep, list[Tensor]] = {}
        for place, path in enumerate(self.paths.paths):
            own, at = path.source, path.degree**2
            factors = self.get_buffer(f"path_{place}").to(harmonics.dtype)
            turned = torch.einsum(
                "pj,ijk->pki", harmonics[:, at : at + 2 * path.degree + 1], factors
            )
            values = sent[:, own.start : own.stop].unflatten(1, (-1, own.copies))
            weights = filters[:, path.weight : path.weight + own.copies]
            message = torch.bmm(turned, values) * weights.unsqueeze(1)
            coupled.setdefault(path.target.irrep, []).append(message)
        messages = [
            torch.cat(coupled[block.irrep], dim=2).flatten(1) for block in self.paths.target.blocks
        ]
        return segment_sum(torch.cat(messages, dim=1), edges.dst, features.shape[0])


class _Convolved(torch.autograd.Function):
    """Convolution by compiled passes."""

    @staticmethod
    def forward(
        ctx: FunctionContext,
        features: Tensor,
        harmonics: Tensor,
        filters: Tensor,
        edges: Edges,
        convolution: Convolution,
    ) -> Tensor:
        ctx.save_for_backward(features, harmonics, filters)
        ctx.edges, ctx.convolution = edges, convolution
        return _push(convolution, edges, features, harmonics, filters)

    @staticmethod
    def backward(ctx: FunctionContext, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (
            *_ConvolvedBack.apply(grad, *ctx.saved_tensors, ctx.edges, ctx.convolution),
            None,
            None,
        )


class _ConvolvedBack(torch.autograd.Function):
    """First derivative of `_Convolved`, which can be differentiated once more.

    The sum of `grad` times the convolution is linear in `grad` and each of its three inputs, so the second
    derivative is the first with one of them replaced after the other.
    """

    @staticmethod
    def forward(
        ctx: FunctionContext,
        grad: Tensor,
        features: Tensor,
        harmonics: Tensor,
        filters: Tensor,
        edges: Edges,
        convolution: Convolution,
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(grad, features, harmonics, filters)
        ctx.edges, ctx.convolution = edges, convolution
        return _push_back(convolution, edges, grad, features, harmonics, filters)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionContext, *by: Tensor) -> tuple[Tensor | None, ...]:
        grad, *inputs = ctx.saved_tensors
        of_grad = torch.zeros_like(grad)
        found = [torch.zeros_like(given) for given in inputs]
        for place in range(3):
            replaced = [by[at] if at == place else given for at, given in enumerate(inputs)]
            of_grad += _push(ctx.convolution, ctx.edges, *replaced)
            derivatives = _push_back(ctx.convolution, ctx.edges, grad, *replaced)
            for at in range(3):
                if at != place:
                    found[at] += derivatives[at]
        return of_grad, *found, None, None


def _push(
    convolution: Convolution, edges: Edges, features: Tensor, harmonics: Tensor, filters: Tensor
) -> Tensor:
    sums = features.new_empty((features.shape[0], convolution.paths.target.size))
    given = (harmonics, filters, features)
    work = filters.numel()
    run_over_pairs(convolution.passes(kernels.push, features), edges, given, (), (sums,), work)
    return sums


def _push_back(
    convolution: Convolution,
    edges: Edges,
    grad: Tensor,
    features: Tensor,
    harmonics: Tensor,
    filters: Tensor,
) -> tuple[Tensor, ...]:
    """Derivatives by features, harmonics and filters."""
    of_atoms, of_pairs = empty_like(features), empty_like(harmonics, filters)
    given = (harmonics, filters, features, grad)
    work = filters.numel()
    kernel = convolution.passes(kernels.push_back, features)
    run_over_pairs(kernel, edges, given, of_pairs, of_atoms, work)
    return *of_atoms, *of_pairs


class Mix(nn.Module):
    """Linear map within each irrep: equation 5 of Batzner et al.

    Weights are normal, and divided by the root of the number of inputs where they are used.
    """

    def __init__(self, source: Layout, target: Layout, bias: bool) -> None:
        super().__init__()
        self.source, self.target = source, target
        self.mixed = [block for block in target.blocks if source.copies(block.irrep)]
        """Blocks of the target that have inputs; the others are zero."""
        self.weights = nn.ParameterList(
            torch.randn(source.copies(block.irrep), block.copies) for block in self.mixed
        )
        scalars = target.copies(EVEN_SCALAR)
        self.bias = nn.Parameter(torch.zeros(scalars)) if bias and scalars else None

    def forward(self, values: Tensor, dtype: torch.dtype | None) -> Tensor:
        """[N, target] from [N, source]; products in `dtype`, see `product_dtype`."""
        found = {}
        for block, weight in zip(self.mixed, self.weights, strict=True):
            own, inputs = self.source[block.irrep], weight.shape[0]
            rows = values[:, own.start : own.stop].reshape(-1, inputs)
            bias = self.bias if block.irrep == EVEN_SCALAR else None
            mixed = product(rows, weight.t() / math.sqrt(inputs), bias, dtype)
            found[block.irrep] = at_least_single(mixed).view(values.shape[0], -1)
        parts = [
            found[block.irrep]
            if block.irrep in found
            else values.new_zeros((values.shape[0], block.stop - block.start))
            for block in self.target.blocks
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class _Gate(nn.Module):
    """Nonlinearity: SiLU of even and tanh of odd scalars, and other features times SiLU of their gates.

    Args:
        target: layout after it.
    """

    def __init__(self, target: Layout) -> None:
        super().__init__()
        self.target = target
        gated = sum(block.copies for block in target.blocks if block.irrep.degree)
        copies = [
            (block.irrep, block.copies + (gated if block.irrep == EVEN_SCALAR else 0))
            for block in target.blocks
        ]
        self.source = Layout.of(copies)
        """Layout before it: gates follow the even scalars."""

    def forward(self, values: Tensor) -> Tensor:
        """[N, target] from [N, source]."""
        passed = []
        even = self.source[EVEN_SCALAR]
        opened = silu(values[:, even.start : even.stop]) * SILU
        at = self.target.copies(EVEN_SCALAR)
        for before, block in zip(self.source.blocks, self.target.blocks, strict=True):
            own = values[:, before.start : before.stop]
            if block.irrep == EVEN_SCALAR:
                passed.append(opened[:, : block.copies])
            elif not block.irrep.degree:
                passed.append(torch.tanh(own) * TANH)
            else:
                gates = opened[:, at : at + block.copies].unsqueeze(1)
                passed.append((own.unflatten(1, (-1, block.copies)) * gates).flatten(1))
                at += block.copies
        return passed[0] if len(passed) == 1 else torch.cat(passed, dim=1)


class _Filters(nn.Module):
    """Filters of the distance: a network without biases, from the radial functions [P, R] to [P, W]."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.randn(a, b) for a, b in pairwise(sizes))

    def forward(self, radial: Tensor, dtype: torch.dtype | None) -> Tensor:
        """[P, W]; products in `dtype`."""
        values = radial
        for place, weight in enumerate(self.weights):
            scale = 1.0 / math.sqrt(weight.shape[0])
            if place:
                values, scale = silu(values), scale * SILU
            values = at_least_single(product(values, weight.t() * scale, None, dtype))
        return values


class _Radial(nn.Module):
    """Bessel functions times an envelope, [P, R] of lengths [P]; zero from the cutoff on."""

    def __init__(self, config: NequIPConfig) -> None:
        super().__init__()
        self.config = config
        frequencies = torch.arange(1, config.rbf + 1, dtype=torch.float64) * math.pi / config.cutoff
        self.frequencies = nn.Parameter(frequencies.to(torch.get_default_dtype()))

    def forward(self, lengths: Tensor) -> Tensor:
        cutoff = self.config.cutoff
        inside = lengths.clamp(max=cutoff).unsqueeze(1)
        waves = torch.sin(self.frequencies * inside) * (2.0 / cutoff) / inside
        return waves * self._envelope(inside)

    def _envelope(self, lengths: Tensor) -> Tensor:
        cutoff, start, p = (
            self.config.cutoff,
            self.config.envelope_start,
            self.config.envelope_power,
        )
        if self.config.envelope == "xplor":
            # from 1 at the start to 0 at the cutoff, smooth in the square of the length
            square = lengths.clamp(min=start).square()
            left = cutoff**2 - square
            return (
                left.square()
                * (cutoff**2 + 2 * square - 3 * start**2)
                / (cutoff**2 - start**2) ** 3
            )
        x = lengths / cutoff
        terms = (p + 1) * (p + 2) / 2 - p * (p + 2) * x + p * (p + 1) / 2 * x.square()
        return 1.0 - terms * x**p


class SphericalHarmonics(nn.Module):
    """Real harmonics [P, (degree+1)^2] of vectors [P, 3], degree after degree.

    Those of a unit vector have squares that sum to 2 l + 1 in each degree l, in e3nn's order and signs; those
    of other vectors are larger by the length to the power of l.
    """

    def __init__(self, degree: int) -> None:
        super().__init__()
        self.degree = degree
        for place, table in enumerate(harmonic_steps(degree)):
            self.register_buffer(f"step_{place}", torch.from_numpy(table), persistent=False)

    def forward(self, vectors: Tensor) -> Tensor:
        """[P, (degree+1)^2]."""
        first = vectors * math.sqrt(3)
        found = [torch.ones_like(first[:, :1]), first]
        for place in range(self.degree - 1):
            table = self.get_buffer(f"step_{place}").to(first.dtype)
            products = (found[-1].unsqueeze(2) * first.unsqueeze(1)).flatten(1)
            found.append(products @ table.flatten(0, 1))
        return torch.cat(found[: self.degree + 1], dim=1)


class _Interaction(nn.Module):
    """Interaction block, figure 1c of Batzner et al."""

    def __init__(self, config: NequIPConfig, source: Layout, target: Layout) -> None:
        super().__init__()
        self.gate = _Gate(target)
        ends = [block.irrep for block in target.blocks]
        self.convolution = Convolution(Paths.of(source, _harmonics(config), ends))
        paths = self.convolution.paths
        self.filters = _Filters((config.rbf, *config.filter_hidden, paths.filters))
        self.before = Mix(source, source, config.bias)
        self.after = Mix(paths.target, self.gate.source, config.bias)
        self.connection = Mix(source, self.gate.source, False)
        self.neighbors = config.neighbors

    def forward(
        self,
        features: Tensor,
        harmonics: Tensor,
        radial: Tensor,
        edges: Edges,
        dtype: torch.dtype | None,
    ) -> Tensor:
        """[N, target] from [N, source]."""
        sent = self.before(features, dtype)
        received = self.convolution(sent, harmonics, self.filters(radial, dtype), edges)
        mixed = self.after(received / self.neighbors, dtype) + self.connection(features, dtype)
        return self.gate(mixed)


def _harmonics(config: NequIPConfig) -> list[Irrep]:
    return [
        Irrep(degree, (-1) ** degree if config.parity else 1)
        for degree in range(len(config.features))
    ]


def _layouts(config: NequIPConfig) -> list[Layout]:
    """Layouts of the features before the first interaction and after each.

    At first there are even scalars alone, and at the end only they are of use: there is what both reach.
    """
    reached, needed = [{EVEN_SCALAR}], [{EVEN_SCALAR}]
    for _ in range(config.layers):
        for ends in (reached, needed):
            ends.append(_coupled(config, ends[-1]))
    layouts = []
    for before, after in zip(reached, reversed(needed), strict=True):
        ordered = sorted(before & after, key=lambda irrep: (irrep.degree, -irrep.parity))
        layouts.append(Layout.of((irrep, config.features[irrep.degree]) for irrep in ordered))
    return layouts


def _coupled(config: NequIPConfig, irreps: set[Irrep]) -> set[Irrep]:
    """Irreps that a convolution reaches from some; those from which it reaches them are the same."""
    return {
        end
        for irrep in irreps
        for harmonic in _harmonics(config)
        for end in irrep.times(harmonic)
        if end.degree < len(config.features)
    }


class NequIP(nn.Module):
    """NequIP potential: atomic energies, with forces and stress by `evaluate_potential`, and heads.

    Heads are for scalars of atoms. Under autocast, only products with weights run in the lower precision.

    Args:
        config: hyper-parameters.
        outputs: 1, the energy; or 0, with heads only.
        heads: further targets.
    """

    def __init__(self, config: NequIPConfig, outputs: int = 1, heads: Sequence[Head] = ()) -> None:
        super().__init__()
        if outputs not in (0, 1):
            raise AtomloomError(f"a potential predicts one number per atom, not {outputs}")
        width = config.features[0]
        self.harmonics = SphericalHarmonics(len(config.features) - 1)
        self.unit_directions = config.unit_directions
        self.embedding = ElementEmbedding(ELEMENTS + 1, width)
        self.radial = _Radial(config)
        layouts = _layouts(config)
        self.interactions = Layers(_Interaction(config, *ends) for ends in pairwise(layouts))
        scalar = Layout.of([(EVEN_SCALAR, max(1, width // 2))])
        energy = Layout.of([(EVEN_SCALAR, 1)])
        self.hidden = Mix(layouts[-1], scalar, config.bias) if outputs else None
        self.output = Mix(scalar, energy, False) if outputs else None
        self.heads = Heads(heads, width)

    def scalars(self, batch: GraphBatch, dtype: torch.dtype | None) -> Tensor:
        """[N, D] even scalars after the last interaction."""
        edges = Edges.of(batch)
        directions = edges.directions
        if not self.unit_directions:
            directions = directions * edges.lengths.unsqueeze(1)
        harmonics = self.harmonics(directions)
        radial = self.radial(edges.lengths)
        features: Tensor = self.embedding(batch.numbers)
        for interaction in self.interactions:
            features = interaction(features, harmonics, radial, edges, dtype)
        return features

    def forward(self, batch: GraphBatch) -> Tensor | Outputs:
        """Atomic energies [N], in the network's unit, and values of heads."""
        dtype = product_dtype(batch.positions)
        with full_precision(batch.positions):
            scalars = self.scalars(batch, dtype)
            energies = None
            if self.hidden is not None and self.output is not None:
                energies = self.output(self.hidden(scalars, dtype), dtype).squeeze(1)
            return self.heads.with_main(energies, AtomFeatures(scalars), batch)
