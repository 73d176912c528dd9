"""PaiNN equals its reference numbers, and has the symmetries and derivatives of an energy."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from atomloom.config.model import PaiNNConfig
from atomloom.errors import AtomloomError
from atomloom.models import build_model
from atomloom.models.common import passes
from atomloom.models.common.kernels import find_pairs
from atomloom.models.derivatives import evaluate_potential
from atomloom.models.painn import network
from tests.unit.models.potentials import (
    crystal,
    everything,
    lone_atom,
    molecule,
    moved,
    orthogonal,
    radius_batch,
    structure,
    turned,
    wire,
)

CUTOFF = 4.0


def seeded(width: int = 8, seed: int = 0, **options) -> network.PaiNN:
    """In float64, with biases and all."""
    torch.manual_seed(seed)
    model = build_model(PaiNNConfig(width=width, rbf=8, cutoff=CUTOFF, **options), 1).double()
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight, std=0.3)
    return model


@pytest.fixture(params=["compiled passes", "plain operations"])
def way(request, monkeypatch):
    """Both ways to sum messages: the one of CPUs, and that of other devices and torch.compile."""
    if request.param == "plain operations":
        monkeypatch.setattr(passes, "by_passes", lambda vectors: False)
    return request.param


def batch_of(structures, dtype=torch.float64):
    return radius_batch(structures, CUTOFF, dtype)


def evaluated(model, structures, dtype=torch.float64):
    return evaluate_potential(model, batch_of(structures, dtype), stress=True)


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
    structures = [
        structure(*(content[f"s{index}_{key}"] for key in ("numbers", "positions", "cell", "pbc")))
        for index in range(5)
    ]
    return content, model, structures


def joined(content, key: str) -> np.ndarray:
    return np.concatenate([np.atleast_1d(content[f"s{index}_{key}"]) for index in range(5)])


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


# --- symmetries -----------------------------------------------------------------------------------

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("determinant", [1, -1])
def test_rotation_and_reflection_turn_forces_and_stress(determinant, dtype, way):
    matrix = orthogonal(3, determinant)
    model = seeded().to(dtype)
    before = evaluated(model, everything(), dtype)
    after = evaluated(model, [turned(one, matrix) for one in everything()], dtype)
    turn = torch.tensor(matrix, dtype=dtype)
    close = {"rtol": 0, "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(after.atom_energies, before.atom_energies, **close)
    torch.testing.assert_close(after.forces, before.forces @ turn, **close)
    torch.testing.assert_close(after.stress, turn.T @ before.stress @ turn, **close)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_translation_and_moving_atoms_by_lattice_vectors_change_nothing(dtype, way):
    model = seeded().to(dtype)
    rng = np.random.default_rng(0)
    others = []
    for one in everything():
        cells = rng.integers(-2, 3, size=(len(one.numbers), 3)) * one.pbc
        others.append(moved(one, rng.normal(size=3) + cells @ one.cell))
    before, after = evaluated(model, everything(), dtype), evaluated(model, others, dtype)
    for name in ("atom_energies", "forces", "stress"):
        torch.testing.assert_close(
            getattr(after, name), getattr(before, name), rtol=0, atol=TOLERANCE[dtype]
        )


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_permuting_atoms_permutes_forces(dtype, way):
    model, given = seeded().to(dtype), molecule()
    order = np.random.default_rng(1).permutation(len(given.numbers))
    other = dataclasses.replace(
        given, numbers=given.numbers[order], positions=given.positions[order]
    )
    before, after = evaluated(model, [given], dtype), evaluated(model, [other], dtype)
    close = {"rtol": 0, "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(after.energy, before.energy, **close)
    torch.testing.assert_close(after.forces, before.forces[torch.from_numpy(order)], **close)


def test_a_supercell_has_the_same_atoms_more_often(way):
    given = crystal()
    offsets = np.stack(np.meshgrid([0, 1], [0, 1], [0], indexing="ij"), -1).reshape(-1, 3)
    repeated = structure(
        np.tile(given.numbers, 4),
        np.concatenate([given.positions + offset @ given.cell for offset in offsets]),
        given.cell * np.array([[2.0], [2.0], [1.0]]),
        True,
    )
    model = seeded()
    one, four = evaluated(model, [given]), evaluated(model, [repeated])
    close = {"rtol": 0, "atol": 1e-11}
    torch.testing.assert_close(four.energy, 4.0 * one.energy, **close)
    torch.testing.assert_close(four.forces, one.forces.repeat(4, 1), **close)
    torch.testing.assert_close(four.stress, one.stress, **close)


def test_batched_equals_one_by_one(way):
    model = seeded()
    together = evaluated(model, everything())
    alone = [evaluated(model, [one]) for one in everything()]
    for name in ("atom_energies", "energy", "forces", "stress"):
        parts = torch.cat([getattr(one, name) for one in alone])
        torch.testing.assert_close(getattr(together, name), parts, rtol=0, atol=1e-12)


# --- the two ways ---------------------------------------------------------------------------------


def training_step(model, batch):
    """Energies, forces, stress, and gradients of a loss of all three."""
    model.zero_grad()
    found = evaluate_potential(model, batch, stress=True, create_graph=True)
    loss = found.energy.square().mean() + found.forces.square().sum() + found.stress.square().sum()
    loss.backward()
    gradients = {name: weight.grad.double() for name, weight in model.named_parameters()}
    return found, gradients


@pytest.mark.parametrize("options", [{}, {"shared_filters": True}, {"layers": 1}])
def test_compiled_passes_equal_plain_operations(options, monkeypatch):
    batch, model = batch_of(everything()), seeded(**options)
    ours, our_gradients = training_step(model, batch)
    monkeypatch.setattr(passes, "by_passes", lambda vectors: False)
    plain, gradients = training_step(model, batch)
    for name in ("atom_energies", "forces", "stress"):
        torch.testing.assert_close(getattr(ours, name), getattr(plain, name), rtol=0, atol=1e-12)
    for name, gradient in gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient, rtol=1e-9, atol=1e-11)


def test_edges_without_their_reverse_count_one_way(monkeypatch):
    """Graphs from elsewhere need not be symmetric."""
    batch = batch_of([molecule(), crystal()])
    keep = torch.from_numpy(np.random.default_rng(0).random(len(batch.src)) < 0.6)
    counts = torch.bincount(batch.dst[keep], minlength=len(batch.numbers))
    some = dataclasses.replace(
        batch,
        src=batch.src[keep],
        dst=batch.dst[keep],
        shift=batch.shift[keep],
        vectors=batch.vectors[keep],
        dst_ptr=torch.nn.functional.pad(counts.cumsum(0), (1, 0)),
    )
    arrays = (some.src, some.dst, some.dst_ptr, some.shift)
    _, mutual = find_pairs(*(array.numpy() for array in arrays))
    assert 0 < mutual.sum() < len(mutual)
    model = seeded()
    ours = evaluate_potential(model, some, stress=True)
    monkeypatch.setattr(passes, "by_passes", lambda vectors: False)
    plain = evaluate_potential(model, some, stress=True)
    for name in ("atom_energies", "forces", "stress"):
        torch.testing.assert_close(getattr(ours, name), getattr(plain, name), rtol=0, atol=1e-12)


def test_every_edge_of_a_radius_graph_has_its_pair():
    batch = batch_of(everything())
    arrays = (batch.src, batch.dst, batch.dst_ptr, batch.shift)
    edges, mutual = find_pairs(*(array.numpy() for array in arrays))
    assert mutual.all()
    assert 2 * len(edges) == len(batch.src)


def test_threads_share_a_pass(monkeypatch):
    batch, model = batch_of(everything()), seeded()
    one, gradients = training_step(model, batch)
    monkeypatch.setattr(passes, "WORTH_A_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    several, others = training_step(model, batch)
    torch.testing.assert_close(several.forces, one.forces, rtol=0, atol=1e-12)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("with_vectors", [True, False])
def test_messages_have_the_derivatives_of_finite_differences(with_vectors, way):
    batch = batch_of([crystal(), molecule(atoms=3)])
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


# --- derivatives ----------------------------------------------------------------------------------


def test_training_on_forces_has_the_gradient_of_finite_differences(way):
    """Second derivatives: by a random direction in the space of all weights."""
    batch, model = batch_of([molecule(atoms=4), crystal(), lone_atom()]), seeded(width=4)
    weights = list(model.parameters())

    def loss():
        found = evaluate_potential(model, batch, stress=True, create_graph=True)
        terms = found.energy, found.forces, found.stress
        return sum((term - 0.1).square().sum() for term in terms)

    gradients = torch.autograd.grad(loss(), weights)
    torch.manual_seed(0)
    direction = [torch.randn_like(weight) for weight in weights]
    expected = sum((a * b).sum() for a, b in zip(gradients, direction, strict=True))
    step = 1e-5
    ends = []
    for sign in (1.0, -2.0):
        with torch.no_grad():
            for weight, way_to_go in zip(weights, direction, strict=True):
                weight.add_(way_to_go, alpha=sign * step)
        ends.append(loss().detach())
    found = (ends[0] - ends[1]) / (2.0 * step)
    assert float(found) == pytest.approx(float(expected), rel=1e-7)


def test_an_atom_leaves_without_a_jump(way):
    """Energy and force are those of the atoms apart, and the force's slope is bounded."""
    model = seeded()

    def pair(distance):
        found = evaluated(model, [structure([6, 8], [[0, 0, 0], [0, 0, distance]])])
        return float(found.energy), float(found.forces[1, 2])

    apart, none = pair(CUTOFF + 0.1)
    assert none == 0.0
    inside, force = pair(CUTOFF - 1e-4)
    assert inside == pytest.approx(apart, abs=1e-7)
    assert abs(force) < 1e-3
    distances = np.linspace(CUTOFF - 0.02, CUTOFF + 0.02, 81)
    slopes = np.diff([pair(distance)[1] for distance in distances]) / np.diff(distances)
    assert np.abs(slopes).max() < 3.0 * np.abs(slopes[:20]).max()


