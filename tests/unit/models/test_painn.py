"""PaiNN equals its reference numbers, and its messages and updates have their derivatives."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from atomloom.config.model import PaiNNConfig
from atomloom.models import build_model
from atomloom.models.common import passes
from atomloom.models.derivatives import evaluate_potential
from atomloom.models.painn import network
from tests.unit.models.potentials import (
    crystal,
    joined,
    molecule,
    radius_batch,
    reference_structures,
)

# --- reference numbers ----------------------------------------------------------------------------


@pytest.fixture
def reference(oracle):
    """The reference arrays, the model with their weights in float64, and our batch of them."""
    content = oracle("PaiNN_width16")
    config = PaiNNConfig(
        width=int(content["n_atom_basis"]),
        layers=int(content["n_interactions"]),
        rbf=int(content["n_rbf"]),
        cutoff=float(content["cutoff"]),
    )
    model = build_model(config, 1).double()
    model.load_state_dict(
        {key[2:]: torch.tensor(value) for key, value in content.items() if key.startswith("w:")}
    )
    return content, model, reference_structures(content)


def test_oracle_features(reference, way):
    content, model, structures = reference
    with torch.no_grad():
        scalars, vectors = model.represent(radius_batch(structures, float(content["cutoff"])))
    np.testing.assert_allclose(scalars.numpy(), joined(content, "scalar"), rtol=0, atol=1e-12)
    np.testing.assert_allclose(vectors.numpy(), joined(content, "vector"), rtol=0, atol=1e-12)


def test_oracle_energies_forces_and_stress(reference, way):
    content, model, structures = reference
    batch = radius_batch(structures, float(content["cutoff"]))
    found = evaluate_potential(model, batch, stress=True)
    np.testing.assert_allclose(found.energy.numpy(), joined(content, "energy"), rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.forces.numpy(), joined(content, "forces"), rtol=0, atol=1e-12)
    crystals = [index for index in range(5) if f"s{index}_stress" in content]
    assert len(crystals) == 2
    for index in crystals:
        np.testing.assert_allclose(
            found.stress[index].numpy(), content[f"s{index}_stress"], rtol=0, atol=1e-12
        )


def test_oracle_in_single_precision(reference, way):
    """Measured: 4e-7 of energies and 7e-7 of forces, of order 1."""
    content, model, structures = reference
    batch = radius_batch(structures, float(content["cutoff"]), torch.float32)
    found = evaluate_potential(model.float(), batch)
    np.testing.assert_allclose(found.energy.numpy(), joined(content, "energy"), rtol=0, atol=2e-6)
    np.testing.assert_allclose(found.forces.numpy(), joined(content, "forces"), rtol=0, atol=5e-6)


def test_oracle_weights_of_a_shorter_table_of_elements_load(reference):
    content, model, _ = reference
    saved = model.state_dict()
    published = {key[2:]: value for key, value in content.items() if key.startswith("w:")}
    assert saved.keys() == published.keys()
    table = saved.pop("representation.embedding.weight")
    assert table.shape[0] == 119
    np.testing.assert_array_equal(table[:100], published["representation.embedding.weight"])
    for name, value in saved.items():
        np.testing.assert_array_equal(value.numpy(), published[name])


# --- derivatives ----------------------------------------------------------------------------------


@pytest.mark.parametrize("with_vectors", [True, False])
def test_messages_have_the_derivatives_of_finite_differences(with_vectors, way):
    batch = radius_batch([crystal(), molecule(atoms=3)], 4.0)
    edges = passes.Edges.of(batch)
    pairs, atoms = len(edges.src), len(batch.numbers)
    torch.manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    filters, scalars = random(pairs, 3 if with_vectors else 2, 2), random(atoms, 2, 2)
    vectors = random(atoms, 3, 2) if with_vectors else None
    given = [random(pairs, 3), filters, scalars] + ([vectors] if with_vectors else [])

    def summed(directions, filters, scalars, vectors=None):
        turned_edges = dataclasses.replace(edges, directions=directions)
        return network.messages(filters, scalars, vectors, turned_edges)

    assert torch.autograd.gradcheck(summed, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(summed, given, fast_mode=True)


def test_updates_have_the_derivatives_of_finite_differences(way):
    torch.manual_seed(0)
    context = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    mixed = torch.randn(4, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    for function, given in (
        (passes.silu, (context,)),
        (network.norms, (mixed,)),
        (network.updates, (context, mixed)),
    ):
        assert torch.autograd.gradcheck(function, given)
        assert torch.autograd.gradgradcheck(function, given)
