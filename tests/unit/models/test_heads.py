"""Heads: what they give turns, moves and is numbered with the structure."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from atomloom.config.graph import GraphSpec
from atomloom.config.model import (
    ALIGNNConfig,
    CrystalTransformerConfig,
    EComFormerConfig,
    IComFormerConfig,
    NequIPConfig,
    PaiNNConfig,
    TensorNetConfig,
)
from atomloom.data.loader import GraphLoader
from atomloom.graphs.build import build_graphs
from atomloom.models import build_model
from atomloom.models.common.outputs import Head, Outputs
from atomloom.models.derivatives import evaluate_potential
from atomloom.structures.structure import Structure
from atomloom.structures.table import StructureTable

ATOM, DIPOLE, ARROW = Head("q", "atom", ()), Head("mu", "structure", (3,)), Head("v", "atom", (3,))
INVARIANT = {
    "icomformer": IComFormerConfig(width=8, layers=2),
    "ecomformer": EComFormerConfig(width=8, layers=2),
    "alignn": ALIGNNConfig(
        width=8, alignn_layers=1, gcn_layers=1, embedding=4, edge_bins=8, angle_bins=8
    ),
    "crystal_transformer": CrystalTransformerConfig(width=8, layers=2, rbf=6, cutoff=4.0),
}
POTENTIALS = {
    "painn": PaiNNConfig(width=8, layers=2, rbf=6, cutoff=4.0),
    "tensornet": TensorNetConfig(width=8, layers=2, rbf=6, cutoff=4.0),
}
NEQUIP = NequIPConfig(features=(8, 4), layers=2, rbf=6, cutoff=4.0)
MODELS = INVARIANT | POTENTIALS | {"nequip": NEQUIP}


def molecules(seed: int = 0) -> list[Structure]:
    draw = np.random.default_rng(seed)
    return [
        Structure(
            draw.choice([1, 6, 8], size=count).astype(np.uint8),
            draw.normal(scale=1.5, size=(count, 3)),
            np.zeros((3, 3)),
            np.zeros(3, dtype=bool),
        )
        for count in (3, 5, 4)
    ]


def crystals(seed: int = 0) -> list[Structure]:
    draw = np.random.default_rng(seed)
    made = []
    for count in (3, 4):
        cell = 4.0 * np.eye(3) + draw.normal(0, 0.3, (3, 3))
        places = draw.uniform(size=(count, 3)) @ cell
        made.append(
            Structure(draw.choice([3, 8, 22], size=count), places, cell, np.ones(3, dtype=bool))
        )
    return made


def batch_of(structures, spec, dtype=torch.float64):
    table = build_graphs(StructureTable.from_structures(structures), spec)
    rows = np.arange(len(table))
    return GraphLoader(table, rows, dtype=dtype).slice(rows)


def of_config(config) -> GraphSpec:
    return GraphSpec(**config.graph_needs())


def moved(structure, rotation, by=0.0):
    return dataclasses.replace(
        structure, positions=structure.positions @ rotation + by, cell=structure.cell @ rotation
    )


def a_rotation() -> np.ndarray:
    turn, _ = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))
    return turn * np.sign(np.linalg.det(turn))


@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("name", POTENTIALS)
def test_vectors_turn_with_the_structure_and_do_not_feel_where_it_is(name, dtype, within):
    torch.manual_seed(0)
    model = build_model(MODELS[name], 1, heads=(DIPOLE, ATOM, ARROW)).to(dtype)
    rotation, spec = a_rotation(), of_config(MODELS[name])
    one = model(batch_of(molecules(), spec, dtype))
    other = model(batch_of([moved(m, rotation, 7.0) for m in molecules()], spec, dtype))
    turn = torch.tensor(rotation, dtype=dtype)
    assert one.heads["mu"].shape == (3, 3)
    assert one.heads["v"].shape == (12, 3)
    assert one.heads["mu"].abs().min() > 1e-4
    for head in ("mu", "v"):
        torch.testing.assert_close(
            other.heads[head], one.heads[head] @ turn, rtol=0, atol=10 * within
        )
    torch.testing.assert_close(other.heads["q"], one.heads["q"], rtol=0, atol=10 * within)
    torch.testing.assert_close(other.main, one.main, rtol=0, atol=10 * within)


@pytest.mark.parametrize("name", POTENTIALS)
def test_a_mirror_turns_a_vector_over(name):
    torch.manual_seed(0)
    model = build_model(MODELS[name], 0, heads=(DIPOLE,)).double()
    spec = of_config(MODELS[name])
    one = model(batch_of(molecules(), spec)).heads["mu"]
    other = model(batch_of([moved(m, -np.eye(3)) for m in molecules()], spec)).heads["mu"]
    torch.testing.assert_close(other, -one, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_values_of_atoms_keep_to_their_atoms_in_any_order(name):
    torch.manual_seed(0)
    config = MODELS[name]
    model = build_model(config, 0, heads=(ATOM,)).double().eval()
    spec, made = of_config(config), crystals()
    order = [np.random.default_rng(1).permutation(len(one)) for one in made]
    shuffled = [
        dataclasses.replace(one, numbers=one.numbers[o], positions=one.positions[o])
        for one, o in zip(made, order, strict=True)
    ]
    one, other = (model(batch_of(some, spec)).heads["q"] for some in (made, shuffled))
    whole = np.concatenate([order[0], len(made[0]) + order[1]])
    torch.testing.assert_close(other, one[whole], rtol=1e-9, atol=1e-9)
    assert one.std() > 1e-5


@pytest.mark.parametrize("name", INVARIANT)
def test_values_of_atoms_do_not_turn(name):
    torch.manual_seed(0)
    config = INVARIANT[name]
    model = build_model(config, 1, heads=(ATOM,)).double().eval()
    turned = [moved(one, a_rotation()) for one in crystals()]
    one, other = (model(batch_of(some, of_config(config))) for some in (crystals(), turned))
    torch.testing.assert_close(other.heads["q"], one.heads["q"], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(other.main, one.main, rtol=1e-7, atol=1e-9)


def test_atoms_that_were_folded_into_one_class_all_get_their_value():
    """Rock salt of eight atoms: two classes, in ALIGNN on a CPU; and atom by atom elsewhere."""
    fcc = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    places = np.concatenate([fcc, fcc + 0.5])
    salt = Structure(
        np.array([11] * 4 + [17] * 4), 5.6 * places, 5.6 * np.eye(3), np.ones(3, dtype=bool)
    )
    torch.manual_seed(0)
    folded = build_model(INVARIANT["alignn"], 2, heads=(ATOM,)).double().eval()
    plain_config = INVARIANT["alignn"].model_copy(update={"backend": "torch"})
    plain = build_model(plain_config, 2, heads=(ATOM,)).double().eval()
    plain.load_state_dict(folded.state_dict())
    batch = batch_of([salt, *crystals()], of_config(plain_config))
    one, other = folded(batch), plain(batch)
    assert one.heads["q"].shape == (15,)
    torch.testing.assert_close(one.heads["q"], other.heads["q"], rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(one.main, other.main, rtol=1e-8, atol=1e-9)
    assert one.heads["q"][:4].unique().numel() == 1
    assert (one.heads["q"][0] - one.heads["q"][4]).abs() > 1e-6


@pytest.mark.parametrize("name", POTENTIALS)
def test_heads_come_with_energies_and_forces_in_one_pass_and_leave_them_as_they_are(name):
    torch.manual_seed(0)
    alone = build_model(MODELS[name], 1).double()
    model = build_model(MODELS[name], 1, heads=(DIPOLE,)).double()
    model.load_state_dict(alone.state_dict(), strict=False)
    batch = batch_of(molecules(), of_config(MODELS[name]))
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    with_heads = evaluate_potential(model, batch, forces=True)
    plain = evaluate_potential(alone, batch, forces=True)
    assert len(calls) == 1
    assert torch.equal(with_heads.energy, plain.energy)
    assert torch.equal(with_heads.forces, plain.forces)
    assert with_heads.heads["mu"].shape == (3, 3)
    assert not with_heads.heads["mu"].requires_grad


@pytest.mark.parametrize("name", MODELS)
def test_a_network_with_heads_alone_has_no_other_output_and_all_weights_have_gradients(name):
    config = MODELS[name]
    model = build_model(config, 0, heads=(ATOM,)).double()
    found = Outputs.of(model(batch_of(crystals(), of_config(config))))
    assert found.main is None
    found.heads["q"].square().sum().backward()
    missing = [n for n, weight in model.named_parameters() if weight.grad is None]
    assert not missing


def test_the_tensor_of_a_network_without_heads_is_what_it_always_was():
    torch.manual_seed(0)
    said = build_model(INVARIANT["icomformer"], 2)(
        batch_of(crystals(), of_config(INVARIANT["icomformer"]), torch.float32)
    )
    assert isinstance(said, torch.Tensor)
    assert said.shape == (2, 2)
