"""Models away from the CPU: tensors without values stand for those of a GPU.

Whoever asks such a tensor for a value, or for a shape that depends on values, would make a GPU wait and
fails here; so does whoever mixes it with a tensor of the CPU.
"""

from __future__ import annotations

from dataclasses import replace

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
from atomloom.models import build_model
from atomloom.models.common.outputs import Head
from atomloom.models.derivatives import evaluate_potential
from tests.unit.models.batches import batch_from_graphs, random_crystal

SMALL = {"width": 32}
PROPERTIES = {
    "icomformer": IComFormerConfig(**SMALL),
    "ecomformer": EComFormerConfig(**SMALL),
    "alignn": ALIGNNConfig(**SMALL),
    "crystal_transformer": CrystalTransformerConfig(**SMALL),
}
WITHOUT_RECOMPUTING = {"tensornet_property": TensorNetPropertyConfig(**SMALL)}
WITH_VECTORS = ("painn", "tensornet", "tensornet_property")
POTENTIALS = {
    "painn": PaiNNConfig(**SMALL),
    "tensornet": TensorNetConfig(**SMALL),
    "nequip": NequIPConfig(features=(8, 8, 8)),
    "chebyshev": ChebyshevConfig(species=("H", "O")),
}
MODELS = PROPERTIES | WITHOUT_RECOMPUTING | POTENTIALS


def elsewhere(model):
    """The model and a batch as its loader prepares it, both away from the CPU."""
    draw = np.random.default_rng(0)
    batch = batch_from_graphs([random_crystal(draw, 4, 8) for _ in range(3)], torch.float32)
    for prepare in getattr(model, "passes", lambda *_: ())("cuda", False):
        batch.extras.update(prepare(batch))
    return model.to("meta"), batch._map(lambda tensor: tensor.to("meta"))


def all_have_gradients(model) -> bool:
    return all(weight.grad is not None and weight.grad.is_meta for weight in model.parameters())


def test_the_stand_in_refuses_what_a_gpu_would():
    stand_in = torch.zeros(3, device="meta")
    with pytest.raises(RuntimeError, match="meta"):
        stand_in + torch.zeros(3)
    with pytest.raises(RuntimeError):
        stand_in.sum().item()
    with pytest.raises(RuntimeError):
        stand_in.nonzero()
    with pytest.raises(RuntimeError):
        torch.arange(3, device="meta").repeat_interleave(torch.arange(3, device="meta"))


@pytest.mark.parametrize(
    ("name", "checkpointing"),
    [
        *((name, again) for name in PROPERTIES for again in (False, True)),
        *((name, False) for name in WITHOUT_RECOMPUTING),
    ],
)
def test_a_step_of_a_property_model_neither_waits_nor_comes_back(name, checkpointing):
    model = build_model(MODELS[name], 2).train()
    if checkpointing:
        assert not model.gradient_checkpointing
        model.gradient_checkpointing = True
    model, batch = elsewhere(model)
    found = model(batch)
    assert found.shape == (3, 2)
    found.square().sum().backward()
    assert all_have_gradients(model)


@pytest.mark.parametrize("name", [*PROPERTIES, *WITH_VECTORS, "nequip"])
def test_nor_does_one_of_a_model_with_heads(name):
    heads = [Head("q", "atom", ())] + [Head("mu", "structure", (3,))] * (name in WITH_VECTORS)
    model, batch = elsewhere(build_model(MODELS[name], 1, heads=heads).train())
    found = model(batch)
    assert found.heads["q"].shape == batch.numbers.shape
    sum(values.square().sum() for values in found.tensors()).backward()
    assert all_have_gradients(model)


@pytest.mark.parametrize("name", POTENTIALS)
def test_a_step_of_a_potential_neither_waits_nor_comes_back(name):
    model, batch = elsewhere(build_model(POTENTIALS[name], 1))
    found = evaluate_potential(model, batch, stress=True, create_graph=True)
    assert found.forces.shape == batch.positions.shape
    parts = (found.energy, found.forces, found.stress)
    weights = list(model.parameters())
    sum(part.square().sum() for part in parts).backward(inputs=weights)
    assert all_have_gradients(model)


def test_nor_does_one_with_forces_of_some_structures():
    model, batch = elsewhere(build_model(POTENTIALS["chebyshev"], 1))
    atoms = len(batch.numbers)
    extras = {
        "features": torch.empty(atoms, model.basis.features, device="meta"),
        "computed": torch.empty(atoms, dtype=torch.bool, device="meta"),
    }
    found = evaluate_potential(model, replace(batch, extras=extras), create_graph=True)
    found.forces.square().sum().backward(inputs=list(model.networks.weights))
    assert all(weight.grad.is_meta for weight in model.networks.weights)
