"""NequIP couples as e3nn does, and has the symmetries and derivatives of an energy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from atomloom.config.model import NequIPConfig
from atomloom.data.batch import GraphBatch
from atomloom.errors import AtomloomError
from atomloom.models import build_model
from atomloom.models.common import passes
from atomloom.models.derivatives import evaluate_potential
from atomloom.models.nequip import network
from atomloom.models.nequip.tables import EVEN_SCALAR, Irrep, Layout, Paths, coupling
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

CUTOFF = 3.6
OTHERS = {
    "parity": {},
    "no parity": {"parity": False},
    "biases, one layer": {"bias": True, "layers": 1},
    "scalars alone": {"features": (6,)},
    "degree 3": {"features": (4, 3, 2, 2), "layers": 2},
    "lengths in harmonics": {"unit_directions": False, "envelope": "xplor", "envelope_start": 2.0},
}


def config(**options) -> NequIPConfig:
    given = {"features": (6, 4, 3), "layers": 3, "rbf": 5, "filter_hidden": (7,), "neighbors": 6.0}
    return NequIPConfig(cutoff=CUTOFF, **given | options)


def seeded(dtype: torch.dtype = torch.float64, **options) -> network.NequIP:
    """With biases that are not zero."""
    torch.manual_seed(0)
    model = build_model(config(**options), 1).to(dtype)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight, std=0.3)
    return model


@pytest.fixture(params=["compiled passes", "plain operations"])
def way(request, monkeypatch):
    """Both ways to convolve: the one of CPUs, and that of other devices and torch.compile."""
    if request.param == "plain operations":
        monkeypatch.setattr(passes, "by_passes", lambda values: False)
    return request.param


def batch_of(structures, dtype=torch.float64) -> GraphBatch:
    return radius_batch(structures, CUTOFF, dtype)


def evaluated(model, structures, dtype=torch.float64):
    return evaluate_potential(model, batch_of(structures, dtype), stress=True)


# --- tables ---------------------------------------------------------------------------------------


def test_coupling_coefficients_are_those_of_e3nn():
    o3 = pytest.importorskip("e3nn.o3")
    for first in range(5):
        for second in range(5):
            for third in range(abs(first - second), min(first + second, 4) + 1):
                theirs = o3.wigner_3j(first, second, third).double().numpy()  # stored in float32
                np.testing.assert_allclose(coupling(first, second, third), theirs, atol=1e-6)


def test_harmonics_are_those_of_e3nn():
    o3 = pytest.importorskip("e3nn.o3")
    torch.manual_seed(0)
    vectors = torch.randn(20, 3, dtype=torch.float64)
    ours = network.SphericalHarmonics(4)(vectors)
    theirs = o3.spherical_harmonics(list(range(5)), vectors, False, "component")
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("compiled", [True, False])
def test_a_convolution_is_a_tensor_product_of_e3nn(compiled, monkeypatch):
    o3 = pytest.importorskip("e3nn.o3")
    monkeypatch.setattr(passes, "by_passes", lambda values: compiled)
    source = Layout.of([(EVEN_SCALAR, 3), (Irrep(0, -1), 2), (Irrep(1, -1), 2), (Irrep(2, 1), 2)])
    harmonics = [Irrep(0, 1), Irrep(1, -1), Irrep(2, 1)]
    wanted = [Irrep(0, 1), Irrep(1, -1), Irrep(1, 1), Irrep(2, 1)]
    convolution = network.Convolution(Paths.of(source, harmonics, wanted))
    paths = convolution.paths
    batch = batch_of([molecule(), crystal()])
    edges, count = passes.Edges.of(batch), len(batch.numbers)
    torch.manual_seed(0)
    features = torch.randn(count, source.size, dtype=torch.float64)
    filters = torch.randn(len(edges.src), paths.filters, dtype=torch.float64)
    angular = network.SphericalHarmonics(2)(edges.directions)
    ours = convolution(features, angular, filters, edges)

    irreps = [
        o3.Irreps([(block.copies, (block.irrep.degree, block.irrep.parity))])
        for block in source.blocks
    ]
    ends = [
        (path.source.copies, (path.target.irrep.degree, path.target.irrep.parity))
        for path in paths.paths
    ]
    product = o3.TensorProduct(
        sum(irreps, o3.Irreps("")),
        o3.Irreps("0e + 1o + 2e"),
        o3.Irreps(ends),
        [
            (source.blocks.index(path.source), path.degree, place, "uvu", True)
            for place, path in enumerate(paths.paths)
        ],
        shared_weights=False,
        internal_weights=False,
    ).double()
    expected = torch.zeros(count, product.irreps_out.dim, dtype=torch.float64)
    sides = [(edges.src, edges.dst, angular)]
    if compiled:
        back = network.SphericalHarmonics(2)(-edges.directions)
        sides.append((edges.dst, edges.src, back))
    for src, dst, values in sides:
        rows = torch.cat([_copies_first(features, block)[src] for block in source.blocks], dim=1)
        expected.index_add_(0, dst, product(rows, values, filters))
    for place, path in enumerate(paths.paths):
        part = expected[:, product.irreps_out.slices()[place]]
        block = path.target
        own = ours[:, block.start : block.stop].unflatten(1, (-1, block.copies))
        own = own[:, :, path.first : path.first + path.source.copies]
        # e3nn keeps its coefficients in single precision
        torch.testing.assert_close(own.transpose(1, 2).flatten(1), part, rtol=1e-5, atol=1e-5)


def _copies_first(features, block):
    """Features of one irrep, in e3nn's order: components within copies."""
    values = features[:, block.start : block.stop].unflatten(1, (-1, block.copies))
    return values.transpose(1, 2).flatten(1)