# --- robustness -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(
    "structures",
    [
        pytest.param([lone_atom()], id="no edges at all"),
        pytest.param([lone_atom(), lone_atom(118)], id="isolated atoms"),
        pytest.param([wire()], id="one atom and its images"),
        pytest.param(everything(), id="everything together"),
        pytest.param([structure([6, 8], [[0, 0, 0], [0, 0, 0]])], id="two atoms in one place"),
    ],
)
def test_force_training_gives_finite_numbers(structures, bf16, way):
    model = seeded().float()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        found, gradients = training_step(model, batch_of(structures, torch.float32))
    assert found.energy.dtype == found.forces.dtype == torch.float32
    for values in (found.energy, found.forces, found.stress, *gradients.values()):
        assert torch.isfinite(values).all()


def test_single_and_mixed_precision_keep_to_double_precision(way):
    """Of energies, forces and the loss gradient. Measured: 8e-7 and 1.6e-2 at most."""
    structures = [molecule(seed, 8) for seed in range(3)] + [crystal(seed) for seed in range(3)]
    true, true_gradients = training_step(seeded(width=32), batch_of(structures))

    def relative(found, gradients):
        pairs = [
            (found.energy, true.energy),
            (found.forces, true.forces),
            tuple(
                torch.cat([part[name].flatten() for name in true_gradients])
                for part in (gradients, true_gradients)
            ),
        ]
        return [float((a - b).norm().detach() / b.norm().detach()) for a, b in pairs]

    model = seeded(width=32).float()
    batch = batch_of(structures, torch.float32)
    assert max(relative(*training_step(model, batch))) < 1e-5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert max(relative(*training_step(model, batch))) < 0.05


def test_every_parameter_has_a_gradient():
    """Data-parallel training waits for each of them."""
    model = seeded()
    training_step(model, batch_of(everything()))
    assert all(weight.grad is not None for weight in model.parameters())


def test_forward_is_one_graph_that_never_waits_for_the_device():
    """The compiler stops where a value is asked for; the whole must pass through it."""
    model = seeded(width=4, layers=2)
    batch = batch_of([crystal(), lone_atom()])
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    found, true = evaluate_potential(compiled, batch), evaluate_potential(model, batch)
    torch.testing.assert_close(found.energy, true.energy, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.forces, true.forces, rtol=0, atol=1e-12)


def test_all_elements_are_known():
    everyone = [lone_atom(number) for number in range(1, 119)]
    energies = evaluated(seeded(), everyone).energy
    assert len(torch.unique(energies)) == 118


def test_a_potential_has_one_output():
    with pytest.raises(AtomloomError, match="one number per atom"):
        build_model(PaiNNConfig(width=8), 2)
