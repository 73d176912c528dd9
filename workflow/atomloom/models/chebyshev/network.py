"""The Chebyshev (aenet) potential: fixed descriptors of atoms, one small network per element.

Descriptor: Artrith, Urban and Ceder, PRB 96, 014112 (2017). On a CPU compiled passes compute it
and its products with the Jacobian (`chebyshev.kernels`); on other devices, and for derivatives of
third order, plain torch operations do. Forces are linear in dE/dG with factors that depend only on
positions, so training on them costs two such products. It knows nothing of training.

Legend: N atoms, E edges, S elements, F features, R+1 radial and L+1 angular orders; H hidden
nodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atomloom.config.model import ActivationName, ChebyshevConfig
from atomloom.data.batch import GraphBatch
from atomloom.errors import AtomloomError
from atomloom.models.chebyshev import kernels as kernels
from atomloom.models.chebyshev.kernels import Basis
from atomloom.models.common.layers import (
    FunctionContext,
    at_least_single,
    full_precision,
    segment_sum,
)
from atomloom.structures.elements import SYMBOLS, atomic_number

T = TypeVar("T")

LEAST_SPREAD = 1e-3
"""Min variance of every direction of decorrelated features, as a share of the largest."""
NO_VARIATION = 1e-5
"""Share of a feature's size below which its standard deviation may be rounding of float32."""
TOGETHER = 2e7
"""Max multiplications for running the networks of several elements on all atoms on a CPU."""