# --- symmetries -----------------------------------------------------------------------------------


@pytest.mark.parametrize("determinant", [1, -1])
@pytest.mark.parametrize("name", OTHERS)
def test_rotation_and_reflection_turn_forces_and_stress(name, determinant):
    matrix = orthogonal(3, determinant)
    model = seeded(**OTHERS[name])
    if name == "no parity" and determinant < 0:
        return _energies_may_change_in_a_mirror(model, matrix)
    before = evaluated(model, everything())
    after = evaluated(model, [turned(one, matrix) for one in everything()])
    turn = torch.tensor(matrix)
    close = {"rtol": 0, "atol": 1e-10}
    torch.testing.assert_close(after.atom_energies, before.atom_energies, **close)
    torch.testing.assert_close(after.forces, before.forces @ turn, **close)
    torch.testing.assert_close(after.stress, turn.T @ before.stress @ turn, **close)
    assert before.forces.abs().max() > 1e-3
    return None


def _energies_may_change_in_a_mirror(model, matrix):
    before = evaluated(model, everything()).energy
    after = evaluated(model, [turned(one, matrix) for one in everything()]).energy
    assert (before - after).abs().max() > 1e-8


def test_moving_atoms_by_lattice_vectors_changes_nothing(way):
    model = seeded()
    rng = np.random.default_rng(0)
    others = []
    for one in everything():
        cells = rng.integers(-2, 3, size=(len(one.numbers), 3)) * one.pbc
        others.append(moved(one, rng.normal(size=3) + cells @ one.cell))
    before, after = evaluated(model, everything()), evaluated(model, others)
    for name in ("atom_energies", "forces", "stress"):
        torch.testing.assert_close(getattr(after, name), getattr(before, name), rtol=0, atol=1e-10)


def test_batched_equals_one_by_one(way):
    model = seeded()
    together = evaluated(model, everything())
    alone = [evaluated(model, [one]) for one in everything()]
    for name in ("atom_energies", "energy", "forces", "stress"):
        parts = torch.cat([getattr(one, name) for one in alone])
        torch.testing.assert_close(getattr(together, name), parts, rtol=0, atol=1e-12)


@pytest.mark.parametrize("envelope", ["polynomial", "xplor"])
def test_filters_go_to_zero_at_the_cutoff_with_two_derivatives(envelope):
    """The polynomial; the switch has one."""
    radial = seeded(envelope=envelope, envelope_start=2.0).radial
    lengths = torch.tensor([CUTOFF - 1e-5, CUTOFF, CUTOFF + 1.0], dtype=torch.float64)
    lengths.requires_grad_()
    values = radial(lengths)
    assert values.abs().max() < 1e-8
    (slope,) = torch.autograd.grad(values.sum(), lengths, create_graph=True)
    assert slope.abs().max() < 1e-3
    if envelope == "polynomial":
        (curvature,) = torch.autograd.grad(slope.sum(), lengths)
        assert curvature.abs().max() < 1e-2


# --- the two ways ---------------------------------------------------------------------------------


def training_step(model, batch):
    """Energies, forces, stress, and gradients of a loss of all three."""
    model.zero_grad()
    found = evaluate_potential(model, batch, stress=True, create_graph=True)
    loss = found.energy.square().mean() + found.forces.square().sum() + found.stress.square().sum()
    loss.backward()
    gradients = {name: weight.grad.double() for name, weight in model.named_parameters()}
    return found, gradients


@pytest.mark.parametrize("name", OTHERS)
def test_compiled_passes_equal_plain_operations(name, monkeypatch):
    batch, model = batch_of(everything()), seeded(**OTHERS[name])
    ours, our_gradients = training_step(model, batch)
    monkeypatch.setattr(passes, "by_passes", lambda values: False)
    plain, gradients = training_step(model, batch)
    for term in ("atom_energies", "forces", "stress"):
        torch.testing.assert_close(getattr(ours, term), getattr(plain, term), rtol=0, atol=1e-11)
    for weight, gradient in gradients.items():
        torch.testing.assert_close(our_gradients[weight], gradient, rtol=1e-9, atol=1e-10)


