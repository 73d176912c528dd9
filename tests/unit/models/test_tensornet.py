"""TensorNet equals its reference numbers, and has the symmetries and derivatives of an energy."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from atomloom.config.model import TensorNetConfig, TensorNetPropertyConfig
from atomloom.errors import AtomloomError
from atomloom.models import build_model
from atomloom.models.common import passes
from atomloom.models.common.outputs import Head
from atomloom.models.derivatives import evaluate_potential
from atomloom.models.tensornet import kernels, network
from atomloom.structures.elements import atomic_number
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
PARTS = ("atom_energies", "forces", "stress")


def seeded(width: int = 8, seed: int = 0, **options) -> network.TensorNet:
    """In float64, with biases and all."""
    torch.manual_seed(seed)
    model = build_model(TensorNetConfig(width=width, rbf=8, cutoff=CUTOFF, **options), 1).double()
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight, std=0.3)
    return model


@pytest.fixture(params=["compiled passes", "plain operations"])
def way(request, monkeypatch):
    """Both ways to compute: the one of CPUs, and that of other devices and torch.compile."""
    if request.param == "plain operations":
        monkeypatch.setattr(passes, "by_passes", lambda values: False)
    return request.param


def batch_of(structures, dtype=torch.float64):
    return radius_batch(structures, CUTOFF, dtype)


def evaluated(model, structures, dtype=torch.float64):
    return evaluate_potential(model, batch_of(structures, dtype), stress=True)


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
    structures = [
        structure(*(content[f"s{index}_{key}"] for key in ("numbers", "positions", "cell", "pbc")))
        for index in range(5)
    ]
    return content, model, structures


def joined(content, key: str) -> np.ndarray:
    return np.concatenate([np.atleast_1d(content[f"s{index}_{key}"]) for index in range(5)])


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


# --- symmetries -----------------------------------------------------------------------------------

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("determinant", [1, -1])
@pytest.mark.parametrize("variant", ["paper", "matgl"])
def test_rotation_and_reflection_turn_forces_and_stress(variant, determinant, dtype, way):
    matrix = orthogonal(3, determinant)
    model = seeded(variant=variant).to(dtype)
    before = evaluated(model, everything(), dtype)
    after = evaluated(model, [turned(one, matrix) for one in everything()], dtype)
    turn = torch.tensor(matrix, dtype=dtype)
    close = {"rtol": 0, "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(after.atom_energies, before.atom_energies, **close)
    torch.testing.assert_close(after.forces, before.forces @ turn, **close)
    torch.testing.assert_close(after.stress, turn.T @ before.stress @ turn, **close)
    assert before.forces.abs().max() > 1e-3


def test_translation_and_moving_atoms_by_lattice_vectors_change_nothing(way):
    model = seeded()
    rng = np.random.default_rng(0)
    others = []
    for one in everything():
        cells = rng.integers(-2, 3, size=(len(one.numbers), 3)) * one.pbc
        others.append(moved(one, rng.normal(size=3) + cells @ one.cell))
    before, after = evaluated(model, everything()), evaluated(model, others)
    for name in PARTS:
        torch.testing.assert_close(getattr(after, name), getattr(before, name), rtol=0, atol=1e-10)


def test_permuting_atoms_permutes_forces(way):
    model, given = seeded(), molecule()
    order = np.random.default_rng(1).permutation(len(given.numbers))
    other = dataclasses.replace(
        given, numbers=given.numbers[order], positions=given.positions[order]
    )
    before, after = evaluated(model, [given]), evaluated(model, [other])
    torch.testing.assert_close(after.energy, before.energy, rtol=0, atol=1e-10)
    torch.testing.assert_close(
        after.forces, before.forces[torch.from_numpy(order)], rtol=0, atol=1e-10
    )


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
    for name in ("energy", *PARTS):
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


def without_some_reverses(batch):
    """The batch with some of its edges: graphs from elsewhere need not be symmetric."""
    keep = torch.from_numpy(np.random.default_rng(0).random(len(batch.src)) < 0.6)
    counts = torch.bincount(batch.dst[keep], minlength=len(batch.numbers))
    return dataclasses.replace(
        batch,
        src=batch.src[keep],
        dst=batch.dst[keep],
        shift=batch.shift[keep],
        vectors=batch.vectors[keep],
        dst_ptr=torch.nn.functional.pad(counts.cumsum(0), (1, 0)),
    )


@pytest.mark.parametrize("reverses", ["all", "some"])
@pytest.mark.parametrize(
    "options", [{}, {"layers": 0}, {"variant": "matgl"}], ids=["paper", "no layers", "matgl"]
)
def test_compiled_passes_equal_plain_operations(options, reverses, monkeypatch):
    batch, model = batch_of(everything()), seeded(**options)
    if reverses == "some":
        batch = without_some_reverses(batch)
    ours, our_gradients = training_step(model, batch)
    monkeypatch.setattr(passes, "by_passes", lambda values: False)
    plain, gradients = training_step(model, batch)
    for name in PARTS:
        torch.testing.assert_close(getattr(ours, name), getattr(plain, name), rtol=0, atol=1e-12)
    for name, gradient in gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient, rtol=1e-9, atol=1e-11)


def test_threads_share_a_pass(monkeypatch):
    batch, model = batch_of(everything()), seeded()
    one, gradients = training_step(model, batch)
    monkeypatch.setattr(passes, "WORTH_A_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    several, others = training_step(model, batch)
    torch.testing.assert_close(several.forces, one.forces, rtol=0, atol=1e-12)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-9, atol=1e-11)


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
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_forces_and_stress_are_the_derivatives_of_finite_differences(way):
    model, given, step = seeded(), crystal(), 1e-5
    found = evaluated(model, [given])

    def energy(positions, cell):
        moved_one = dataclasses.replace(given, positions=positions, cell=cell)
        return float(evaluated(model, [moved_one]).energy)

    direction = np.random.default_rng(0).normal(size=given.positions.shape)
    ends = [energy(given.positions + s * step * direction, given.cell) for s in (1, -1)]
    along = float((found.forces * torch.from_numpy(direction)).sum())
    assert -(ends[0] - ends[1]) / (2 * step) == pytest.approx(along, rel=1e-6)
    strain = np.random.default_rng(1).normal(size=(3, 3))
    strain += strain.T
    ends = []
    for sign in (1, -1):
        matrix = np.eye(3) + sign * step * strain
        ends.append(energy(given.positions @ matrix, given.cell @ matrix))
    along = float((found.stress[0] * torch.from_numpy(strain)).sum())
    slope = (ends[0] - ends[1]) / (2 * step) / abs(np.linalg.det(given.cell))
    assert slope == pytest.approx(along, rel=1e-6)


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
    """Of energies, forces and the loss gradient. Measured: 7e-7 and 9e-3 at most."""
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
    model = seeded(width=4)
    batch = batch_of([crystal(), lone_atom()])
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    found, true = evaluate_potential(compiled, batch), evaluate_potential(model, batch)
    torch.testing.assert_close(found.energy, true.energy, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.forces, true.forces, rtol=0, atol=1e-12)


def test_all_elements_are_known():
    pairs = [structure([number, 1], [[0, 0, 0], [0, 0, 1.3]]) for number in range(1, 119)]
    assert len(torch.unique(evaluated(seeded(), pairs).energy)) == 118


def test_a_potential_has_one_output():
    with pytest.raises(AtomloomError, match="one number per atom"):
        build_model(TensorNetConfig(width=8), 2)


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
