"""ComFormer equals its reference numbers, and keeps to them where arithmetic is rougher."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from atomloom.config import GraphSpec
from atomloom.config.model import EComFormerConfig, IComFormerConfig
from atomloom.data.loader import GraphLoader
from atomloom.errors import AtomloomError
from atomloom.graphs.build import build_graphs
from atomloom.models import build_model
from atomloom.models.comformer import EquivariantLayer
from atomloom.models.comformer.distinct import PREFIX, Distinct
from atomloom.models.comformer.network import _Gate
from atomloom.models.registry import require_elements
from atomloom.structures.structure import Structure
from atomloom.structures.table import StructureTable
from benchmarks.speed.property_models import ReferenceIComFormer, with_copies
from tests.unit.models.batches import (
    batch_from_graphs,
    cubic,
    oracle_graphs,
    random_crystal,
)

FAMILIES = {
    "icomformer": ("iComformer_width32", IComFormerConfig, 4_966_497),
    "ecomformer": ("eComformer_width32", EComFormerConfig, 5_583_809),
}


@pytest.fixture(params=sorted(FAMILIES))
def family(request):
    return request.param


def seeded(family: str, width: int = 16, outputs: int = 1, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_model(FAMILIES[family][1](width=width), outputs)


def crystals(count: int = 6, seed: int = 0) -> list[dict]:
    rng = np.random.default_rng(seed)
    return [random_crystal(rng, atoms=int(rng.integers(2, 7))) for _ in range(count)]


def step(model, batch):
    """Output and all gradients of a training step with a fixed loss."""
    model.zero_grad()
    output = model.train()(batch)
    weights = torch.linspace(-1.0, 1.5, output.numel(), dtype=output.dtype).view_as(output)
    (weights * output + output.square()).mean().backward()
    named = {name: w.grad.double() for name, w in model.named_parameters() if w.grad is not None}
    return output.detach().double(), named


def prefixed(found):
    """The same with the parameter names of a compiled model."""
    return found[0], {f"_orig_mod.{name}": value for name, value in found[1].items()}


def relative_errors(found, true) -> tuple[float, float]:
    """Of the outputs and of the gradient, each as one vector."""
    gradients = [
        torch.cat([part[name].flatten() for name in true[1]]) for part in (found[1], true[1])
    ]
    output = (found[0] - true[0]).norm() / true[0].norm()
    return float(output), float((gradients[0] - gradients[1]).norm() / gradients[1].norm())


def in_precision(family: str, graphs, width: int, dtype: torch.dtype, seed: int = 0):
    """A training step of one and the same model in `dtype`; bf16 means autocast."""
    model = seeded(family, width=width, seed=seed)
    if dtype is torch.bfloat16:
        with torch.autocast("cpu", dtype=dtype):
            return step(model, batch_from_graphs(graphs, torch.float32))
    return step(model.to(dtype), batch_from_graphs(graphs, dtype))


# --- reference numbers ----------------------------------------------------------------------------


@pytest.fixture
def reference(oracle, family):
    """The reference arrays, the model with their weights in float64, and their batch."""
    file, config, _ = FAMILIES[family]
    content = oracle(file)
    model = build_model(config(width=32), outputs=1).double()
    model.load_state_dict(oracle_weights(content))
    return content, model, batch_from_graphs(oracle_graphs(content))


def oracle_weights(content) -> dict[str, torch.Tensor]:
    return {key[2:]: torch.tensor(value) for key, value in content.items() if key.startswith("w:")}


def test_oracle_evaluation_output(reference):
    content, model, batch = reference
    output = model.eval()(batch).detach().numpy()[:, 0]
    np.testing.assert_allclose(output, content["eval_output"], rtol=0, atol=1e-10)


def test_oracle_training_output_and_gradients(reference):
    content, model, batch = reference
    output = model.train()(batch)
    found = output.detach().numpy()[:, 0]
    np.testing.assert_allclose(found, content["train_output"], rtol=0, atol=1e-10)
    output.square().mean().backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    norms = {key[9:]: float(content[key]) for key in content if key.startswith("gradnorm:")}
    assert norms
    for name, norm in norms.items():
        # A bias before a batch norm has no gradient but rounding noise, near 1e-13 in both programs.
        assert float(gradients[name].norm()) == pytest.approx(norm, rel=1e-8, abs=1e-12), name


def test_oracle_in_single_precision(reference):
    """Measured: 1.1e-7 (iComFormer) and 7e-8 (eComFormer) of outputs of order 0.1."""
    content, model, _ = reference
    single = batch_from_graphs(oracle_graphs(content), torch.float32)
    output = model.float().eval()(single).detach().numpy()[:, 0]
    np.testing.assert_allclose(output, content["eval_output"], rtol=0, atol=2e-6)


def test_oracle_from_structures_through_our_own_graphs(reference):
    """The reference graphs are those of the crystals with the cell rounded to 1e-5 A.

    In two crystals lattice vectors of equal length (to the shell tolerance) compete for the triad,
    and ours is another than the published one: their outputs differ by up to 1.6e-5.
    """
    content, model, batch = reference
    cells = [np.round(content[f"s{index}_cell"], 5) for index in range(batch.size)]
    spec = GraphSpec(max_neighbors=12, lattice=True, lattice_edges=True)
    structures = [
        Structure(
            numbers=content[f"s{index}_numbers"],
            positions=content[f"s{index}_positions"]
            @ np.linalg.inv(content[f"s{index}_cell"])
            @ cell,
            cell=cell,
            pbc=np.ones(3, dtype=bool),
        )
        for index, cell in enumerate(cells)
    ]
    table = build_graphs(StructureTable.from_structures(structures), spec)
    rows = np.arange(len(table))
    own = GraphLoader(table, rows, dtype=torch.float64).slice(rows)
    assert torch.equal(own.multiplicity.sum(), batch.multiplicity.sum())
    apart = np.abs(model.eval()(own).detach().numpy()[:, 0] - content["eval_output"])
    assert np.sum(apart > 1e-9) <= 2
    assert apart.max() < 2e-5


def test_oracle_plain_algebra_that_the_benchmark_compares_with(oracle):
    content = oracle("iComformer_width32")
    plain = ReferenceIComFormer(32).double()
    plain.load_state_dict(oracle_weights(content))
    data = with_copies(batch_from_graphs(oracle_graphs(content)))
    output = plain.train()(data).detach().numpy()[:, 0]
    np.testing.assert_allclose(output, content["train_output"], rtol=0, atol=1e-10)


def test_oracle_checkpoint_names_load_and_save(oracle, family):
    content = oracle(FAMILIES[family][0])
    weights = oracle_weights(content)
    model = build_model(FAMILIES[family][1](width=32), outputs=1).double()
    model.load_state_dict(weights, strict=True)
    saved = model.state_dict()
    assert saved.keys() == weights.keys()
    assert all(torch.equal(saved[name], weights[name]) for name in weights)


def test_checkpoint_with_saved_clebsch_gordan_coefficients_loads():
    model = seeded("ecomformer")
    weights = model.state_dict()
    weights["equi_update.nlayer_2.tp._compiled_main_left_right._w3j_1_1_0"] = torch.ones(3, 3, 1)
    model.load_state_dict(weights, strict=True)


def test_parameter_count_at_published_width(family):
    model = seeded(family, width=256)
    assert sum(weight.numel() for weight in model.parameters()) == FAMILIES[family][2]


def test_equivariant_layer_equals_e3nn():
    from e3nn import o3

    torch.manual_seed(3)
    width, batch = 12, batch_from_graphs(crystals(3))
    layer = EquivariantLayer(width).double()
    nodes = torch.randn(len(batch.numbers), width, dtype=torch.float64)
    radial = torch.randn(2, len(batch.src), width, dtype=torch.float64)
    vectors = batch.vectors

    hidden, harmonic = "64x0e + 8x1o + 8x2e", "1x0e + 1x1o + 1x2e"
    sphere = o3.spherical_harmonics(harmonic, vectors, normalize=True, normalization="component")
    values = layer.node_linear(nodes)
    for index, (lower, upper) in enumerate((("64x0e", hidden), (hidden, "64x0e"))):
        product = o3.FullyConnectedTensorProduct(lower, harmonic, upper, shared_weights=False)
        last = (layer.nlayer_1, layer.nlayer_2)[index].fc[2]
        terms = product.double()(values[batch.src], sphere, last(radial[index]))
        counts = torch.zeros(len(nodes)).double().index_add(0, batch.dst, batch.multiplicity)
        terms = terms * (batch.multiplicity / counts[batch.dst])[:, None]
        mean = torch.zeros(len(nodes), terms.shape[1]).double().index_add(0, batch.dst, terms)
        if index == 0:
            mean = mean + nn.functional.pad(values, (0, mean.shape[1] - values.shape[1]))
        values = mean
    softplus = nn.functional.softplus
    peer = softplus(layer.node_linear_2(softplus(layer.bn(values)))) + layer.skip_linear(nodes)
    ours = layer(nodes, radial[0], radial[1], vectors, batch, None)
    torch.testing.assert_close(ours, peer, rtol=1e-10, atol=1e-12)


# --- algebra --------------------------------------------------------------------------------------


def test_multiplicity_equals_copies_of_edges(family):
    batch = batch_from_graphs(crystals())
    copies = torch.repeat_interleave(batch.multiplicity.long())
    assert len(copies) > len(batch.src)
    twice = dataclasses.replace(
        batch,
        src=batch.src[copies],
        dst=batch.dst[copies],
        shift=batch.shift[copies],
        vectors=batch.vectors[copies],
        multiplicity=None,
    )
    models = seeded(family).double(), seeded(family).double()
    once, repeated = step(models[0], batch), step(models[1], twice)
    assert max(relative_errors(once, repeated)) < 1e-11
    for ours, theirs in zip(models[0].buffers(), models[1].buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12, equal_nan=True)


def repetitive() -> list[dict]:
    """Crystals in which edges repeat, and others."""
    return [cubic(), cubic(13, 4.1, shells=2), *crystals(2), cubic(8, 3.9)]


def rows_of_gates(monkeypatch) -> list[int]:
    """Numbers of rows that pass the gates, layer by layer, once a model has been called."""
    rows: list[int] = []
    gated = _Gate.gated

    def noting(self, query, hidden, weights, dtype):
        rows.append(hidden.shape[0])
        return gated(self, query, hidden, weights, dtype)

    monkeypatch.setattr(_Gate, "gated", noting)
    return rows


def test_equal_edges_are_computed_once_and_nothing_changes(family, monkeypatch):
    batch = batch_from_graphs(repetitive())
    rows = rows_of_gates(monkeypatch)
    models = seeded(family).double(), seeded(family).double()
    once = step(models[0], batch)
    first = rows[:2]
    rows.clear()
    monkeypatch.setattr(Distinct, "of", lambda *_: Distinct())
    each = step(models[1], batch)
    edges = len(batch.src)
    assert rows[0] == edges
    assert first[0] < edges / 2
    if family == "icomformer":
        assert rows[1] == 3 * edges
        assert first[1] < 2 * edges
    assert max(relative_errors(once, each)) < 1e-11
    for ours, theirs in zip(models[0].buffers(), models[1].buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12, equal_nan=True)


def test_equal_edges_that_a_loader_finds_are_those_of_the_model(family):
    batch, model = batch_from_graphs(repetitive(), torch.float32), seeded(family)
    (work,) = model.passes("cpu", compiled=True)
    assert not model.passes("cuda", compiled=False)
    extras = work(batch)
    assert all(name.startswith(PREFIX) for name in extras)
    own = step(model, batch)
    given = step(seeded(family), dataclasses.replace(batch, extras=dict(extras)))
    assert torch.equal(own[0], given[0])
    assert all(torch.equal(own[1][name], given[1][name]) for name in own[1])


def test_edges_whose_vectors_are_differentiated_are_each_computed(family, monkeypatch):
    batch = dataclasses.replace(batch_from_graphs(repetitive()), vectors=None)
    model = seeded(family).double()
    batch.extras = dict(model.passes("cpu", compiled=False)[0](batch))
    batch.positions.requires_grad_()
    rows = rows_of_gates(monkeypatch)
    model(batch)
    assert rows[0] == len(batch.src)


def test_output_does_not_change_when_the_crystal_is_rotated(family):
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    graphs = crystals()
    turned = [
        graph | {key: graph[key] @ turn for key in ("cell", "positions", "vectors", "lattice")}
        for graph in graphs
    ]
    model = seeded(family).double().eval()
    torch.testing.assert_close(
        model(batch_from_graphs(turned)), model(batch_from_graphs(graphs)), rtol=0, atol=1e-12
    )


def test_output_does_not_depend_on_what_else_is_in_the_batch(family):
    graphs = crystals()
    model = seeded(family).double().eval()
    together = model(batch_from_graphs(graphs))
    alone = torch.cat([model(batch_from_graphs([graph])) for graph in graphs])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


def test_gradient_by_positions_equals_finite_differences(family):
    batch = dataclasses.replace(batch_from_graphs(crystals(2)), vectors=None)
    model = seeded(family).double().eval()

    def energy(positions):
        return model(dataclasses.replace(batch, positions=positions)).sum()

    positions = batch.positions.clone().requires_grad_()
    assert torch.autograd.gradcheck(energy, positions, eps=1e-5, atol=1e-7, fast_mode=True)


# --- precision ------------------------------------------------------------------------------------


# Twice the largest relative errors over five seeds (outputs, gradient). iComFormer's are larger
# because the edge layer's last batch norm divides by a spread that is 1/70 to 1/250 of the mean.
SINGLE = {"icomformer": (5e-5, 2e-4), "ecomformer": (1e-6, 2e-6)}
BF16 = {"icomformer": (0.05, 0.085), "ecomformer": (0.008, 0.012)}


def test_single_precision_step_keeps_to_double_precision(family):
    """In a batch so large that lengths and angles are interpolated from tables."""
    graphs = crystals(120)
    model = seeded(family, width=32)
    assert model.length_table.pays(sum(len(graph["src"]) for graph in graphs))
    true = in_precision(family, graphs, 32, torch.float64)
    errors = relative_errors(in_precision(family, graphs, 32, torch.float32), true)
    assert errors[0] < SINGLE[family][0]
    assert errors[1] < SINGLE[family][1]


def test_bf16_mixed_step_keeps_to_double_precision(family):
    """A gate on gradients, because wrong ones go unnoticed in the outputs."""
    graphs = crystals(60)
    true = in_precision(family, graphs, 32, torch.float64)
    errors = relative_errors(in_precision(family, graphs, 32, torch.bfloat16), true)
    assert errors[0] < BF16[family][0]
    assert errors[1] < BF16[family][1]


# --- robustness -----------------------------------------------------------------------------------


def isolated_atom() -> dict:
    atom = cubic()
    none = np.zeros(0, dtype=np.int64)
    return atom | {"src": none, "dst": none, "vectors": np.zeros((0, 3)), "multiplicity": none}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "graphs",
    [
        pytest.param([cubic()], id="one one-atom crystal"),
        pytest.param([cubic(), isolated_atom()], id="an atom without edges"),
        pytest.param([isolated_atom()], id="no edges at all"),
        pytest.param([cubic() | {"lattice": np.zeros((3, 3))}], id="no lattice"),
        pytest.param(crystals(1), id="one crystal"),
    ],
)
def test_small_batches_give_finite_numbers(family, graphs, dtype):
    model = seeded(family)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
        output, gradients = step(model, batch_from_graphs(graphs, torch.float32))
    assert output.shape == (len(graphs), 1)
    assert torch.isfinite(output).all()
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    statistics = [buffer for name, buffer in model.named_buffers() if "running" in name]
    assert all(torch.isfinite(buffer).all() for buffer in statistics)
    with torch.no_grad():
        assert torch.isfinite(model.eval()(batch_from_graphs(graphs, torch.float32))).all()


def test_every_parameter_has_a_gradient(family):
    """Data-parallel training waits for each of them."""
    model = seeded(family)
    _, gradients = step(model, batch_from_graphs(crystals(), torch.float32))
    assert gradients.keys() == dict(model.named_parameters()).keys()


def test_several_outputs(family):
    output = seeded(family, outputs=3)(batch_from_graphs(crystals(4), torch.float32))
    assert output.shape == (4, 3)


def test_initial_weights_follow_the_seed(family):
    first, same, other = (seeded(family, seed=seed).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_forward_is_one_graph_that_never_waits_for_the_device(family, dynamic):
    """The compiler stops where a value is asked for; the whole must pass through it."""
    models = seeded(family), seeded(family)
    compiled = torch.compile(
        models[1], backend="aot_eager", fullgraph=True, dynamic=dynamic or None
    )
    (find,) = models[0].passes("cpu", compiled=True)
    for count in (60, 50) if dynamic else (60,):
        batch = batch_from_graphs(crystals(count), torch.float32)
        batch.extras = dict(find(batch))
        assert max(relative_errors(step(compiled, batch), prefixed(step(models[0], batch)))) < 1e-4


def test_missing_lattice_triads_are_an_error_one_can_act_on():
    batch = dataclasses.replace(batch_from_graphs(crystals(1), torch.float32), lattice=None)
    with pytest.raises(AtomloomError, match="lattice: true"):
        seeded("icomformer")(batch)
    assert seeded("ecomformer")(batch).shape == (1, 1)


def test_an_element_without_features_is_refused_before_it_becomes_nan(family):
    model = seeded(family)
    require_elements(model, np.array([1, 8, 100]))
    with pytest.raises(AtomloomError, match=r"no CGCNN features for atomic numbers \[101\]"):
        require_elements(model, np.array([8, 101]))