def test_threads_share_a_pass(monkeypatch):
    batch, model = batch_of(everything()), seeded()
    one, gradients = training_step(model, batch)
    monkeypatch.setattr(passes, "WORTH_A_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    several, others = training_step(model, batch)
    torch.testing.assert_close(several.forces, one.forces, rtol=0, atol=1e-12)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-9, atol=1e-10)


def test_a_convolution_has_the_derivatives_of_finite_differences(way):
    batch = batch_of([crystal(), molecule(atoms=3)])
    edges, atoms = passes.Edges.of(batch), len(batch.numbers)
    source = Layout.of([(EVEN_SCALAR, 2), (Irrep(1, 1), 2)])
    degrees = [Irrep(degree, 1) for degree in range(3)]
    convolution = network.Convolution(Paths.of(source, degrees, degrees))
    torch.manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    pairs = len(edges.src)
    given = [random(atoms, source.size), random(pairs, 9), random(pairs, convolution.paths.filters)]

    def summed(*inputs):
        return convolution(*inputs, edges)

    assert torch.autograd.gradcheck(summed, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(summed, given, fast_mode=True)


def test_training_on_forces_has_the_gradient_of_finite_differences(way):
    """Second derivatives: by a random direction in the space of all weights."""
    batch, model = batch_of([molecule(atoms=4), crystal(), lone_atom()]), seeded()
    weights = list(model.parameters())

    def loss():
        found = evaluate_potential(model, batch, stress=True, create_graph=True)
        terms = found.energy, found.forces, found.stress
        return sum((term - 0.1).square().sum() for term in terms)

    gradients = torch.autograd.grad(loss(), weights)
    torch.manual_seed(0)
    direction = [torch.randn_like(weight) for weight in weights]
    expected = sum((a * b).sum() for a, b in zip(gradients, direction, strict=True))
    step, ends = 1e-5, []
    for sign in (1.0, -2.0):
        with torch.no_grad():
            for weight, way_to_go in zip(weights, direction, strict=True):
                weight.add_(way_to_go, alpha=sign * step)
        ends.append(loss().detach())
    found = (ends[0] - ends[1]) / (2.0 * step)
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(
    "structures",
    [
        pytest.param([lone_atom()], id="no edges at all"),
        pytest.param([wire()], id="one atom and its images"),
        pytest.param(everything(), id="everything together"),
        pytest.param([structure([6, 8], [[0, 0, 0], [0, 0, 0]])], id="two atoms in one place"),
    ],
)
def test_force_training_gives_finite_numbers_and_every_gradient(structures, bf16, way):
    """Data-parallel training waits for each gradient."""
    model = seeded(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        found, gradients = training_step(model, batch_of(structures, torch.float32))
    assert found.energy.dtype == found.forces.dtype == torch.float32
    for values in (found.energy, found.forces, found.stress, *gradients.values()):
        assert torch.isfinite(values).all()


def test_forward_is_one_graph_that_never_waits_for_the_device():
    """The compiler stops where a value is asked for; the whole must pass through it."""
    model = seeded(layers=2)
    batch = batch_of([crystal(), lone_atom()])
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    found, true = evaluate_potential(compiled, batch), evaluate_potential(model, batch)
    torch.testing.assert_close(found.energy, true.energy, rtol=0, atol=1e-11)
    torch.testing.assert_close(found.forces, true.forces, rtol=0, atol=1e-11)


def test_all_elements_are_known():
    everyone = [lone_atom(number) for number in range(1, 119)]
    assert len(torch.unique(evaluated(seeded(), everyone).energy)) == 118


@pytest.mark.parametrize("lower", [torch.bfloat16, torch.float32])
def test_lower_precision_stays_near_double(lower):
    model, batch = seeded(), batch_of(everything())
    exact = evaluate_potential(model, batch)
    model.float()
    single = batch_of(everything(), torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=lower == torch.bfloat16):
        found = evaluate_potential(model, single)
    scale = exact.forces.abs().max()
    bound = 0.05 if lower == torch.bfloat16 else 1e-5
    assert (found.forces.double() - exact.forces).abs().max() < bound * scale


def test_more_than_one_output_and_a_late_switch_are_refused():
    with pytest.raises(AtomloomError, match="one number per atom"):
        build_model(config(), 2)
    with pytest.raises(ValueError, match="not below the cutoff"):
        config(envelope="xplor", envelope_start=CUTOFF)
