"""ALIGNN equals its reference numbers by every way it is computed, and keeps to them in single."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from atomloom.config import GraphSpec, parse_config
from atomloom.config.model import ALIGNNConfig
from atomloom.data.loader import GraphLoader
from atomloom.errors import AtomloomError
from atomloom.graphs.build import build_graphs
from atomloom.graphs.graph import Graph
from atomloom.graphs.line_graph import jarvis_graph, line_graph, line_pairs
from atomloom.graphs.orbits import trivial_orbits
from atomloom.graphs.store import to_dgl
from atomloom.models import alignn, build_model
from atomloom.models.alignn import LineBlocks, line_edges_of_batch, multiplicities
from atomloom.models.common.message_passing import dgl_imports
from atomloom.models.registry import require_elements
from atomloom.structures.structure import Structure
from atomloom.structures.table import StructureTable
from benchmarks.speed.alignn import ReferenceALIGNN, published_graph
from tests.unit.models.batches import (
    batch_from_graphs,
    cubic,
    oracle_graphs,
    random_crystal,
)

needs_dgl = pytest.mark.skipif(not dgl_imports(), reason="DGL is not installed")
BACKENDS = ["auto", "torch", pytest.param("dgl", marks=needs_dgl)]
SMALL = {"width": 16, "alignn_layers": 2, "gcn_layers": 2, "embedding": 8}
ORACLE = {
    "width": 24,
    "alignn_layers": 2,
    "gcn_layers": 2,
    "edge_bins": 20,
    "angle_bins": 16,
    "embedding": 16,
}


def seeded(backend: str = "auto", outputs: int = 1, seed: int = 0, **options) -> nn.Module:
    torch.manual_seed(seed)
    return build_model(ALIGNNConfig(**(SMALL | options), backend=backend), outputs)


def crystals(count: int = 5, seed: int = 0) -> list[dict]:
    """Random crystals, without symmetry; some edges join an atom to its own image."""
    rng = np.random.default_rng(seed)
    return [random_crystal(rng, atoms=int(rng.integers(1, 6))) for _ in range(count)]


def perovskite(length: float = 4.0, shift: float = 0.0) -> Structure:
    sites = np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    sites[1, 0] += shift
    return Structure(
        numbers=np.array([56, 22, 8, 8, 8]),
        positions=sites * length,
        cell=np.eye(3) * length,
        pbc=np.ones(3, dtype=bool),
    )


def table_of(*structures: Structure, neighbours: int = 12):
    spec = GraphSpec(max_neighbors=neighbours)
    return build_graphs(StructureTable.from_structures(structures), spec)


def whole(table, dtype=torch.float64):
    rows = np.arange(len(table))
    return GraphLoader(table, rows, dtype=dtype).slice(rows)


def step(model, batch):
    """Output and all gradients of a training step with a fixed loss."""
    model.zero_grad()
    output = model.train()(batch)
    weights = torch.linspace(-1.0, 1.5, output.numel(), dtype=output.dtype).view_as(output)
    (weights * output + output.square()).mean().backward()
    named = {name: w.grad.double() for name, w in model.named_parameters() if w.grad is not None}
    return output.detach().double(), named


def relative_errors(found, true) -> tuple[float, float]:
    """Of the outputs and of the gradient, each as one vector, over the weights that take part."""
    names = sorted(found[1].keys() & true[1].keys())
    gradients = [torch.cat([part[1][name].flatten() for name in names]) for part in (found, true)]
    output = (found[0] - true[0]).norm() / true[0].norm()
    return float(output), float((gradients[0] - gradients[1]).norm() / gradients[1].norm())


# --- reference numbers ----------------------------------------------------------------------------


@pytest.fixture(params=BACKENDS)
def reference(oracle, request):
    """The reference arrays, the model with their weights in float64, and their batch."""
    content = oracle("ALIGNN_width24")
    model = build_model(ALIGNNConfig(**ORACLE, backend=request.param), outputs=1).double()
    model.load_state_dict(oracle_weights(content))
    return content, model, batch_from_graphs(oracle_graphs(content))


def oracle_weights(content) -> dict[str, torch.Tensor]:
    return {key[2:]: torch.tensor(value) for key, value in content.items() if key.startswith("w:")}


def test_oracle_graphs_hold_twice_just_the_edges_that_the_model_counts_twice(oracle):
    batch = batch_from_graphs(oracle_graphs(oracle("ALIGNN_width24")))
    assert torch.equal(batch.multiplicity, multiplicities(batch))
    assert 0 < (batch.multiplicity == 2).sum() < len(batch.src)


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
        # A bias before a batch norm has no gradient but rounding noise, near 1e-16 in both programs.
        assert float(gradients[name].norm()) == pytest.approx(norm, rel=1e-8, abs=1e-13), name


def test_oracle_in_single_precision(reference):
    """Measured: 3e-8 in evaluation, 1e-6 in training, of outputs of order 0.2."""
    content, model, _ = reference
    model = model.float()
    single = batch_from_graphs(oracle_graphs(content), torch.float32)
    for mode, key, most in ((False, "eval_output", 1e-6), (True, "train_output", 1e-5)):
        output = model.train(mode)(single).detach().numpy()[:, 0]
        np.testing.assert_allclose(output, content[key], rtol=0, atol=most)


def test_oracle_line_graph(oracle):
    """Pairs of published copies, counted; cosines of each."""
    content = oracle("ALIGNN_width24")
    for index, graph in enumerate(oracle_graphs(content)):
        batch = batch_from_graphs([graph])
        copies = multiplicities(batch)
        line = line_edges_of_batch(batch, batch.vectors, copies)
        blocks = blocks_of(batch, copies)
        published = content[f"s{index}_line_cosine"]
        assert float(line.counts.sum()) == len(published)
        repeated = np.repeat(line.cosine.numpy(), line.counts.long().numpy())
        np.testing.assert_allclose(np.sort(repeated), np.sort(published), rtol=0, atol=1e-12)
        counts = torch.ones(blocks.rows) if blocks.counts is None else blocks.counts
        repeated = np.repeat(blocks.cosine.numpy(), counts.long().numpy())
        np.testing.assert_allclose(np.sort(repeated), np.sort(published), rtol=0, atol=1e-12)


def test_oracle_plain_algebra_that_the_benchmark_compares_with(oracle):
    content = oracle("ALIGNN_width24")
    model = ReferenceALIGNN(ALIGNNConfig(**ORACLE)).double()
    model.load_state_dict(oracle_weights(content))
    atoms, edges = zip(
        *((len(content[f"s{i}_numbers"]), len(content[f"s{i}_edge_vector"])) for i in range(5)),
        strict=True,
    )
    atom0, edge0 = np.cumsum((0, *atoms)), np.cumsum((0, *edges))

    def joined(key, offsets=None):
        parts = [content[f"s{i}_{key}"] for i in range(5)]
        if offsets is not None:
            parts = [part + offset for part, offset in zip(parts, offsets, strict=False)]
        return np.concatenate(parts, axis=-1 if key.endswith("index") else 0)

    src, dst = joined("edge_index", atom0)
    line_src, line_dst = joined("line_edge_index", edge0)
    graph = published_graph(table_of(perovskite()))
    graph.src, graph.dst, graph.r = src, dst, joined("edge_vector")
    graph.line_src, graph.line_dst, graph.cosine = line_src, line_dst, joined("line_cosine")
    from atomloom.models.common.features import cgcnn_features

    graph.features, graph.atoms = cgcnn_features()[joined("numbers")], np.array(atoms)
    output = model.train()(graph).detach().numpy()[:, 0]
    np.testing.assert_allclose(output, content["train_output"], rtol=0, atol=1e-10)


def test_oracle_checkpoint_names_load_and_save(oracle):
    weights = oracle_weights(oracle("ALIGNN_width24"))
    model = build_model(ALIGNNConfig(**ORACLE), outputs=1).double()
    model.load_state_dict(weights, strict=True)
    saved = model.state_dict()
    assert saved.keys() == weights.keys()
    assert all(torch.equal(saved[name], weights[name]) for name in weights)


def test_parameter_count_at_published_size():
    model = build_model(ALIGNNConfig(), 1)
    assert sum(weight.numel() for weight in model.parameters()) == 4_026_753


# --- algebra --------------------------------------------------------------------------------------


def blocks_of(batch, copies) -> LineBlocks:
    return alignn._by_orbits(batch, batch.vectors, copies, "torch")[1]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ["symmetric", "one atom", "molecule"])
def test_weights_equal_copies_of_edges_in_graph_and_line_graph(backend, case):
    """Against the plain algebra on graphs that hold every copy, as jarvis-tools makes them."""
    structures = {
        "symmetric": [perovskite(), perovskite(4.2, shift=0.03)],
        "one atom": [
            Structure(
                numbers=np.array([29]),
                positions=np.zeros((1, 3)),
                cell=1.8 * (1 - np.eye(3)),
                pbc=np.ones(3, dtype=bool),
            ),
            perovskite(),
        ],
        "molecule": [
            Structure(
                numbers=np.array([8, 1, 1, 6]),
                positions=np.array([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0], [0.3, 0.4, 2.0]]),
                cell=np.zeros((3, 3)),
                pbc=np.zeros(3, dtype=bool),
            )
        ],
    }[case]
    table = table_of(*structures)
    model = seeded(backend).double()
    plain = ReferenceALIGNN(ALIGNNConfig(**SMALL)).double()
    plain.load_state_dict(model.state_dict())
    found, true = step(model, whole(table)), step(plain, published_graph(table))
    assert max(relative_errors(found, true)) < 1e-11
    names = dict(plain.named_buffers())
    unused = ("alignn_layers.1.edge_update.bn_edges", "gcn_layers.1.bn_edges")
    for name, buffer in model.named_buffers():
        if name in names and not name.startswith(unused):
            torch.testing.assert_close(buffer, names[name], rtol=1e-10, atol=1e-12)


def test_symmetry_saves_work_and_changes_nothing(monkeypatch):
    table = table_of(perovskite(), perovskite(4.2))
    batch = whole(table)
    copies = multiplicities(batch)
    pairs = len(line_edges_of_batch(batch, batch.vectors, copies).src)
    assert blocks_of(batch, copies).rows < pairs / 4
    folded = step(seeded().double(), batch)

    monkeypatch.setattr(alignn, "find_orbits", lambda n, src, *_: trivial_orbits(len(n), len(src)))
    assert blocks_of(batch, copies).rows == pairs
    assert max(relative_errors(folded, step(seeded().double(), batch))) < 1e-11


def test_blocks_and_index_give_the_same_in_any_batch():
    batch = batch_from_graphs(crystals(6))
    assert (batch.src == batch.dst).any()
    true = step(seeded("torch").double(), batch)
    assert max(relative_errors(step(seeded().double(), batch), true)) < 1e-11


def with_pairs(batch):
    """The batch as a loader delivers it that works out the line graph."""
    first, second = line_pairs(batch.src.numpy(), batch.dst_ptr.numpy())
    extras = {"line_src": torch.from_numpy(first), "line_dst": torch.from_numpy(second)}
    return dataclasses.replace(batch, extras=extras)


def test_line_edges_of_the_loader_are_those_of_the_model():
    batch = batch_from_graphs(crystals(4))
    arguments = batch.vectors, multiplicities(batch)
    given, own = with_pairs(batch), line_edges_of_batch(batch, *arguments)
    found = line_edges_of_batch(given, *arguments)
    assert found.src is given.extras["line_src"]
    for name in ("src", "dst", "dst_ptr", "cosine", "weights", "counts"):
        assert torch.equal(getattr(found, name), getattr(own, name)), name


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_output_does_not_change_under_rotation_and_permutation(backend):
    rng = np.random.default_rng(1)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    structures = [perovskite(4.1, shift=0.02)]
    for atoms in (3, 5):
        cell = np.eye(3) * 5.0 + rng.normal(scale=0.4, size=(3, 3))
        structures.append(
            Structure(
                numbers=rng.choice([8, 14], atoms),
                positions=rng.uniform(size=(atoms, 3)) @ cell,
                cell=cell,
                pbc=np.ones(3, dtype=bool),
            )
        )
    changed = []
    for structure in structures:
        order = rng.permutation(len(structure.numbers))
        changed.append(
            Structure(
                numbers=structure.numbers[order],
                positions=structure.positions[order] @ turn + 0.3,
                cell=structure.cell @ turn,
                pbc=structure.pbc,
            )
        )
    model = seeded(backend).double().eval()
    torch.testing.assert_close(
        model(whole(table_of(*changed))), model(whole(table_of(*structures))), rtol=0, atol=1e-11
    )


def test_output_does_not_depend_on_what_else_is_in_the_batch():
    graphs = crystals()
    model = seeded().double().eval()
    together = model(batch_from_graphs(graphs))
    alone = torch.cat([model(batch_from_graphs([graph])) for graph in graphs])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize(("readout", "factor"), [("mean", 1.0), ("sum", 2.0)])
def test_readout_of_a_cell_twice_as_large(readout, factor, backend):
    single = perovskite(4.1, shift=0.02)
    double = Structure(
        numbers=np.tile(single.numbers, 2),
        positions=np.concatenate((single.positions, single.positions + single.cell[2])),
        cell=single.cell * [[1], [1], [2]],
        pbc=single.pbc,
    )
    model = seeded(backend, readout=readout).double().eval()
    once, twice = model(whole(table_of(single))), model(whole(table_of(double)))
    torch.testing.assert_close(twice, factor * once, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("readout", ["mean", "sum"])
def test_global_features_reach_the_readout(readout):
    batch = whole(table_of(perovskite(), perovskite(4.2)))
    outputs = []
    for backend in ("auto", "torch"):
        torch.manual_seed(0)
        config = ALIGNNConfig(**SMALL, backend=backend, readout=readout)
        model = build_model(config, 1, global_features=2).double().eval()
        for value in (0.0, 1.0):
            given = torch.full((2, 2), value, dtype=torch.float64)
            outputs.append(model(dataclasses.replace(batch, extras={"globals": given})))
    torch.testing.assert_close(outputs[:2], outputs[2:], rtol=1e-10, atol=1e-12)
    assert not torch.allclose(outputs[0], outputs[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_by_positions_equals_finite_differences(backend):
    batch = dataclasses.replace(batch_from_graphs(crystals(2)), vectors=None)
    model = seeded(backend).double().eval()

    def energy(positions):
        return model(dataclasses.replace(batch, positions=positions)).sum()

    positions = batch.positions.clone().requires_grad_()
    assert torch.autograd.gradcheck(energy, positions, eps=1e-5, atol=1e-7, fast_mode=True)


def test_evaluation_of_blocks_has_the_gradients_of_the_plain_form():
    batch = batch_from_graphs(crystals(4))
    grads = []
    for backend in ("auto", "torch"):
        model = seeded(backend).double()
        step(model, batch)
        model.eval().zero_grad()
        model(batch).square().sum().backward()
        grads.append(torch.cat([w.grad.flatten() for w in model.parameters()]))
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-14)


# --- precision ------------------------------------------------------------------------------------


def in_precision(backend: str, graphs, dtype: torch.dtype):
    """A training step of one and the same model in `dtype`; bf16 means autocast."""
    model = seeded(backend, width=32)
    if dtype is torch.bfloat16:
        with torch.autocast("cpu", dtype=dtype):
            return step(model, batch_from_graphs(graphs, torch.float32))
    return step(model.to(dtype), batch_from_graphs(graphs, dtype))


# At least twice the largest relative errors over five seeds (outputs, gradient).
TOLERANCES = {torch.float32: (4e-6, 4e-6), torch.bfloat16: (0.03, 0.03)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_steps_keep_to_double_precision(backend, dtype):
    """In a batch so large that angles are interpolated from a table."""
    graphs = crystals(40)
    batch = batch_from_graphs(graphs)
    pairs = len(line_edges_of_batch(batch, batch.vectors, multiplicities(batch)).src)
    assert seeded(width=32).angle_table.pays(pairs)
    true = in_precision("torch", graphs, torch.float64)
    errors = relative_errors(in_precision(backend, graphs, dtype), true)
    assert errors[0] < TOLERANCES[dtype][0]
    assert errors[1] < TOLERANCES[dtype][1]


# --- robustness -----------------------------------------------------------------------------------


def isolated_atom() -> dict:
    none = np.zeros(0, dtype=np.int64)
    edges = {"src": none, "dst": none, "vectors": np.zeros((0, 3)), "multiplicity": none}
    return cubic() | edges


def directed_pair() -> dict:
    """One edge only: nothing leaves where it arrives."""
    pair = cubic() | {"numbers": np.array([29, 8]), "positions": np.eye(3)[:2]}
    edge = {"src": np.array([1]), "dst": np.array([0]), "multiplicity": np.array([1])}
    return pair | edge | {"vectors": np.array([[-1.0, 1.0, 0.0]])}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "graphs",
    [
        pytest.param([cubic()], id="one one-atom crystal"),
        pytest.param([cubic(), isolated_atom()], id="an atom without edges"),
        pytest.param([isolated_atom()], id="no edges at all"),
        pytest.param([directed_pair()], id="edges but no pairs"),
        pytest.param(crystals(1), id="one crystal"),
    ],
)
def test_small_batches_give_finite_numbers(backend, graphs, dtype):
    model = seeded(backend)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
        output, gradients = step(model, batch_from_graphs(graphs, torch.float32))
    assert output.shape == (len(graphs), 1)
    assert torch.isfinite(output).all()
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    statistics = [buffer for name, buffer in model.named_buffers() if "running" in name]
    assert all(torch.isfinite(buffer).all() for buffer in statistics)
    with torch.no_grad():
        assert torch.isfinite(model.eval()(batch_from_graphs(graphs, torch.float32))).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_parameter_has_a_gradient(backend):
    """Data-parallel training waits for each of them."""
    model = seeded(backend)
    _, gradients = step(model, batch_from_graphs(crystals(), torch.float32))
    assert gradients.keys() == dict(model.named_parameters()).keys()


def test_several_outputs():
    output = seeded(outputs=3)(batch_from_graphs(crystals(4), torch.float32))
    assert output.shape == (4, 3)


@pytest.mark.slow
def test_forward_is_one_graph_where_the_loader_has_worked_out_the_line_graph():
    """Compiled, it cannot go block by block, nor through DGL; and nothing waits for the device."""
    small = {"alignn_layers": 1, "gcn_layers": 1}
    compiled = torch.compile(seeded(**small), backend="aot_eager", fullgraph=True)
    batch = batch_from_graphs(crystals(3), torch.float32)
    found = step(compiled, with_pairs(batch))
    named = {name.removeprefix("_orig_mod."): value for name, value in found[1].items()}
    assert max(relative_errors((found[0], named), step(seeded(**small), batch))) < 1e-4


def test_an_element_without_features_is_refused_before_it_becomes_nan():
    model = seeded()
    require_elements(model, np.array([1, 8, 100]))
    with pytest.raises(AtomloomError, match=r"no CGCNN features for atomic numbers \[101\]"):
        require_elements(model, np.array([8, 101]))


def test_the_backend_is_in_no_key():
    keys = [ALIGNNConfig(backend=backend).key_content() for backend in ("auto", "dgl", "torch")]
    assert keys[0] == keys[1] == keys[2]
    assert ALIGNNConfig(width=128).key_content() != keys[0]


def test_config_by_name_has_the_graph_that_the_model_needs():
    config = parse_config(
        {"dataset": {"source": "x.cif", "name": "x", "target": "y"}, "model": {"name": "alignn"}}
    )
    assert config.graph.neighbors == "knn"
    assert not config.graph.lattice_edges


# --- graphs for others ----------------------------------------------------------------------------


@needs_dgl
@pytest.mark.parametrize("copies", [True, False])
def test_dgl_line_graph_with_jarvis_cosines_is_ours(copies):
    """As ALIGNN's own code uses a DGLGraph."""
    import dgl
    from jarvis.core.graphs import compute_bond_cosines

    graph: Graph = table_of(perovskite(4.1, shift=0.02))[0]
    graph = jarvis_graph(graph) if copies else graph
    torch.set_default_dtype(torch.float64)
    try:
        found = to_dgl(graph)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.edata["r"].dtype == torch.float64
    theirs = found.line_graph(shared=True)
    theirs.apply_edges(compute_bond_cosines)
    ours = line_graph(graph)
    first, second = (end.numpy() for end in theirs.edges())
    assert isinstance(theirs, dgl.DGLGraph)
    assert len(first) == len(ours.src)
    order, own = np.lexsort((first, second)), np.lexsort((ours.src, ours.dst))
    np.testing.assert_array_equal(first[order], ours.src[own])
    np.testing.assert_array_equal(second[order], ours.dst[own])
    np.testing.assert_allclose(theirs.edata["h"].numpy()[order], ours.cosine[own], atol=1e-12)


def test_a_loader_can_prepare_the_pairs_of_edges():
    model = seeded("torch").double()
    structures = [perovskite(4.0 + 0.1 * i, 0.01 * i) for i in range(3)]
    table = StructureTable.from_structures(structures)
    graphs = build_graphs(table, GraphSpec(cutoff=8.0, max_neighbors=6))
    rows = np.arange(3)
    (plain,) = list(GraphLoader(graphs, rows, dtype=torch.float64))
    passes = model.passes("cpu", compiled=False)
    (given,) = list(GraphLoader(graphs, rows, dtype=torch.float64, passes=passes))
    assert {"line_src", "line_dst"} <= set(given.extras)
    torch.testing.assert_close(model(given), model(plain), rtol=1e-12, atol=1e-12)
    assert seeded("auto").passes("cpu", compiled=False) == ()
    assert seeded("auto").passes("cuda", compiled=False)
