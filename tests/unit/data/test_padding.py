"""Padded batches: other shapes, the same outputs, gradients and running statistics."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from atomloom.config.model import (
    ALIGNNConfig,
    ChebyshevConfig,
    CrystalTransformerConfig,
    EComFormerConfig,
    IComFormerConfig,
    NequIPConfig,
    PaiNNConfig,
    TensorNetConfig,
    TensorNetPropertyConfig,
)
from atomloom.data.batch import label_name
from atomloom.data.padding import PaddedBatch, Shape, fits, padded_shape, rounded_up
from atomloom.models import build_model
from atomloom.models.chebyshev import network as chebyshev
from atomloom.models.common import passes
from atomloom.models.common.outputs import Head
from atomloom.models.derivatives import evaluate_potential
from atomloom.training.objectives.losses import loss_sum
from tests.unit.models.batches import batch_from_graphs, random_crystal

ELEMENTS = ("H", "C", "O", "Si", "Ti", "Sr", "Ba", "Pb")
PROPERTIES = {
    "icomformer": IComFormerConfig(width=32),
    "ecomformer": EComFormerConfig(width=32),
    "alignn": ALIGNNConfig(width=32, backend="torch"),
    "crystal_transformer": CrystalTransformerConfig(width=32),
    "tensornet_property": TensorNetPropertyConfig(width=32),
    "alignn, sums": ALIGNNConfig(width=32, backend="torch", readout="sum"),
}
POTENTIALS = {
    "painn": PaiNNConfig(width=32),
    "tensornet": TensorNetConfig(width=32),
    "nequip": NequIPConfig(features=(8, 8, 8), layers=2),
    "chebyshev": ChebyshevConfig(species=ELEMENTS),
}
WITH_VECTORS = ("painn", "tensornet")


def batch_of(seed: int, structures: int, model=None):
    draw = np.random.default_rng(seed)
    batch = batch_from_graphs([random_crystal(draw, 4, 8) for _ in range(structures)])
    batch.targets = torch.tensor(draw.normal(size=(structures, 1)))
    batch.rows = torch.arange(structures)
    for prepare in getattr(model, "passes", lambda *_: ())("cuda", False):
        batch.extras.update(prepare(batch))
    return batch


def padded_twice(other, batch):
    """Filled with another batch first: what that leaves behind must not be seen."""
    shapes = [vars(padded_shape(one)) for one in (batch, other)]
    padded = PaddedBatch(batch, Shape(**{key: max(s[key] for s in shapes) for key in shapes[0]}))
    padded.fill(other)
    return padded.fill(batch)


def found_of_properties(model, batch):
    output = model(batch)
    loss = loss_sum("mse", output, batch.targets)
    return output, loss, torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)


@pytest.mark.parametrize("name", PROPERTIES)
def test_padding_changes_neither_outputs_nor_gradients_nor_running_statistics(name, monkeypatch):
    monkeypatch.setattr(passes, "by_passes", lambda values: False)
    torch.manual_seed(0)
    model = build_model(PROPERTIES[name], 1).double().train()
    other = build_model(PROPERTIES[name], 1).double().train()
    other.load_state_dict(model.state_dict())
    batch = batch_of(0, 5, model)
    padded = padded_twice(batch_of(1, 7, model), batch)
    assert len(padded.numbers) > len(batch.numbers)
    output, loss, gradients = found_of_properties(model, batch)
    output_p, loss_p, gradients_p = found_of_properties(other, padded)
    torch.testing.assert_close(output_p[:5], output, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(loss_p, loss, rtol=1e-9, atol=1e-10)
    largest = max(float(g.abs().max()) for g in gradients if g is not None)
    for one, two in zip(gradients, gradients_p, strict=True):
        assert (one is None) == (two is None)
        if one is not None:
            assert float((one - two).abs().max()) < 1e-9 * largest
    for key, value in model.state_dict().items():
        torch.testing.assert_close(other.state_dict()[key], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", POTENTIALS)
def test_padding_changes_neither_energies_nor_forces_nor_their_gradients(name, monkeypatch):
    monkeypatch.setattr(passes, "by_passes", lambda values: False)
    monkeypatch.setattr(chebyshev, "_has_kernels", lambda tensor: False)
    torch.manual_seed(0)
    model = build_model(POTENTIALS[name], 1).double()
    batch, other = batch_of(0, 5), batch_of(1, 7)
    for one in (batch, other):
        one.extras["forces"] = torch.randn(len(one.numbers), 3, dtype=torch.float64)
        one.extras["stress"] = torch.randn(one.size, 9, dtype=torch.float64)
    padded = padded_twice(other, batch)
    found = []
    for one in (batch, padded):
        output = evaluate_potential(model, one, stress=True, create_graph=True)
        loss = (
            loss_sum("mse", output.energy, one.targets[:, 0])
            + loss_sum("mse", output.forces, one.extras["forces"])
            + loss_sum("mse", output.stress.reshape(-1, 9), one.extras["stress"])
        )
        gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        parts = (output.energy[:5], output.forces[: len(batch.numbers)], output.stress[:5])
        found.append((*parts, loss, *(g for g in gradients if g is not None)))
    for plain, filled in zip(*found, strict=True):
        torch.testing.assert_close(filled, plain, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", ["icomformer", "alignn", *WITH_VECTORS])
def test_padding_changes_nothing_of_what_heads_learn(name, monkeypatch):
    monkeypatch.setattr(passes, "by_passes", lambda values: False)
    torch.manual_seed(0)
    heads = [Head("q", "atom", ())] + [Head("mu", "structure", (3,))] * (name in WITH_VECTORS)
    model = build_model((PROPERTIES | POTENTIALS)[name], 0, heads=heads).double()
    batch, other = batch_of(0, 5, model), batch_of(1, 7, model)
    names = {head.name: label_name(head.name, head.per) for head in heads}
    for one in (batch, other):
        one.extras[names["q"]] = torch.randn(len(one.numbers), 1, dtype=torch.float64)
        one.extras[names["q"]][2] = torch.nan
        if "mu" in names:
            one.extras[names["mu"]] = torch.randn(one.size, 3, dtype=torch.float64)
    padded = padded_twice(other, batch)
    found = []
    for one in (batch, padded):
        said = model(one).heads
        loss = sum(
            loss_sum("mse", values.reshape(len(values), -1), one.extras[names[name]])
            for name, values in said.items()
        )
        weights = [w for w in model.parameters() if w.requires_grad]
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        parts = [said["q"][: len(batch.numbers)], *([said["mu"][:5]] if "mu" in said else [])]
        found.append((*parts, loss, *(g for g in gradients if g is not None)))
    for plain, filled in zip(*found, strict=True):
        torch.testing.assert_close(filled, plain, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("structures", [1, 5, 8, 9])
def test_a_padded_batch_is_a_whole_batch(structures):
    batch = batch_of(0, structures)
    shape = padded_shape(batch)
    padded = PaddedBatch(batch, shape).fill(batch)
    assert (padded.size, len(padded.numbers), len(padded.src)) == (
        shape.structures,
        shape.atoms,
        shape.edges,
    )
    assert padded.dst.diff().min() >= 0
    degree = torch.bincount(padded.dst, minlength=shape.atoms)
    torch.testing.assert_close(padded.dst_ptr.diff(), degree)
    assert degree[len(batch.numbers) :].max() <= degree[: len(batch.numbers)].max()
    atoms = torch.bincount(padded.node_graph, minlength=shape.structures)
    torch.testing.assert_close(padded.node_ptr.diff(), atoms)
    assert atoms.min() >= 1  # what is divided by the number of atoms stays finite
    for item in fields(batch):
        value = getattr(padded, item.name)
        if isinstance(value, torch.Tensor) and item.name != "targets":
            assert torch.isfinite(value).all(), item.name
    assert padded.targets[structures:].isnan().all()


def test_a_batch_fits_its_own_shape_and_none_that_would_waste_much():
    batch = batch_of(0, 5)
    shape = padded_shape(batch)
    assert fits(batch, shape)
    assert fits(batch, replace(shape, atoms=2 * shape.atoms))
    assert not fits(batch, replace(shape, edges=2 * shape.edges))
    assert not fits(batch, replace(shape, atoms=len(batch.numbers) + 1))
    assert not fits(batch, replace(shape, structures=5))
    assert not fits(batch, replace(shape, edges=len(batch.src)))


def test_what_cannot_be_padded_is_left_alone():
    batch = batch_of(0, 3)
    batch.extras["features"] = torch.zeros(len(batch.numbers), 2)
    assert padded_shape(batch) is None


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 63, 64, 65, 1000, 12_345])
def test_counts_are_rounded_up_by_less_than_a_quarter(count):
    assert count <= rounded_up(count) < 1.25 * count + 1
    assert rounded_up(rounded_up(count)) == rounded_up(count)