class Chebyshev(nn.Module):
    """Atomic energies from Chebyshev features of the neighbourhoods."""

    place: Tensor
    """[numbers], index of each atomic number among the elements."""
    feature_mean: Tensor
    """[S, F], here and below."""
    feature_scale: Tensor
    feature_least: Tensor
    feature_most: Tensor
    feature_atoms: Tensor
    """[S], number of atoms of the statistics."""

    def __init__(self, config: ChebyshevConfig, outputs: int = 1) -> None:
        """Args:
            config: cutoffs, orders, elements and networks.
            outputs: 1, the energy.

        Raises:
            AtomloomError: for elements that do not exist, networks of elements that are not among
                `config.species`, or more outputs than one.
        """
        super().__init__()
        if outputs != 1:
            raise AtomloomError(f"a potential has one output, the energy, not {outputs}")
        self.species = config.species
        self.min_distance = config.min_distance
        self.numbers = _atomic_numbers(config.species)
        self.basis = Basis(
            config.radial_order,
            config.radial_cutoff,
            config.angular_order,
            config.angular_cutoff,
            species_weights(len(config.species)),
        )
        hidden = _of_species(config.hidden, config.species, "hidden")
        activation: list[ActivationName] = _of_species(
            config.activation, config.species, "activation"
        )
        self.networks = ElementNetworks(
            self.basis.features,
            hidden,
            [(name,) * len(sizes) for name, sizes in zip(activation, hidden, strict=True)],
            config.decorrelate,
        )
        place = torch.full((len(SYMBOLS),), -1)
        place[list(self.numbers)] = torch.arange(len(self.numbers))
        self.register_buffer("place", place, persistent=False)
        self._tables_on: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}
        shape = (len(self.species), self.basis.features)
        self.register_buffer("feature_mean", torch.zeros(shape))
        self.register_buffer("feature_scale", torch.ones(shape))
        self.register_buffer("feature_least", torch.zeros(shape))
        self.register_buffer("feature_most", torch.zeros(shape))
        self.register_buffer("feature_atoms", torch.zeros(shape[0], dtype=torch.int64))

    def forward(self, batch: GraphBatch) -> Tensor:
        """[N] atomic energies.

        Where `batch.extras` holds `features` [N, F], only the atoms of `computed` [N] have edges, or
        none if there is no such entry.

        Raises:
            AtomloomError: on a CPU, for atoms closer than `min_distance`.
        """
        cached, computed = batch.extras.get("features"), batch.extras.get("computed")
        if cached is None:
            return self.energies(self._describe(batch, wait=False), batch.numbers)
        if computed is None or batch.src.shape[0] == 0:
            return self.energies(cached, batch.numbers)
        if not _has_kernels(batch.src):
            fresh = self._describe(batch, wait=False)
            return self.energies(torch.where(computed.unsqueeze(1), fresh, cached), batch.numbers)
        # Only atoms with edges are differentiated twice.
        moving, still = (torch.nonzero(mask).squeeze(1) for mask in (computed, ~computed))
        others = self.energies(cached.index_select(0, still), batch.numbers.index_select(0, still))
        starts = torch.cat((batch.dst_ptr.index_select(0, moving), batch.dst_ptr[-1:]))
        fresh = self._describe(batch, wait=False, starts=starts)
        own = self.energies(fresh, batch.numbers.index_select(0, moving))
        energies = own.new_zeros(computed.shape[0])
        return energies.index_copy(0, moving, own).index_copy(0, still, others.to(own.dtype))

    def features(self, batch: GraphBatch) -> Tensor:
        """[N, F] as published: radial, angular, and both again with species weights.

        Raises:
            AtomloomError: for atoms closer than `min_distance`.
        """
        return self._describe(batch, wait=True)

    def energies(self, features: Tensor, numbers: Tensor) -> Tensor:
        """[N] atomic energies for features [N, F] and atomic numbers [N].

        Models with equal descriptors, such as those of a committee, can share the features.
        """
        with full_precision(features):
            element = self.place.index_select(0, numbers)
            mean = self.feature_mean.index_select(0, element)
            scale = self.feature_scale.index_select(0, element)
            return self.networks((features - mean) * scale, element)

    @torch.no_grad()
    def fit_features(self, features: Tensor, numbers: Tensor) -> None:
        """Standardise features by those of the training atoms, element by element.

        Features that do not vary among the atoms of an element are left out of its network.

        Args:
            features: [N, F].
            numbers: [N], atomic numbers.
        """
        element = self.place.index_select(0, numbers)
        for index in range(len(self.species)):
            own = features[element == index].double()
            self.feature_atoms[index] = len(own)
            if not len(own):
                continue
            mean = own.mean(dim=0)
            deviation = (own - mean).square().mean(dim=0).sqrt()
            varies = deviation > NO_VARIATION * own.abs().amax(dim=0)
            self.feature_mean[index] = mean
            self.feature_scale[index] = torch.where(varies, 1.0 / deviation, 0.0)
            self.feature_least[index] = own.amin(dim=0)
            self.feature_most[index] = own.amax(dim=0)
            if self.networks.mixing is not None:
                z = (own - mean) * self.feature_scale[index].double()
                self.networks.mixing[index] = _decorrelation(z)

    def require_elements(self, numbers: np.ndarray) -> None:
        """Raise AtomloomError where there is no network for some element."""
        unknown = sorted({SYMBOLS[int(z)] for z in np.unique(numbers)} - set(self.species))
        if unknown:
            raise AtomloomError(
                f"the model has no networks for {', '.join(unknown)}",
                where="structures",
                todo="add them to model.species",
            )

    def _describe(self, batch: GraphBatch, wait: bool, starts: Tensor | None = None) -> Tensor:
        """Features of all atoms; compiled passes take `starts`, the `dst_ptr` of those that have edges,
        to compute only these."""
        vectors = at_least_single(batch.edge_vectors())
        with full_precision(vectors):
            neighbour = self.place.index_select(0, batch.numbers.index_select(0, batch.src))
            if _has_kernels(vectors):
                starts = batch.dst_ptr if starts is None else starts
                features, least = _Features.apply(vectors, neighbour, starts, self.basis)
                self._require_apart(least)
                return features
            if wait and vectors.shape[0]:
                self._require_apart(float(vectors.detach().square().sum(dim=1).min().sqrt()))
            atoms = batch.numbers.shape[0]
            tables = self._tables(vectors.device)
            return torch_features(vectors, neighbour, batch.dst, atoms, self.basis, tables)

    def _tables(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Tables of the basis, sent to a device once, since that synchronises; not buffers, which would
        be rounded with the weights."""
        if torch.compiler.is_compiling():  # which turns them into constants
            return _tables(self.basis)
        if device not in self._tables_on:
            weights, recursions, legendre = _tables(self.basis)
            self._tables_on[device] = weights.to(device), recursions.to(device), legendre.to(device)
        return self._tables_on[device]

    def _require_apart(self, distance: float) -> None:
        if distance < self.min_distance:
            raise AtomloomError(
                f"two atoms are {distance:.3f} A apart, closer than {self.min_distance:g} A",
                where="structures",
                todo="leave such structures out, or lower model.min_distance",
            )


def _has_kernels(tensor: Tensor) -> bool:
    """Whether compiled passes work on the device of this tensor."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def species_weights(count: int) -> tuple[float, ...]:
    """Weights of the second set of features: integers around 0, without 0 for an even number."""
    if count % 2:
        return tuple(float(w) for w in range(-(count // 2), count // 2 + 1))
    return tuple(float(w) for w in range(-(count // 2), count // 2 + 1) if w)


def _atomic_numbers(species: Sequence[str]) -> tuple[int, ...]:
    try:
        return tuple(atomic_number(symbol) for symbol in species)
    except AtomloomError as error:
        raise AtomloomError(error.what, where="model.species") from None


def _of_species(setting: T | Mapping[str, T], species: Sequence[str], key: str) -> list[T]:
    """Setting of each element: its own where there is a mapping, otherwise the common one."""
    if not isinstance(setting, Mapping):
        return [setting] * len(species)
    if set(setting) != set(species):
        raise AtomloomError(
            f"has entries for {', '.join(sorted(setting))}, but the elements are "
            f"{', '.join(species)}",
            where=f"model.{key}",
        )
    return [setting[symbol] for symbol in species]


# --- networks ---


def _decorrelation(z: Tensor) -> Tensor:
    """[F, F] symmetric matrix that makes rows [N, F] about uncorrelated.

    Directions in which they hardly vary are not amplified to noise.
    """
    values, vectors = torch.linalg.eigh(z.T @ z / len(z))
    scale = (values.clamp(min=0.0) + LEAST_SPREAD * values[-1]).rsqrt()
    return (vectors * scale) @ vectors.T


def _mtanh(x: Tensor) -> Tensor:
    return 1.7159 * torch.tanh(x * (2.0 / 3.0))


ACTIVATIONS: dict[ActivationName, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: x,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "mtanh": _mtanh,
    "twist": lambda x: _mtanh(x) + 0.1 * x,
    "silu": F.silu,
    "relu": F.relu,
}
"""Activations by aenet's names, where it has them; `mtanh` and `twist` are LeCun's."""


class ElementNetworks(nn.Module):
    """Feed-forward networks from F features to one number, one per element.

    Networks of one shape share tensors, so that a step on small ones is a few operations.
    """

    mixing: Tensor | None
    """[S, F, F]."""

    def __init__(
        self,
        features: int,
        hidden: Sequence[Sequence[int]],
        activations: Sequence[Sequence[ActivationName]],
        decorrelate: bool = False,
    ) -> None:
        """Args:
        features: F.
        hidden: sizes of the hidden layers of each element.
        activations: names of the activations of each element.
        decorrelate: whether features are first mixed by `mixing`.
        """
        super().__init__()
        eye = torch.eye(features).repeat(len(hidden), 1, 1) if decorrelate else None
        self.register_buffer("mixing", eye)
        self.sizes = [(features, *layers, 1) for layers in hidden]
        self.activations = [tuple(names) for names in activations]
        self.alike = len(set(self.sizes)) == len(set(self.activations)) == 1
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for shapes in [self.sizes[0]] if self.alike else self.sizes:
            stack = (len(hidden),) if self.alike else ()
            for width, out in pairwise(shapes):
                bound = math.sqrt(6.0 / (width + out))  # Glorot
                weight = torch.empty(*stack, out, width).uniform_(-bound, bound)
                self.weights.append(nn.Parameter(weight))
                self.biases.append(nn.Parameter(torch.zeros(*stack, out)))

    def layers(self, element: int) -> list[tuple[Tensor, Tensor]]:
        """Weight [out, in] and bias [out] of each layer of an element's network, with the mixing of
        features included in the first."""
        depth = len(self.sizes[element]) - 1
        if self.alike:
            pairs = zip(self.weights, self.biases, strict=True)
            found = [(weight[element], bias[element]) for weight, bias in pairs]
        else:
            start = sum(len(sizes) - 1 for sizes in self.sizes[:element])
            places = range(start, start + depth)
            found = [(self.weights[place], self.biases[place]) for place in places]
        if self.mixing is not None:
            found[0] = (found[0][0] @ self.mixing[element], found[0][1])
        return found

    def forward(self, features: Tensor, element: Tensor) -> Tensor:
        """[N] outputs of the networks of the elements [N] on features [N, F]."""
        if self.alike and (features.device.type != "cpu" or self._cost(features) < TOGETHER):
            return self._all_on_all(features, element)
        out = features.new_zeros(features.shape[0])
        for index, names in enumerate(self.activations):
            atoms = torch.nonzero(element == index).squeeze(1)
            values = features.index_select(0, atoms)
            layers = self.layers(index)
            for (weight, bias), name in zip(layers, (*names, "linear"), strict=True):
                values = ACTIVATIONS[name](F.linear(values, weight, bias))
            out = out.index_copy(0, atoms, values.squeeze(1))
        return out

    def _cost(self, features: Tensor) -> int:
        of_one = sum(a * b for a, b in pairwise(self.sizes[0]))
        return features.shape[0] * of_one * (len(self.sizes) - 1)

    def _all_on_all(self, features: Tensor, element: Tensor) -> Tensor:
        """[N] outputs by running every network on every atom, [S, N, H] at a time, and selecting."""
        values = features.unsqueeze(0).expand(len(self.sizes), -1, -1)
        names = (*self.activations[0], "linear")
        weights = list(self.weights)
        if self.mixing is not None:  # once per network, not once per atom
            weights[0] = weights[0] @ self.mixing
        for weight, bias, name in zip(weights, self.biases, names, strict=True):
            product = torch.baddbmm(bias.unsqueeze(1), values, weight.transpose(1, 2))
            values = ACTIVATIONS[name](product)
        return values.squeeze(2).gather(0, element.unsqueeze(0)).squeeze(0)


# --- the descriptor ---


class _Features(torch.autograd.Function):
    """[N, F] features, and the min distance, by the compiled pass."""

    @staticmethod
    def forward(
        ctx: FunctionContext, vectors: Tensor, neighbour: Tensor, dst_ptr: Tensor, basis: Basis
    ) -> tuple[Tensor, float]:
        atoms = dst_ptr.shape[0] - 1
        vectors, neighbour, dst_ptr = (t.contiguous() for t in (vectors, neighbour, dst_ptr))
        out = vectors.new_zeros(atoms, basis.features)
        moments = vectors.new_zeros(atoms, basis.sets, 2, int(basis.first[-1]))
        arrays = _arrays(vectors, neighbour, dst_ptr)
        least = kernels.features(
            *arrays, basis.constants(arrays[0].dtype), out.numpy(), moments.numpy()
        )
        ctx.save_for_backward(vectors, neighbour, dst_ptr, moments)
        ctx.basis = basis
        return out, least

    @staticmethod
    def backward(ctx: FunctionContext, slopes: Tensor, _: None) -> tuple[Tensor | None, ...]:
        vectors, neighbour, dst_ptr, moments = ctx.saved_tensors
        return (
            _Gradient.apply(slopes, vectors, neighbour, dst_ptr, moments, ctx.basis),
            None,
            None,
            None,
        )


class _Gradient(torch.autograd.Function):
    """[E, 3] gradient of sum(slopes * features), the transposed Jacobian times `slopes`."""

    @staticmethod
    def forward(
        ctx: FunctionContext,
        slopes: Tensor,
        vectors: Tensor,
        neighbour: Tensor,
        dst_ptr: Tensor,
        moments: Tensor,
        basis: Basis,
    ) -> Tensor:
        out = torch.zeros_like(vectors)
        arrays = _arrays(vectors, neighbour, dst_ptr)
        kernels.gradient(
            *arrays,
            basis.constants(arrays[0].dtype),
            slopes.detach().contiguous().numpy(),
            moments.numpy(),
            out.numpy(),
        )
        ctx.save_for_backward(slopes, vectors, neighbour, dst_ptr, moments)
        ctx.basis = basis
        return out

    @staticmethod
    def backward(ctx: FunctionContext, changes: Tensor) -> tuple[Tensor | None, ...]:
        slopes, vectors, neighbour, dst_ptr, moments = ctx.saved_tensors
        by_slopes, by_vectors = ctx.needs_input_grad[:2]
        by_vectors = by_vectors and _asked_for(vectors)
        if torch.is_grad_enabled():
            grads = _second_derivatives(
                changes, slopes, vectors, neighbour, dst_ptr, ctx.basis, by_slopes, by_vectors
            )
            return (*grads, None, None, None, None)
        arrays = _arrays(vectors, neighbour, dst_ptr)
        constants = ctx.basis.constants(arrays[0].dtype)
        given, moved = slopes.contiguous().numpy(), changes.contiguous().numpy()
        grad_slopes = grad_vectors = None
        if by_slopes:
            grad_slopes = torch.zeros_like(slopes)
            kernels.tangent(*arrays, constants, moved, moments.numpy(), grad_slopes.numpy())
        if by_vectors:
            grad_vectors = torch.zeros_like(vectors)
            kernels.curvature(
                *arrays, constants, given, moved, moments.numpy(), grad_vectors.numpy()
            )
        return grad_slopes, grad_vectors, None, None, None, None


def _asked_for(tensor: Tensor) -> bool:
    """Whether the running backward pass continues to the gradient of `tensor`.

    Where only the gradients of some weights are requested, it does not.
    """
    with torch.enable_grad():
        node = torch.autograd.graph.get_gradient_edge(tensor).node
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # raised where the gradient of a leaf is to be returned
        return True


def _second_derivatives(
    changes: Tensor,
    slopes: Tensor,
    vectors: Tensor,
    neighbour: Tensor,
    dst_ptr: Tensor,
    basis: Basis,
    by_slopes: bool,
    by_vectors: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients for `_Gradient` by torch, so that they can be differentiated again."""
    with torch.enable_grad():
        # Without these views, a tensor that is both an input here and part of the graph above would
        # be differentiated along both paths.
        slopes, vectors = slopes.view_as(slopes), vectors.view_as(vectors)
        if not slopes.requires_grad:
            slopes = slopes.detach().requires_grad_()
        if not vectors.requires_grad:
            vectors = vectors.detach().requires_grad_()
        counts = dst_ptr.diff()
        dst = torch.repeat_interleave(torch.arange(len(counts)), counts)
        features = torch_features(vectors, neighbour, dst, len(counts), basis)
        (gradient,) = torch.autograd.grad(features, vectors, slopes, create_graph=True)
        wanted = [t for t, yes in ((slopes, by_slopes), (vectors, by_vectors)) if yes]
        grads = iter(torch.autograd.grad(gradient, wanted, changes, create_graph=True))
    return next(grads) if by_slopes else None, next(grads) if by_vectors else None


def _arrays(
    vectors: Tensor, neighbour: Tensor, dst_ptr: Tensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return vectors.detach().numpy(), neighbour.numpy(), dst_ptr.numpy()


def _tables(basis: Basis) -> tuple[Tensor, Tensor, Tensor]:
    """Tables of a basis for `torch_features`, float64: set weights [S, W], recursions [4, K], and
    [L+1, (L+1)^2] the contribution of each harmonic to each angular feature."""
    orders = [el for m, el in _harmonic_orders(basis) for _ in range(2 if m else 1)]
    arrays = (basis.set_weights.T, basis.harmonics, basis.legendre[:, orders])
    weights, recursions, legendre = (torch.from_numpy(np.ascontiguousarray(a)) for a in arrays)
    return weights, recursions, legendre


def torch_features(
    vectors: Tensor,
    neighbour: Tensor,
    dst: Tensor,
    atoms: int,
    basis: Basis,
    tables: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Tensor:
    """[N, F] features by torch operations, on any device, differentiable to any order.

    Args:
        vectors: [E, 3], A.
        neighbour: [E], index of the neighbour's element.
        dst: [E], central atom.
        atoms: N.
        basis: orders, cutoffs and species weights.
        tables: those of `_tables`, if they are on the device already.
    """
    set_weights, recursions, legendre = (
        table.to(vectors.device, vectors.dtype) for table in tables or _tables(basis)
    )
    distance = vectors.square().sum(dim=1).sqrt()
    weights = set_weights.index_select(0, neighbour)  # [E, W]

    f = _cutoff(distance, basis.radial_cutoff)
    x = 2.0 / basis.radial_cutoff * distance - 1.0
    terms = [f, x * f]
    while len(terms) <= basis.radial_order:
        terms.append(2.0 * x * terms[-1] - terms[-2])
    series = torch.stack(terms[: basis.radial_order + 1], dim=1)
    radial = segment_sum(weights.unsqueeze(2) * series.unsqueeze(1), dst, atoms)

    f = _cutoff(distance, basis.angular_cutoff)
    directions = vectors / distance.unsqueeze(1)
    harmonics = _harmonics(directions, recursions, basis)
    weighted = weights * f.unsqueeze(1)
    moments = segment_sum(weighted.unsqueeze(2) * harmonics.unsqueeze(1), dst, atoms)
    own = segment_sum(weighted.square(), dst, atoms)  # the terms j = k in the squares
    angular = 0.5 * (moments.square() @ legendre.T - own.unsqueeze(2))
    return torch.cat((radial, angular), dim=2).flatten(1)


def _cutoff(distance: Tensor, cutoff: float) -> Tensor:
    inside = 0.5 * (torch.cos((math.pi / cutoff) * distance) + 1.0)
    return torch.where(distance <= cutoff, inside, 0.0)


def _harmonic_orders(basis: Basis) -> Iterator[tuple[int, int]]:
    """Iterate over m and l in the order of `_harmonics`, which has real and imaginary parts where m > 0."""
    for m in range(basis.angular_order + 1):
        for el in range(m, basis.angular_order + 1):
            yield m, el


def _harmonics(directions: Tensor, table: Tensor, basis: Basis) -> Tensor:
    """[E, (L+1)^2] spherical harmonics; see `Basis.harmonics`."""
    x, y, z = directions.unbind(1)
    real, imaginary = torch.ones_like(x), torch.zeros_like(x)
    columns = []
    for m, el in _harmonic_orders(basis):
        if el == m:
            if m:
                real, imaginary = x * real - y * imaginary, x * imaginary + y * real
            before, now = torch.zeros_like(z), table[0, basis.first[m]].expand_as(z)
        columns.append(now * real)
        if m:
            columns.append(now * imaginary)
        a, b = table[1:3, basis.first[m] + el - m]
        before, now = now, a * z * now - b * before
    return torch.stack(columns, dim=1)
