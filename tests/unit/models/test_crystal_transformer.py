"""The crystal transformer equals attention written out image by image, by every way it is computed."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from atomloom.config import GraphSpec, parse_config
from atomloom.config.model import CrystalTransformerConfig, IComFormerConfig
from atomloom.data.batch import SLOTS
from atomloom.data.loader import GraphLoader
from atomloom.errors import AtomloomError
from atomloom.graphs.build import build_graphs
from atomloom.models import build_model
from atomloom.models import crystal_transformer as module
from atomloom.models.registry import require_elements, require_sizes
from atomloom.structures.structure import Structure
from atomloom.structures.table import StructureTable
from tests.unit.models.batches import batch_from_graphs, cubic, random_crystal
from tests.unit.models.memory import LiveBytes

SMALL = {"width": 16, "attention_heads": 4, "layers": 2, "rbf": 8, "cutoff": 5.0}


def seeded(outputs: int = 1, seed: int = 0, **options):
    torch.manual_seed(seed)
    return build_model(CrystalTransformerConfig(**SMALL | options), outputs)


def crystals(sizes=(3, 1, 6, 2), seed: int = 0) -> list[dict]:
    draw = np.random.default_rng(seed)
    return [random_crystal(draw, atoms, 12) for atoms in sizes]


def structures(seed: int = 0, sizes=(2, 5, 3)) -> list[Structure]:
    draw = np.random.default_rng(seed)
    made = []
    for atoms in sizes:
        cell = 4.5 * np.eye(3) + draw.normal(scale=0.4, size=(3, 3))
        numbers = draw.choice([8, 14, 22], size=atoms)
        places = draw.uniform(size=(atoms, 3)) @ cell
        made.append(Structure(numbers, places, cell, np.ones(3, dtype=bool)))
    return made


def batch_of(found, dtype=torch.float64, cutoff: float = SMALL["cutoff"]):
    spec = GraphSpec(neighbors="radius", cutoff=cutoff)
    table = build_graphs(StructureTable.from_structures(found), spec)
    rows = np.arange(len(table))
    return GraphLoader(table, rows, dtype=dtype).slice(rows)


def step(model, batch):
    """Output and all gradients of a training step."""
    model.zero_grad()
    output = model.train()(batch)
    weights = torch.linspace(-1.0, 1.5, output.numel(), dtype=output.dtype).view_as(output)
    (weights * output + output.square()).mean().backward()
    gradients = {name: weight.grad.double() for name, weight in model.named_parameters()}
    return output.detach().double(), gradients


def relative_errors(found, true) -> tuple[float, float]:
    """Of the outputs and of the gradient, each as one vector."""
    parts = [torch.cat([one[1][name].flatten() for name in true[1]]) for one in (found, true)]
    output = (found[0] - true[0]).norm() / true[0].norm()
    return float(output), float((parts[0] - parts[1]).norm() / parts[1].norm())


# --- attention written out ------------------------------------------------------------------------


def weights_of(distances, cutoff: float, heads: int):
    """Weight of images by head: Gaussians that are 1 at 2.5 A, times an envelope."""
    x = distances[:, None] / cutoff
    envelope = torch.where(x < 1, 1 - 28 * x**6 + 48 * x**7 - 21 * x**8, 0.0)
    sigma = torch.tensor(np.geomspace(0.7, cutoff / 2, heads)).float().double()
    return torch.exp((2.5**2 - distances[:, None] ** 2) / (2 * sigma**2)) * envelope


class WrittenOut(torch.nn.Module):
    """The network with the softmax of each atom over all images, all atoms of the cell and the sink."""

    def __init__(self, model) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch):
        model = self.model
        nodes = model.atom_embedding(model.elements[batch.numbers])
        for layer in model.layers:
            nodes = nodes + self.attended(layer.attention, layer.norm(nodes), batch)
            hidden = torch.nn.functional.silu(layer.widen(layer.feed_norm(nodes)))
            nodes = nodes + layer.narrow(hidden)
        nodes = model.norm(nodes)
        pooled = [nodes[batch.node_graph == graph].mean(dim=0) for graph in range(batch.size)]
        return model.fc_out(model.fc(torch.stack(pooled)))

    def attended(self, attention, nodes, batch):
        heads, channels = attention.heads, attention.channels
        query, key, value = attention.qkv(nodes).view(-1, 3, heads, channels).unbind(1)
        distances = batch.edge_vectors().norm(dim=1)
        weights = weights_of(distances, self.model.cutoff, heads) * batch.multiplicity[:, None]
        encoded = torch.einsum("ek,hkc->ehc", self.model.rbf(distances), attention.encoding)
        found = []
        for atom in range(len(nodes)):
            edges = torch.nonzero(batch.dst == atom)[:, 0]
            mates = torch.nonzero(batch.node_graph == batch.node_graph[atom])[:, 0]
            others = torch.cat((batch.src[edges], mates))
            scores = (query[atom] * key[others]).sum(dim=2) / math.sqrt(channels)
            shares = torch.full((len(mates), heads), 1 / len(mates), dtype=nodes.dtype)
            scores = scores + torch.cat((weights[edges], shares)).log()
            scores = torch.cat((scores, torch.zeros(1, heads, dtype=nodes.dtype)))
            values = torch.cat((value[batch.src[edges]] + encoded[edges], value[mates]))
            share = torch.softmax(scores, dim=0)[:-1]
            found.append((share[:, :, None] * values).sum(dim=0).flatten())
        return attention.out(torch.stack(found))


def test_forward_and_gradients_equal_attention_written_out():
    model, batch = seeded(outputs=2).double(), batch_from_graphs(crystals())
    true = step(WrittenOut(model), batch)
    named = {name.removeprefix("model."): value for name, value in true[1].items()}
    assert max(relative_errors(step(model, batch), (true[0], named))) < 1e-11


@pytest.mark.parametrize("backend", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_step_by_the_fused_kernel_of_the_cpu_and_by_plain_attention_are_equal_to_rounding(
    backend, dtype
):
    """Each alone is allowed: a bias that no fused kernel takes would be an error."""
    true = step(seeded(width=32).double(), batch_from_graphs(crystals()))
    batch = batch_from_graphs(crystals(), torch.float32)
    with (
        sdpa_kernel(backend),
        torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16),
    ):
        found = step(seeded(width=32), batch)
    assert max(relative_errors(found, true)) < (0.03 if dtype is torch.bfloat16 else 2e-6)


def test_groups_pairs_and_one_padded_group_give_the_same(monkeypatch):
    model, batch = seeded().double(), batch_from_graphs(crystals((3, 1, 6, 2, 7, 1)))
    monkeypatch.setattr(module, "CALL", 0)
    many = module.groups_and_pairs_of(batch)
    one = module.places_of(batch)
    assert sum(name.startswith(SLOTS) for name in many) == 5  # sizes that differ
    assert len(many[module.PAIR_DST]) < len(batch.src)
    assert [tensor.shape for tensor in one.values()] == [(6, 8)]
    true = step(model, dataclasses.replace(batch, extras=dict(many)))
    assert (
        max(relative_errors(step(model, dataclasses.replace(batch, extras=dict(one))), true))
        < 1e-12
    )
    monkeypatch.setattr(module, "LITTLE", 0)
    assert len(module.places_of(batch)) == 5  # rather than eight places for atoms that are alone
    assert max(relative_errors(step(model, batch), true)) < 1e-12


def test_a_padded_batch_equals_its_structures_one_by_one():
    graphs = crystals((3, 1, 9, 2))
    model = seeded().double().eval()
    together = model(batch_from_graphs(graphs))
    alone = torch.cat([model(batch_from_graphs([graph])) for graph in graphs])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


# --- invariance -----------------------------------------------------------------------------------


def test_output_does_not_change_under_rotation_translation_permutation_and_another_cell():
    draw = np.random.default_rng(1)
    turn = np.linalg.qr(draw.normal(size=(3, 3)))[0]
    sheared = np.array([[1, 1, 0], [0, 1, 0], [0, -2, 1]])
    changed = []
    for one in structures():
        order = draw.permutation(len(one))
        places = (one.positions[order] + draw.integers(-2, 3, size=(len(one), 3)) @ one.cell) @ turn
        changed.append(
            Structure(one.numbers[order], places + 0.3, sheared @ one.cell @ turn, one.pbc)
        )
    model = seeded().double().eval()
    torch.testing.assert_close(
        model(batch_of(changed)), model(batch_of(structures())), rtol=0, atol=1e-11
    )


@pytest.mark.parametrize(("readout", "factor"), [("mean", 1.0), ("sum", 6.0)])
def test_readout_of_a_supercell(readout, factor):
    (cell,) = structures(sizes=(3,))
    shifts = np.array([(0, 0, k) for k in range(3)] + [(1, 0, k) for k in range(3)])
    large = Structure(
        np.tile(cell.numbers, 6),
        np.concatenate([cell.positions + shift @ cell.cell for shift in shifts]),
        cell.cell * [[2], [1], [3]],
        cell.pbc,
    )
    model = seeded(readout=readout).double().eval()
    once, more = model(batch_of([cell])), model(batch_of([large]))
    torch.testing.assert_close(more, factor * once, rtol=1e-10, atol=1e-12)


def test_gradient_by_positions_equals_finite_differences():
    batch = dataclasses.replace(batch_from_graphs(crystals((3, 2))), vectors=None)
    model = seeded().double().eval()

    def energy(positions):
        return model(dataclasses.replace(batch, positions=positions)).sum()

    positions = batch.positions.clone().requires_grad_()
    assert torch.autograd.gradcheck(energy, positions, eps=1e-5, atol=1e-7, fast_mode=True)


def pair_at(distance: float, other: int = 8) -> Structure:
    places = np.array([[0.0, 0.0, 0.0], [distance, 0.0, 0.0]])
    return Structure(np.array([14, other]), places, np.zeros((3, 3)), np.zeros(3, dtype=bool))


def test_an_atom_passes_the_cutoff_smoothly():
    model, cutoff = seeded().double().eval(), SMALL["cutoff"]
    with torch.no_grad():
        near, nearer, at, beyond = (
            float(model(batch_of([pair_at(cutoff + shift)]))) for shift in (-0.2, -0.1, -1e-9, 1e-9)
        )
    assert at == pytest.approx(beyond, abs=1e-13)
    assert abs(near - beyond) > 1e-6
    assert abs(nearer - beyond) < 0.2 * abs(near - beyond)  # as the cube of the distance to it


def test_atoms_beyond_the_cutoff_are_seen_on_average():
    model = seeded().double().eval()
    pairs = (pair_at(30.0), pair_at(20.0), pair_at(30.0, other=14))
    oxygen, nearer, silicon = (
        model.layers[0](
            model.atom_embedding(model.elements[batch.numbers]), model.surroundings(batch), None
        )[0].detach()
        for batch in (batch_of([pair]) for pair in pairs)
    )
    torch.testing.assert_close(nearer, oxygen)
    assert float((silicon - oxygen).abs().max()) > 1e-3


def test_global_features_reach_the_readout():
    torch.manual_seed(0)
    batch = batch_of(structures())
    model = build_model(CrystalTransformerConfig(**SMALL), 1, global_features=2).double().eval()
    given = [torch.full((3, 2), value, dtype=torch.float64) for value in (0.0, 1.0)]
    one, two = (model(dataclasses.replace(batch, extras={"globals": value})) for value in given)
    assert not torch.allclose(one, two)


# --- memory and limits ----------------------------------------------------------------------------


def held(backend: SDPBackend, layers: int) -> int:
    """Bytes that a step on one structure of 200 atoms holds before its backward pass."""
    model, batch = seeded(layers=layers), batch_from_graphs(crystals((200,)), torch.float32)
    with LiveBytes() as memory, sdpa_kernel(backend):
        output = model.train()(batch)
        assert output.requires_grad
        return memory.live


def test_only_the_bias_takes_memory_by_the_square_of_the_atoms_and_only_once():
    """What plain attention keeps of each layer: scores and their softmax."""
    squares = 4 * 4 * 201**2  # bytes of a number per head and pair of places
    plain, fused = (
        held(backend, 4) - held(backend, 1)
        for backend in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION)
    )
    assert plain - fused > 0.9 * 3 * squares
    assert held(SDPBackend.FLASH_ATTENTION, 1) < 4 * squares


def test_a_structure_above_the_limit_is_refused_in_one_line():
    model = seeded(max_atoms=100)
    require_sizes(model, np.array([3, 100]))
    require_sizes(model, np.array([], dtype=np.int64))
    with pytest.raises(AtomloomError, match="101 atoms, and dense attention takes at most 100"):
        require_sizes(model, np.array([3, 101]))
    require_sizes(build_model(IComFormerConfig(width=8), 1), np.array([10**6]))


def test_the_limit_is_in_no_key_and_a_width_must_be_a_multiple_of_the_heads():
    keys = [CrystalTransformerConfig(max_atoms=count).key_content() for count in (10, 5000)]
    assert keys[0] == keys[1]
    with pytest.raises(ValueError, match="width 20 is not a multiple of attention_heads 8"):
        CrystalTransformerConfig(width=20)


def test_batches_of_the_config_are_bounded_by_pairs_of_atoms():
    data = {"source": "x.cif", "name": "x", "target": "y"}
    found = {
        name: parse_config({"dataset": data, "model": {"name": name}})
        for name in ("crystal_transformer", "icomformer")
    }
    bounds = {name: config.training.batch.atom_pairs for name, config in found.items()}
    assert bounds == {"crystal_transformer": 1_000_000, "icomformer": None}
    assert found["crystal_transformer"].graph.neighbors == "radius"
    assert found["crystal_transformer"].graph.cutoff == 6.0
    assert "atom_pairs" not in str(found["icomformer"].training.key_content())


def test_an_element_without_features_is_refused():
    with pytest.raises(AtomloomError, match=r"no CGCNN features for atomic numbers \[101\]"):
        require_elements(seeded(), np.array([8, 101]))


# --- robustness -----------------------------------------------------------------------------------


def isolated_atom() -> dict:
    none = np.zeros(0, dtype=np.int64)
    edges = {"src": none, "dst": none, "vectors": np.zeros((0, 3)), "multiplicity": none}
    return cubic() | edges


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "graphs",
    [
        pytest.param([cubic()], id="one one-atom crystal"),
        pytest.param([cubic(), isolated_atom()], id="an atom without edges"),
        pytest.param([isolated_atom()], id="no edges at all"),
        pytest.param([cubic(length=0.45)], id="atoms that nearly touch"),
    ],
)
def test_small_batches_give_finite_numbers_and_every_parameter_a_gradient(graphs, dtype):
    model = seeded()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
        output, gradients = step(model, batch_from_graphs(graphs, torch.float32))
    assert output.shape == (len(graphs), 1)
    assert torch.isfinite(output).all()
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    assert gradients.keys() == dict(model.named_parameters()).keys()


def test_attention_that_falls_on_one_image_alone_stays_finite():
    """Scores so large that the weight of the sink underflows."""
    model = seeded()
    with torch.no_grad():
        for layer in model.layers:
            layer.attention.qkv.weight.mul_(40.0)
    output, gradients = step(model, batch_from_graphs(crystals(), torch.float32))
    assert torch.isfinite(output).all()
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())


@pytest.mark.slow
def test_forward_is_one_graph_where_the_loader_has_placed_the_atoms():
    compiled = torch.compile(seeded(), backend="aot_eager", fullgraph=True)
    batch = batch_from_graphs(crystals(), torch.float32)
    (place,) = compiled.passes("cpu", True)
    found = step(compiled, dataclasses.replace(batch, extras=dict(place(batch))))
    named = {name.removeprefix("_orig_mod."): value for name, value in found[1].items()}
    assert max(relative_errors((found[0], named), step(seeded(), batch))) < 1e-5
