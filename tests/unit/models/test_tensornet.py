"""TensorNet equals its reference numbers, by the matrices of the paper; its properties keep their symmetry."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from atomloom.config.model import TensorNetConfig, TensorNetPropertyConfig
from atomloom.models import build_model
from atomloom.models.common import passes
from atomloom.models.common.outputs import Head
from atomloom.models.derivatives import evaluate_potential
from atomloom.models.tensornet import kernels, network
from atomloom.structures.elements import atomic_number
from tests.unit.models.potentials import (
    crystal,
    everything,
    joined,
    molecule,
    orthogonal,
    radius_batch,
    reference_structures,
    turned,
)

CUTOFF = 4.0


def batch_of(structures):
    return radius_batch(structures, CUTOFF)


# --- reference numbers ----------------------------------------------------------------------------


def renamed(content) -> dict[str, torch.Tensor]:
    """The weights of the reference under our names, with a row for every element."""
    found = {}
    for key, value in content.items():
        if not key.startswith("w:"):
            continue
        weight = torch.tensor(value)
        name = key[2:].replace("final_layer.gated.", "output.")
        if name == "bond_expansion.rbf.centers":
            name = "radial_basis.centers"
        if name == "tensor_embedding.emb.weight":
            rows = torch.zeros(119, weight.shape[1], dtype=weight.dtype)
            rows[[atomic_number(element) for element in content["elements"]]] = weight
            weight = rows
        parts = name.split(".")
        if parts[0] == "output":  # activations between the linear layers are counted there
            parts[2] = str(int(parts[2]) // 2)
            name = ".".join(parts)
        else:
            name = f"representation.{name}"
        found[name] = weight
    return found


@pytest.fixture
def reference(oracle):
    """The reference arrays, the model with their weights in float64, and their structures."""
    content = oracle("TensorNet_width16")
    config = TensorNetConfig(width=16, layers=2, rbf=12, cutoff=5.0, variant="matgl")
    model = build_model(config, 1).double()
    missing = model.load_state_dict(renamed(content), strict=False)
    assert missing.missing_keys == ["representation.cutoff_fn.cutoff"]
    assert not missing.unexpected_keys
    return content, model, reference_structures(content)


def test_oracle_energies_forces_and_stress(reference, way):
    content, model, structures = reference
    found = evaluate_potential(model, radius_batch(structures, 5.0), stress=True)
    np.testing.assert_allclose(found.energy.numpy(), joined(content, "energy"), rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.forces.numpy(), joined(content, "forces"), rtol=0, atol=1e-12)
    crystals = [index for index in range(5) if f"s{index}_stress" in content]
    assert len(crystals) == 4
    for index in crystals:  # the reference is by finite differences
        np.testing.assert_allclose(
            found.stress[index].numpy(), content[f"s{index}_stress"], rtol=0, atol=5e-8
        )


def test_oracle_in_single_precision(reference, way):
    content, model, structures = reference
    batch = radius_batch(structures, 5.0, torch.float32)
    found = evaluate_potential(model.float(), batch)
    np.testing.assert_allclose(found.energy.numpy(), joined(content, "energy"), rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.forces.numpy(), joined(content, "forces"), rtol=0, atol=1e-6)


# --- matrices by components -----------------------------------------------------------------------


def matrices(found: np.ndarray) -> np.ndarray:
    """[N, D, 3, 3] from components [9, N, D]."""
    return np.einsum("cnd,cij->ndij", found, kernels.BASIS)


def test_components_are_those_of_matrices(way):
    basis = torch.from_numpy(kernels.BASIS.reshape(9, 9))
    torch.testing.assert_close(basis @ basis.T, torch.eye(9, dtype=torch.float64))
    left, right = np.random.default_rng(0).normal(size=(2, 9, 3, 2))
    x, y = matrices(left), matrices(right)

    def of(function, *given):
        return matrices(function(*map(torch.from_numpy, given), basis).numpy())

    np.testing.assert_allclose(of(network.grown, left, right), x + y + y @ y, atol=1e-12)
    made = x @ y + y @ x
    norms = np.square(made).sum((2, 3), keepdims=True)
    np.testing.assert_allclose(of(network.combined, left, right), made / (1 + norms), atol=1e-12)
    signs = matrices(left * kernels.SIGNS[:, None, None])
    np.testing.assert_array_equal(signs, x.swapaxes(2, 3))


def test_a_direction_makes_the_matrices_of_the_paper():
    direction = np.array([0.6, 0.0, -0.8])
    x, y, z = direction
    found = network.shapes(torch.tensor(direction[None])).numpy()[0]
    made = [
        np.einsum("c,cij->ij", np.where(part == kernels.PART, found, 0.0), kernels.BASIS)
        for part in range(3)
    ]
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    wanted = (np.eye(3), skew, np.outer(direction, direction) - np.eye(3) / 3)
    np.testing.assert_allclose(made, wanted, atol=1e-14)


# --- derivatives ----------------------------------------------------------------------------------


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def test_sums_over_edges_have_the_derivatives_of_finite_differences(way):
    edges = passes.Edges.of(batch_of([crystal(), molecule(atoms=3)]))
    pairs, atoms = len(edges.src), 6
    torch.manual_seed(0)
    filters, values = random(pairs, 3, 2), random(9, atoms, 2)

    def first(directions, filters, own, other):
        turned_edges = dataclasses.replace(edges, directions=directions)
        return network.embedded(filters, own, other, turned_edges)

    for function, given in (
        (lambda *x: network.messages(*x, edges), (filters, values)),
        (first, (random(pairs, 3), filters, random(atoms, 2), random(atoms, 2))),
    ):
        assert torch.autograd.gradcheck(function, given, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, given, fast_mode=True)


def test_products_have_the_derivatives_of_finite_differences(way):
    torch.manual_seed(0)
    basis = torch.from_numpy(kernels.BASIS.reshape(9, 9))
    left, right = random(9, 3, 2), random(9, 3, 2)
    for function, given in (
        (passes.scaled_silu, (random(4, 3), random(4, 1))),
        (network.normalised, (left,)),
        (lambda *x: network.combined(*x, basis), (left, right)),
        (lambda *x: network.grown(*x, basis), (left, right)),
    ):
        assert torch.autograd.gradcheck(function, given)
        assert torch.autograd.gradgradcheck(function, given)


# --- the property model ---------------------------------------------------------------------------


def property_model(**options) -> network.TensorNetProperty:
    torch.manual_seed(0)
    config = TensorNetPropertyConfig(width=8, rbf=8, cutoff=CUTOFF, **options)
    heads = (Head("q", "atom", ()), Head("mu", "structure", (3,)))
    return build_model(config, 2, global_features=1, heads=heads).double()


def with_globals(structures):
    batch = batch_of(structures)
    given = torch.linspace(0.5, 1.5, len(structures), dtype=torch.float64).unsqueeze(1)
    batch.extras["globals"] = given[: batch.size]
    return batch


@pytest.mark.parametrize("readout", ["mean", "sum"])
@pytest.mark.parametrize("determinant", [1, -1])
def test_properties_stay_and_vectors_turn_with_the_structure(determinant, readout, way):
    model, matrix = property_model(readout=readout), orthogonal(5, determinant)
    before = model(with_globals(everything()))
    after = model(with_globals([turned(one, matrix) for one in everything()]))
    assert before.main.shape == (5, 2)
    close = {"rtol": 0, "atol": 1e-11}
    torch.testing.assert_close(after.main, before.main, **close)
    torch.testing.assert_close(after.heads["q"], before.heads["q"], **close)
    dipole = before.heads["mu"]
    torch.testing.assert_close(after.heads["mu"], dipole @ torch.from_numpy(matrix), **close)
    assert dipole[0].abs().max() > 1e-4


def test_properties_depend_on_global_features_and_all_weights_learn():
    model, batch = property_model(), with_globals(everything())
    before = model(batch)
    sum(value.square().sum() for value in before.tensors()).backward()
    assert all(weight.grad is not None for weight in model.parameters())
    batch.extras["globals"] = batch.extras["globals"] + 1.0
    assert (model(batch).main - before.main).abs().min() > 1e-6
