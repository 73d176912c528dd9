"""Forces and stress from one derivative by edge vectors are those of finite differences."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from atomloom.config.model import PaiNNConfig
from atomloom.models import build_model
from atomloom.models.derivatives import evaluate_potential
from tests.unit.models.potentials import (
    crystal,
    everything,
    lone_atom,
    molecule,
    radius_batch,
    slab,
    structure,
    turned,
)

CUTOFF = 4.0


class Morse(nn.Module):
    """A potential one can check on paper: half of a smoothly cut pair energy for each end."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def pair(self, lengths):
        cut = (1.0 - (lengths / CUTOFF).square()).clamp(min=0.0).pow(3)
        return self.depth * cut * (torch.exp(-2.0 * (lengths - 1.8)) - torch.exp(1.8 - lengths))

    def forward(self, batch):
        halves = 0.5 * self.pair(batch.edge_vectors().norm(dim=1))
        return halves.new_zeros(len(batch.numbers)).index_add(0, batch.dst, halves)


def painn():
    torch.manual_seed(0)
    return build_model(PaiNNConfig(width=8, rbf=8, cutoff=CUTOFF), 1).double()


@pytest.fixture(params=["pair potential", "PaiNN"])
def model(request):
    return Morse() if request.param == "pair potential" else painn()


def batch_of(structures):
    return radius_batch(structures, CUTOFF)


def energies(model, structures):
    with torch.no_grad():
        return evaluate_potential(model, batch_of(structures), forces=False).energy


def test_forces_equal_finite_differences(model):
    """By way of new graphs, so that edges that come and go are in it."""
    structures = everything()
    forces = evaluate_potential(model, batch_of(structures)).forces
    rng, step, first = np.random.default_rng(0), 1e-5, 0
    for one in structures:
        direction = rng.normal(size=one.positions.shape)
        ends = [
            dataclasses.replace(one, positions=one.positions + sign * step * direction)
            for sign in (1, -1)
        ]
        up, down = energies(model, ends)
        of_one = forces[first : first + len(one.numbers)]
        first += len(one.numbers)
        expected = -float((of_one * torch.from_numpy(direction)).sum())
        assert float(up - down) / (2 * step) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_stress_equals_finite_differences_of_strain(model):
    """Of crystals in three directions and of a slab: its cell has a volume, vacuum and all."""
    structures, step = [crystal(), slab()], 1e-5
    stress = evaluate_potential(model, batch_of(structures), stress=True).stress
    for one, found in zip(structures, stress, strict=True):
        for i in range(3):
            for j in range(i, 3):
                strain = np.zeros((3, 3))
                strain[i, j] += 0.5 * step
                strain[j, i] += 0.5 * step
                ends = [turned(one, np.eye(3) + sign * strain) for sign in (1, -1)]
                up, down = energies(model, ends)
                slope = float(up - down) / (2 * step) / abs(np.linalg.det(one.cell))
                assert float(found[i, j]) == pytest.approx(slope, rel=1e-6, abs=1e-9)


def test_derivatives_equal_those_by_positions_and_strain(model):
    """The plain way: autograd through positions and cells, to rounding."""
    batch = batch_of([molecule(), crystal(), lone_atom()])
    found = evaluate_potential(model, batch, stress=True)
    positions = batch.positions.clone().requires_grad_()
    strain = torch.zeros(batch.size, 3, 3, dtype=torch.float64, requires_grad=True)
    deform = torch.eye(3, dtype=torch.float64) + 0.5 * (strain + strain.transpose(1, 2))
    strained = dataclasses.replace(
        batch,
        vectors=None,
        positions=torch.einsum("ni,nij->nj", positions, deform[batch.node_graph]),
        cell=batch.cell @ deform,
    )
    energy = model(strained).sum()
    by_positions, by_strain = torch.autograd.grad(energy, (positions, strain))
    torch.testing.assert_close(found.forces, -by_positions, rtol=0, atol=1e-12)
    volume = torch.linalg.det(batch.cell[1]).abs()
    torch.testing.assert_close(found.stress[1], by_strain[1] / volume, rtol=0, atol=1e-12)


def test_a_dimer_is_as_on_paper():
    model = Morse()
    distance = torch.tensor(2.3, dtype=torch.float64, requires_grad=True)
    pair = model.pair(distance)
    (slope,) = torch.autograd.grad(pair, distance)
    pair = pair.detach()
    given = structure([1, 1], [[0, 0, 0], [0, 0, 2.3]], np.diag([20.0, 20.0, 20.0]))
    found = evaluate_potential(model, batch_of([given]), stress=True)
    assert float(found.energy) == pytest.approx(float(pair), abs=1e-14)
    expected = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]], dtype=torch.float64) * slope
    torch.testing.assert_close(found.forces, expected, rtol=0, atol=1e-14)
    assert float(found.stress[0, 2, 2]) == pytest.approx(float(slope) * 2.3 / 8000.0, abs=1e-16)


def test_forces_of_a_structure_sum_to_zero_and_stress_is_symmetric(model):
    batch = batch_of(everything())
    found = evaluate_potential(model, batch, stress=True)
    sums = torch.zeros(batch.size, 3, dtype=torch.float64)
    sums.index_add_(0, batch.node_graph, found.forces)
    torch.testing.assert_close(sums, torch.zeros_like(sums), rtol=0, atol=1e-13)
    assert torch.equal(found.stress, found.stress.transpose(1, 2))


def test_structures_without_a_volume_have_no_stress(model):
    stress = evaluate_potential(model, batch_of([molecule(), lone_atom()]), stress=True).stress
    assert torch.equal(stress, torch.zeros(2, 3, 3, dtype=torch.float64))


def test_only_what_was_asked_for_is_computed(model):
    batch = batch_of([crystal()])
    whole = evaluate_potential(model, batch, stress=True)
    energy = evaluate_potential(model, batch, forces=False)
    assert energy.forces is None
    assert energy.stress is None
    assert torch.equal(energy.energy, whole.energy)
    assert evaluate_potential(model, batch).stress is None
    assert evaluate_potential(model, batch, forces=False, stress=True).forces is None


def test_inference_holds_no_graph_and_training_does(model):
    batch = batch_of([crystal()])
    with torch.no_grad():
        found = evaluate_potential(model, batch, stress=True)
    assert not any(v.requires_grad for v in (found.energy, found.forces, found.stress))
    found = evaluate_potential(model, batch, stress=True, create_graph=True)
    assert all(v.requires_grad for v in (found.energy, found.forces, found.stress))
    assert batch.vectors.grad_fn is None
    assert not batch.vectors.requires_grad


def test_force_loss_has_the_gradient_of_finite_differences(model):
    batch, step = batch_of([molecule(atoms=4), crystal()]), 1e-6
    weight = next(model.parameters())

    def loss():
        found = evaluate_potential(model, batch, stress=True, create_graph=True)
        return (found.forces - 0.1).square().sum() + (found.stress - 0.1).square().sum()

    (gradient,) = torch.autograd.grad(loss(), weight)
    torch.manual_seed(1)
    direction = torch.randn_like(weight)
    ends = []
    for sign in (1.0, -2.0):
        with torch.no_grad():
            weight.add_(direction, alpha=sign * step)
        ends.append(float(loss().detach()))
    expected = float((gradient * direction).sum())
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(expected, rel=1e-6)
